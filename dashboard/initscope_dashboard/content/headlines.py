"""The sentence at the top of a page: what the picture under it proves, computed from the same data. Plain
text, no Streamlit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from initscope.comparison.compare import Comparison
from initscope.config.catalog import DATA, init_title
from initscope.diagnosis.diagnose import Diagnosis
from initscope.schema import COLUMN, LIVE, Cause, Outcome, Status
from initscope.store import RunInfo
from initscope.store.files import number
from initscope_dashboard.content import formatting
from initscope_dashboard.content.breakdown import Breakdown

_SCALED = 0.1
"""A loss this far (relative) from the mean cross-entropy of its outputs is a multiple of it, and so is the
price of guessing.
"""


def classes(state: Mapping[str, Any], config: Mapping[str, Any]) -> int | None:
    """K of a loss that costs ln K when guessing; None where that is not known. Of somebody's own loop
    autograd tells whether it is such a loss.
    """
    if state.get("source") == "recorder":
        facts = state.get("facts")
        loss = facts.get("loss") if isinstance(facts, dict) else None
        loss = loss if isinstance(loss, dict) else {}
        chain = loss["chain"] if isinstance(loss.get("chain"), list) else []
        kind = all(any(str(name).startswith(word) for name in chain) for word in ("NllLoss", "LogSoftmax"))
        targets = (
            facts.get("targets") if isinstance(facts, dict) and isinstance(facts.get("targets"), dict) else {}
        )
        scale = number(targets.get("scale")) or number(loss.get("scale")) or 1
        found = loss.get("classes") if kind and abs(scale - 1) < _SCALED else None
    else:
        entry = DATA.get(str(config.get("data")))
        found = state.get("num_classes") or config.get("num_classes") or (entry and entry.classes)
    count = number(found) or 0.0  # a damaged file may hold anything
    return int(count) if 2 <= count < math.inf else None


def common_classes(infos: Iterable[RunInfo]) -> int | None:
    """``classes`` of runs that are drawn together; None where they differ, because no line is a guess for
    all.
    """
    found = {classes(info.state, info.config) for info in infos}
    return found.pop() if len(found) == 1 else None


def nothing_differs(infos: Iterable[RunInfo]) -> str:
    """What is said in place of the fields that differ, where none does."""
    if all(info.state.get("source") == "recorder" for info in infos):
        return (
            "Nothing that was recorded: optimizer, batch, inputs, layers, loss and the weights' size are "
            "the same. "
            'What else you change, tell the Recorder: `Recorder(model, optimizer, config={"lr": 0.01, '
            '"seed": 0})`.'
        )
    return "Nothing but chance: the two configurations are the same."


# -- comparisons


def comparison(result: Comparison) -> str:
    """The headline of a comparison with its initializations called as the page calls them."""
    if "init" not in result.changed_fields:
        return result.headline
    called = {label: _side(label) for label in result.labels}
    longest_first = sorted(map(re.escape, called), key=len, reverse=True)
    return re.sub(
        rf"(?<=\bwith )({'|'.join(longest_first)})", lambda found: called[found[0]], result.headline
    )


def _side(label: str) -> str:
    """'kaiming_normal in VGG16' as 'Kaiming normal in VGG16'; several are joined by "and"."""
    inits, where, network = label.partition(" in ")
    return " and ".join(map(init_title, inits.split("+"))) + where + network


# -- live


def standing(status: str, outcome: str | None, losses: np.ndarray, chance: float | None) -> str:
    """One word for a run by its newest losses: 'waiting', 'learning', 'guessing', 'rising', 'broken', or how
    it ended; 'training' where no loss is known to be ``chance``'s.
    """
    if status in (Status.CRASHED, Status.FAILED):
        return str(status)
    if status not in LIVE and outcome:
        return str(outcome)
    if not losses.size:
        return "waiting" if status in LIVE else "empty"
    if not np.isfinite(losses).all():
        return "broken"
    if chance is None:
        return "training"
    level = float(losses.mean())
    return "learning" if level < 0.93 * chance else "rising" if level > 1.1 * chance else "guessing"


def steps_text(count: int) -> str:
    """'1 step', '1,200 steps'."""
    return f"{formatting.count(count)} step{'' if count == 1 else 's'}"


def says(
    word: str,
    losses: np.ndarray,
    done: int,
    accuracy: float | None,
    count_of_classes: int | None,
    validated: bool = False,
    state: Mapping[str, Any] | None = None,
) -> str:
    """What a run is doing, to follow its name: 'is learning: loss 0.673 after 147 steps'. ``validated``: loss
    and accuracy are the validation's. ``state``: its status, which holds what ended it and by what its
    outcome was decided.
    """
    state = state or {}
    by = f" by {state['outcome_by']}" if state.get("outcome_by") not in (None, "validation") else ""
    facts = state.get("facts")
    if state.get("status") == Status.STOPPING and isinstance(facts, Mapping) and facts.get("stop_ignored"):
        return (
            f"was asked to stop and goes on ({steps_text(done)}): its loop does not look at what "
            "recorder.step() returns; end its program"
        )
    because, ended_by = (
        str(state.get("outcome_because") or ""),
        f": {state['error']}" if state.get("error") else "",
    )
    chance = (
        f", and ln\u00a0{count_of_classes}\u00a0=\u00a0{math.log(count_of_classes):.3f} is a guess"
        if count_of_classes
        else ""
    )
    measured = "validation " if validated else ""
    loss = f"{measured}loss {formatting.fixed(float(losses.mean()))}" if losses.size else "no loss"
    after = f"after {steps_text(done)}"
    return {
        "waiting": "waits to start",
        "empty": "has no rows",
        "training": f"trains: {loss} {after}",
        "learning": f"is learning: {loss} {after}",
        "guessing": f"guesses so far: {loss} {after}{chance}",
        "rising": f"is worse than a guess: {loss} {after}",
        "broken": "has broken: its loss is not a number any more",
        "crashed": f"crashed {after}{ended_by}",
        "failed": f"failed {after}{ended_by}",
        Outcome.CONVERGED: f"converged{by}: {because}"
        if by and because
        else f"converged: {measured}accuracy {formatting.percent(accuracy)}, {loss}",
        Outcome.NOT_CONVERGED: f"did not converge{by}: {because}"
        if by and because
        else f"did not converge: {loss}{chance}",
        Outcome.DIVERGED: f"diverged: {_broke_at(state)}",
        Outcome.UNDECIDED: f"is undecided {after}: {because}" if because else f"is undecided: {loss} {after}",
    }.get(word, f"is {word}")


def _broke_at(state: Mapping[str, Any]) -> str:
    facts = state.get("facts")
    told = facts.get("first_nonfinite") if isinstance(facts, Mapping) else None
    step = number(told.get("step")) if isinstance(told, Mapping) else None
    return (
        "its loss is not a number any more"
        if step is None
        else f"NaN from step {formatting.count(int(step))} on"
    )


_IN_NUMBERS = {
    "guessing": "guessing so far",
    "rising": "worse than a guess",
    "empty": "without rows",
    Outcome.NOT_CONVERGED: "did not converge",
}


def in_numbers(word: str) -> str:
    """A standing after a number of runs: '3 guessing so far'."""
    return _IN_NUMBERS.get(word, word)


def live(names: Sequence[str], progress: Sequence[Mapping[str, Any]]) -> str:
    """What the chosen runs are doing: one or two by name, more in numbers. ``cards.js`` says the same as they
    go on.
    """
    if not names:
        return "Choose runs to watch."
    if len(names) <= 2:
        return "; ".join(f"{name} {run['says']}" for name, run in zip(names, progress, strict=True)) + "."
    words = [run["standing"] for run in progress]
    return (
        f"Of {len(names)} runs: "
        + ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))
        + "."
    )


# -- gradients


class LayerMap(Protocol):
    """One metric of every layer over time, as a heatmap shows it: ``moments`` are (step, one value a
    layer).
    """

    metric: str
    layers: Sequence[str]
    steps: np.ndarray
    moments: Sequence[tuple[int, np.ndarray]]
    bad: np.ndarray
    zero: np.ndarray


def first_step(cells: LayerMap) -> str:
    """How the metric at the first layer compares with the last one, at the first recorded step."""
    metric, (step, everything) = cells.metric, cells.moments[0]
    measured = ~np.isnan(everything) | cells.bad[:, 0]
    names, values = (
        [name for name, there in zip(cells.layers, measured, strict=True) if there],
        everything[measured],
    )
    if not names:
        return f"{COLUMN[metric].title} was not measured in this run."
    when = "At the first step" if step == 0 else f"At step {formatting.count(step)}"
    what = {
        "grad_norm": "the gradient",
        "grad_rms": "the gradient RMS",
        "update_ratio": "the update ratio",
        "signal_std": "the signal",
        "activation_grad_rms": "the error signal",
        "dead_fraction": "the share of dead units",
        "stable_rank": "the stable rank",
    }.get(metric, metric)
    first, last = float(values[0]), float(values[-1])
    if not np.isfinite(values).all():
        bad = names[int(np.flatnonzero(~np.isfinite(values))[0])]
        return f"{when} {what} at {bad} is not a number."
    if metric in formatting.LINEAR_METRICS:
        worst = int(values.argmax())
        return f"{when} {what} is largest at {names[worst]}: {formatting.percent(float(values[worst]))}."
    if metric == "stable_rank":
        return _fewest_directions(cells, names, values, when)
    if not values.any():
        return f"{when} {what} is exactly zero in every layer: nothing can learn."
    if first == 0 or last == 0:
        return f"{when} {what} at {names[0] if first == 0 else names[-1]} is exactly zero."
    forward = metric == "signal_std"
    here, there = (names[-1], names[0]) if forward else (names[0], names[-1])
    ratio = last / first if forward else first / last
    later = _broken_later(cells)
    verdict = (
        ""
        if later or not 1 / 30 < ratio < 30
        else ": it gets through"
        if metric in ("grad_norm", "activation_grad_rms", "signal_std")
        else ""
    )
    if max(first, last) < 1e-9:
        verdict = ", but both are below 10⁻⁹"
    verdict += later
    return (
        f"{when} {what} at {here} is "
        f"{formatting.decades(math.log10(ratio)).replace('equal', 'the same size')} "
        f"{'as' if abs(math.log10(ratio)) < 0.02 else 'than'} at {there}{verdict}."
    )


def _fewest_directions(cells: LayerMap, names: Sequence[str], values: np.ndarray, when: str) -> str:
    """The layer whose gain spreads over the fewest directions at first, and the one that has lost the most
    since.
    """
    least = int(values.argmin())
    begins = (
        f"{when} the stable rank is smallest at {names[least]}: {formatting.number(float(values[least]))}"
    )
    (first, before), (last, after) = cells.moments[0], cells.moments[-1]
    lost = before / after
    if last == first or not np.isfinite(lost).any():
        return f"{begins}."
    most = int(np.where(np.isfinite(lost), lost, -np.inf).argmax())
    if lost[most] < 1.1:
        return f"{begins}; up to step {formatting.count(last)} no layer's falls by a tenth."
    return (
        f"{begins}; it falls most at {cells.layers[most]}, from {formatting.number(float(before[most]))} to "
        f"{formatting.number(float(after[most]))} at step {formatting.count(last)}."
    )


def _broken_later(cells: LayerMap) -> str:
    """What the map shows after a sound first step: from when on it is NaN, or that it is exactly zero
    everywhere at the end.
    """
    broken = np.flatnonzero(cells.bad.any(axis=0))
    if len(broken):
        where = np.flatnonzero(cells.bad[:, broken[0]])
        layers = (
            f"at {cells.layers[int(where[0])]}"
            if len(where) == 1
            else f"in {len(where)} of {len(cells.layers)} layers"
        )
        when = (
            f"from step {formatting.count(int(cells.steps[broken[0]]))} on"
            if cells.bad[:, -1].any()
            else f"at step {formatting.count(int(cells.steps[broken[0]]))}"
        )
        return f"; {when} it is not a number {layers}"
    hidden = cells.zero[:-1, -1] if len(cells.layers) > 1 else cells.zero[:, -1]
    if not cells.zero.shape[1] or not hidden.any():
        return ""
    if cells.zero[:, -1].all():
        return "; at the end it is exactly zero in every layer"
    dead = int(cells.zero[:, -1].sum())
    return f"; at the end it is exactly zero in {dead} of {len(cells.layers)} layers"


# -- model


def model(title: str, parameters: Mapping[str, int]) -> str:
    """'VGG16 has 134,300,362 parameters in 16 layers; 76.5 % of them are in fc1.'"""
    weighted = {name: count for name, count in parameters.items() if count}
    total = sum(weighted.values())
    biggest = max(weighted, key=weighted.__getitem__)
    share = formatting.percent(weighted[biggest] / total)
    return (
        f"{title} has {formatting.count(total)} parameters in {len(weighted)} layers; {share} of them are "
        f"in {biggest}."
    )


_CAUSES: dict[str, str] = {
    Cause.INIT_TOO_SMALL: (
        "The initial weights are too small: the signal dies on its way, and the gradient with it."
    ),
    Cause.INIT_TOO_LARGE: (
        "The initial weights are too large: the signal grows from layer to layer until nothing sensible is "
        "left."
    ),
    Cause.SYMMETRIC_INIT: (
        "The units of a layer begin identical, get identical gradients, and can never become different."
    ),
    Cause.LR_TOO_HIGH: "The learning rate is too high: the start was sound, and the updates destroyed it.",
    Cause.LR_TOO_LOW: "The learning rate is too low: gradients arrive, but the weights hardly move.",
    Cause.DEAD_RELU: (
        "ReLU units are dead: they output zero for every sample, and no gradient passes through them."
    ),
    Cause.SATURATED_ACTIVATION: (
        "Units are saturated: they sit on the flat part of their activation, where no gradient passes."
    ),
    Cause.NOT_UPDATING: (
        "Weights are not updated: they are frozen, not in the optimizer, or the step is missing."
    ),
    Cause.INPUT_SCALE: "The inputs have the wrong scale; the weights are not to blame.",
    Cause.TARGET_SCALE: (
        "The targets are far away: the outputs need more steps to reach them than the run has."
    ),
    Cause.BATCHNORM_STATISTICS: (
        "Training and evaluation mode disagree: the network is judged with other statistics than it was "
        "trained with."
    ),
    Cause.CLASS_COLLAPSE: (
        "The network predicts one class for every sample, and the classes are of unequal size."
    ),
    Cause.GRADIENT_ACCUMULATES: (
        "The gradients are never cleared: every step adds to the sum of all gradients before it."
    ),
    Cause.WEIGHT_DECAY_TOO_HIGH: (
        "The weight decay is too high: it pulls the weights to zero faster than the loss moves them."
    ),
    Cause.UNREGISTERED_LAYERS: (
        "Some layers run but are never trained: they are not in the model's parameters, or not in the "
        "optimizer."
    ),
    Cause.DATA_ORDER: (
        "The batches are sorted by label: each one teaches the network to forget the one before."
    ),
    Cause.SAMPLES_MIXED: (
        "The samples of a batch influence each other: an output depends on other samples' inputs."
    ),
    Cause.NUMERIC_FAULT: (
        "A function left its domain, or a number its type: the NaN came from arithmetic, not from the "
        "learning rate."
    ),
    Cause.LABELS_UNRELATED: (
        "The labels have nothing to do with the inputs: there is nothing to learn but by heart."
    ),
    Cause.LOSS_MISUSE: "The loss is not given what it expects.",
    Cause.OVERFITTING: "It trains, and learns the training data by heart.",
    Cause.HEALTHY: "It trains: nothing needs mending.",
    Cause.UNKNOWN: "It did not train, and nothing recorded says why.",
}


def cause(
    found: Diagnosis,
    status: str = Status.FINISHED,
    error: str | None = None,
    broken: Breakdown | None = None,
    steps: int = 0,
) -> str:
    """The first line of a diagnosis: what ended the run if something did, where the first NaN was, else the
    cause, in one sentence.
    """
    if status in (Status.FAILED, Status.CRASHED):
        return f"It {status} after {steps_text(steps)}: {(error or 'nothing says why').rstrip('.')}."
    if broken is not None:
        return broken.sentence
    return _cause(found)


def beside(found: Diagnosis, status: str = Status.FINISHED, broken: Breakdown | None = None) -> str:
    """What the diagnosis says under a first line that is about the end of the run; empty where the first line
    is the cause itself.
    """
    ended = status in (Status.FAILED, Status.CRASHED)
    if not ended and broken is None:
        return ""
    told = [broken.sentence] if ended and broken is not None else []
    if found.cause is Cause.HEALTHY:
        told.append("Until then nothing stood in its way." if ended else "")
    elif found.cause is not Cause.UNKNOWN:
        told.append(_cause(found))
    elif ended:
        told.append("The rows until then do not tell more.")
    else:
        told.append(
            "Neither the size of the weights nor that of the updates explains it: look at what this tensor "
            "is computed from."
        )
    return " ".join(filter(None, told))


def advice(found: Diagnosis, status: str = Status.FINISHED) -> str:
    """What would help: the remedy, but never "nothing to change" or "record more steps" for a run that
    something ended.
    """
    if status in (Status.FAILED, Status.CRASHED) and found.cause in (Cause.HEALTHY, Cause.UNKNOWN):
        return "Mend what ended it; the rows up to there are kept."
    if found.outcome is Outcome.DIVERGED and found.cause is Cause.UNKNOWN:
        return (
            "Run the steps before it under torch.autograd.set_detect_anomaly(True), which names the "
            "operation; look for a logarithm, a root or a division at zero."
        )
    return found.remedy.text


def _cause(found: Diagnosis) -> str:
    if (
        found.outcome is Outcome.UNDECIDED and not found.confidence
    ):  # unknown, or healthy by nothing but the lack of faults
        return "It is too early to tell."
    return _CAUSES[found.cause]
