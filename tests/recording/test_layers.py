"""Which rows a model has, and every kind of layer against autograd: one row a weight, sensible columns, in
the order of first use.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from initscope.diagnosis.diagnose import diagnose
from initscope.errors import ConfigError
from initscope.networks import vgg
from initscope.recording.layers import DEFAULT_KINDS, KINDS, find_layers
from initscope.recording.recorder import Recorder
from initscope.store import Runs

torch.set_num_threads(1)
WEIGHT = {"grad_norm", "grad_rms", "weight_norm", "update_ratio"}
OUTPUT = {"activation_mean", "activation_std", "signal_std", "activation_grad_rms"}


class Own(nn.Module):
    """A module of one's own: parameters held directly, beside layers and alone."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(6))
        self.mix = Mix()
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(x + self.token))


class Mix(nn.Module):
    def __init__(self):
        super().__init__()
        self.matrix, self.bias = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix + self.bias


class Attends(nn.Module):
    def __init__(self, batch_first: bool):
        super().__init__()
        self.attention, self.norm = nn.MultiheadAttention(6, 2, batch_first=batch_first), nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.attention(x, x, x)[0])


class Pairs(nn.Module):
    def __init__(self):
        super().__init__()
        self.both = nn.Bilinear(6, 6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.both(x, x)


class Cells(nn.Module):
    """A cell called once a time step."""

    def __init__(self, cell: type):
        super().__init__()
        self.cell = cell(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for at in range(x.shape[1]):
            state = self.cell(x[:, at], state)
        return state[0] if isinstance(state, tuple) else state


PIXELS, LINE, SPACE, VECTOR = (4, 3, 8, 8), (4, 3, 8), (4, 3, 4, 4, 4), (4, 6)
SEQUENCE = (4, 7, 6)
CASES = {
    "conv1d": (lambda: nn.Conv1d(3, 5, 3), LINE, {"0": ("weight", True)}),
    "conv2d": (lambda: nn.Conv2d(3, 5, 3), PIXELS, {"0": ("weight", True)}),
    "conv3d": (lambda: nn.Conv3d(3, 5, 3), SPACE, {"0": ("weight", True)}),
    "convtranspose1d": (lambda: nn.ConvTranspose1d(3, 5, 3), LINE, {"0": ("weight", True)}),
    "convtranspose2d": (lambda: nn.ConvTranspose2d(3, 5, 3), PIXELS, {"0": ("weight", True)}),
    "convtranspose3d": (lambda: nn.ConvTranspose3d(3, 5, 3), SPACE, {"0": ("weight", True)}),
    "linear": (lambda: nn.Linear(6, 5), SEQUENCE, {"0": ("weight", True)}),
    "bilinear": (lambda: Pairs(), VECTOR, {"0.both": ("both.weight", True)}),
    "embedding": (lambda: nn.Embedding(9, 5), "tokens", {"0": ("weight", True)}),
    "embedding, sparse": (lambda: nn.Embedding(9, 5, sparse=True), "tokens", {"0": ("weight", True)}),
    "embeddingbag": (lambda: nn.EmbeddingBag(9, 5), "tokens", {"0": ("weight", True)}),
    "rnn": (
        lambda: nn.RNN(6, 5, batch_first=True),
        SEQUENCE,
        {"0.weight_ih_l0": ("weight_ih_l0", False), "0.weight_hh_l0": ("weight_hh_l0", True)},
    ),
    "lstm": (
        lambda: nn.LSTM(6, 5, num_layers=2),
        SEQUENCE,
        {
            f"0.weight_{part}_l{k}": (f"weight_{part}_l{k}", (part, k) == ("hh", 1))
            for k in range(2)
            for part in ("ih", "hh")
        },
    ),
    "gru": (
        lambda: nn.GRU(6, 5),
        SEQUENCE,
        {"0.weight_ih_l0": ("weight_ih_l0", False), "0.weight_hh_l0": ("weight_hh_l0", True)},
    ),
    "rnncell": (
        lambda: Cells(nn.RNNCell),
        SEQUENCE,
        {"0.cell.weight_ih": ("cell.weight_ih", False), "0.cell.weight_hh": ("cell.weight_hh", True)},
    ),
    "lstmcell": (
        lambda: Cells(nn.LSTMCell),
        SEQUENCE,
        {"0.cell.weight_ih": ("cell.weight_ih", False), "0.cell.weight_hh": ("cell.weight_hh", True)},
    ),
    "multiheadattention": (
        lambda: Attends(True),
        SEQUENCE,
        {
            "0.attention.in_proj_weight": ("attention.in_proj_weight", False),
            "0.attention.out_proj": ("attention.out_proj.weight", True),
        },
    ),
    "multiheadattention, time first": (
        lambda: Attends(False),
        SEQUENCE,
        {
            "0.attention.in_proj_weight": ("attention.in_proj_weight", False),
            "0.attention.out_proj": ("attention.out_proj.weight", True),
        },
    ),
    "layernorm": (lambda: nn.LayerNorm(6), VECTOR, {"0": ("weight", True)}),
    "batchnorm2d": (lambda: nn.BatchNorm2d(3), PIXELS, {"0": ("weight", True)}),
    "groupnorm": (lambda: nn.GroupNorm(1, 3), PIXELS, {"0": ("weight", True)}),
    "rmsnorm": (lambda: nn.RMSNorm(6), VECTOR, {"0": ("weight", True)}),
    "prelu": (lambda: nn.PReLU(), VECTOR, {"0": ("weight", True)}),
    "own": (
        lambda: Own(),
        VECTOR,
        {"0.token": ("token", False), "0.mix": ("mix.matrix", True), "0.head": ("head.weight", True)},
    ),
}


@pytest.mark.parametrize("case", list(CASES))
def test_every_kind_of_layer(tmp_path, case):
    make, shape, expected = CASES[case]
    torch.manual_seed(0)
    module, x = make(), torch.randint(9, (4, 7)) if shape == "tokens" else torch.randn(shape)
    model, outputs = nn.Sequential(module), []
    # The reference: every output that a row shows, kept and retained by a hook of the test's own; a loss that
    # no symmetry cancels.
    caller = next(
        (
            m
            for m in module.modules()
            if isinstance(m, (nn.MultiheadAttention, Mix, nn.RNNCellBase, nn.Bilinear))
        ),
        module,
    )
    handle = caller.register_forward_hook(lambda m, i, o: outputs.append(o[0] if isinstance(o, tuple) else o))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = {row: module.get_parameter(key).detach().double().clone() for row, (key, _) in expected.items()}
    families = tuple(KINDS) if "norm" in case or case == "prelu" else None
    with Recorder(model, optimizer, runs=tmp_path, kinds=families) as recorder:
        result = model(x)
        for output in outputs:
            output.retain_grad()
        result = result[0] if isinstance(result, tuple) else result
        loss = (result * torch.linspace(-1, 2, result.numel()).view(result.shape)).square().mean()
        loss.backward()
        optimizer.step()
        recorder.step(loss)
    handle.remove()
    rows = {row["layer"]: row for row in recorder.run.read("layers").to_pylist()}
    assert list(rows) == list(expected) and [row["depth"] for row in rows.values()] == list(range(len(rows)))
    for name, (key, shows_output) in expected.items():
        row, weight = rows[name], module.get_parameter(key)
        gradient, moved = weight.grad.to_dense().double(), weight.detach().double() - before[name]
        values = {
            "grad_norm": gradient.norm(),
            "grad_rms": gradient.square().mean().sqrt(),
            "weight_norm": before[name].norm(),
            "update_ratio": moved.norm() / before[name].norm(),
        }
        if shows_output and (case != "own" or name == "0.mix"):
            swap = (
                isinstance(caller, (nn.RNNBase, nn.MultiheadAttention)) and not caller.batch_first
            )  # samples are the second dimension
            seen = [o.transpose(0, 1) if swap else o for o in outputs]
            every = torch.cat([o.detach().double().flatten() for o in seen])
            errors = torch.cat(
                [(o.grad.transpose(0, 1) if swap else o.grad).double().flatten() for o in outputs]
            )
            spread = torch.stack([o.detach().double().var(0, correction=0).mean() for o in seen])
            values |= {
                "activation_mean": every.mean(),
                "activation_std": every.std(correction=0),
                "signal_std": spread.mean().sqrt(),
                "activation_grad_rms": errors.square().mean().sqrt(),
            }
        for metric, value in values.items():
            near = 1e-4 * float(values.get("activation_std", 0)) if metric == "activation_mean" else 1e-12
            assert row[metric] == pytest.approx(float(value), rel=2e-4, abs=near), (name, metric)
        missing = {metric for metric in WEIGHT | OUTPUT if row[metric] is None}
        assert missing == (set() if shows_output else OUTPUT), name
    kind = case.split(",")[0]
    kinds = [row["kind"] for row in rows.values()]
    assert kinds == {
        "own": ["own", "mix", "linear"],
        "multiheadattention": ["multiheadattention", "linear"],
    }.get(kind, [kind] * len(rows))


def test_diagnosis_reads_every_kind(tmp_path):
    """A transformer encoder over token ids, all kinds recorded: rows of new kinds are nothing that the rules
    trip over.
    """
    torch.manual_seed(0)

    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.place = nn.Embedding(9, 8), nn.Parameter(torch.randn(7, 8))
            self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.recurrent, self.head = nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.recurrent(self.encoder(self.embed(x) + self.place))[0][:, -1])

    model, tokens = Reader(), torch.randint(9, (32, 7))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with Recorder(model, optimizer, runs=tmp_path, kinds=tuple(KINDS)) as recorder:
        for _ in range(60):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(tokens), tokens[:, 0] % 3)
            loss.backward()
            optimizer.step()
            recorder.step(loss)
    layers = recorder.run.read("layers")["layer"].to_pylist()[: len(recorder.meter.names)]
    assert layers[:4] == ["place", "embed", "encoder.self_attn.in_proj_weight", "encoder.self_attn.out_proj"]
    assert layers[-1] == "head" and "recurrent.weight_hh_l0" in layers and "encoder.norm1" in layers
    found = diagnose(Runs(tmp_path).get(recorder.run.id))
    assert found.cause and found.outcome


