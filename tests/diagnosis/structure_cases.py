"""Small loops whose structure is at fault, and healthy ones that look alike: each returns its run."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from initscope.recording.recorder import Recorder
from initscope.store import Run
from tests.faults.kit import digits, mlp

Loop = Callable[[Path], Run]
CASES: dict[str, tuple[frozenset[str], Loop]] = {}


def case(*causes: str) -> Callable[[Loop], Loop]:
    """Register a loop with the causes that are true of it."""

    def register(loop: Loop) -> Loop:
        CASES[loop.__name__] = (frozenset(causes), loop)
        return loop

    return register


def record(
    runs: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    steps: int = 120,
    batch: int = 32,
    form: Callable[[Tensor], Tensor] = lambda x: x,
    loss_fn: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    before_backward: Callable[[int], object] | None = None,
    before_step: Callable[[], object] = lambda: None,
    epoch: int | None = None,
    order: Callable[[int], Tensor] | None = None,
    train: int | None = None,
) -> Run:
    """The usual loop over digits; ``form`` shapes the inputs, ``before_backward(i)`` clears the gradients
    (default: each time).
    """
    x, y, val_x, val_y = digits()
    x, y = x[:train], y[:train]
    optimizer = optimizer or torch.optim.Adam(model.parameters(), 3e-3)
    losses: list[tuple[float, float]] = []
    with Recorder(model, optimizer, runs=runs) as recorder:
        for i in range(steps):
            rows = order(i) if order else torch.randint(len(x), (batch,))
            outputs = model(form(x[rows]))
            loss = loss_fn(outputs, y[rows])
            before_backward(i) if before_backward else optimizer.zero_grad()
            loss.backward()
            before_step()
            optimizer.step()
            accuracy = (outputs.argmax(1) == y[rows]).float().mean()
            recorder.step(loss, accuracy, epoch=i // epoch if epoch else 0)
            if epoch:
                losses.append((loss.item(), accuracy.item()))
                if (i + 1) % epoch == 0:
                    model.eval()
                    with torch.no_grad():
                        out = model(form(val_x))
                        scores = (
                            F.cross_entropy(out, val_y).item(),
                            (out.argmax(1) == val_y).float().mean().item(),
                        )
                    model.train()
                    recorder.epoch(
                        i // epoch,
                        *(sum(column) / len(losses) for column in zip(*losses, strict=True)),
                        *scores,
                    )
                    losses.clear()
    return recorder.run


def rows_of(x: Tensor) -> Tensor:
    """Images (N, 1, 8, 8) as sequences of eight rows, (N, 8, 8)."""
    return x.squeeze(1)


# ---------------------------------------------------------------- weights that nobody holds


class Residual(nn.Module):
    """Ten tanh layers kept as ``keep`` says, and a classifier."""

    def __init__(self, keep: Callable[[list[nn.Module]], object]):
        super().__init__()
        self.blocks = keep([nn.Linear(64, 64) for _ in range(10)])
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for block in self.blocks.values() if hasattr(self.blocks, "values") else self.blocks:
            x = torch.tanh(block(x))
        return self.head(x)


@case("unregistered_layers")
def layers_in_a_dict(runs: Path) -> Run:
    return record(runs, Residual(lambda layers: {f"block{i}": layer for i, layer in enumerate(layers)}))


@case("unregistered_layers")
def layers_in_a_list_under_a_fused_optimizer(runs: Path) -> Run:
    """Its kernels write weights without a new version of the tensor."""
    model = Residual(list)
    return record(runs, model, torch.optim.Adam(model.parameters(), 3e-3, fused=True))


@case("unregistered_layers")
def weights_as_plain_tensors(runs: Path) -> Run:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = [(torch.randn(64, 64) * 0.05).requires_grad_() for _ in range(4)]
            self.head = nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1)
            for w in self.w:
                x = torch.tanh(x @ w)
            return self.head(x)

    return record(runs, Net())


@case("unregistered_layers")
def layer_made_in_every_pass(runs: Path) -> Run:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(64, 64), nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(self.first(x.flatten(1)))
            return self.head(torch.tanh(nn.Linear(64, 64)(x)))

    return record(runs, Net())


@case("healthy")
def layers_in_a_module_dict(runs: Path) -> Run:
    torch.manual_seed(1)
    model = Residual(lambda layers: nn.ModuleDict({f"block{i}": layer for i, layer in enumerate(layers[:2])}))
    return record(runs, model)


@case("healthy")
def a_teacher_in_a_list(runs: Path) -> Run:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.teacher = mlp(), [mlp()]

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                hint = self.teacher[0](x)
            return self.body(x) + 0 * hint

    return record(runs, Net())


# ---------------------------------------------------------------- samples that touch each other


class Encoder(nn.Module):
    def __init__(self, **layout: bool):
        super().__init__()
        self.body = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 32, dropout=0.0, **layout), 2, enable_nested_tensor=False
        )
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(1))


class Recurrent(nn.Module):
    """A GRU with its time first, whose input is laid out by ``layout``; the last output decides."""

    def __init__(self, layout: Callable[[Tensor], Tensor]):
        super().__init__()
        self.layout = layout
        self.body, self.head = nn.GRU(8, 48), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.layout(x))[0][-1])


@case("samples_mixed")
def attention_over_the_batch(runs: Path) -> Run:
    torch.manual_seed(0)
    return record(runs, Encoder(), form=rows_of, steps=150)


@case("samples_mixed")
def view_in_place_of_transpose(runs: Path) -> Run:
    return record(runs, Recurrent(lambda x: x.reshape(8, -1, 8)), form=rows_of, steps=150)


@case("samples_mixed")
def flattened_across_the_batch(runs: Path) -> Run:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.body = nn.Conv2d(1, 8, 3, padding=1), mlp((512, 64, 10))

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.conv(x))
            return self.body(x.permute(1, 0, 2, 3).reshape(len(x), -1))

    return record(runs, Net(), steps=150)


@case("healthy")
def time_first_as_it_should_be(runs: Path) -> Run:
    return record(runs, Recurrent(lambda x: x.transpose(0, 1)), form=rows_of, steps=250, optimizer=None)


@case("healthy")
def time_first_from_outside(runs: Path) -> Run:
    """The model's own inputs are (time, samples, features)."""
    model = Recurrent(lambda x: x)
    return record(runs, model, form=lambda x: rows_of(x).transpose(0, 1), steps=250)


