"""Networks and data sets from somebody's own files: what is passed, what is refused, and who may name which
file.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from initscope import networks
from initscope.__main__ import main
from initscope.comparison.sweep import parse_axis
from initscope.config import factory
from initscope.config.pinning import pin
from initscope.config.run_config import RunConfig, changed_fields
from initscope.data import loading
from initscope.errors import ConfigError, FactoryFailed
from initscope.scheduling.launcher import check_resumable, resume

pytestmark = pytest.mark.timeout(900)

NETS = """
import torch
from torch import nn
from functools import partial
from beside import HIDDEN

SEEN = {}

def small(num_classes, in_channels, image_size=0, input_shape=None, *, dropout=0.0, other=7):
    SEEN.update(locals())
    return nn.Sequential(nn.Conv2d(in_channels, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(HIDDEN), nn.Linear(HIDDEN, num_classes))

class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.answer = nn.Linear(64, num_classes)

    def forward(self, x):
        return self.answer(x.flatten(1))

class Tuple(Net):
    def forward(self, x):
        return super().forward(x), None

def raises():
    deeper()

def deeper():
    raise ValueError("no such\\nthing")

def cannot_forward():
    return nn.Sequential(nn.Flatten(), nn.Linear(7, 10))

def leaves():
    raise SystemExit(3)

def wants(depth):
    return Net()

def a_class():
    return Net

def weightless():
    return nn.Sequential(nn.Flatten(), nn.ReLU())

def frozen():
    return Net().requires_grad_(False)

def wide(width, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, round(100 * width)), nn.ReLU(), nn.Linear(round(100 * width), num_classes))

alias = partial(wide)
NUMBER = 3
"""  # noqa: E501

SETS = """
import random
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, TensorDataset

def tensors(n=40, shape=(1, 8, 8), classes=4):
    x, y = torch.rand(n, *shape), torch.arange(n) % classes
    return TensorDataset(x[: n // 2], y[: n // 2]), TensorDataset(x[n // 2 :], y[n // 2 :])

def drawn():
    return [(torch.rand(1, 8, 8) + np.random.rand() + random.random(), i % 2) for i in range(4)], [(torch.rand(1, 8, 8), 0)]

def vectors():
    return tensors(shape=(12,))

def tokens():
    train, validation = tensors(shape=(9,))
    return TensorDataset((train.tensors[0] * 50).long(), train.tensors[1]), validation

class Pictures(Dataset):
    classes = ["a", "b", "c", "d", "e"]

    def __init__(self, modes, sizes, transform=None):
        self.modes, self.sizes, self.transform = modes, sizes, transform

    def __len__(self):
        return 6

    def __getitem__(self, i):
        image = Image.new(self.modes[i % len(self.modes)], self.sizes[i % len(self.sizes)], 128)
        return (self.transform(image) if self.transform else image), torch.tensor([i % 2])

def grey():
    return Pictures(["L", "1"], [(8, 6)]), Pictures(["L"], [(8, 6)])

def mixed():
    return Pictures(["L", "RGB", "RGBA", "P"], [(8, 6), (5, 5)]), Pictures(["RGB"], [(9, 9)])

def transformed():
    from torchvision.transforms import v2
    steps = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)])
    return (Pictures(["RGB"], [(8, 6)], steps),) * 2

def arrays():
    return [(np.full((6, 8, 3), i, np.uint8), np.int64(i)) for i in range(4)], [(np.zeros((6, 8, 3), np.uint8), True)]

def loaders():
    return tuple(DataLoader(part) for part in tensors())

def one():
    return tensors()[0]

def three():
    return tensors() + tensors()

def generator():
    return iter([(1, 2)]), []

def empty():
    return [], tensors()[1]

def shapes():
    return [(torch.zeros(1, 8, 8), 0), (torch.zeros(1, 8, 9), 1)], tensors()[1]

def unlike():
    return tensors()[0], tensors(shape=(3, 8, 8))[1]

def floats():
    x = torch.rand(4, 1, 8, 8)
    return TensorDataset(x, torch.rand(4)), TensorDataset(x, torch.rand(4))

def negative():
    return [(torch.zeros(1, 8, 8), -1)], tensors()[1]

def dicts():
    return [{"image": 1, "label": 0}], tensors()[1]

def words():
    return [("a sentence", 0)], tensors()[1]

def nan():
    return [(torch.full((1, 8, 8), float("nan")), 0)], tensors()[1]

class Breaks(Pictures):
    def __getitem__(self, i):
        return open("/no/such/picture")

def breaks():
    return Breaks(["L"], [(8, 8)]), tensors()[1]
