"""A fast part of the bench of public reports: no answer that misleads, no alarm over what trains.

The whole bench is ``python -m tests.reports``. Reports that are answered wrong today stand in ``NOT_YET`` and
are expected to fail, strictly: whoever mends the diagnosis takes them out.
"""

from __future__ import annotations

import pytest

from tests.reports.registry import HEALTHY, REPORTS, Report
from tests.reports.runner import FAIR, RIGHT, UNHELPFUL, answer, load, verdict

load()

FAST = (
    ("log_softmax_over_the_batch", False),
    ("optimizer_of_the_first_model", False),
    ("files_in_any_order", False),
    ("divided_by_255_twice", False),
    ("sgd_with_adams_rate", False),
    ("sgd_with_adams_rate", True),
    ("files_sorted_by_label", False),
    ("prices_in_dollars", False),
    ("no_negative_link_is_found", False),
    ("relu_on_the_logits", False),
    ("binary_cross_entropy_of_standardized_images", False),
    ("penalty_in_the_loss", False),
    ("nobody_calls_backward", False),
    ("warm_up_begins_every_epoch", False),
    ("recurrent_layer_of_one_constant", False),
    ("loss_summed_over_pixels", False),
    ("dice_of_three_classes", False),
    ("sines_with_the_usual_weights", False),
    ("mean_of_the_log_probabilities", False),
    ("tokens_without_positions", False),
    ("exponent_of_the_log_variance", False),
    ("sign_has_no_gradient", False),
    ("no_end_of_the_game", False),
    ("no_end_of_the_game", True),
    ("similarities_times_zero", False),
    ("targets_not_shifted", False),
    ("trained_on_mirrored_pictures", False),
    ("sign_lost_in_backward", False),
    ("contrastive_loss_at_a_tenth", False),
    ("divergence_of_plain_probabilities", False),
    ("layer_norm_of_a_single_feature", False),
    ("attention_over_a_single_score", False),
    ("no_activation_between_the_layers", False),
)
"""(report, fixed): about a second each, one seed."""

NOT_YET: dict[str, str] = {
    "dice_of_three_classes": "what a constant answer costs is not known of a Dice loss, and this one falls",
    "sines_with_the_usual_weights": "it learns by heart, and nobody validates",
    "targets_not_shifted": "what it is asked for it learns; that this is its own input is not looked at",
    "trained_on_mirrored_pictures": "a validation of another kind of picture looks like overfitting",
    "sign_lost_in_backward": "a loss that runs away uphill looks like one whose steps are too large",
    "contrastive_loss_at_a_tenth": "it learns two thirds of it, and what it could learn is not known",
}
"""Why a report is answered wrong today."""


def _case(name: str, fixed: bool) -> object:
    wrong = NOT_YET.get(name) if not fixed else None
    marks = [pytest.mark.xfail(reason=wrong, strict=True)] if wrong else []
    return pytest.param(name, fixed, marks=marks, id=f"{name}-{'fixed' if fixed else 'as-reported'}")


@pytest.mark.parametrize(("name", "fixed"), [_case(*one) for one in FAST])
def test_no_answer_misleads(name: str, fixed: bool) -> None:
    given = answer(name, fixed, seed=0)
    assert given.verdict in (RIGHT, FAIR, UNHELPFUL), (
        f"{given.cause} ({given.confidence}) {given.error}\n" + "\n".join(given.findings)
    )


def test_a_broken_loop_fails_and_the_mended_one_trains() -> None:
    """What the reports claim is measured by the loops' own scores, without the diagnosis."""
    broken, fixed = (
        answer("optimizer_of_the_first_model", False, seed=0),
        answer("optimizer_of_the_first_model", True, seed=0),
    )
    assert broken.score < 0.1 < 0.8 < fixed.score


def test_bench_is_wide_and_partly_held_out() -> None:
    causes = [case.cause for case in REPORTS.values()]
    words = set(causes)
    assert len(REPORTS) >= 44
    assert all(causes.count(word) >= 2 for word in words), "each cause at least twice"
    assert causes.count(HEALTHY) >= 15
    held = [case for case in REPORTS.values() if case.held_out]
    assert len(held) >= len(REPORTS) / 3
    assert {case.cause for case in held} == words, "the held-out part has every cause"
    assert set(NOT_YET) <= {name for name, _ in FAST}


@pytest.mark.parametrize(
    ("cause", "answered", "findings", "expected"),
    [
        ("data_order", "data_order", (), "right"),
        ("data_order", "unknown", ("label_order: Batches hold one class each.",), "fair"),
        ("data_order", "unknown", ("loss_oscillates: The loss jumps.",), "unhelpful"),
        ("data_order", "lr_too_high", ("label_order: Batches hold one class each.",), "misleading"),
        ("data_order", "healthy", (), "misleading"),
        ("healthy", "healthy", (), "right"),
        ("healthy", "unknown", (), "fair"),
        ("healthy", "lr_too_low", (), "false alarm"),
    ],
)
def test_scoring(cause: str, answered: str, findings: tuple[str, ...], expected: str) -> None:
    case = Report(
        "one", "data", cause, lambda fixed: None, "https://example.org", frozenset(), ("one class",), False
    )
    assert verdict(case, False, answered, findings) == expected
    if cause != HEALTHY:
        assert verdict(case, True, answered, findings) in (
            "fair" if answered == "unknown" else "false alarm",
            "right",
        )