# ---------------------------------------------------------------- training and evaluation mode


def normalized(momentum: float = 0.1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8, momentum=momentum),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.BatchNorm2d(16, momentum=momentum),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


@case("batchnorm_statistics")
def averages_that_lag(runs: Path) -> Run:
    x = 40.0
    return record(runs, normalized(5e-4), form=lambda image: image * x, epoch=40)


@case("batchnorm_statistics")
def averages_without_momentum(runs: Path) -> Run:
    """momentum=0: the averages keep their first values."""
    return record(runs, normalized(0.0), form=lambda image: 20 * image + 5, epoch=30)


@case("batchnorm_statistics")
def one_slow_average_of_many(runs: Path) -> Run:
    """Keras's and TensorFlow's number (0.99, here 0.01 in torch's sense) in a deep net, and no validation in
    the loop: half of the batch gets other answers.
    """
    torch.manual_seed(2)
    blocks = [
        m
        for _ in range(6)
        for m in (nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8, momentum=0.002), nn.ReLU())
    ]
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), *blocks, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10)
    )
    return record(runs, model, steps=120)


@case("healthy")
def batches_of_two_classes(runs: Path) -> Run:
    """Each batch holds two classes, and still the averages serve."""
    y = digits()[1]
    pairs = [torch.nonzero((y == k) | (y == (k + 1) % 10)).flatten() for k in range(10)]
    return record(
        runs,
        normalized(0.5),
        order=lambda i: pairs[i % 10][torch.randint(len(pairs[i % 10]), (32,))],
        epoch=40,
        steps=160,
    )


@case("healthy")
def averages_that_follow(runs: Path) -> Run:
    return record(runs, normalized(), epoch=40)


@case("overfitting")
def few_samples_by_heart(runs: Path) -> Run:
    torch.manual_seed(0)
    return record(runs, normalized(), train=40, epoch=40, steps=200)


# ---------------------------------------------------------------- gradients that are kept


@case("gradient_accumulates")
def never_cleared_with_momentum(runs: Path) -> Run:
    model = mlp((64, 64, 10))
    return record(
        runs, model, torch.optim.SGD(model.parameters(), 0.05, momentum=0.9), before_backward=lambda i: None
    )


@case("gradient_accumulates")
def never_cleared_under_a_fused_optimizer(runs: Path) -> Run:
    """Fused kernels write weights without a new version."""
    model = mlp((64, 64, 10))
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, fused=True)
    return record(runs, model, optimizer, before_backward=lambda i: None)


@case("gradient_accumulates")
def cleared_once_an_epoch(runs: Path) -> Run:
    model = mlp((64, 64, 64, 10))
    optimizer = torch.optim.SGD(model.parameters(), 0.3)
    return record(
        runs, model, optimizer, before_backward=lambda i: optimizer.zero_grad() if i % 60 == 0 else None
    )


@case("gradient_accumulates")
def another_optimizers_gradients_cleared(runs: Path) -> Run:
    model, other = mlp((64, 64, 64, 10)), torch.optim.SGD(mlp().parameters(), 0.1)
    return record(
        runs, model, torch.optim.Adam(model.parameters(), 0.02), before_backward=lambda i: other.zero_grad()
    )


