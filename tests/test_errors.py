"""Every error is in one tree, is really said as its example says it, and tells what was wrong, where and what
to do.
"""

from __future__ import annotations

import ast
import inspect
import re
import resource
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from initscope import errors
from initscope.commands.training import train_here
from initscope.config.run_config import RunConfig, quick
from initscope.errors import InitScopeError
from initscope.scheduling import engine, launcher
from initscope.store.parts import MAX_LAYERS, SCHEMAS

ROOT = Path(__file__).resolve().parents[1]
TREE = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, InitScopeError) and kind is not InitScopeError
]


# -- one place


def modules() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted([*(ROOT / "core").rglob("*.py"), *(ROOT / "dashboard").rglob("*.py")]):
        yield path.relative_to(ROOT), ast.parse(path.read_text(encoding="utf-8"))


def test_all_are_in_one_file() -> None:
    names = {kind.__name__ for kind in TREE}
    elsewhere = [
        f"{path}: {node.name}"
        for path, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and path != Path("core/initscope/errors.py")
        and names & {ast.unparse(base).rsplit(".", 1)[-1] for base in node.bases}
    ]
    assert elsewhere == []


INNER = {
    ("core/initscope/networks/vgg.py", "ValueError"),
    (
        "core/initscope/networks/resnet.py",
        "ValueError",
    ),  # a program that names a network itself; a config has checked it
    ("core/initscope/integrations/lightning.py", "ImportError"),
    ("core/initscope/integrations/huggingface.py", "ImportError"),  # what to install, as Python says it
    ("core/initscope/store/parts.py", "FileNotFoundError"),
    ("core/initscope/store/parts.py", "OSError"),
    ("core/initscope/store/parts.py", "KeyError"),
    ("core/initscope/store/parts.py", "ValueError"),  # RunFolderError by Run._retrying
    ("core/initscope/store/validation.py", "Wrong"),
    ("core/initscope/store/files.py", "OSError"),  # RunFolderError by Run
    ("core/initscope/store/query_process.py", "FileNotFoundError"),  # looked at again by query
    ("core/initscope/store/origin.py", "OSError"),  # RunFolderError by the same file
    ("core/initscope/recording/apart.py", "Communicates"),
    ("core/initscope/recording/quantities/of_weights.py", "NotImplementedError"),
    ("core/initscope/recording/quantities/of_outputs.py", "NotImplementedError"),  # of the base alone
    ("core/initscope/store/bucket/folder.py", "Conflict"),
    ("core/initscope/store/bucket/remote.py", "Conflict"),  # RunStateError by Shared
    ("core/initscope/networks/inits.py", "_Reached"),  # ends a forward pass
    ("dashboard/initscope_dashboard/live/event_stream.py", "ValueError"),  # status 400
    ("core/initscope/commands/given.py", "OSError"),  # ConfigError by the same file
    ("core/initscope/data/idx.py", "ValueError"),  # DataUnavailable by datasets
    ("core/initscope/__init__.py", "AttributeError"),  # no such public name, as Python says it
}
"""Whatever else is raised, and who turns it into one of ours before anybody sees it."""


def test_whatever_else_is_raised_is_turned_into_one_of_ours() -> None:
    names = {kind.__name__ for kind in TREE}
    found = set()
    for path, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and node.exc is not None:
                for raised in (
                    (node.exc.body, node.exc.orelse) if isinstance(node.exc, ast.IfExp) else (node.exc,)
                ):
                    kind = ast.unparse(raised.func if isinstance(raised, ast.Call) else raised).rsplit(
                        ".", 1
                    )[-1]
                    if kind.lstrip("_")[
                        :1
                    ].isupper():  # not a variable, nor a function that makes one of ours
                        found.add((str(path), kind))
    assert {(path, kind) for path, kind in found if kind not in names} == INNER


# -- each as its example


def example(kind: type[InitScopeError]) -> str:
    paragraphs = [" ".join(part.split()) for part in inspect.getdoc(kind).split("\n\n")]
    [said] = [part[1:-1] for part in paragraphs if part.startswith('"') and part.endswith('"')]
    return said


