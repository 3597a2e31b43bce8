"""Who may import whom (DESIGN.md, "Rooms"): no torch on the reading side, no screen in core, no streamlit in figures."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

TORCHLESS = sorted(
    {
        *(
            f"core/{name}.py"
            for name in ("__init__", "schema", "config", "option", "catalog", "errors", "outcome", "launcher", "factories/__init__", "factories/code", "factories/pinning", "training/__init__", "training/worker", "training/run_log", "training/loading", "__main__")
        ),
        *(str(path.relative_to(ROOT)) for folder in ("core/store", "core/diagnosis", "core/commands") for path in (ROOT / folder).glob("*.py")),
    }
)
"""Modules that the dashboard's process loads: torch costs it 1.3 to 2 s and 200 MB."""


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imported(path: Path, everywhere: bool) -> Iterator[str]:
    """Full names of the modules that a file imports; ``everywhere``: inside functions too, else when it is loaded."""

    def visit(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                package = path.relative_to(ROOT).parent.parts
                start = ".".join(package[: len(package) - child.level + 1]) + "." if child.level else ""
                module = (start + (child.module or "")).rstrip(".")
                yield module
                yield from (f"{module}.{alias.name}" for alias in child.names)
            elif isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
                continue
            elif everywhere or not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                yield from visit(child)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")))


def offenders(paths: list[Path], forbidden: tuple[str, ...], everywhere: bool = True) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in paths
        for name in imported(path, everywhere)
        if any(name == bad or name.startswith(bad + ".") for bad in forbidden)
    ]


def test_core_knows_no_screen():
    assert not offenders(files("core"), ("streamlit", "plotly", "dashboard"))


def test_the_dashboard_never_loads_torch():
    assert not offenders(files("dashboard"), ("torch", "torchvision", "torchinfo"))


def test_figures_know_no_streamlit():
    paths = files("dashboard/figures")
    assert paths or not (ROOT / "dashboard").exists()
    assert not offenders(paths, ("streamlit", "dashboard.loaders"))


def test_the_reading_side_names_no_torch():
    assert not offenders([ROOT / name for name in TORCHLESS], ("torch", "torchvision"), everywhere=False)


def test_theory_is_plain_numbers():
    assert not offenders(files("core/theory"), ("torch.optim", "core.training", "core.store"))


def test_the_store_is_the_only_reader_and_writer_of_tables():
    """No other module of core opens parquet files."""
    others = [path for path in files("core") if "store" not in path.parts]
    assert not offenders(others, ("pyarrow.parquet",))


def test_modules_that_write_are_not_imported_by_those_that_read():
    reading = [*files("core/store"), *files("core/diagnosis"), ROOT / "core/outcome.py", ROOT / "core/schema.py"]
    writing = tuple(
        f"core.{name}" for name in ("training", "recorder", "meter", "models", "inits", "data", "datasets", "launcher", "probe")
    )
    assert not offenders(reading, writing)


def loads_torch(modules: list[str]) -> subprocess.CompletedProcess:
    code = f"import sys\nfor name in {modules!r}: __import__(name)\nprint([n for n in ('torch', 'streamlit', 'plotly') if n in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600)


def test_loading_the_reading_side_loads_no_torch():
    modules = [name.removesuffix(".py").replace("/", ".").removesuffix(".__init__") for name in TORCHLESS]
    done = loads_torch(modules)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stdout + done.stderr


def test_loading_the_dashboard_loads_no_torch():
    """Every module that is not a page by itself: what stands at a module's top decides what the process carries."""
    names = [
        p
        for p in files("dashboard")
        if "main" not in p.stem.lower() and p.stem != "Home" and "screens" not in p.parts and "pages" not in p.parts
    ]
    if not names:
        pytest.skip("no dashboard here")
    done = loads_torch([".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in names])
    assert done.returncode == 0 and "torch" not in done.stdout, done.stdout + done.stderr[-2000:]


@pytest.mark.parametrize("command", ["runs", "compare", "stop", "delete"])
def test_commands_that_read_load_no_torch(command, tmp_path):
    arguments = {"runs": [], "compare": ["a", "b"]}.get(command, ["a"])
    code = f"import sys; from core.__main__ import main; main({[command, *arguments, '--runs', str(tmp_path)]!r}); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


def test_the_parser_of_this_test_sees_what_it_should(tmp_path):
    sample = ROOT / "core" / "store" / "sample_that_is_never_written.py"
    tree = "import torch\nfrom . import run\nfrom ..models import vgg\ndef f():\n    import plotly\nclass A:\n    from torchvision import ops\n"

    class File(type(sample)):  # a path whose text is given
        def read_text(self, **_):
            return tree

    names = set(imported(File(sample), everywhere=False))
    assert {"torch", "core.store.run", "core.models.vgg", "torchvision.ops"} <= names and "plotly" not in names
    assert "plotly" in set(imported(File(sample), everywhere=True))
