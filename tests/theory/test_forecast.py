"""The forecast's rules, one at a time, and that it needs no torch. Its score is in
tests/benchmarks/forecast.py.
"""

import subprocess
import sys

import pytest

from initscope import theory
from initscope.config import run_config
from initscope.schema import Outcome
from initscope.theory import forecast


def rows(signal=0.1, activation=0.5, grad=1e-3, weight=0.05, fan_in=100):
    """Three alike layers of a healthy network."""
    values = {
        "activation_rms": activation,
        "signal_std": signal,
        "correlation": 0.9,
        "activation_grad_rms": 1e-3,
        "grad_rms": grad,
    }
    return [
        {"layer": f"fc{i}", "depth": i - 1, "fan_in": fan_in, "weight_rms": weight, **values}
        for i in (1, 2, 3)
    ]


def said(rows, *, samples=None, normalized=None, **changes):
    return forecast.forecast(
        rows, run_config.quick().replace(**changes), samples=samples, normalized=normalized
    )


def test_healthy():
    answer = said(rows())
    assert answer["outcome"] == Outcome.CONVERGED
    assert answer["reason"] == (
        "the signal at fc3 is 0.1, 0.2 of the output's size, and the gradient reaches "
        "every layer (smallest 0.001 in fc1)"
    )


def test_collapsed_output():
    layers = rows()
    layers[-1] |= {"signal_std": 1e-9}
    layers[1] |= {"grad_rms": 3e-9}
    answer = said(layers)
    assert answer["outcome"] == Outcome.NOT_CONVERGED
    assert answer["reason"] == (
        "the signal at fc3 is 1e-09, 2e-09 of the output's size: the output no longer depends on "
        "the input, and the gradient of fc2 (3e-09) is below Adam's epsilon (1e-8)"
    )


def test_little_signal_with_gradients_everywhere():
    answer = said(rows(signal=1e-6))
    assert (
        answer["outcome"] == Outcome.CONVERGED
        and "hardly depends on the input (the signal at fc3 is 1e-06, 2e-06 of" in answer["reason"]
    )


def test_gradients_below_adams_epsilon():
    answer = said(rows(grad=1e-12))
    assert answer["outcome"] == Outcome.NOT_CONVERGED and "below Adam's epsilon" in answer["reason"]
    assert said(rows(grad=1e-12), optimizer="adamw")["outcome"] == Outcome.NOT_CONVERGED
    zero = said(rows(grad=0.0))
    assert zero["outcome"] == Outcome.NOT_CONVERGED and "no gradient reaches fc1" in zero["reason"]


def test_sgd_moves_in_proportion_to_the_gradient():
    sgd = {"optimizer": "sgd", "learning_rate": 1e-2}
    assert said(rows(), **sgd)["outcome"] == Outcome.CONVERGED
    slow = said(rows(grad=1e-6), **sgd)
    assert slow["outcome"] == Outcome.NOT_CONVERGED and "in the whole run" in slow["reason"]
    assert said(rows(grad=1e-5), epochs=1000, **sgd)["outcome"] == Outcome.CONVERGED
    fast = said(rows(grad=100.0), **sgd)
    assert fast["outcome"] == Outcome.DIVERGED and "200 times the size of the weights" in fast["reason"]
    assert said(rows(grad=0.2), **sgd)["outcome"] == Outcome.NOT_CONVERGED
    assert said(rows(), optimizer="sgd", learning_rate=0.1)["outcome"] == Outcome.NOT_CONVERGED
    assert said(rows(), optimizer="sgd", learning_rate=0.1, momentum=0.0)["outcome"] == Outcome.CONVERGED


def test_adams_learning_rate():
    assert said(rows(), learning_rate=2e-2)["outcome"] == Outcome.NOT_CONVERGED
    assert "lower the learning rate" in said(rows(), learning_rate=2e-2)["reason"]
    assert said(rows(), learning_rate=2e-2, batch_norm=True)["outcome"] == Outcome.CONVERGED
    assert said(rows(), learning_rate=2e-2, normalized=True)["outcome"] == Outcome.CONVERGED
    assert said(rows(), learning_rate=1e-7)["outcome"] == Outcome.NOT_CONVERGED
    # The wider the layer, the smaller the rate that it bears.
    assert said(rows(weight=0.02, fan_in=100))["outcome"] == Outcome.CONVERGED
    assert said(rows(weight=0.02, fan_in=4608), learning_rate=2e-3)["outcome"] == Outcome.NOT_CONVERGED


def test_overflow_is_divergence():
    for value in (float("inf"), float("nan")):
        assert said(rows(activation=value))["outcome"] == Outcome.DIVERGED


def test_a_smaller_batch_has_larger_gradients():
    """One sample's gradient of 4e-8 is 0.5e-8 in a batch of 64, where the samples' gradients point
    everywhere.
    """
    assert said(rows(grad=4e-8), samples=64)["outcome"] == Outcome.CONVERGED
    assert said(rows(grad=4e-8), samples=1)["outcome"] == Outcome.NOT_CONVERGED


def test_values_that_do_not_exist():
    layers = rows()
    for row in layers:
        row |= {"signal_std": None, "correlation": None}
    layers[0] |= {"grad_rms": None, "activation_grad_rms": None}
    assert said(layers)["outcome"] == Outcome.CONVERGED
    for row in layers:
        row["grad_rms"] = None
    assert said(layers)["outcome"] == Outcome.NOT_CONVERGED
    assert said(rows(weight=0.0, grad=0.0, activation=0.0, signal=0.0))["outcome"] == Outcome.NOT_CONVERGED


@pytest.mark.parametrize(
    ("changes", "steps"),
    [({}, 115), ({"max_steps": 7}, 7), ({"train_samples": 64}, 5), ({"data": "image_folder:x"}, None)],
)
def test_planned_steps(changes, steps):
    assert forecast.planned_steps(run_config.quick().replace(**changes)) == steps


@pytest.mark.parametrize(
    ("init", "outcome"),
    [
        ("default", Outcome.NOT_CONVERGED),
        ("kaiming_normal", Outcome.CONVERGED),
        ("tutorial", Outcome.CONVERGED),
        ("normal_0.01", Outcome.NOT_CONVERGED),
        ("zeros", Outcome.NOT_CONVERGED),
    ],
)
def test_the_storys_initializations(init, outcome):
    assert forecast.expect(run_config.quick().replace(init=init))["outcome"] == outcome


def test_full_width_needs_a_smaller_rate():
    """Measured: full-width VGG16 with the tutorial's weights stays at chance at Adam 1e-3."""
    wide = run_config.tutorial_32().replace(init="tutorial", data="digits")
    assert forecast.expect(wide.replace(learning_rate=1e-3))["outcome"] == Outcome.NOT_CONVERGED
    assert forecast.expect(wide.replace(learning_rate=1e-4))["outcome"] == Outcome.CONVERGED


def test_rows_of_theory_are_enough():
    small = run_config.quick()
    layers = theory.vgg_layers(small, in_channels=1, num_classes=10)
    predicted = theory.predict(layers, theory.typical_stats(small))
    assert forecast.forecast(predicted, small) == forecast.expect(small)


def test_needs_no_torch():
    code = (
        "import sys; from initscope import config; from initscope.theory import forecast; "
        "forecast.expect(config.quick()); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
