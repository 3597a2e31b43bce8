"""What the project is made of: pinned, listed with its licence, and nothing that may not be passed on."""

from __future__ import annotations

import re

import pytest

from tests import supply

PERMISSIVE = re.compile(
    r"MIT|BSD|Apache|0BSD|Zlib|CC0|PSF|Python Software Foundation|ISC|BSL-1.0|MIT-CMU|CNRI|MPL|Mozilla",
    re.IGNORECASE,
)
CUDA = re.compile(r"nvidia-|cuda-")
"""Libraries that torch's Linux wheel brings along: NVIDIA's own terms, free to use, and idle without such a
GPU.
"""


@pytest.mark.parametrize("file", ["requirements.txt", "tests/requirements.txt"])
def test_every_requirement_is_pinned(file):
    lines = [
        line
        for line in (supply.ROOT / file).read_text(encoding="utf-8").splitlines()
        if line and not line.startswith(("#", "-e "))
    ]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+(\[\w+\])?==[0-9][^ ,;]*", line) for line in lines), lines
    known = supply.listed()
    assert [
        name
        for line in lines
        for name in [supply.canonical(re.split(r"\[|==", line)[0])]
        if known[name][0] != line.split("==")[1]
    ] == []


def test_the_list_is_what_is_installed():
    """Version and licence of each package, down to what packages bring along; a machine without CUDA has
    fewer.
    """
    known = supply.listed()
    installed = supply.closure(
        [*supply.asked_for("requirements.txt"), *supply.asked_for("tests/requirements.txt")]
    )
    wrong = {
        name: (package.version, supply.licence(package))
        for name, package in installed.items()
        if known.get(name) != (package.version.partition("+")[0], supply.licence(package))
    }
    assert not wrong, f"python -m tests.supply writes the list anew: {wrong}"


def test_every_licence_lets_the_project_be_passed_on():
    open_questions = {
        name: terms
        for name, (_, terms) in supply.listed().items()
        if not PERMISSIVE.search(terms) and not CUDA.match(name)
    }
    assert not open_questions
    assert not [name for name, (_, terms) in supply.listed().items() if re.search(r"\bA?GPL", terms)], (
        "none that would ask the same of this project"
    )
