"""Who may import whom (DESIGN.md, "Rooms"): no torch on the reading side, no screen in core, no streamlit in
figures.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

LIBRARY = ROOT / "core" / "initscope"
SCREEN = ROOT / "dashboard" / "initscope_dashboard"
TORCHLESS = sorted(
    str(path.relative_to(ROOT))
    for path in (
        *(
            LIBRARY / f"{name}.py"
            for name in (
                "__init__",
                "__main__",
                "api",
                "schema",
                "errors",
                "outcome",
                "permission",
                "wording",
            )
        ),
        *(LIBRARY / f"training/{name}.py" for name in ("__init__", "worker", "run_log", "loading")),
        *(
            path
            for room in ("config", "store", "diagnosis", "comparison", "resources", "scheduling", "commands")
            for path in (LIBRARY / room).rglob("*.py")
        ),
    )
)
"""Modules that the dashboard's process loads: torch costs it 1.3 to 2 s and 200 MB."""


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imported(path: Path, everywhere: bool) -> Iterator[str]:
    """Full names of the modules that a file imports; ``everywhere``: inside functions too, else when it is
    loaded.
    """

    def visit(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                package = path.relative_to(ROOT).parent.parts[1:]
                start = ".".join(package[: len(package) - child.level + 1]) + "." if child.level else ""
                module = (start + (child.module or "")).rstrip(".")
                yield module
                yield from (f"{module}.{alias.name}" for alias in child.names)
            elif isinstance(child, ast.If) and ast.unparse(child.test) in (
                "TYPE_CHECKING",
                "typing.TYPE_CHECKING",
            ):
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


# From the top: an arrow may only go down. Rooms on one line do not know each other.
LIBRARY_FLOORS = (
    ("__main__", "api"),
    ("commands", "examples"),
    ("scheduling",),
    ("training", "integrations"),
    ("resources",),
    ("comparison", "checking"),
    ("diagnosis",),
    ("theory",),
    ("recording",),
    ("store",),
    ("networks", "data"),
    ("moments",),
    ("config",),
    ("permission", "outcome"),
    ("errors", "schema", "wording", "installation", "torch_internals", "__init__"),
)
SCREEN_FLOORS = (
    ("serve", "report"),
    ("main",),
    ("screens",),
    ("widgets",),
    ("loaders",),
    ("server",),
    ("live",),
    ("figures",),
    ("content",),
    ("browser", "__init__"),
)


def arrows(package: Path) -> set[tuple[str, str]]:
    """(room, room) for every import between rooms of a package, inside functions too."""
    found = set()
    for path in package.rglob("*.py"):
        here = path.relative_to(package).with_suffix("").parts[0]
        for name in imported(path, everywhere=True):
            parts = name.split(".")
            if (
                parts[0] == package.name
                and len(parts) > 1
                and room_exists(package, parts[1])
                and parts[1] != here
            ):
                found.add((here, parts[1]))
    return found


def room_exists(package: Path, name: str) -> bool:
    return (package / name).is_dir() or (package / f"{name}.py").is_file()


@pytest.mark.parametrize(
    ("package", "floors"), [(LIBRARY, LIBRARY_FLOORS), (SCREEN, SCREEN_FLOORS)], ids=["library", "screen"]
)
def test_arrows_between_rooms_only_go_down(package, floors):
    """With no arrow up and none between neighbours there is no circle either."""
    floor = {room: number for number, rooms in enumerate(floors) for room in rooms}
    rooms = {
        path.stem
        for path in package.iterdir()
        if (path.is_dir() and any(path.rglob("*.py"))) or path.suffix == ".py"
    } - {"__pycache__"}
    assert rooms <= set(floor), f"rooms without a floor: {sorted(rooms - set(floor))}"
    up = sorted(f"{a} -> {b}" for a, b in arrows(package) if floor[a] >= floor[b])
    assert not up, up
    assert arrows(package), "this test must see arrows"


def test_no_circle_inside_a_room():
    """Modules of one room, by what they import when they are loaded."""
    for package in (LIBRARY, SCREEN):
        graph = {}
        for path in package.rglob("*.py"):
            own = ".".join((package.name, *path.relative_to(package).with_suffix("").parts)).removesuffix(
                ".__init__"
            )
            graph[own] = set(imported(path, everywhere=False))
        graph = {
            module: {name for name in names if name in graph and name != module}
            for module, names in graph.items()
        }
        packages = {module for module in graph if any(other.startswith(module + ".") for other in graph)}
        left = {module: {name for name in names if name not in packages} for module, names in graph.items()}
        while free := {module for module, names in left.items() if not names & set(left)}:
            left = {module: names for module, names in left.items() if module not in free}
        assert not left, {module: sorted(names & set(left)) for module, names in left.items()}


def test_the_library_knows_no_screen():
    assert not offenders(files("core"), ("streamlit", "plotly", "initscope_dashboard"))


def test_the_dashboard_never_loads_torch():
    assert not offenders(files("dashboard"), ("torch", "torchvision", "torchinfo"))


def test_figures_and_content_know_no_streamlit():
    assert not offenders(
        [*files("dashboard/initscope_dashboard/figures"), *files("dashboard/initscope_dashboard/content")],
        ("streamlit",),
    )


def test_the_reading_side_names_no_torch():
    assert not offenders([ROOT / name for name in TORCHLESS], ("torch", "torchvision"), everywhere=False)


def test_theory_is_plain_numbers():
    assert not offenders(files("core/initscope/theory"), ("torch.optim",))


def test_the_store_is_the_only_reader_and_writer_of_tables():
    """No other room of the library opens parquet files."""
    others = [path for path in files("core") if "store" not in path.parts]
    assert not offenders(others, ("pyarrow.parquet",))


def loads_torch(modules: list[str]) -> subprocess.CompletedProcess:
    code = (
        f"import sys\nfor name in {modules!r}: __import__(name)\nprint([n for n in ('torch', 'streamlit', "
        "'plotly') if n in sys.modules])"
    )
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600)


