"""Targets deduced from the loss's gradient, against the targets that made it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from initscope.recording.model_facts import loss_facts
from initscope.recording.targets import Observed, TargetLog, agreed, is_discriminator, observe


def seen(
    loss_fn: Callable[[Tensor, Tensor], Tensor], output: Tensor, target: Tensor, told: bool = True
) -> Observed | None:
    """What ``observe`` makes of one batch; the output is that of a linear layer, so that the chain is a real
    one.
    """
    result = (
        (output.detach().clone().requires_grad_() @ torch.eye(output.shape[-1]))
        if output.dim() > 1
        else output.requires_grad_()
    )
    result.retain_grad()
    loss = loss_fn(result, target)
    chain = loss_facts(loss)["chain"] if told else []
    loss.backward()
    return observe(chain, loss.item(), result.detach(), result.grad)


def entropy(y: Tensor, classes: int) -> float:
    share = torch.bincount(y.flatten(), minlength=classes).double() / y.numel()
    return float(-(share * share.clamp(min=1e-300).log()).sum())


WEIGHT = torch.tensor([1.0, 4.0, 0.5, 2.0, 1.0])
CLASS_LOSSES: list[tuple[str, Callable[[Tensor, Tensor], Tensor], float]] = [
    ("mean", F.cross_entropy, 1.0),
    ("sum", lambda o, y: F.cross_entropy(o, y, reduction="sum"), 48.0),
    ("weights", lambda o, y: F.cross_entropy(o, y, WEIGHT), 1.0),
    ("accumulated", lambda o, y: F.cross_entropy(o, y) / 4, 0.25),
]


@pytest.mark.parametrize(("name", "loss_fn", "scale"), CLASS_LOSSES, ids=[row[0] for row in CLASS_LOSSES])
def test_classes_are_read_off_the_gradient(name: str, loss_fn: Callable, scale: float) -> None:
    torch.manual_seed(0)
    output, y = 3 * torch.randn(48, 5), torch.randint(5, (48,))
    found = seen(loss_fn, output, y)
    assert found is not None and found.kind == "classes" and found.exact
    assert found.true.tolist() == torch.bincount(y, minlength=5).tolist()
    assert found.predicted.tolist() == torch.bincount(output.argmax(1), minlength=5).tolist()
    assert int(found.right.sum()) == int((output.argmax(1) == y).sum())
    assert found.scale == pytest.approx(scale, rel=0.01)


@pytest.mark.parametrize("shape", ["pixels", "tokens"])
def test_classes_of_dense_outputs(shape: str) -> None:
    torch.manual_seed(1)
    if shape == "pixels":
        output, y = torch.randn(4, 3, 6, 5), torch.randint(3, (4, 6, 5))
        found = seen(F.cross_entropy, output, y)
    else:
        output, y = torch.randn(4, 7, 9), torch.randint(9, (4, 7))
        found = seen(lambda o, t: F.cross_entropy(o.reshape(-1, 9), t.reshape(-1)), output, y)
    assert found.kind == "classes" and found.exact and not found.flat
    assert found.true.tolist() == torch.bincount(y.flatten(), minlength=len(found.true)).tolist()


def test_a_sum_over_samples_that_are_right_beyond_rounding() -> None:
    torch.manual_seed(0)
    y = torch.randint(5, (48,))
    output = 3 * torch.randn(48, 5)
    output[:20] = 1e4 * F.one_hot(y[:20], 5)  # they leave no gradient, and count all the same
    found = seen(lambda o, t: F.cross_entropy(o, t, reduction="sum"), output, y)
    assert found is not None and found.exact and found.samples == 48
    assert found.scale == pytest.approx(48.0, rel=0.01)


def test_ignored_targets_are_left_out() -> None:
    torch.manual_seed(2)
    output, y = torch.randn(40, 4), torch.randint(4, (40,))
    y[::3] = -100
    found = seen(F.cross_entropy, output, y)
    assert (
        found.samples == int((y >= 0).sum())
        and found.true.tolist() == torch.bincount(y[y >= 0], minlength=4).tolist()
    )


def test_without_the_chain_the_numbers_decide() -> None:
    torch.manual_seed(3)
    output, y = torch.randn(32, 6), torch.randint(6, (32,))
    assert seen(F.cross_entropy, output, y, told=False).kind == "classes"
    assert seen(F.mse_loss, output, torch.randn(32, 6), told=False).kind == "numbers"
    assert (
        seen(F.binary_cross_entropy_with_logits, output, torch.rand(32, 6).round(), told=False).kind
        == "binary"
    )
    assert seen(lambda o, t: (o * t).mean(), output, torch.randn(32, 6), told=False) is None
    assert seen(F.l1_loss, output, torch.randn(32, 6), told=False) is None


@pytest.mark.parametrize("outputs", ["log_probabilities", "probabilities"])
def test_likelihoods(outputs: str) -> None:
    torch.manual_seed(4)
    logits, y = torch.randn(30, 4), torch.randint(4, (30,))
    result = (F.log_softmax if outputs == "log_probabilities" else F.softmax)(logits, 1).requires_grad_()
    loss = F.nll_loss(result if outputs == "log_probabilities" else result.log(), y)
    loss.backward()
    found = observe(["NllLoss", "LogSoftmax"], loss.item(), result.detach(), result.grad)
    assert found.exact and found.true.tolist() == torch.bincount(y, minlength=4).tolist()


def test_smoothed_labels_leave_a_floor() -> None:
    torch.manual_seed(5)
    found = seen(
        lambda o, y: F.cross_entropy(o, y, label_smoothing=0.2), torch.randn(64, 5), torch.randint(5, (64,))
    )
    hard = 0.8 + 0.04
    assert found.floor == pytest.approx(-(hard * math.log(hard) + 4 * 0.04 * math.log(0.04)), rel=1e-3)


def test_targets_outside_of_zero_and_one() -> None:
    torch.manual_seed(6)
    found = seen(F.binary_cross_entropy_with_logits, torch.randn(64, 1), torch.randint(10, (64, 1)).float())
    assert (found.low, found.high) == (
        pytest.approx(0, abs=1e-3),
        pytest.approx(9, abs=1e-3),
    ) and found.mass is None


def test_positive_weights_are_no_targets_outside() -> None:
    torch.manual_seed(7)
    y = (torch.rand(200, 2) < 0.1).float()
    found = seen(
        lambda o, t: F.binary_cross_entropy_with_logits(o, t, pos_weight=torch.tensor([9.0, 9.0])),
        torch.randn(200, 2),
        y,
    )
    assert found.high == 1 and found.true.tolist() == [int((y == 0).sum()), int(y.sum())]
    rate = y.mean(0)
    assert found.mass[:, 1].tolist() == pytest.approx((9 * rate / (9 * rate + 1 - rate)).tolist(), rel=1e-3)


def test_yes_and_no_of_probabilities() -> None:
    torch.manual_seed(8)
    result = torch.rand(50, 1).requires_grad_()
    y = (torch.rand(50, 1) < 0.3).float()
    loss = F.binary_cross_entropy(result, y)
    loss.backward()
    found = observe(["BinaryCrossEntropy"], loss.item(), result.detach(), result.grad)
    assert found.exact and found.true.tolist() == [int((y == 0).sum()), int(y.sum())]


def pooled(loss_fn: Callable, batches: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    log = TargetLog()
    for output, target in batches:
        log.add(seen(loss_fn, output, target))
    return log.facts()


def test_the_price_of_guessing_is_pooled_over_batches() -> None:
    torch.manual_seed(9)
    y = (torch.rand(40, 50) < 0.1).long()
    facts = pooled(F.cross_entropy, [(torch.randn(50, 2), row) for row in y])
    assert facts["price"] == pytest.approx(entropy(y, 2), rel=0.01)
    assert 0 < facts["price_error"] < 0.1 * facts["price"]
    assert facts["largest"] == pytest.approx(1 - y.double().mean().item()) and facts[
        "scale"
    ] == pytest.approx(1, rel=0.01)


def test_the_price_of_a_regression_is_the_targets_variance() -> None:
    torch.manual_seed(10)
    target = 3 * torch.randn(30, 40, 2) + 7
    facts = pooled(F.mse_loss, [(torch.randn(40, 2), row) for row in target])
    assert facts["price"] == pytest.approx(target.reshape(-1, 2).var(0).mean().item(), rel=1e-3)
    assert facts["mean"] == pytest.approx(7, abs=0.2) and facts["rms"] == pytest.approx(
        math.hypot(7, 3), rel=0.02
    )


def test_sorted_labels_are_told_from_shuffled_ones() -> None:
    torch.manual_seed(11)
    y = torch.arange(10).repeat_interleave(32)
    shuffled = y[torch.randperm(len(y))]

    def same(labels: Tensor) -> tuple[float, float]:
        facts = pooled(F.cross_entropy, [(torch.randn(32, 10), part) for part in labels.split(32)])
        return facts["same_label"], facts["same_label_overall"]

    assert same(y) == (1, pytest.approx(0.1, abs=0.01))
    within, overall = same(shuffled)
    assert within == pytest.approx(overall, abs=0.02)


def test_a_penalty_has_no_one_scale() -> None:
    torch.manual_seed(12)
    penalty = iter([0.5, 0.7, 0.9, 1.1])
    facts = pooled(
        lambda o, y: F.cross_entropy(o, y) + next(penalty),
        [(torch.randn(40, 3), torch.randint(3, (40,))) for _ in range(4)],
    )
    assert facts["scale"] is None and facts["first"]["penalty"] == pytest.approx(0.8, rel=1e-3)


def test_a_discriminator_sees_all_real_and_all_fake() -> None:
    torch.manual_seed(13)
    real, fake = torch.randn(20, 1).requires_grad_(), torch.randn(20, 1).requires_grad_()
    bce = F.binary_cross_entropy_with_logits
    loss = bce(real, torch.ones(20, 1)) + bce(fake, torch.zeros(20, 1))
    loss.backward()
    assert is_discriminator(loss.item(), [(real.detach(), real.grad), (fake.detach(), fake.grad)])
    a, b = torch.randn(20, 1).requires_grad_(), torch.randn(20, 1).requires_grad_()
    loss = bce(a, torch.rand(20, 1).round()) + bce(b, torch.rand(20, 1).round())
    loss.backward()
    assert not is_discriminator(loss.item(), [(a.detach(), a.grad), (b.detach(), b.grad)])


def test_what_is_not_finite_is_left_alone() -> None:
    assert observe(["NllLoss"], math.nan, torch.randn(4, 2), torch.randn(4, 2)) is None
    assert observe(["NllLoss"], 1.0, torch.full((4, 2), math.nan), torch.randn(4, 2)) is None
    assert observe(["NllLoss"], 1.0, torch.randn(4, 2), torch.randn(4, 3)) is None


def test_scales_agree_or_not() -> None:
    assert agreed([32.0, 32.1, 31.9]) == 32.0 and agreed([0.9, 1.1]) is None