# ---------------------------------------------------------------- the choice


def names(model: nn.Module, *choice) -> list[str]:
    return [layer.name for layer in find_layers(model, *choice)]


def test_the_choice_of_layers():
    model = vgg(image_size=32, width=0.0625, batch_norm=True)
    assert len(names(model)) == 16, "norms only when asked for"
    assert len(names(model, None, ("conv", "norm"))) == 26 and len(names(model, None, "batchnorm2d")) == 13
    assert names(model, "fc*") == ["fc1", "fc2", "fc3"]
    assert names(model, ["conv1_*", "bn1_?"]) == ["conv1_1", "bn1_1", "conv1_2", "bn1_2"], (
        "a pattern may name any kind"
    )
    assert names(model, ["*1_1"], ("conv",)) == ["conv1_1"]
    nested = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Linear(2, 2))
    assert names(nested, "0") == ["0.0", "0.1"], "the name of a module chooses what is in it"
    assert names(nn.Linear(2, 2)) == ["model"]
    assert set(DEFAULT_KINDS) == set(KINDS) - {"norm", "activation"}


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (
            ("conv9_*",),
            r"no layer's name matches 'conv9_\*'; there are conv1_1, conv1_2, .*fc.* and 4 more|no layer's "
            r"name matches 'conv9_\*'; there are",
        ),
        ((["fc1", "typo"],), r"no layer's name matches 'typo'"),
        ((None, "conv3d"), r"no layer of kind conv3d; it has conv, linear: choose them with kinds="),
        ((None, ("conv", "convolution")), r"unknown kind of layer 'convolution';.* available: conv, linear"),
    ],
)
def test_a_choice_that_finds_nothing_says_what_there_is(choice, message):
    with pytest.raises(ConfigError, match=message) as caught:
        find_layers(vgg(image_size=32, width=0.0625), *choice)
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 300


def test_a_model_of_norms_alone_says_how_to_record_them():
    with pytest.raises(ConfigError, match=r"it has norm: choose them with kinds="):
        find_layers(nn.Sequential(nn.LayerNorm(3)))
