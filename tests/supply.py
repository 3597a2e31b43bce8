"""Every package that the product and its tests need, with its version and licence: writes and reads
`tests/constraints.txt`.

    python -m tests.supply          writes the file anew, from what is installed

pip reads the same file as constraints, so that what nobody asked for by name has a fixed version too.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "tests/constraints.txt"
HEAD = """# Every package, also those that packages bring along: version and licence. pip reads it as constraints (see Makefile).
# Written by `python -m tests.supply`; tests/test_supply.py compares it with what is installed.
"""  # noqa: E501


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def asked_for(file: str) -> list[str]:
    """The packages that a requirements file names, each pinned."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    return [
        canonical(re.split(r"\[|==", line)[0].strip())
        for line in lines
        if line and not line.startswith(("#", "-e "))
    ]


def closure(names: Iterable[str]) -> dict[str, importlib.metadata.Distribution]:
    """Those packages and all they need on this machine, by canonical name."""
    found: dict[str, importlib.metadata.Distribution] = {}
    todo = [Requirement(name) for name in names]
    seen = set()
    while todo:
        wanted = todo.pop()
        for extra in ("", *sorted(wanted.extras)):
            if (key := (canonical(wanted.name), extra)) in seen:
                continue
            seen.add(key)
            found[key[0]] = importlib.metadata.distribution(wanted.name)
            needs = [Requirement(text) for text in found[key[0]].requires or ()]
            todo += [need for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})]
    return dict(sorted(found.items()))


def licence(package: importlib.metadata.Distribution) -> str:
    """As the package states it: the SPDX expression, else its classifier, else the first line of its text."""
    about = package.metadata
    classifiers = [
        text.rsplit(" :: ", 1)[1]
        for text in about.get_all("Classifier") or ()
        if text.startswith("License :: ")
    ]
    stated = (
        about.get("License-Expression")
        or ", ".join(classifiers)
        or (about.get("License") or "").strip().partition("\n")[0]
    )
    return stated or "not stated"


def listed() -> dict[str, tuple[str, str]]:
    """{name: (version, licence)} as the file says."""
    rows = re.findall(r"^(\S+)==(\S+)\s+# (.+)$", FILE.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: (version, terms) for name, version, terms in rows}


def main() -> None:
    parts = []
    product = closure(asked_for("requirements.txt"))
    tests = closure(asked_for("tests/requirements.txt"))
    for title, packages in (
        ("the product", product),
        ("only the tests", {name: found for name, found in tests.items() if name not in product}),
    ):
        rows = [
            f"{f'{name}=={package.version}':36} # {licence(package)}" for name, package in packages.items()
        ]
        parts.append(f"\n# {title}: {len(rows)} packages\n" + "\n".join(rows) + "\n")
    FILE.write_text(HEAD + "".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