@case("healthy")
def cleared_to_zeros(runs: Path) -> Run:
    model = mlp((64, 64, 10))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    return record(runs, model, optimizer, before_backward=lambda i: optimizer.zero_grad(set_to_none=False))


@case("healthy")
def accumulated_on_purpose(runs: Path) -> Run:
    x, y, *_ = digits()
    model = mlp((64, 64, 10))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    with Recorder(model, optimizer, runs=runs) as recorder:
        for _ in range(100):
            for _ in range(3):
                rows = torch.randint(len(x), (16,))
                loss = F.cross_entropy(model(x[rows]), y[rows]) / 3
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            recorder.step(loss * 3)
    return recorder.run


# ---------------------------------------------------------------- numbers that are none


@case("numeric_fault")
def logarithm_of_a_probability(runs: Path) -> Run:
    """A cross-entropy by hand: small probabilities are rounded to zero, as in half precision."""

    def loss_fn(outputs: Tensor, y: Tensor) -> Tensor:
        p = (outputs * 12).softmax(1)
        p = torch.where(p < 1e-12, torch.zeros_like(p), p)
        return -p.log().gather(1, y[:, None]).mean()

    return record(runs, mlp((64, 64, 10)), loss_fn=loss_fn)


@case("numeric_fault")
def half_precision_epsilon(runs: Path) -> Run:
    """Adam's epsilon of 1e-8 is zero in float16, and so is the square of a small gradient."""
    model = mlp((64, 64, 10)).half()

    def half(outputs: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(outputs.float(), y)

    return record(
        runs, model, torch.optim.Adam(model.parameters(), 1e-3), form=lambda x: x.half(), loss_fn=half
    )


@case("numeric_fault")
def distances_to_oneself(runs: Path) -> Run:
    """All pairwise distances as a penalty: a sample's distance to itself is the root of zero, whose slope is
    infinite.
    """

    def loss_fn(outputs: Tensor, y: Tensor) -> Tensor:
        distances = (outputs[:, None] - outputs[None]).square().sum(2).sqrt()
        return F.cross_entropy(outputs, y) - 1e-3 * distances.mean()

    return record(runs, mlp((64, 64, 10)), loss_fn=loss_fn)


@case("numeric_fault")
def angle_at_the_edge(runs: Path) -> Run:
    """acos of a cosine that is beyond one, in one batch of many."""

    def loss_fn(outputs: Tensor, y: Tensor) -> Tensor:
        cosine = F.normalize(outputs, dim=1)
        steps.append(0)
        cosine = torch.where(torch.tensor(len(steps) == 30), cosine * 4, cosine * 0.99)
        return F.cross_entropy(8 * (math.pi / 2 - torch.acos(cosine)), y)

    steps: list[int] = []
    return record(runs, mlp((64, 64, 10)), loss_fn=loss_fn)


# ---------------------------------------------------------------- nothing to be said against the labels


@case("unknown", "healthy")
def nearly_everything_dropped(runs: Path) -> Run:
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Dropout(0.99),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Dropout(0.99),
        nn.Linear(64, 10),
    )
    return record(runs, model, steps=150)


@case("unknown", "healthy")
def too_few_steps(runs: Path) -> Run:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.LSTM(8, 32, batch_first=True), nn.Linear(32, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x)[0][:, -1])

    model = Last()
    return record(runs, model, torch.optim.Adam(model.parameters(), 1e-3), form=rows_of, steps=60)


# ---------------------------------------------------------------- what is not learned, and what is


@case("unknown")
def one_answer_for_all(runs: Path) -> Run:
    """Two halves of an image are to get the same code, and nothing keeps the codes of two images apart."""
    model = mlp((64, 64, 32))

    def alike(codes: Tensor, y: Tensor) -> Tensor:
        return (codes - codes.roll(1, 0)).pow(2).mean() + (codes.pow(2).mean(1) - 1).pow(2).mean()

    return record(runs, model, loss_fn=alike, steps=200)


@case("healthy")
def one_code_for_each(runs: Path) -> Run:
    """The same with codes that have to be far from each other."""
    model = mlp((64, 64, 32))

    def apart(codes: Tensor, y: Tensor) -> Tensor:
        return (F.normalize(codes, dim=1) @ F.normalize(codes, dim=1).T).pow(2).mean()

    return record(runs, model, loss_fn=apart, steps=200)


@case("labels_unrelated", "unknown")
def labels_learned_by_heart_slowly(runs: Path) -> Run:
    """Labels that have nothing to do with their images: after eight passes the loss creeps below guessing."""
    labels = torch.randint(10, (320,), generator=torch.Generator().manual_seed(3))
    model = mlp((64, 64, 10))
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    x, _, _, _ = digits()
    with Recorder(model, optimizer, runs=runs) as recorder:
        for _ in range(120):
            rows = torch.randint(320, (32,))
            loss = F.cross_entropy(model(x[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.step(loss)
    return recorder.run