def test_loading_the_reading_side_loads_no_torch():
    modules = [
        name.removeprefix("core/").removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        for name in TORCHLESS
    ]
    done = loads_torch(modules)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stdout + done.stderr


def test_loading_the_dashboard_loads_no_torch():
    """Every module that is not a page by itself: what stands at a module's top decides what the process
    carries.
    """
    names = [
        p for p in files("dashboard") if p.stem not in ("main", "Home", "serve") and "screens" not in p.parts
    ]
    assert names
    done = loads_torch(
        [
            ".".join(path.relative_to(ROOT / "dashboard").with_suffix("").parts).removesuffix(".__init__")
            for path in names
        ]
    )
    assert done.returncode == 0 and "torch" not in done.stdout, done.stdout + done.stderr[-2000:]


@pytest.mark.parametrize("command", ["runs", "compare", "stop", "delete"])
def test_commands_that_read_load_no_torch(command, tmp_path):
    arguments = {"runs": [], "compare": ["a", "b"]}.get(command, ["a"])
    code = (
        "import sys; from initscope.__main__ import main; "
        f"main({[command, *arguments, '--runs', str(tmp_path)]!r}); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


def test_the_parser_of_this_test_sees_what_it_should(tmp_path):
    sample = LIBRARY / "store" / "sample_that_is_never_written.py"
    tree = (
        "import torch\nfrom . import run\nfrom ..networks import vgg\ndef f():\n    import plotly\nclass "
        "A:\n    from torchvision import ops\n"
    )

    class File(type(sample)):  # a path whose text is given
        def read_text(self, **_):
            return tree

    names = set(imported(File(sample), everywhere=False))
    assert {
        "torch",
        "initscope.store.run",
        "initscope.networks.vgg",
        "torchvision.ops",
    } <= names and "plotly" not in names
    assert "plotly" in set(imported(File(sample), everywhere=True))


def test_what_torch_does_not_promise_is_used_in_one_module():
    private = re.compile(
        r"torch\.(_\w+)|\._(version|sequence_nr|execution_engine|compiled_call_impl|get_scale_async|ConvNd)\b"
        r"|_post_accumulate_grad_hooks|from torch\.[\w.]*\._\w+ import|from torch[\w.]* import _"
    )
    allowed = {"torch_internals.py", "loading.py"}  # loading imports torch._dynamo to have it in memory
    found = {
        f"{path.name}: {line.strip()}"
        for path in (ROOT / "core").rglob("*.py")
        if path.name not in allowed
        for line in path.read_text().splitlines()
        if private.search(line.partition("#")[0]) and "self._version" not in line
    }
    assert not found, sorted(found)
