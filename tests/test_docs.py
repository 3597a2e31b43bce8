"""README and guide say what the program does: commands, initializations, pages, words and recipes, checked
one by one.
"""

from __future__ import annotations

import pkgutil
import re
import shlex
from pathlib import Path

import pytest

from initscope.commands.parser import build_parser
from initscope.commands.reference import reference
from initscope.config import PRESETS, catalog
from initscope.schema import Cause, Outcome, Verdict

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = ROOT / "dashboard/initscope_dashboard/guide"
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted((GUIDE / "en").glob("*.md"))}
LINES = [
    line.split("  #")[0].strip()
    for text in (README, *PAGES.values())
    for line in re.findall(r"^    initscope (.+)$", text, re.MULTILINE)
]
FLAGS = [
    part
    for text in (README, *PAGES.values())
    for part in re.findall(r"`initscope ([^`]+)`", text)
    if " " in part
]


def test_readme_is_short():
    assert len(README.encode()) <= 10_240


@pytest.mark.parametrize("line", LINES)
def test_every_command_that_is_shown_parses_and_is_there(line):
    assert callable(pkgutil.resolve_name(build_parser().parse_args(shlex.split(line)).command))


@pytest.mark.parametrize("line", [line for line in FLAGS if "COMMAND" not in line and "|" not in line])
def test_every_command_inside_a_sentence_parses(line):
    assert callable(
        pkgutil.resolve_name(build_parser().parse_args(shlex.split(line.replace(" ...", ""))).command)
    )


def test_the_reference_is_the_parsers():
    assert PAGES["command-line.md"] == reference(), "python -m initscope.commands.reference writes it anew"


def test_every_initialization_is_described_with_its_formula():
    rows = dict(re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", PAGES["initializations.md"], re.MULTILINE))
    assert list(rows) == list(catalog.INITS)
    for name, entry in catalog.INITS.items():
        formula = entry.formula.removesuffix(", zero biases").split(", std ")[0]
        assert name in ("orthogonal", "lsuv", "auto") or formula in rows[name], (name, formula)


@pytest.mark.parametrize("words", [Cause, Outcome, Verdict])
def test_every_word_of_an_answer_is_explained(words):
    missing = [
        word.value
        for word in words
        if not re.search(rf"`?\b{word.value.replace('_', '[_ ]')}\b`?", PAGES["outcomes.md"])
    ]
    assert not missing


def test_every_page_of_the_dashboard_is_named():
    pages = re.findall(
        r'(?:title=|_page\(\s*)"(\w+)"',
        (ROOT / "dashboard/initscope_dashboard/main.py").read_text(encoding="utf-8"),
    )
    table = re.findall(
        r"^\| (\w+) \| .*\|$", README.split("## What the pages answer")[1].split("\n## ")[0], re.MULTILINE
    )
    assert pages == [name for name in table if name != "page"]


def test_every_preset_and_data_set_is_in_the_reference():
    for name in (*PRESETS, *catalog.MODELS):
        assert name in PAGES["command-line.md"], name
    for name in catalog.DATA:
        assert name in "".join(PAGES.values()), name


def test_every_picture_and_page_that_is_linked_is_there():
    for folder, text in (
        (ROOT, README),
        (ROOT, (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")),
        *((GUIDE / "en", page) for page in PAGES.values()),
    ):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
            assert (folder / target).exists(), target


def test_the_chinese_guide_has_the_same_pages():
    chinese = {path.name for path in (GUIDE / "zh").glob("*.md")}
    assert chinese == set(PAGES) - {"command-line.md"}, "every page but the generated reference"
    for name in chinese:
        text = (GUIDE / "zh" / name).read_text(encoding="utf-8")
        assert re.findall(r"^#+ ", text, re.MULTILINE) == re.findall(r"^#+ ", PAGES[name], re.MULTILINE), (
            f"{name}: another outline"
        )
        assert re.findall(r"^    initscope .*?(?=  #|$)", text, re.MULTILINE) == re.findall(
            r"^    initscope .*?(?=  #|$)", PAGES[name], re.MULTILINE
        ), name


def test_the_recipes_for_other_tools_run(trained, tiny, runs, monkeypatch):
    """The guide's DuckDB and pandas lines, executed as they stand against two real runs."""
    made = [trained(tiny(init=init, max_steps=6)) for init in ("default", "kaiming_normal")]
    [code] = re.findall(r"```python\n(.*?)```", PAGES["query.md"], re.DOTALL)
    monkeypatch.chdir(runs.root.parent)  # runs/ is beside it
    found: dict = {}
    exec(code.replace("RUN", made[0].id), found)
    assert sorted(found["rates"]["init"]) == ["default", "kaiming_normal"] and set(
        found["rates"]["runs"]
    ) == {1}
    last = made[0].read("layers").to_pandas().query("step == 5")
    assert found["worst"]["layer"].iloc[0] == last.loc[last["grad_rms"].idxmin(), "layer"]
    assert (
        set(found["slowest"]["run"]) == {run.id for run in made}
        and (found["slowest"]["ms_per_step"] > 0).all()
    )


def test_the_two_lines_of_the_readme_run(tmp_path, monkeypatch):
    """README's loop as it stands, in a folder of its own."""
    import torch

    from initscope import Recorder, runs

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("INITSCOPE_RUNS")
    torch.manual_seed(0)
    code = README.split("```python\n")[1].split("```")[0]
    model = torch.nn.Linear(4, 2)
    given = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), 0.1),
        "loss_fn": torch.nn.functional.cross_entropy,
        "loader": [(torch.randn(8, 4), torch.randint(2, (8,))) for _ in range(3)],
    }
    exec(code, given)
    assert given["Recorder"] is Recorder
    [info] = runs(tmp_path / "runs").list()
    assert info.config["name"] == "my net" and info.status == "finished" and info.state["step"] == 3


@pytest.mark.parametrize(
    "room",
    [
        path
        for package in ("core/initscope", "dashboard/initscope_dashboard")
        for path in sorted((ROOT / package).iterdir())
        if path.is_dir() and not path.name.startswith((".", "_"))
    ],
    ids=lambda path: path.name,
)
def test_every_room_says_what_it_is_for(room):
    text = (room / "README.md").read_text(encoding="utf-8")
    assert 300 <= len(text.encode()) <= 3000, f"{room.name}/README.md has {len(text.encode())} bytes"
