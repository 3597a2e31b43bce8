"""What stands between two layers, and between the optimizer and the weights."""

from __future__ import annotations

from initscope.schema import Cause
from tests.diagnosis.test_diagnosis import NAMES, ask, epochs_of, ids, noisy

USUAL = {"scales": {name: {"gain": 0.6} for name in NAMES}}


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
    facts = {"scales": {name: {"gain": 1e-6 if name == "fc1" else 0.6} for name in NAMES}}
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


def test_layers_without_a_nonlinearity() -> None:
    """What they cannot learn says nothing about the labels."""
    rows = ((2.3, 0.11, 2.31, 0.10), (2.3, 0.11, 2.31, 0.10))
    found = ask(noisy(2.3, 2.3), facts={**USUAL, "bend": 1e-7}, epochs=epochs_of(*rows))
    assert found.cause is Cause.UNKNOWN and "network_linear" in ids(found)
    assert "nn.ReLU" in found.remedy.text
    bent = ask(noisy(2.3, 2.3), facts={**USUAL, "bend": 0.1}, epochs=epochs_of(*rows))
    assert bent.cause is Cause.LABELS_UNRELATED and bent.confidence < 0.8


def test_outputs_indexed_with_the_columns_of_all_samples() -> None:
    loss = {"chain": ["Mean", "Pow", "Sub", "Index"], "classes": None, "indexed_across": True}
    assert ask(noisy(1.0, 0.7), facts={"loss": loss}).cause is Cause.LOSS_MISUSE


def test_frozen_weights_that_nobody_loaded() -> None:
    frozen = {"frozen": [*NAMES[:3]], "unoptimized": [*NAMES[:3]]}
    gains = {name: {"gain": 0.58} for name in NAMES}
    still = {"update_ratio": lambda step, depth: 1e-3 if depth == 3 else 0.0}
    fresh = ask(noisy(2.3, 1.4), facts={**frozen, "scales": gains}, **still)
    assert fresh.cause is Cause.NOT_UPDATING and "Load" in fresh.remedy.text
    trained = {name: {"gain": 0.58 + 0.4 * i} for i, name in enumerate(NAMES)}
    assert ask(noisy(2.3, 1.4), facts={**frozen, "scales": trained}, **still).cause is Cause.HEALTHY


def test_a_sum_where_a_mean_was_meant() -> None:
    """The second layer is given more than the first one makes, with weights of a usual size."""
    facts = {**USUAL, "activations": {}}
    loud = {"activation_std": lambda step, depth: 1.0 if depth < 1 else 30.0}
    found = ask(noisy(9.0, 2.3), facts=facts, **loud)
    assert "loud_between" in ids(found) and found.cause is not Cause.INIT_TOO_LARGE
    heavy = {"scales": {name: {"gain": 30.0} for name in NAMES}}
    assert "loud_between" not in ids(ask(noisy(9.0, 2.3), facts=heavy, **loud))
