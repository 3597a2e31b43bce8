"""Looks odd, trains all the same: nothing here is to be alarmed about."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.reports.material import (
    accuracy,
    class_skill,
    clusters,
    convnet,
    digits,
    fit_skill,
    imitation_skill,
    mlp,
    predict,
    sentences,
    supervised,
    table,
)
from tests.reports.registry import HEALTHY, Loop, report


@report(
    HEALTHY, "https://github.com/SHI-Labs/StyleNAT/issues/11"
)  # the discriminator's loss goes to 1.39, 2 ln 2, and stays
def discriminator_at_two_ln_two(fixed: bool) -> Loop:
    real = torch.randn(2000, 2, generator=torch.Generator().manual_seed(3)) * 0.5 + torch.tensor([1.0, -0.5])
    generator = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
    critic = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
    make, judge = (
        torch.optim.Adam(generator.parameters(), 2e-3, betas=(0.5, 0.999)),
        torch.optim.Adam(critic.parameters(), 1e-3, betas=(0.5, 0.999)),
    )

    def step(i: int) -> Tensor:
        fake = generator(torch.randn(64, 4))
        loss = (
            F.softplus(-critic(real[torch.randint(2000, (64,))])).mean()
            + F.softplus(critic(fake.detach())).mean()
        )
        judge.zero_grad()
        loss.backward()
        judge.step()
        make.zero_grad()
        F.softplus(-critic(fake)).mean().backward()
        make.step()
        return loss

    return Loop(critic, judge, step, lambda: imitation_skill(generator, real), steps=400)


@report(
    HEALTHY, "https://github.com/HobbitLong/SupContrast/issues/45", held_out=True
)  # the contrastive loss seems to saturate high up
def contrastive_loss_high_up(fixed: bool) -> Loop:
    x, y, held_x, held_y = digits()
    model = mlp(64, 64, 32)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def step(i: int) -> Tensor:
        images = x[torch.randint(len(x), (64,))]
        views = torch.cat(
            [images + 0.3 * torch.randn_like(images), images.roll(1, 3) + 0.3 * torch.randn_like(images)]
        )
        codes = F.normalize(model(views), dim=1)
        alike = codes @ codes.T / 0.5
        alike.fill_diagonal_(float("-inf"))
        loss = F.cross_entropy(alike, torch.arange(128).roll(64))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    def score() -> float:
        known, asked = F.normalize(predict(model, x), dim=1), F.normalize(predict(model, held_x), dim=1)
        return (float((y[(asked @ known.T).argmax(1)] == held_y).float().mean()) - 0.1) / 0.9

    return Loop(model, optimizer, step, score, steps=250)


@report(
    HEALTHY, "https://github.com/jthickstun/pytorch_musicnet/issues/4"
)  # zero weights in a linear multi-label model: no harm
def linear_multi_label_from_zero(fixed: bool) -> Loop:
    x, y, held_x, held_y = clusters(12, features=40, spread=0.7)
    notes = (torch.rand(12, 30, generator=torch.Generator().manual_seed(9)) < 0.15).float()
    model = nn.Linear(40, 30)
    nn.init.zeros_(model.weight)

    def score(outputs: Tensor, targets: Tensor) -> float:
        return fit_skill(torch.sigmoid(outputs), targets)

    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.5)
    return supervised(
        model,
        optimizer,
        (x, notes[y], held_x, notes[held_y]),
        F.binary_cross_entropy_with_logits,
        steps=300,
        score=score,
    )


@report(
    HEALTHY, "https://github.com/sukritshankar/Caffe-LMDBCreation-MultiLabel/issues/7", held_out=True
)  # 256 rare labels: a sharp drop, then slow
def sharp_drop_then_slow(fixed: bool) -> Loop:
    x, y, held_x, held_y = clusters(20, features=32, spread=0.6, samples=2500)
    tags = (torch.rand(20, 256, generator=torch.Generator().manual_seed(10)) < 0.02).float()
    model = mlp(32, 128, 256)

    def score(outputs: Tensor, targets: Tensor) -> float:
        return fit_skill(torch.sigmoid(outputs), targets)

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return supervised(
        model,
        optimizer,
        (x, tags[y], held_x, tags[held_y]),
        F.binary_cross_entropy_with_logits,
        steps=400,
        score=score,
    )


class Patches(nn.Module):
    """A vision transformer with a class token; its head begins at zero as in torchvision."""

    def __init__(self) -> None:
        super().__init__()
        self.cut, self.token, self.place = (
            nn.Conv2d(1, 32, 2, 2),
            nn.Parameter(torch.zeros(1, 1, 32)),
            nn.Parameter(0.02 * torch.randn(1, 17, 32)),
        )
        layer = nn.TransformerEncoderLayer(
            32, 4, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.body, self.norm, self.head = (
            nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
            nn.LayerNorm(32),
            nn.Linear(32, 10),
        )
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        words = (
            torch.cat([self.token.expand(len(x), -1, -1), self.cut(x).flatten(2).transpose(1, 2)], 1)
            + self.place
        )
        return self.head(self.norm(self.body(words))[:, 0])


@report(
    HEALTHY, "https://github.com/pytorch/vision/issues/5804"
)  # the head of the vision transformer begins at zero
def vision_transformer_with_a_zero_head(fixed: bool) -> Loop:
    model = Patches()
    return supervised(
        model, torch.optim.AdamW(model.parameters(), lr=3e-3), digits(), metric=accuracy, steps=180
    )


@report(
    HEALTHY, "https://github.com/tensorpack/tensorpack/issues/420", held_out=True
)  # the last batch norm of each branch begins with gamma zero
def zero_gamma(fixed: bool) -> Loop:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = (
                nn.Conv2d(16, 16, 3, padding=1, bias=False),
                nn.Conv2d(16, 16, 3, padding=1, bias=False),
            )
            self.norm_one, self.norm_two = nn.BatchNorm2d(16), nn.BatchNorm2d(16)
            nn.init.zeros_(self.norm_two.weight)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x + self.norm_two(self.two(F.relu(self.norm_one(self.one(x))))))

    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        *(Block() for _ in range(3)),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 10),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    return supervised(model, optimizer, digits(), metric=accuracy, steps=180, epoch=60)


@report(
    HEALTHY, "https://github.com/majumderb/rezero/issues/6"
)  # every branch is multiplied by a scalar that begins at zero
def rezero(fixed: bool) -> Loop:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.weight = nn.Linear(48, 48), nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.weight * F.relu(self.layer(x))

    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), *(Branch() for _ in range(10)), nn.Linear(48, 10))
    return supervised(model, torch.optim.Adam(model.parameters(), lr=2e-3), digits(), steps=250)


@report(HEALTHY, "https://github.com/microsoft/LoRA/issues/59")  # B is all zeros: how should it be optimized?
def low_rank_b_from_zero(fixed: bool) -> Loop:
    class LowRank(nn.Module):
        def __init__(self, base: nn.Linear):
            super().__init__()
            self.base = base.requires_grad_(False)
            self.a, self.b = (
                nn.Parameter(torch.randn(8, base.in_features) / 8),
                nn.Parameter(torch.zeros(base.out_features, 8)),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + x @ self.a.T @ self.b.T

    x, y, held_x, held_y = digits()
    model = mlp(64, 64, 10)
    early = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(60):  # pre-training, on the first five digits and seen by no recorder
        rows = torch.randint(len(x), (32,))
        early.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows] % 5).backward()
        early.step()
    model[1], model[3] = LowRank(model[1]), LowRank(model[3])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    return supervised(model, optimizer, (x, y, held_x, held_y), steps=250)


@report(
    HEALTHY, "https://github.com/zoubohao/DenoisingDiffusionProbabilityModel-ddpm-/issues/48", held_out=True
)
# its loss oscillates and hardly falls after the first steps, while the pictures get better
def noise_of_a_diffusion_model(fixed: bool) -> Loop:
    x, _, held, _ = digits()
    x, held = x.flatten(1) * 2 - 1, held.flatten(1) * 2 - 1
    model = nn.Sequential(nn.Linear(66, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 64))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def loss_of(clean: Tensor) -> Tensor:
        angle = torch.rand(len(clean), 1) * (math.pi / 2)
        noise = torch.randn_like(clean)
        return F.mse_loss(
            model(torch.cat([angle.cos() * clean + angle.sin() * noise, angle.sin(), angle.cos()], 1)), noise
        )

    def step(i: int) -> Tensor:
        loss = loss_of(x[torch.randint(len(x), (32,))])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    def score() -> float:
        with torch.no_grad():
            return 1 - loss_of(held.repeat(10, 1)).item()

    return Loop(model, optimizer, step, score, steps=400)


@report(
    HEALTHY, "https://github.com/keras-team/keras/issues/481"
)  # the ceiling is in the data, not in the training
def squared_error_at_its_floor(fixed: bool) -> Loop:
    x, y, held_x, held_y = table(samples=4000, noise=1.5)
    model = mlp(10, 32, 1)
    loop = supervised(
        model,
        torch.optim.Adam(model.parameters(), lr=3e-3),
        (x, y, held_x, held_y),
        F.mse_loss,
        steps=300,
        score=fit_skill,
    )
    explained = 1 - 1.5**2 / held_y.var().item()  # the rest is noise
    score = loop.score
    loop.score = lambda: score() / explained
    return loop


@report(
    HEALTHY, "https://github.com/bearpaw/pytorch-pose/issues/43", held_out=True
)  # heat maps that are nearly all zero: the loss is always very small
def heat_maps_with_a_tiny_loss(fixed: bool) -> Loop:
    generator = torch.Generator().manual_seed(21)
    at = torch.randint(2, 10, (1200, 2), generator=generator)
    rows = torch.arange(12.0)
    maps = torch.exp(
        -(
            (rows[None, :, None] - at[:, 0, None, None]) ** 2
            + (rows[None, None, :] - at[:, 1, None, None]) ** 2
        )
        / 2
    ).unsqueeze(1)
    images = 0.2 * torch.rand(1200, 1, 12, 12, generator=generator)
    images[torch.arange(1200), 0, at[:, 0], at[:, 1]] += 1.0
    model = nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 1, 1),
    )
    data = (images[:1000], 0.1 * maps[:1000], images[1000:], 0.1 * maps[1000:])
    return supervised(
        model,
        torch.optim.Adam(model.parameters(), lr=3e-3),
        data,
        F.mse_loss,
        steps=150,
        batch=16,
        score=fit_skill,
    )


@report(
    HEALTHY, "https://github.com/fchollet/keras-blog/issues/5"
)  # grey pixels under binary cross-entropy: the loss cannot reach zero
def autoencoder_of_grey_pixels(fixed: bool) -> Loop:
    x, _, held, _ = digits()
    x, held = x.flatten(1), held.flatten(1)
    model = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 64), nn.Sigmoid())
    return supervised(
        model,
        torch.optim.Adam(model.parameters(), lr=5e-3),
        (x, x, held, held),
        F.binary_cross_entropy,
        steps=350,
        score=fit_skill,
    )


@report(
    HEALTHY, "https://github.com/KichangKim/DeepDanbooru/issues/59", held_out=True
)  # a small loss from the start, as rare tags have; it learns
def rare_class_that_is_learned(fixed: bool) -> Loop:
    x, y, held_x, held_y = clusters(2, features=16, samples=4000, spread=0.9, shares=(0.96, 0.04))
    model = mlp(16, 32, 1)
    nn.init.constant_(model[-1].bias, -3.2)
    data = (x, y.float().unsqueeze(1), held_x, held_y.float().unsqueeze(1))
    return supervised(
        model,
        torch.optim.Adam(model.parameters(), lr=5e-3),
        data,
        F.binary_cross_entropy_with_logits,
        steps=300,
        batch=64,
    )


@report(
    HEALTHY, "https://github.com/facebookresearch/deit/issues/134"
)  # the divergence from the teacher is tiny at once
def tiny_distillation_loss(fixed: bool) -> Loop:
    x, y, held_x, held_y = digits()
    teacher, model = mlp(64, 128, 10), mlp(64, 32, 10)
    early = torch.optim.Adam(teacher.parameters(), lr=3e-3)
    for _ in range(150):
        rows = torch.randint(len(x), (64,))
        early.zero_grad()
        F.cross_entropy(teacher(x[rows]), y[rows]).backward()
        early.step()
    with torch.no_grad():
        soft, held_soft = teacher(x) / 4, teacher(held_x) / 4

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.kl_div(
            F.log_softmax(outputs / 4, 1), F.log_softmax(targets, 1), reduction="batchmean", log_target=True
        )

    def score(outputs: Tensor, targets: Tensor) -> float:
        return class_skill(outputs, held_y)

    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return supervised(model, optimizer, (x, soft, held_x, held_soft), loss_fn, steps=300, score=score)


@report(
    HEALTHY, "https://github.com/kengz/SLM-Lab/issues/437", held_out=True
)  # REINFORCE: the reward rises, and so does the loss
def loss_rises_with_the_reward(fixed: bool) -> Loop:
    x, y, held_x, held_y = clusters(3, features=8, spread=0.6)
    model = mlp(8, 32, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    seen = {"reward": 1 / 3}

    def step(i: int) -> Tensor:
        rows = torch.randint(len(x), (64,))
        policy = torch.distributions.Categorical(logits=model(x[rows]))
        action = policy.sample()
        reward = (action == y[rows]).float()
        loss = -(policy.log_prob(action) * (reward - seen["reward"])).mean()
        seen["reward"] = 0.9 * seen["reward"] + 0.1 * reward.mean().item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return Loop(model, optimizer, step, lambda: class_skill(predict(model, held_x), held_y), steps=250)


@report(
    HEALTHY, "https://github.com/open-mmlab/mmcv/issues/519"
)  # the cosine schedule ends close to a rate of zero
def cosine_down_to_zero(fixed: bool) -> Loop:
    model = convnet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 250)
    return supervised(
        model, optimizer, digits(), metric=accuracy, steps=250, after_step=lambda i: schedule.step()
    )


@report(
    HEALTHY, "https://github.com/karpathy/nanoGPT/issues/605", held_out=True
)  # micro steps pile gradients up on purpose
def accumulation_on_purpose(fixed: bool) -> Loop:
    x, y, held_x, held_y = digits()
    model = convnet()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def step(i: int) -> Tensor:
        total = 0.0
        for _ in range(4):
            rows = torch.randint(len(x), (8,))
            loss = F.cross_entropy(model(x[rows]), y[rows]) / 4
            loss.backward()
            total += loss.detach()
        optimizer.step()
        optimizer.zero_grad()
        return total

    return Loop(model, optimizer, step, lambda: class_skill(predict(model, held_x), held_y), steps=200)


@report(
    HEALTHY, "https://github.com/NVIDIA/physicsnemo-sym/issues/21"
)  # L-BFGS, one number a step of many evaluations
def lbfgs(fixed: bool) -> Loop:
    x, y, held_x, held_y = table(samples=400)
    model = mlp(10, 24, 1, activation=nn.Tanh)
    optimizer = torch.optim.LBFGS(
        model.parameters(), lr=0.5, max_iter=5, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        return loss

    return Loop(
        model,
        optimizer,
        lambda i: optimizer.step(closure),
        lambda: fit_skill(predict(model, held_x), held_y),
        steps=60,
    )


@report(
    HEALTHY, "https://github.com/PetarV-/GAT/issues/7", held_out=True
)  # strong dropout: half right in training, far more in validation
def training_far_below_validation(fixed: bool) -> Loop:
    model = nn.Sequential(
        nn.Flatten(), nn.Dropout(0.6), nn.Linear(64, 96), nn.ReLU(), nn.Dropout(0.6), nn.Linear(96, 10)
    )
    return supervised(
        model, torch.optim.Adam(model.parameters(), lr=5e-3), digits(), metric=accuracy, steps=300, epoch=75
    )


@report(
    HEALTHY, "https://github.com/NVIDIA/Megatron-LM/issues/86"
)  # a masked language model: flat for long, and then it falls
def masked_words_start_flat(fixed: bool) -> Loop:
    generator = torch.Generator().manual_seed(31)
    start, jump = (
        torch.randint(20, (2000, 1), generator=generator),
        torch.randint(1, 4, (2000, 1), generator=generator),
    )
    text = (start + jump * torch.arange(8)) % 20
    text, held = text[:1700], text[1700:]

    class Bert(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.place = nn.Embedding(21, 32), nn.Parameter(0.02 * torch.randn(8, 32))
            layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
            self.body, self.norm = (
                nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
                nn.LayerNorm(32),
            )
            nn.init.normal_(self.embed.weight, 0, 0.05)

        def forward(self, words: Tensor) -> Tensor:
            return self.norm(self.body(self.embed(words) + self.place)) @ self.embed.weight[:20].T  # tied

    model = Bert()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    warm = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1.0, (i + 1) / 60))

    def guess(words: Tensor) -> tuple[Tensor, Tensor]:
        gone = torch.rand(words.shape) < 0.15
        gone[torch.arange(len(words)), torch.randint(8, (len(words),))] = True
        return model(words.masked_fill(gone, 20))[gone], words[gone]

    def step(i: int) -> Tensor:
        loss = F.cross_entropy(*guess(text[torch.randint(len(text), (32,))]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        warm.step()
        return loss

    def score() -> float:
        with torch.no_grad():
            outputs, targets = guess(held)
        return (float((outputs.argmax(1) == targets).float().mean()) - 0.05) / 0.95

    return Loop(model, optimizer, step, score, steps=250)


@report(
    HEALTHY, "https://github.com/facebookresearch/DiT/issues/82", held_out=True
)  # the final layer begins at zero, and the model still learns
def zero_final_layer_of_a_regression(fixed: bool) -> Loop:
    model = mlp(10, 48, 48, 1, activation=nn.SiLU)
    nn.init.zeros_(model[-1].weight)
    nn.init.zeros_(model[-1].bias)
    return supervised(
        model, torch.optim.Adam(model.parameters(), lr=3e-3), table(), F.mse_loss, steps=250, score=fit_skill
    )


@report(
    HEALTHY, "https://github.com/google-research/big_transfer/issues/10"
)  # a frozen body, and a new head that begins at zero
def frozen_body_and_a_zero_head(fixed: bool) -> Loop:
    x, y, held_x, held_y = digits()
    body = convnet()[:-1]
    pretrain = nn.Sequential(*body, nn.Linear(32, 5))
    early = torch.optim.Adam(pretrain.parameters(), lr=5e-3)
    for _ in range(80):
        rows = torch.randint(len(x), (32,))
        early.zero_grad()
        F.cross_entropy(pretrain(x[rows]), y[rows] % 5).backward()
        early.step()
    model = nn.Sequential(*body.requires_grad_(False), nn.Linear(32, 10))
    nn.init.zeros_(model[-1].weight)
    optimizer = torch.optim.SGD(model[-1].parameters(), lr=0.1, momentum=0.9)
    return supervised(model, optimizer, (x, y, held_x, held_y), metric=accuracy, steps=250)


@report(
    HEALTHY, "https://github.com/keras-team/keras/issues/1761", held_out=True
)  # dropout: validation above training; rows of words that never come stay as they were
def bag_of_words(fixed: bool) -> Loop:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.drop, self.head = (
                nn.EmbeddingBag(2000, 16, mode="mean"),
                nn.Dropout(0.3),
                nn.Linear(16, 2),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.drop(self.words(x)))

    model = Bag()
    return supervised(
        model,
        torch.optim.Adam(model.parameters(), lr=2e-2),
        sentences(),
        metric=accuracy,
        steps=240,
        epoch=80,
    )


class AutocastNet(nn.Module):
    """A network that computes in bfloat16 and answers in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.net = convnet()

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.net(x).float()


@report(
    HEALTHY, "https://github.com/appvision-ai/fast-bert/issues/52", held_out=True
)  # mixed precision: the first steps are skipped while the scale comes down
def mixed_precision(fixed: bool) -> Loop:
    x, y, held_x, held_y = digits()
    model = AutocastNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)

    def step(i: int) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(x), (32,))
        optimizer.zero_grad()
        outputs = model(x[rows])
        loss = F.cross_entropy(outputs, y[rows])
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss, accuracy(outputs, y[rows])

    return Loop(model, optimizer, step, lambda: class_skill(predict(model, held_x), held_y), steps=200)