def make(kind: type[InitScopeError], runs, tiny, tmp_path, monkeypatch) -> None:
    """Bring the error about as a person would."""
    finished = runs.create(quick(), "finished", run_id="a-run") if kind is not errors.RunNotFound else None
    nets = tmp_path / "mine.py"
    nets.write_text("def deep():\n    raise ValueError('too deep')\n")
    if kind is errors.ConfigError:
        RunConfig(init="kaimng_normal")
    elif kind is errors.DataUnavailable:
        from initscope.data.loading import load

        load(quick().replace(data="image_folder:/nowhere"))
    elif kind is errors.RunNotFound:
        runs.get("nobody")
    elif kind is errors.NotAllowed:
        monkeypatch.setenv("INITSCOPE_READ_ONLY", "1")
        launcher.submit(runs, [quick()])
    elif kind is errors.LimitExceeded:
        monkeypatch.setenv("INITSCOPE_MAX_EPOCHS", "8")
        launcher.submit(runs, [quick().replace(epochs=9)])
    elif kind is errors.EngineTrouble:
        engine.engine("ray", "127.0.0.1:1").open()
    elif kind is errors.RunStateError:
        launcher.resume(runs, finished)
    elif kind is errors.RunFolderError:
        (finished.path / "status.json").write_text("{")
        finished.state()
    elif kind is errors.RunTooLarge:
        names = pa.array([f"layer {i}" for i in range(MAX_LAYERS + 1)])
        columns = {f.name: pa.nulls(len(names), f.type) for f in SCHEMAS["layers"]}
        columns["step"] = pa.array([1] * len(names), pa.int64())
        columns["layer"] = names.dictionary_encode()
        pq.write_table(pa.table(columns).cast(SCHEMAS["layers"]), finished.path / "layers.parquet")
        finished.read("layers")
    elif kind is errors.QueryError:
        from initscope.store.query import query

        query(runs, "SELECT count(*) FROM range(100000) a, range(100000) b, range(100000) c", seconds=0.05)
    elif kind is errors.RecordingError:
        import torch

        from initscope.recording.recorder import Recorder

        Recorder(torch.nn.Linear(2, 2), runs=runs.root).step(1.0)
    elif kind is errors.Stopped:
        import torch

        from initscope.recording.recorder import Recorder

        model = torch.nn.Linear(2, 2)
        with Recorder(model, runs=runs.root, raise_on_stop=True) as recorder:
            recorder.run.request_stop()
            model(torch.ones(1, 2)).sum().backward()
            recorder.step(1.0)
    elif kind is errors.TheoryUnavailable:
        from initscope.theory import weight_std

        weight_std("lsuv", 3, 3, linear=False, longest=3, torch_fan_in=3)
    elif kind is errors.TrainingFailed:
        finished.delete()
        run = runs.create(tiny(), run_id="a-run")
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(
            resource.RLIMIT_FSIZE, (50_000, before[1])
        )  # a disk that takes no file as large as a checkpoint
        try:
            train_here(run)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    elif kind is errors.FactoryFailed:
        from initscope.config import factory
        from initscope.config.pinning import pin

        with factory.trusted():
            config = pin(quick().replace(model=f"{nets}:deep"))
            from initscope.networks import build

            build(config, in_channels=1, num_classes=10)


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_each_says_what_its_example_says(kind, runs, tiny, tmp_path, monkeypatch) -> None:
    with pytest.raises(kind) as raised:
        make(kind, runs, tiny, tmp_path, monkeypatch)
    said = str(raised.value).replace(f"{runs.root}/", "").replace(str(runs.root), "runs")
    assert "\n" not in said and kind.exit_status == (1 if kind.__name__.endswith("Failed") else 2)
    shown = example(kind)
    assert said == shown or (shown.endswith("…") and said.startswith(shown[:-1])), said


# -- all the others, read from the source

ADVICE = re.compile(
    r"; |\. [A-Z]|expected|must be|must have|must return|must hold|needs? |has between|at least|at "
    r"most|once, not|available|\(see |\(traceback|: pip install|"
    r"it has |there are |such as |, not |choose_from|not_taken|lists them|only \{"
)
"""Words that say what to do, what was expected, or what there is."""
PASSED_ON = {
    "core/initscope/comparison/compare.py",
    "core/initscope/diagnosis/diagnose.py",  # the sentence of the file that could not be read
    "core/initscope/theory/layers.py",
    "core/initscope/theory/networks.py",  # what theory knows; nothing is to be done
    "core/initscope/config/factory_code.py",
    "core/initscope/config/pinning.py",  # somebody's own exception, or where their file ends being Python
}


REASONS = (
    "cannot {what} {one_line(self.url)}: {why}",
    "no report was written: {",
    "<told>",
    "<reason(error)>",
    "{self.name}: {problem}",
)
"""The beginning of a message whose other half is another error's, or a check's own."""


def words(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(
            words(value) if isinstance(value, ast.Constant) else f"{{{ast.unparse(value.value)}}}"
            for value in node.values
        )
    return f"<{ast.unparse(node)}>"


def messages() -> Iterator[tuple[str, str]]:
    """(place, text) of every error of ours that is made in the source."""
    names = {kind.__name__ for kind in TREE}
    for path, tree in modules():
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and ast.unparse(node.func).rsplit(".", 1)[-1] in names
                and node.args
            ):
                yield f"{path}:{node.lineno}", words(node.args[0])


def test_every_message_names_what_was_wrong_and_what_to_do() -> None:
    found = list(messages())
    assert len(found) > 100, "this test must see them"
    silent = [
        f"{place}: {text}"
        for place, text in found
        if not ADVICE.search(text)
        and not text.startswith(REASONS)
        and place.rsplit(":", 1)[0] not in PASSED_ON
    ]
    assert not silent, "\n".join(silent)
    assert [
        place
        for place, text in found
        if text.endswith((".", "!"))
        or (text[:1].isupper() and not text.startswith(("INITSCOPE", "TensorBoard", "Ray", "<")))
    ] == []
