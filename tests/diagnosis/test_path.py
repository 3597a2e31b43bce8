"""What stands between two layers, and between the optimizer and the weights."""

from __future__ import annotations

from initscope.schema import Cause
from tests.diagnosis.test_diagnosis import FACTS, ask, ids, noisy

USUAL = {"scales": {name: {"gain": 0.6} for name in FACTS["weights"]}}


def test_a_signal_that_ends_at_once_is_none_of_the_weights_doing() -> None:
    found = ask(
        noisy(2.3, 2.3),
        facts={**USUAL, "activations": {}},
        signal_std=lambda step, depth: 1.0 if depth < 2 else 0.0,
        activation_mean=0.3,
    )
    assert found.cause is Cause.UNKNOWN
    cut = next(f for f in found.findings if f.id == "signal_cut")
    assert cut.layers == ("fc1",) and "conv2" in cut.text
    assert "between the two layers" in found.remedy.text


def test_a_signal_that_fades_is_not_cut() -> None:
    found = ask(noisy(2.3, 2.3), facts=USUAL, signal_std=lambda step, depth: 10.0 ** (-3 * depth))
    assert found.cause is Cause.INIT_TOO_SMALL and "signal_cut" not in ids(found)


def test_tiny_weights_cut_a_signal_by_themselves() -> None:
    facts = {"scales": {name: {"gain": 1e-6 if name == "fc1" else 0.6} for name in FACTS["weights"]}}
    found = ask(noisy(2.3, 2.3), facts=facts, signal_std=lambda step, depth: 1.0 if depth < 2 else 1e-7)
    assert "signal_cut" not in ids(found)


def test_units_that_are_off_cut_a_signal() -> None:
    found = ask(
        noisy(2.3, 2.3),
        facts=USUAL,
        dead_fraction=lambda step, depth: 1.0 if depth == 1 else 0.4,
        signal_std=lambda step, depth: 1.0 if depth < 2 else 0.0,
    )
    assert found.cause is Cause.DEAD_RELU and "signal_cut" not in ids(found)


def test_steps_that_are_taken_back_are_told() -> None:
    """A norm that an update of a hundredth changes by next to nothing, from step to step."""
    found = ask(
        noisy(2.3, 2.3),
        update_ratio=1e-2,
        weight_norm=lambda step, depth: 5.0 / (1 + step * 1e-2),
    )
    assert found.cause is Cause.UNKNOWN and "updates_undone" in ids(found)
    assert "optimizer.step()" in found.remedy.text


def test_steps_that_stay_change_the_norm() -> None:
    assert "updates_undone" not in ids(ask(noisy(2.3, 2.3), update_ratio=1e-2))


def test_an_epsilon_above_the_gradient_is_named() -> None:
    adam = {"class": "Adam", "lr": 1e-3, "eps": 1.0}
    found = ask(
        noisy(2.303, 2.303),
        facts={"optimizers": [adam]},
        update_ratio=1e-4,
        grad_norm=0.5,
        grad_rms=0.05,
    )
    assert found.cause is Cause.LR_TOO_LOW
    assert "epsilon_large" in ids(found) and "gradient_clipped" not in ids(found)
    assert "epsilon" in found.remedy.text
    usual = ask(noisy(2.303, 2.303), facts={"optimizers": [adam | {"eps": 1e-8}]}, update_ratio=1e-4)
    assert "epsilon_large" not in ids(usual)


def test_a_divergence_of_probabilities() -> None:
    chain = ["Div", "Sum", "Sub", "Mul", "Softmax"]
    found = ask(noisy(-1.8, -2.2), facts={"loss": {"chain": chain, "classes": 10}})
    assert found.cause is Cause.LOSS_MISUSE
    right = ask(noisy(0.6, 0.1), facts={"loss": {"chain": [*chain[:-1], "LogSoftmax"], "classes": 10}})
    assert right.cause is Cause.HEALTHY


def test_a_loss_below_zero_that_stays_has_not_been_learned() -> None:
    found = ask(noisy(-1.8, -1.8), facts={"loss": {"chain": ["Mean", "Mul"], "classes": None}})
    assert found.cause is Cause.UNKNOWN
