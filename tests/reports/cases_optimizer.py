"""The optimizer: what it holds, how far it goes, what else pulls at the weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.reports.material import accuracy, class_skill, convnet, digits, fit_skill, mlp, predict, supervised
from tests.reports.registry import Loop, report


@report(
    "not_updating",
    # The network is made twice, and the optimizer holds the parameters of the first.
    "https://github.com/spro/practical-pytorch/issues/9",
    also=("unregistered_layers",),
    evidence=("optimizer does not hold", "never move"),
)
def optimizer_of_the_first_model(fixed: bool) -> Loop:
    class Rnn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.RNN(8, 64, batch_first=True), nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x.squeeze(1))[0][:, -1])

    first = Rnn()
    model = first if fixed else Rnn()
    optimizer = torch.optim.Adam(first.parameters(), lr=5e-3)
    return supervised(model, optimizer, digits(), steps=250)


@report(
    "not_updating",
    # ``if scheduler: scheduler.step() else: optimizer.step()``: with a scheduler no weight ever changes.
    "https://github.com/ClementPinard/SfmLearner-Pytorch/issues/5",
    evidence=("optimizer.step() was never called", "never move"),
    held_out=True,
)
def scheduler_in_place_of_the_optimizer(fixed: bool) -> Loop:
    x, y, held_x, held_y = digits()
    model = convnet()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=100, gamma=0.5)

    def step(i: int) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(x), (32,))
        optimizer.zero_grad()
        outputs = model(x[rows])
        loss = F.cross_entropy(outputs, y[rows])
        loss.backward()
        if fixed:
            optimizer.step()
        scheduler.step()
        return loss, accuracy(outputs, y[rows])

    return Loop(model, optimizer, step, lambda: class_skill(predict(model, held_x), held_y), steps=250)


@report(
    "gradient_accumulates",
    # ``zero_grad`` stands outside of the loop over batches, so the gradients of a whole epoch pile up.
    "https://github.com/salesforce/corr_based_prediction/issues/1",
    evidence=("zero_grad", "cleared", "accumulat"),
)
def cleared_once_an_epoch(fixed: bool) -> Loop:
    return without_clearing(
        convnet(),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
        every=1 if fixed else 45,
        log_accuracy=True,
    )


@report(
    "gradient_accumulates",
    # A trainer for adapters that never clears the gradients.
    "https://github.com/tenstorrent/tt-blacksmith/pull/711",
    evidence=("zero_grad", "cleared", "accumulat"),
    held_out=True,
)
def adapters_never_cleared(fixed: bool) -> Loop:
    class Adapter(nn.Module):
        """A frozen linear layer plus a low-rank one that begins at zero."""

        def __init__(self, base: nn.Linear, rank: int = 8):
            super().__init__()
            self.base = base.requires_grad_(False)
            self.down, self.up = (
                nn.Linear(base.in_features, rank, bias=False),
                nn.Linear(rank, base.out_features, bias=False),
            )
            nn.init.zeros_(self.up.weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + 2 * self.up(self.down(x))

    model = nn.Sequential(
        nn.Flatten(),
        Adapter(nn.Linear(64, 64)),
        nn.ReLU(),
        Adapter(nn.Linear(64, 64)),
        nn.ReLU(),
        Adapter(nn.Linear(64, 10)),
    )
    return without_clearing(model, lambda p: torch.optim.SGD(p, lr=0.2), every=1 if fixed else 0)


def without_clearing(model: nn.Module, make, every: int, log_accuracy: bool = False) -> Loop:
    """Digits, with ``zero_grad`` before every ``every``-th step (0: never)."""
    x, y, held_x, held_y = digits()
    optimizer = make([p for p in model.parameters() if p.requires_grad])

    def step(i: int):
        if every and i % every == 0:
            optimizer.zero_grad()
        rows = torch.randint(len(x), (32,))
        outputs = model(x[rows])
        loss = F.cross_entropy(outputs, y[rows])
        loss.backward()
        optimizer.step()
        return (loss, accuracy(outputs, y[rows])) if log_accuracy else loss

    return Loop(model, optimizer, step, lambda: class_skill(predict(model, held_x), held_y), steps=225)


@report(
    "lr_too_low",
    # StepLR counts epochs and is stepped after every batch: the rate is a millionth after a few dozen steps.
    "https://github.com/Lornatang/SRGAN-PyTorch/issues/1",
    evidence=("learning rate", "decayed", "schedule"),
)
def rate_decayed_every_batch(fixed: bool) -> Loop:
    x, _, held, _ = digits()
    small = F.avg_pool2d(x, 2), F.avg_pool2d(held, 2)
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 4, 3, padding=1),
        nn.PixelShuffle(2),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=4, gamma=0.1)  # half of 8 epochs
    per_epoch = 40

    def after(i: int) -> None:
        if not fixed or (i + 1) % per_epoch == 0:
            scheduler.step()

    data = (small[0], x, small[1], held)
    return supervised(
        model, optimizer, data, F.mse_loss, steps=8 * per_epoch, batch=32, score=fit_skill, after_step=after
    )


@report(
    "lr_too_low",
    # A memory-saving SGD run with the rate that people give to Adam, 5e-5: the loss does not move.
    "https://github.com/OpenLMLab/LOMO/issues/50",
    evidence=("update_too_small", "rate"),
    held_out=True,
)
def sgd_with_adams_rate(fixed: bool) -> Loop:
    model = mlp(64, 128, 128, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1 if fixed else 5e-5)
    return supervised(model, optimizer, digits(), steps=300)


@report(
    "lr_too_low",
    # The gradient is clipped in every batch, to a small part of its norm: the steps are that much shorter
    # than the rate says.
    "https://github.com/wandb/senpai/pull/978",
    evidence=("clip", "update_too_small", "rate"),
)
def clipped_to_almost_nothing(fixed: bool) -> Loop:
    model = convnet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    bound = 1.0 if fixed else 1e-4

    def clip() -> None:
        nn.utils.clip_grad_norm_(model.parameters(), bound)

    return supervised(model, optimizer, digits(), metric=accuracy, steps=300, after_backward=clip)


@report(
    "lr_too_high",
    # VGG on CIFAR-10: accuracy stuck at 0.087 while the loss grows; the rate should be smaller.
    "https://github.com/FluxML/model-zoo/issues/220",
    evidence=("update_too_large", "learning rate", "dead_units", "loss_spike"),
)
def vgg_with_a_large_rate(fixed: bool) -> Loop:
    layers: list[nn.Module] = []
    for inside, outside in ((1, 16), (16, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(inside, outside, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(
        *layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10)
    )
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3 if fixed else 5e-2)
    return supervised(model, optimizer, digits(), metric=accuracy, steps=200)


@report(
    "lr_too_high",
    # SGD with momentum on a fully convolutional network: the loss jumps to 87.3 and stays there.
    "https://github.com/hszhao/PSPNet/issues/63",
    evidence=("update_too_large", "learning rate", "loss_spike", "exploding"),
    held_out=True,
)
def momentum_and_a_large_rate(fixed: bool) -> Loop:
    x, _, held, _ = digits()
    model = nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(24, 24, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(24, 2, 1),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1 if fixed else 8.0, momentum=0.9)
    ink = (x.squeeze(1) > 0.5).long(), (held.squeeze(1) > 0.5).long()
    noise = torch.Generator().manual_seed(6)
    noisy = (
        x + 0.3 * torch.randn(x.shape, generator=noise),
        held + 0.3 * torch.randn(held.shape, generator=noise),
    )

    def score(outputs: Tensor, y: Tensor) -> float:
        return class_skill(outputs.movedim(1, -1).flatten(0, -2), y.flatten())

    return supervised(model, optimizer, (noisy[0], ink[0], noisy[1], ink[1]), steps=150, score=score)


@report(
    "lr_too_high",
    # A post-norm transformer of twelve layers at a usual rate without warm-up stays at guessing.
    "https://github.com/pytorch/pytorch/issues/55270",
    also=("init_too_large", "init_too_small"),
    evidence=("learning rate", "warm", "update_too_large", "signal_collapse"),
    held_out=True,
)
def post_norm_without_warm_up(fixed: bool) -> Loop:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.place = nn.Linear(8, 16), nn.Parameter(0.02 * torch.randn(8, 16))
            layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=fixed)
            self.body = nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)
            self.head = nn.Linear(16, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(self.embed(x.squeeze(1)) + self.place).mean(1))

    model = Encoder()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3 if fixed else 5e-3)
    return supervised(model, optimizer, digits(), metric=accuracy, steps=120, batch=16)


@report(
    "weight_decay_too_high",
    # LeNet stays at 10 % as soon as the optimizer gets a weight decay (stackoverflow.com/questions/61651457).
    "https://coderapp.vercel.app/answer/61651457",
    evidence=("weight decay", "weights_shrunk"),
)
def lenet_with_weight_decay(fixed: bool) -> Loop:
    model = convnet()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=0.0 if fixed else 0.3)
    return supervised(model, optimizer, digits(), metric=accuracy, steps=300)


@report(
    "weight_decay_too_high",
    # An L2 penalty of 0.05 on embeddings: all predictions for a user are the same.
    "https://github.com/lyst/lightfm/issues/96",
    evidence=("weight decay", "weights_shrunk", "penalty"),
    held_out=True,
)
def factors_with_a_strong_penalty(fixed: bool) -> Loop:
    class Factors(nn.Module):
        def __init__(self, users: int = 60, items: int = 80, size: int = 8):
            super().__init__()
            self.user, self.item = nn.Embedding(users, size), nn.Embedding(items, size)
            nn.init.normal_(self.user.weight, 0, 0.3)
            nn.init.normal_(self.item.weight, 0, 0.3)

        def forward(self, pair: Tensor) -> Tensor:
            return (self.user(pair[:, 0]) * self.item(pair[:, 1])).sum(1, keepdim=True)

    generator = torch.Generator().manual_seed(12)
    taste, kind = torch.randn(60, 4, generator=generator), torch.randn(80, 4, generator=generator)
    pairs = torch.stack(
        [torch.randint(60, (3600,), generator=generator), torch.randint(80, (3600,), generator=generator)], 1
    )
    likes = ((taste[pairs[:, 0]] * kind[pairs[:, 1]]).sum(1, keepdim=True) > 0).float()
    model = Factors()
    optimizer = torch.optim.SGD(model.parameters(), lr=4.0, weight_decay=0.0 if fixed else 0.05)
    data = (pairs[:3000], likes[:3000], pairs[3000:], likes[3000:])
    return supervised(model, optimizer, data, F.binary_cross_entropy_with_logits, steps=400, batch=256)


@report(
    "weight_decay_too_high",
    # Regularization of 0.1 on a small fully connected network: "too much", the loss stays at guessing.
    "https://github.com/leonardoaraujosantos/DLMatFramework/issues/1",
    evidence=("weight decay", "weights_shrunk", "penalty"),
)
def penalty_in_the_loss(fixed: bool) -> Loop:
    model = mlp(64, 64, 64, 10)
    weights = [p for p in model.parameters() if p.dim() > 1]
    strength = 1e-5 if fixed else 0.1

    def loss_fn(outputs: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(outputs, y) + strength * sum(w.square().sum() for w in weights)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    return supervised(model, optimizer, digits(), loss_fn, steps=300)


@report(
    "unknown",
    # A few dozen steps of a small rate were all that was run: iterations are simply too few.
    "https://github.com/arabian9ts/VGG16/issues/7",
    also=("healthy",),
)
def stopped_after_few_steps(fixed: bool) -> Loop:
    model = convnet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    return supervised(model, optimizer, digits(), metric=accuracy, steps=700 if fixed else 25)
