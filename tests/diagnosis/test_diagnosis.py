"""The diagnosis from plain frames: symptom, rules, replay with other thresholds, and runs that lack half of
the facts.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from initscope.diagnosis.chance_loss import guessing, scatter
from initscope.diagnosis.curve import read_curve
from initscope.diagnosis.diagnose import Diagnosis, diagnose_frames
from initscope.diagnosis.findings import RULES
from initscope.diagnosis.rules_outputs import softmax_floor
from initscope.diagnosis.run_signals import read_signals
from initscope.diagnosis.thresholds import AUTOTRAINER, DEFAULT, LIMITS, PRESETS, SAGEMAKER, Thresholds
from initscope.schema import LAYER_METRICS, Cause, Outcome

NAMES = ("conv1", "conv2", "fc1", "fc2")
FACTS: dict[str, Any] = {
    "batch_size": 64,
    "outputs": 10,
    "weights": dict.fromkeys(NAMES, 100),
    "identical_units": [],
    "input": {"mean": 0.0, "std": 1.0, "low": -3.0, "high": 3.0, "signal": 1.0, "nonfinite": 0},
    "loss": {"chain": ["NllLoss", "LogSoftmax"], "classes": 10, "across_batch": False, "broadcast": False},
    "activations": dict.fromkeys(NAMES[:-1], "ReLU"),
    "normalized": [],
    "optimizer": "Adam",
}
SOUND = {
    "grad_norm": 0.5,
    "grad_rms": 0.05,
    "weight_norm": 5.0,
    "update_ratio": 1e-3,
    "activation_mean": 0.0,
    "activation_std": 1.0,
    "signal_std": 0.7,
    "activation_grad_rms": 1e-2,
    "dead_fraction": 0.4,
    "nonfinite": 0,
}


def layers(steps: int, **changes: Any) -> pd.DataFrame:
    """Sound rows of four layers; a change is a number, or a function of (step, depth)."""
    rows = []
    for step in range(steps):
        for depth, name in enumerate(NAMES):
            values = {
                key: value(step, depth) if callable(value) else value
                for key, value in {**SOUND, **changes}.items()
            }
            # The norm moves with every update, as a real one does.
            values["weight_norm"] = values["weight_norm"] * (1 + step * np.nan_to_num(values["update_ratio"]))
            rows.append({"step": step, "layer": name, "depth": depth, "kind": "linear", **values})
    return pd.DataFrame(rows, columns=["step", "layer", "depth", "kind", *LAYER_METRICS])


def curve_of(loss: Any, rate: float = 1e-3) -> pd.DataFrame:
    loss = np.asarray(loss, float)
    steps = np.arange(len(loss))
    return pd.DataFrame(
        {"step": steps, "epoch": 0, "loss": loss, "accuracy": np.nan, "learning_rate": rate, "seconds": steps}
    )


def epochs_of(*rows: tuple[float, float, float, float]) -> pd.DataFrame:
    columns = ["train_loss", "train_accuracy", "val_loss", "val_accuracy"]
    return pd.DataFrame(rows, columns=columns).assign(epoch=range(len(rows)), seconds=0.0)


def noisy(start: float, end: float, count: int = 100, noise: float = 0.02) -> np.ndarray:
    return np.linspace(start, end, count) + noise * np.random.default_rng(0).standard_normal(count)


def ask(
    loss: Any,
    thresholds: Thresholds = DEFAULT,
    facts: dict | None = None,
    epochs: Any = None,
    rate: float = 1e-3,
    **rows: Any,
) -> Diagnosis:
    loss = np.asarray(loss, float)
    state = {"facts": {**FACTS, **(facts or {})}, "outcome": "undecided"}
    return diagnose_frames(
        curve_of(loss, rate),
        epochs_of() if epochs is None else epochs,
        layers(len(loss), **rows),
        state,
        {},
        thresholds,
    )


def ids(found: Diagnosis) -> set[str]:
    return {finding.id for finding in found.findings}


FADING = {"signal_std": lambda step, depth: 10.0 ** (-3 * depth)}


class TestCauses:
    """One mechanism each, from rows written by hand; the bench in tests/faults has the real runs."""

    def test_healthy_run_has_no_findings(self) -> None:
        found = ask(noisy(2.4, 0.3))
        assert (found.cause, found.outcome, found.findings) == (Cause.HEALTHY, Outcome.CONVERGED, ())

    def test_signal_gone_and_plateau(self) -> None:
        found = ask(noisy(2.3, 2.3), **FADING)
        assert found.cause is Cause.INIT_TOO_SMALL
        assert {"signal_collapse", "loss_plateau_at_chance"} <= ids(found)
        assert next(f for f in found.findings if f.id == "signal_collapse").layers == ("conv2", "fc1")

    def test_signal_gone_but_learning_is_set_aside(self) -> None:
        found = ask(
            noisy(2.3, 0.9), signal_std=lambda step, depth: 10.0 ** (-3 * depth) if step < 20 else 0.5
        )
        assert found.cause is Cause.HEALTHY and not found.findings
        assert [finding.id for finding in found.set_aside] == ["signal_collapse"]

    def test_dead_from_the_start_is_not_the_learning_rate(self) -> None:
        found = ask(
            noisy(2.3, 2.3), dead_fraction=0.98, signal_std=lambda step, depth: 1.0 if depth == 0 else 0.0
        )
        assert found.cause is Cause.DEAD_RELU

    def test_dead_later_is_the_learning_rate(self) -> None:
        loss = np.concatenate([[2.3, 40.0, 90.0], noisy(2.32, 2.32, 97)])
        found = ask(
            loss,
            dead_fraction=lambda step, depth: 0.4 if step < 2 else 1.0,
            update_ratio=lambda step, depth: 2.0 if step < 3 else 1e-3,
        )
        assert found.cause is Cause.LR_TOO_HIGH
        assert not next(f for f in found.findings if f.id == "dead_units").first

    def test_tiny_updates(self) -> None:
        assert ask(noisy(2.4, 2.38), update_ratio=1e-7).cause is Cause.LR_TOO_LOW

    def test_tiny_updates_from_tiny_gradients_are_not_the_learning_rate(self) -> None:
        found = ask(noisy(2.303, 2.303), update_ratio=1e-7, grad_norm=1e-8, grad_rms=1e-9, **FADING)
        assert found.cause is Cause.INIT_TOO_SMALL

    def test_a_plateau_alone_says_nothing_about_the_labels(self) -> None:
        found = ask(noisy(2.3, 2.3))
        assert found.cause is Cause.UNKNOWN
        text = next(f.text for f in found.findings if f.id == "loss_plateau_at_chance")
        assert "labels" in text and "does not get through the network" in text

    def test_a_plateau_and_a_validation_at_chance(self) -> None:
        found = ask(noisy(2.3, 2.3), epochs=epochs_of((2.3, 0.11, 2.31, 0.10), (2.3, 0.11, 2.31, 0.10)))
        assert found.cause is Cause.LABELS_UNRELATED

    def test_inputs_that_were_not_seen_are_told_from_the_first_layer(self) -> None:
        facts = {"input": None, "scales": {name: {"gain": 1.0} for name in NAMES}}
        loud = {"activation_std": lambda step, depth: 3000.0}
        found = ask(noisy(900.0, 900.0), facts=facts, **loud)
        assert found.cause is Cause.INPUT_SCALE
        assert "3e+03" in next(f.text for f in found.findings if f.id == "input_out_of_range")
        heavy = facts | {"scales": {name: {"gain": 3000.0} for name in NAMES}}
        assert "input_out_of_range" not in ids(ask(noisy(900.0, 900.0), facts=heavy, **loud))

    @pytest.mark.parametrize(("moved", "told"), [(0.05, True), (1.0, False)])
    def test_adams_steps_without_a_gradient_are_not_clipped(self, moved: float, told: bool) -> None:
        """Of layers of 100 weights of norm 5 a step of 1e-3 each changes 0.002; an embedding's unseen rows
        have no gradient, and its step is shorter.
        """
        found = ask(noisy(2.3, 2.3), update_ratio=lambda step, depth: 0.002 * (0.05 if depth == 0 else moved))
        assert ("gradient_clipped" in ids(found)) == told

    def test_a_gradient_that_is_always_zero(self) -> None:
        found = ask(noisy(2.3, 1.5), grad_norm=lambda step, depth: 0.0 if depth < 2 else 0.5)
        assert found.cause is Cause.NOT_UPDATING
        assert next(f for f in found.findings if f.id == "gradient_blocked").layers == NAMES[:2]

    def test_a_gradient_that_is_zero_behind_units_that_are_off(self) -> None:
        found = ask(
            noisy(2.3, 2.3),
            dead_fraction=0.98,
            signal_std=lambda step, depth: 1.0 if depth == 0 else 0.0,
            grad_norm=lambda step, depth: 0.0 if depth < 2 else 0.5,
        )
        assert found.cause is Cause.DEAD_RELU

    def test_a_gradient_that_is_zero_at_first_only(self) -> None:
        found = ask(noisy(2.3, 0.9), grad_norm=lambda step, depth: 0.0 if depth < 3 and step == 0 else 0.5)
        assert found.cause is Cause.HEALTHY

    @pytest.mark.parametrize(("size", "cause"), [(1e-7, Cause.UNKNOWN), (1e-2, Cause.HEALTHY)])
    def test_a_loss_of_rounding_errors(self, size: float, cause: Cause) -> None:
        facts = FACTS | {"loss": {"chain": ["Neg", "Sum"]}, "outputs": None}
        found = ask(size * noisy(2.3, 0.5), grad_norm=size, facts=facts)
        assert found.cause is cause
        assert ("loss_zero" in ids(found)) == (cause is Cause.UNKNOWN)

    def test_memorised_with_validation_at_chance(self) -> None:
        found = ask(noisy(2.4, 0.2), epochs=epochs_of((1.5, 0.5, 2.9, 0.11), (0.3, 0.97, 4.5, 0.10)))
        assert found.cause is Cause.LABELS_UNRELATED
        assert found.outcome is Outcome.NOT_CONVERGED

    def test_overfitting(self) -> None:
        found = ask(noisy(2.4, 0.05), epochs=epochs_of((1.5, 0.5, 1.4, 0.55), (0.05, 1.0, 2.0, 0.6)))
        assert found.cause is Cause.OVERFITTING
        assert found.outcome is Outcome.CONVERGED

    def test_large_first_outputs(self) -> None:
        found = ask(noisy(400, 30), activation_std=lambda step, depth: 6.0 ** (depth + 1))
        assert found.cause is Cause.INIT_TOO_LARGE

    def test_large_inputs_are_not_the_initialization(self) -> None:
        inputs = {"mean": 80.0, "std": 90.0, "low": 0.0, "high": 255.0, "signal": 80.0, "nonfinite": 0}
        found = ask(noisy(300, 30), facts={"input": inputs}, activation_std=120.0, signal_std=100.0)
        assert found.cause is Cause.INPUT_SCALE

    def test_flat_part_of_tanh(self) -> None:
        found = ask(
            noisy(2.5, 2.5),
            facts={"activations": dict.fromkeys(NAMES[:-1], "Tanh")},
            activation_std=8.0,
            signal_std=5.0,
            dead_fraction=np.nan,
        )
        assert found.cause is Cause.SATURATED_ACTIVATION

    def test_identical_units_but_not_of_the_last_layer(self) -> None:
        assert ask(noisy(2.3, 2.3), facts={"identical_units": ["conv2"]}).cause is Cause.SYMMETRIC_INIT
        assert ask(noisy(2.3, 0.3), facts={"identical_units": ["fc2"]}).cause is Cause.HEALTHY

    def test_softmax_twice_even_if_it_learns(self) -> None:
        loss = {**FACTS["loss"], "chain": ["NllLoss", "LogSoftmax", "Softmax"]}
        found = ask(noisy(2.3, 1.6), facts={"loss": loss})
        assert found.cause is Cause.LOSS_MISUSE
        assert (
            f"{softmax_floor(10):.3g}"
            in next(f for f in found.findings if f.id == "outputs_are_probabilities").text
        )

    def test_weights_that_never_move(self) -> None:
        found = ask(noisy(2.3, 2.3), update_ratio=0.0)
        assert found.cause is Cause.NOT_UPDATING
        assert "zero_grad" in next(f for f in found.findings if f.id == "weights_frozen").text
        found = ask(noisy(2.3, 2.3), update_ratio=np.nan)
        assert "never called" in next(f for f in found.findings if f.id == "weights_frozen").text

    def test_zero_learning_rate_is_the_learning_rate(self) -> None:
        assert ask(noisy(2.3, 2.3), update_ratio=0.0, rate=0.0).cause is Cause.LR_TOO_LOW


class TestLimitsOfKnowledge:
    """What must not be claimed."""

    @pytest.mark.parametrize("count", [0, 1, 2, 7])
    def test_few_rows(self, count: int) -> None:
        found = ask(noisy(2.4, 2.3, count))
        assert found.outcome is Outcome.UNDECIDED
        assert found.cause is (Cause.HEALTHY if count else Cause.UNKNOWN)
        assert found.confidence <= 0.5

    def test_confidence_grows_with_the_steps_seen(self) -> None:
        few, many = ask(noisy(2.3, 2.3, 12), **FADING), ask(noisy(2.3, 2.3, 80), **FADING)
        assert few.cause is many.cause is Cause.INIT_TOO_SMALL
        assert few.confidence < many.confidence

    def test_nothing_is_blamed_on_labels_where_the_inside_was_not_seen(self) -> None:
        hidden = dict.fromkeys(("activation_mean", "activation_std", "signal_std", "dead_fraction"), np.nan)
        assert ask(noisy(2.3, 2.3), **hidden).cause is Cause.UNKNOWN

    def test_unknown_loss_has_no_chance(self) -> None:
        facts = {"loss": {"chain": ["L1Loss"]}, "outputs": 1}
        found = ask(noisy(5.0, 5.0), facts=facts)
        assert "loss_plateau_at_chance" not in ids(found)

    def test_one_sample_a_batch_has_no_signal(self) -> None:
        found = ask(noisy(2.4, 0.5), facts={"batch_size": 1}, signal_std=0.0)
        assert found.cause is Cause.HEALTHY and not found.set_aside

    def test_no_layer_rows(self) -> None:
        state = {"facts": FACTS}
        found = diagnose_frames(curve_of(noisy(2.4, 0.4)), epochs_of(), layers(0), state, {})
        assert found.cause is Cause.HEALTHY

    def test_no_facts(self) -> None:
        found = diagnose_frames(curve_of(noisy(2.4, 0.4)), epochs_of(), layers(100), {}, {})
        assert found.cause is Cause.HEALTHY

    def test_not_finite_from_the_first_step(self) -> None:
        found = ask(
            np.full(5, np.nan), activation_mean=np.nan, activation_std=np.nan, signal_std=np.nan, nonfinite=4
        )
        assert (found.cause, found.outcome) == (Cause.INIT_TOO_LARGE, Outcome.DIVERGED)

    def test_arrow_tables_give_the_same(self) -> None:
        steps, rows, state = curve_of(noisy(2.3, 2.3)), layers(100, **FADING), {"facts": FACTS}
        plain = diagnose_frames(steps, epochs_of(), rows, state, {})
        arrow = diagnose_frames(
            *(pa.Table.from_pandas(frame) for frame in (steps, epochs_of(), rows)), state, {}
        )
        assert plain == arrow


class TestReplay:
    """Thresholds moved on a finished run."""

    def test_moved_threshold_moves_the_finding(self) -> None:
        rows = {"signal_std": lambda step, depth: 0.3 if depth == 2 else 0.7}
        assert "signal_collapse" not in ids(ask(noisy(2.3, 2.3), **rows))
        found = ask(noisy(2.3, 2.3), DEFAULT.replace(signal_kept=0.5), **rows)
        finding = next(f for f in found.findings if f.id == "signal_collapse")
        assert finding.threshold == 0.5 and finding.value == pytest.approx(0.3)
        assert (found.thresholds, finding.source) == ("InitScope, 1 moved", "moved by hand")
        plateau = next(f for f in found.findings if f.id == "loss_plateau_at_chance")
        assert plateau.source == "TheDeepChecker", "a line that nobody moved keeps its source"

    @pytest.mark.parametrize("name", LIMITS)
    def test_every_threshold_can_be_switched_off(self, name: str) -> None:
        assert ask(noisy(2.3, 2.3), DEFAULT.replace(**{name: None}), **FADING).cause in Cause

    @pytest.mark.parametrize("name", LIMITS)
    def test_bounds_hold_the_default(self, name: str) -> None:
        limit = LIMITS[name]
        assert limit.default is None or limit.low <= limit.default <= limit.high
        assert limit.title and limit.help and limit.source

    def test_other_tools_find_what_they_look_for(self) -> None:
        plateau = noisy(2.33, 2.33)
        rows = {"grad_norm": lambda step, depth: 1e-9 if depth < 3 else 0.1, "grad_rms": 1e-10}
        assert "vanishing_gradient" in ids(ask(plateau, AUTOTRAINER, **rows))
        assert "vanishing_gradient" in ids(ask(plateau, SAGEMAKER, **rows))
        assert "signal_collapse" not in ids(ask(plateau, SAGEMAKER, **FADING))
        assert set(PRESETS) == {"InitScope", "SageMaker Debugger", "AUTOTRAINER"}


class TestAnswer:
    def test_json_has_the_contracts_keys(self) -> None:
        answer = json.loads(json.dumps(ask(noisy(2.3, 2.3), **FADING).to_dict()))
        assert {"run", "outcome", "cause", "confidence", "findings", "remedy"} <= set(answer)
        assert {"id", "layers", "value", "threshold", "source", "text"} <= set(answer["findings"][0])
        assert {"text", "changes"} <= set(answer["remedy"]), "keys may be added, none may go"

    def test_changes_only_for_runs_of_the_trainer(self) -> None:
        frames = curve_of(noisy(2.3, 2.3)), epochs_of(), layers(100, **FADING), {"facts": FACTS}
        assert diagnose_frames(*frames, {"name": "mine", "init": "custom"}).remedy.changes == {}
        config = {"init": "default", "gain": 1.0, "learning_rate": 1e-3}
        assert diagnose_frames(*frames, config).remedy.changes == {"init": "kaiming_normal"}
        config = {"init": "kaiming_normal", "gain": 1.0, "learning_rate": 1e-3, "batch_norm": False}
        assert diagnose_frames(*frames, config).remedy.changes == {"batch_norm": True}

    def test_every_cause_has_a_remedy(self) -> None:
        from initscope.diagnosis.remedies import remedy

        signals = read_signals(curve_of(noisy(2.3, 2.3)), epochs_of(), layers(100), {"facts": FACTS}, {})
        for cause in Cause:
            assert remedy(cause, signals, {}).text

    def test_no_rule_is_forgotten(self) -> None:
        names = [rule.__name__ for rule in RULES]
        assert len(set(names)) == len(names)

    def test_needs_no_torch(self) -> None:
        code = "import initscope.diagnosis.diagnose, sys; sys.exit('torch' in sys.modules)"
        assert (
            subprocess.run(
                [sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False
            ).returncode
            == 0
        )


class TestGuessing:
    """The price of guessing, by itself."""

    def price(self, losses: Any, state: dict | None = None, **facts: Any) -> Any:
        signals = read_signals(
            curve_of(losses),
            epochs_of(),
            layers(len(losses)),
            {"facts": {**FACTS, **facts}, **(state or {})},
            {},
        )
        return guessing(signals, float(losses[0]))

    def test_balanced_classes(self) -> None:
        assert self.price(noisy(2.4, 2.3)).loss == pytest.approx(math.log(10))

    def test_a_rare_class(self) -> None:
        loss = {**FACTS["loss"], "classes": 2, "constant_answer": 0.33, "constant_answer_error": 0.03}
        guess = self.price(noisy(0.7, 0.3), loss=loss, outputs=2)
        assert (guess.loss, guess.doubt) == (0.33, pytest.approx(0.03 / 0.33))

    def test_scaled_loss(self) -> None:
        guess = self.price(noisy(0.6, 0.5), loss=FACTS["loss"] | {"chain": ["Div", "NllLoss", "LogSoftmax"]})
        assert guess.loss == pytest.approx(
            math.log(10)
        )  # outputs of size one may cost that: nothing is claimed

    def test_regression(self) -> None:
        loss = {"chain": ["MseLoss"], "constant_answer": 4.0, "constant_answer_error": 0.4}
        guess = self.price(noisy(9.0, 4.0), loss=loss, outputs=1)
        assert (guess.kind, guess.loss, guess.classes) == ("mean", 4.0, None)

    def test_plain_numbers_pass_as_cross_entropy_only_if_they_fit(self) -> None:
        assert self.price(noisy(2.4, 2.3), loss=None).loss == pytest.approx(math.log(10))
        assert self.price(noisy(9.0, 4.0), loss=None).loss is None

    def test_scatter_is_the_standard_deviation_of_noise(self) -> None:
        noise = 1 + 0.1 * np.random.default_rng(1).standard_normal(4000)
        assert scatter(noise) == pytest.approx(0.1, rel=0.1)

    def test_progress_needs_more_than_the_doubt(self) -> None:
        loss = {"chain": ["MseLoss"], "constant_answer": 4.0, "constant_answer_error": 1.2}
        signals = read_signals(
            curve_of(noisy(3.5, 3.5)),
            epochs_of(),
            layers(100),
            {"facts": {**FACTS, "loss": loss, "outputs": 1}},
            {},
        )
        assert not read_curve(signals, DEFAULT).learning