"""  # noqa: E501


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with nets.py and sets.py; files from anywhere are taken."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "nets.py").write_text(NETS)
    (tmp_path / "own" / "sets.py").write_text(SETS)
    (tmp_path / "own" / "beside.py").write_text("HIDDEN = 5\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv(factory.FOLDER, raising=False)
    with factory.trusted():
        yield tmp_path / "own"


def of(own: Path, model: str = "Net", sets: str = "", **changes) -> RunConfig:
    names = {"model": f"{own}/nets.py:{model}"} | ({"data": f"{own}/sets.py:{sets}"} if sets else {})
    return pin(RunConfig(**{"image_size": 8, "threads": 1, **names, **changes}), stated=changes)


def line_of(text: str, source: str) -> int:
    return next(i for i, line in enumerate(source.splitlines(), start=1) if text in line)


# ---------------------------------------------------------------- networks


def test_a_factory_gets_by_name_what_it_asks_for(own):
    config = of(own, "small", dropout=0.25, init_seed=3)
    model = networks.build(config, in_channels=2, num_classes=6, sample=torch.rand(4, 2, 8, 8))
    seen = sys.modules[next(name for name in sys.modules if name.startswith("initscope_nets"))].SEEN
    assert {key: seen[key] for key in ("num_classes", "in_channels", "image_size", "dropout", "other")} == {
        "num_classes": 6,
        "in_channels": 2,
        "image_size": 8,
        "dropout": 0.25,
        "other": 7,
    }
    assert (
        seen["input_shape"] == (2, 8, 8) and model.training and model(torch.rand(3, 2, 8, 8)).shape == (3, 6)
    )
    with torch.random.fork_rng():  # the same seed gives the same weights, lazy layers included
        torch.manual_seed(99)
        again = networks.build(config, in_channels=2, num_classes=6, sample=torch.rand(4, 2, 8, 8))
    assert all(map(torch.equal, model.state_dict().values(), again.state_dict().values()))


def test_default_leaves_the_constructor_and_other_schemes_reach_every_layer(own):
    sample = torch.rand(2, 1, 8, 8)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        untouched = torch.nn.Linear(64, 10)
    default = networks.build(of(own, init_seed=4), in_channels=1, num_classes=10, sample=sample)
    assert torch.equal(default.answer.weight, untouched.weight) and torch.equal(
        default.answer.bias, untouched.bias
    )
    zeros = networks.build(of(own, init="zeros"), in_channels=1, num_classes=10, sample=sample)
    assert not any(p.any() for p in zeros.parameters())


@pytest.mark.parametrize(
    ("name", "error", "why"),
    [
        ("raises", FactoryFailed, f"nets.py:{line_of('raise ValueError', NETS)}: ValueError: no such thing"),
        ("leaves", FactoryFailed, f"nets.py:{line_of('raise SystemExit', NETS)}: SystemExit: 3"),
        ("cannot_forward", FactoryFailed, "nets.py:cannot_forward: RuntimeError: "),
        ("Tuple", ConfigError, "answers with tuple, not with a tensor of logits"),
        ("wants", ConfigError, "nets.py:wants needs depth; it may ask by name for num_classes, in_channels"),
        ("a_class", ConfigError, "must return an nn.Module, not the class Net; return Net()"),
        (
            "weightless",
            ConfigError,
            "nothing to train in the network of nets.py:weightless: it has no layer with weights",
        ),
        (
            "frozen",
            ConfigError,
            "nothing to train in the network of nets.py:frozen: every parameter has requires_grad=False",
        ),
        ("NUMBER", ConfigError, "is int, not a function or class"),
        ("torch", ConfigError, "is module, not a function or class"),
    ],
)
def test_a_network_that_cannot_be_built_says_why_and_where(own, name, error, why):
    with pytest.raises(error) as caught:
        networks.build(of(own, name), in_channels=1, num_classes=10, sample=torch.rand(2, 1, 8, 8))
    assert why in str(caught.value) and "\n" not in str(caught.value)
    assert error is ConfigError or caught.value.__cause__ is not None, "the traceback stays for the log"


def test_a_width_reaches_only_the_factory_that_asks_for_it(own):
    """A preset's width says nothing about a network of one's own; a stated one is refused where it cannot
    reach.
    """
    quick = RunConfig(image_size=8, width=0.25, model=f"{own}/nets.py:Net")
    assert pin(quick).width == 1.0 and pin(quick.replace(model=f"{own}/nets.py:wide")).width == 0.25
    with pytest.raises(
        ConfigError,
        match=r"width 0\.25 cannot reach nets\.py:Net: it takes num_classes; give it an argument named width",
    ):
        pin(quick, stated={"width"})
    dynamic = pin(quick.replace(model=f"{own}/nets.py:alias"), stated={"width"})  # its text does not tell
    assert (
        dynamic.width == 0.25
        and networks.build(dynamic, in_channels=1, num_classes=4, sample=torch.rand(2, 1, 8, 8))[
            1
        ].out_features
        == 25
    )
    with pytest.raises(ConfigError, match=r"dropout 0\.5 cannot reach"):
        networks.build(dynamic.replace(dropout=0.5), in_channels=1, num_classes=4)


@pytest.mark.parametrize(
    ("text", "name", "why"),
    [
        ("def make():\n    return (\n", "make", "broken.py:2: SyntaxError: '(' was never closed"),
        ("def make():\n  x\n y\n", "make", "broken.py:3: IndentationError"),
        ("a\0b", "make", "broken.py"),
        (
            "def make(): ...\ndef _hidden(): ...\n",
            "mkae",
            "unknown factory in broken.py 'mkae'; did you mean \"make\"? available: make",
        ),
        (None, "make", "cannot read"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_before_anything_is_made(own, text, name, why):
    path = own / "broken.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        pin(RunConfig(model=f"{path}:{name}"))
    assert why in str(caught.value) and "\n" not in str(caught.value)


# ---------------------------------------------------------------- data sets


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "classes"),
    [
        ("tensors", (1, 8, 8), torch.float32, 4),
        ("vectors", (12,), torch.float32, 4),
        ("tokens", (9,), None, 4),
        ("grey", (1, 6, 8), torch.uint8, 5),
        ("mixed", (3, 16, 16), torch.uint8, 5),
        ("transformed", (3, 6, 8), torch.float32, 5),
        ("arrays", (3, 6, 8), torch.uint8, 4),
    ],
)
def test_kinds_of_data_sets(own, name, shape, dtype, classes):
    raw = loading.raw(of(own, sets=name, image_size=16))
    assert raw.train.images.shape[1:] == raw.validation.images.shape[1:] == shape and raw.classes == classes
    assert dtype is None or raw.train.images.dtype == dtype
    assert raw.white == (255.0 if raw.train.images.dtype == torch.uint8 else 1.0)
    if name == "tokens":
        assert raw.train.images.dtype == torch.int64


def test_own_data_as_the_model_gets_it(own):
    grey = loading.load(of(own, sets="grey", image_size=16, in_channels=3))
    images, labels = next(grey.epoch(0))
    assert (
        images.shape == (6, 3, 16, 16) and grey.classes == 5 and sorted(labels.tolist()) == [0, 0, 0, 1, 1, 1]
    )
    assert images.max() == pytest.approx(1.0) and images.min() == pytest.approx(128 / 255), (
        "a white bit is white, grey is grey"
    )
    arrays = loading.load(of(own, sets="arrays", image_size=8))
    assert arrays.sample(4)[3, :, 0, 0].tolist() == pytest.approx([3 / 255] * 3)
    as_given = loading.load(of(own, sets="transformed", image_size=8)).sample(1)
    assert as_given[0, 0, 0, 0] == pytest.approx((128 / 255 - 0.5) / 0.5, rel=1e-3), (
        "what the transform made is not scaled again"
    )
    vectors = loading.load(of(own, sets="vectors"))
    assert vectors.channels == 12 and next(vectors.epoch(0))[0].shape == (20, 12)
    first, second = (loading.raw(of(own, sets="drawn", data_seed=seed)) for seed in (0, 1))
    assert torch.equal(first.train.images, second.train.images), (
        "an unseeded factory gives every run the same data"
    )


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (
            "loaders",
            "returned a DataLoader; expected two data sets, (training, validation): batches are made here, "
            "return loader.dataset",
        ),
        ("one", "returned TensorDataset; expected two data sets"),
        ("three", "returned tuple of 4; expected two data sets"),
        ("generator", "which has no length and no items"),
        ("empty", "the training set of sets.py:empty is empty"),
        (
            "shapes",
            "sample 1 of the training set of sets.py:shapes has the shape (1, 8, 9), sample 0 (1, 8, 8)",
        ),
        ("unlike", "training and validation samples differ in shape: (1, 8, 8) and (3, 8, 8)"),
        ("floats", "expected a whole number from 0, its class"),
        ("negative", "has the label -1"),
        ("dicts", "expected (input, label)"),
        ("words", "is str; expected a PIL image, a tensor or an array"),
        ("nan", "holds NaN or infinite values"),
        ("breaks", f"sets.py:{line_of('/no/such/picture', SETS)}: FileNotFoundError"),
    ],
)
def test_a_data_set_that_does_not_fit_says_what_was_expected(own, name, why):
    with pytest.raises((ConfigError, FactoryFailed)) as caught:
        loading.raw(of(own, sets=name))
    assert why in str(caught.value) and "\n" not in str(caught.value)


def test_registered_networks_take_images_only(own):
    loaded = loading.load(of(own, sets="vectors"))
    with pytest.raises(
        ConfigError,
        match=r"vgg11 takes images \(channels, height, width\); .*sets.py:vectors has samples \(12,\)",
    ):
        networks.build(
            of(own, sets="vectors").replace(model="vgg11", image_size=32),
            in_channels=12,
            num_classes=4,
            sample=loaded.sample(),
        )
    with pytest.raises(ConfigError, match="in_channels 3 is for images"):
        loading.load(of(own, sets="vectors", in_channels=3))


# ---------------------------------------------------------------- runs


def test_train_sweep_and_resume_with_files_of_ones_own(own, runs, cli, two_slots, capsys):
    """The worker of another process finds the file by its absolute path, and runs no other bytes."""
    flags = ["--data", own / "sets.py:tensors", "--image-size", "8", "--batch-size", "4", "--epochs", "12"]
    relative = os.path.relpath(own / "nets.py", Path(__file__).resolve().parents[2])
    done = cli(
        "sweep",
        "--model",
        f"{relative}:small",
        *flags,
        "--inits",
        "default,kaiming_normal",
        "--seeds",
        "1",
        "--json",
    )
    assert done.status == 0 and [row["init"] for row in done.json["rows"]] == ["default", "kaiming_normal"], (
        done.err
    )
    run = runs.get(runs.ids()[0])
    config = run.config()
    assert (
        config.model == f"{own}/nets.py:small"
        and config.model_sha256 == hashlib.sha256(NETS.encode()).hexdigest()
    )
    assert (
        run.state()["step"] == 60
        and set(run.read("layers")["layer"].to_pylist()) == {"0", "3", "4"}
        and config.width == 1.0
    )

    status = main(["train", "--model", f"{own}/nets.py:raises", *map(str, flags)])
    said = capsys.readouterr().err
    assert (
        status == 1
        and said.splitlines()[-1]
        == f"error: nets.py:{line_of('raise ValueError', NETS)}: ValueError: no such thing"
    )
    last = runs.list()[0]
    assert last.status == "failed" and last.error.startswith("nets.py:") and "Traceback" not in said
    assert "in deeper" in runs.get(last.run).log_tail(60) and "Traceback" in runs.get(last.run).log_tail(60)

    stopped = runs.create(config)
    (stopped.path / "status.json").write_text(json.dumps({**stopped.state(), "status": "stopped"}))
    check_resumable(stopped)
    (own / "nets.py").write_text(NETS + "# another network\n")
    with pytest.raises(ConfigError, match=r"nets.py has changed since this run was made \(SHA-256"):
        resume(runs, stopped)
    assert (
        main(["resume", stopped.id]) == 2
        and "has changed since" in capsys.readouterr().err
        and stopped.state()["status"] == "stopped"
    )
    changed = pin(config.replace(model_sha256=""))
    assert list(changed_fields(config.to_dict(), changed.to_dict())) == ["model_sha256"], (
        "a comparison says that the file differs"
    )
    (own / "nets.py").unlink()
    with pytest.raises(ConfigError, match=r"cannot read .*nets\.py: No such file"):
        check_resumable(stopped)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("train --model {own}/none.py:make", "cannot read"),
        ("train --model {own}/nets.py:nett", "unknown factory in nets.py"),
        ("train --model {own}/nets.py", "unknown model"),
        ("train --model vgg61", "FILE.py:FACTORY"),
        ("train --model {own}/nets.py:Net --width 0.5", "width 0.5 cannot reach"),
        ("sweep --model {own}/nets.py:Net --inits default --vary width=1,2", "width 2.0 cannot reach"),
        ("train --model {own}/nets.py:Net --model-sha256 " + "0" * 64, "has changed since"),
        ("train --model {own}/nets.py:Net --model-sha256 abc", "64 hexadecimal digits"),
        ("train --data {own}/sets.py:nothing", "unknown factory in sets.py"),
        ("train --detach --data {own}/none.py:x", "cannot read"),
        ("probe --data {own}/sets.py:one --image-size 32", "expected two data sets"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(own, runs, capsys, arguments, why):
    status = main(arguments.format(own=own).split(" "))
    out, err = capsys.readouterr()
    assert (
        (status, out) == (2, "") and why in err and len(err.splitlines()) == 1 and err.startswith("error: ")
    ), err
    assert not runs.root.exists() or not runs.ids()


# ---------------------------------------------------------------- what the dashboard's process takes


@pytest.fixture
def untrusted(own, monkeypatch):
    """As in the dashboard's process: nobody has said that files from anywhere are taken."""
    token = factory._trusted.set(False)
    yield own
    factory._trusted.reset(token)


