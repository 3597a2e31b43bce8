"""The README cannot rot: every initialization, command, page, preset and figure it shows exists, and the other way round."""

from __future__ import annotations

import pkgutil
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from initscope.commands.parser import build_parser
from initscope.config import catalog
from initscope.config.run_config import PRESETS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    initscope (.+)$", README, re.MULTILINE)


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_parses_and_is_there(line: str) -> None:
    assert callable(pkgutil.resolve_name(build_parser().parse_args(shlex.split(line)).command))


def test_every_command_is_shown() -> None:
    [action] = [action for action in build_parser()._actions if action.choices and "train" in action.choices]
    assert {shlex.split(line)[0] for line in COMMANDS} == set(action.choices)


def test_every_initialization_is_described() -> None:
    section = README.split("## Initializations")[1].split("\n## ")[0]
    assert re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE) == sorted(
        catalog.INITS, key=lambda name: re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE).index(name)
    )
    for name, entry in catalog.INITS.items():
        row = next(line for line in section.splitlines() if line.startswith(f"| `{name}`"))
        formula = entry.formula.removesuffix(", zero biases").split(";")[0].split(",")[-1].strip()
        assert name == "lsuv" or formula.split(" std ")[0] in row or name in ("default", "orthogonal"), (name, formula, row)


def test_every_page_preset_and_data_set_is_named() -> None:
    pages = re.findall(r', title="(\w+)"', (ROOT / "dashboard/initscope_dashboard/main.py").read_text(encoding="utf-8"))
    table = re.findall(r"^\| (\w+) \| .*\|$", README.split("## What you will see")[1].split("\n## ")[0], re.MULTILINE)
    assert set(pages) == set(table) - {"page"}
    for name in (*PRESETS, *catalog.DATA):
        assert f"`{name}`" in README, name


def test_the_tree_is_the_tree() -> None:
    """Every file in the README's tree exists, and every module of the product is in it."""
    tree = README.split("## The house")[1].split("\n## ")[0]
    named = set(re.findall(r"^    (\S+\.(?:py|js|css|toml|sh|md))\s", tree, re.MULTILINE))
    assert named, "the tree names files by their path"
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing, missing
    tracked = subprocess.run(["git", "ls-files", "core", "dashboard"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    modules = {name for name in tracked if name.endswith((".py", ".js", ".css")) and not name.endswith("__init__.py")}
    assert modules <= named, sorted(modules - named)


def test_every_picture_is_there() -> None:
    for picture in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README):
        assert (ROOT / picture).exists(), picture


def test_the_recipes_for_other_tools_run(trained, tiny, runs, monkeypatch) -> None:
    """The README's DuckDB and pandas lines, executed as they stand against two real runs."""
    made = [trained(tiny(init=init, max_steps=6)) for init in ("default", "kaiming_normal")]
    section = README.split("Straight from the files")[1].split("\n## ")[0]
    code = "\n".join(line[4:] for line in section.splitlines()[1:] if line.startswith("    ") or not line)
    monkeypatch.chdir(runs.root.parent)  # as from the project's own folder: runs/ is beside it
    found: dict = {}
    exec(code.replace("RUN", made[0].id), found)
    assert sorted(found["rates"]["init"]) == ["default", "kaiming_normal"] and set(found["rates"]["runs"]) == {1}
    last = made[0].read("layers").to_pandas().query("step == 5")
    assert found["worst"]["layer"].iloc[0] == last.loc[last["grad_rms"].idxmin(), "layer"]
    assert set(found["slowest"]["run"]) == {run.id for run in made} and (found["slowest"]["ms_per_step"] > 0).all()