def test_a_process_that_serves_visitors_takes_no_path(untrusted, tmp_path, monkeypatch):
    outside, ran = tmp_path / "outside.py", tmp_path / "ran"
    outside.write_text(f"open({str(ran)!r}, 'w')\ndef make(): ...\n")
    for field in ("model", "data"):
        with pytest.raises(ConfigError, match="on the command line only"):
            RunConfig(**{field: f"{untrusted}/nets.py:Net"})
    monkeypatch.setenv(factory.FOLDER, str(untrusted))
    (untrusted / "link.py").symlink_to(outside)
    (untrusted / "below").mkdir()
    (untrusted / "below" / "deep.py").write_text("def make(): ...\n")
    for path in (
        outside,
        untrusted / "link.py",
        untrusted / ".." / "outside.py",
        f"{untrusted}/../own/../outside.py",
        untrusted / "below" / "deep.py",
        "own/nets.py",
        "nets.py",
        "~/nets.py",
        f"{untrusted}x/nets.py",
    ):
        for field in ("model", "data"):
            with pytest.raises(ConfigError, match="is not a file of the folder in INITSCOPE_FACTORIES"):
                RunConfig.from_dict({field: f"{path}:make"})
    with pytest.raises(ConfigError, match="is not a file of the folder"):
        parse_axis(f"depth=/../../../../..{outside}:make")
    assert (
        RunConfig(model=f"{untrusted}/nets.py:Net").model
        and RunConfig(data=f"{untrusted}/../own/sets.py:tensors").data
    )
    monkeypatch.setenv(factory.FOLDER, str(tmp_path / "no such folder"))
    with pytest.raises(ConfigError, match="is not a file of the folder"):
        RunConfig(model=f"{untrusted}/nets.py:Net")
    assert not ran.exists()


def test_what_is_offered_is_told_without_running_a_line(untrusted, monkeypatch, tmp_path):
    assert factory.offered("model") == [] == factory.offered("data")
    monkeypatch.setenv(factory.FOLDER, str(untrusted))
    (untrusted / "typed.py").write_text(
        "raise SystemExit\nclass Deep(nn.Module): ...\nclass Plain: ...\ndef net() -> nn.Module: ...\n"
        "def sets() -> tuple[Dataset, Dataset]: ...\ndef either(): ...\ndef _no(): ...\nasync def later(): "
        "...\n"
    )
    (untrusted / "half.py").write_text("def (")
    (untrusted / "_private.py").write_text("def make(): ...")
    (untrusted / "link.py").symlink_to(tmp_path / "gone.py")
    typed = [
        factory.title(spec) for role in factory.ROLES for spec in factory.offered(role) if "typed.py" in spec
    ]
    assert typed == ["typed.py:Deep", "typed.py:net", "typed.py:either", "typed.py:sets", "typed.py:either"]
    assert all(RunConfig(model=spec).model == spec for spec in factory.offered("model")), (
        "what is offered is taken"
    )
    assert not any("half" in spec or "_private" in spec or "link" in spec for spec in factory.offered("data"))


def test_pictures_keep_their_pixels(own):
    """Against PIL's own numbers."""
    (own / "photo.py").write_text(
        "from PIL import Image\n"
        "def sets():\n"
        "    pixels = Image.frombytes('RGB', (2, 2), bytes(range(12)))\n"
        "    return [(pixels, 0), (pixels, 1)], [(pixels, 0)]\n"
    )
    raw = loading.raw(pin(RunConfig(data=f"{own}/photo.py:sets")))
    expected = np.array(Image.frombytes("RGB", (2, 2), bytes(range(12)))).transpose(2, 0, 1)
    assert (raw.train.images[0].numpy() == expected).all()


def test_a_file_that_cannot_be_read_is_named_with_its_line(monkeypatch, tmp_path):
    """It is not in the list; whoever wrote it learns why."""
    (tmp_path / "good.py").write_text("def net() -> 'Module':\n    ...\n")
    (tmp_path / "bad.py").write_text("import torch\ndef net(:\n")
    monkeypatch.setenv(factory.FOLDER, str(tmp_path))
    assert [spec.rsplit("/", 1)[1] for spec in factory.offered("model")] == ["good.py:net"]
    assert factory.not_offered() == {"bad.py": "line 2: invalid syntax"}
