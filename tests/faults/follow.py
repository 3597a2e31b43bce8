"""Follows the remedies: ``python -m tests.faults.follow [NAME ...]`` trains every fault, does what its
diagnosis advises, and trains it again.

A remedy is carried out from its numbers (the suggested rate, initialization, weight decay, scales of inputs
and targets) or, where it is a sentence about the loop (call ``step``, take the softmax away), by doing what
it says. Cases that no such rule can mend are counted as not followed.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from initscope.diagnosis.diagnose import Diagnosis, diagnose
from initscope.diagnosis.remedies import suggested_changes
from initscope.diagnosis.run_signals import RunSignals, read_signals
from initscope.networks.inits import initialize
from initscope.schema import Cause
from initscope.store import Run, Runs
from initscope.training.trainer import train
from tests.faults.bench import CASES
from tests.faults.kit import REPAIR, Loop

SQUASHERS = (nn.Softmax, nn.Sigmoid, nn.ReLU, nn.LogSoftmax)


class NotFollowed(Exception):
    """A remedy that takes a person: more data, other labels."""


def follow(case: str, found: Diagnosis, v: RunSignals, runs: Path) -> Diagnosis:
    """Train ``case`` again with its remedy carried out, and diagnose that. Raises NotFollowed where it cannot
    be.
    """
    if found.cause in (Cause.HEALTHY, Cause.UNKNOWN, Cause.LABELS_UNRELATED, Cause.OVERFITTING):
        raise NotFollowed(f"{found.cause}: nothing that a loop can be told")
    used: list[Loop] = []

    def repair(loop: Loop) -> None:
        used.append(loop)
        carry_out(loop, found, v)

    token = REPAIR.set(repair)
    try:
        run = CASES[case].make(runs)
    finally:
        REPAIR.reset(token)
    if not used:
        raise NotFollowed("a loop of its own")
    return diagnose(run)


def carry_out(loop: Loop, found: Diagnosis, v: RunSignals) -> None:
    """Change ``loop`` as the remedy of ``found`` says."""
    changes, text, cause = (
        suggested_changes(found.cause, v, {finding.id: finding for finding in found.findings}),
        found.remedy.text,
        found.cause,
    )
    if "init" in changes:
        initialize(loop.model, str(changes["init"]), gain=float(changes.get("gain", 1.0)), seed=0)
    elif cause is Cause.INIT_TOO_LARGE and "embedding" in text:
        nn.init.normal_(loop.model.embedding.weight, std=0.02)
    if changes.get("normalize") == "standardize":
        x, y, val_x, val_y = loop.samples
        good = torch.isfinite(x).flatten(1).all(1)
        x, y = x[good], y[good]
        dims = (0, *range(2, x.dim())) if x.dim() > 2 else (0,)
        mean, std = x.mean(dims, keepdim=True), x.std(dims, keepdim=True).clamp(min=1e-12)
        loop.samples = (x - mean) / std, y, (val_x - mean) / std, val_y
    if cause is Cause.TARGET_SCALE:
        mean, std = (
            float(number) for number in re.search(r"\(target - ([\d.e+-]+)\) / ([\d.e+-]+\d)", text).groups()
        )
        x, y, val_x, val_y = loop.samples
        loop.samples = x, (y - mean) / std, val_x, (val_y - mean) / std
    for group in loop.optimizer.param_groups:
        group.update(
            {
                name: changes[key]
                for key, name in (("learning_rate", "lr"), ("weight_decay", "weight_decay"))
                if key in changes
            }
        )
    if "learning_rate" in changes or "schedule" in text or "clipping" in text:
        loop.per_step = lambda model, optimizer: None
    if cause is Cause.NOT_UPDATING:
        loop.model.requires_grad_(True)
        loop.optimizer = type(loop.optimizer)(
            loop.model.parameters(), lr=loop.optimizer.param_groups[0]["lr"]
        )
        loop.update, loop.per_step = True, lambda model, optimizer: None
    if cause is Cause.LOSS_MISUSE:
        _mend_loss(loop, text)
    if cause is Cause.CLASS_COLLAPSE:
        y = loop.samples[1]
        if "pos_weight" in text:
            weight = torch.tensor([float(re.search(r"pos_weight=([\d.e+-]+)", text)[1])])
            loop.loss_fn = lambda o, t: F.binary_cross_entropy_with_logits(o, t, pos_weight=weight)
        else:
            counts = torch.bincount(y.flatten()).float()
            loop.loss_fn = lambda o, t: F.cross_entropy(o, t, counts.sum() / len(counts) / counts)


def _mend_loss(loop: Loop, text: str) -> None:
    if (
        isinstance(loop.model, nn.Sequential)
        and isinstance(loop.model[-1], SQUASHERS)
        and "raw outputs" in text
    ):
        loop.model = loop.model[:-1]
        loop.optimizer = type(loop.optimizer)(
            loop.model.parameters(), lr=loop.optimizer.param_groups[0]["lr"]
        )
    x, y, val_x, val_y = loop.samples
    if "shape" in text:
        loop.samples = x, y.unsqueeze(1), val_x, val_y.unsqueeze(1)
    elif "targets between 0 and 1" in text:
        raise NotFollowed("another output layer")
    elif y.is_floating_point():
        loop.loss_fn = F.binary_cross_entropy_with_logits
    else:
        loop.loss_fn = F.cross_entropy


def signals_of(run: Run) -> RunSignals:
    info = run.info()
    return read_signals(run.read("steps"), run.read("epochs"), run.read("layers"), info.state, info.config)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.follow", description="Follow the remedy of every planted fault."
    )
    parser.add_argument("names", nargs="*", help="cases whose name contains one of these")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Using a target size")
    counts = {"healthy": 0, "still ill": 0, "not followed": 0}
    with tempfile.TemporaryDirectory() as folder:
        for name in (n for n in CASES if not given.names or any(word in n for word in given.names)):
            run = CASES[name].make(Path(folder))
            found = diagnose(run)
            if found.cause is Cause.HEALTHY:
                continue
            try:
                again = (
                    _trained_again(run, found)
                    if found.remedy.changes
                    else follow(name, found, signals_of(run), Path(folder))
                )
            except NotFollowed as why:
                counts["not followed"] += 1
                print(f"{'not followed':12} {name:44} {found.cause}: {why}", flush=True)
                continue
            word = "healthy" if again.cause is Cause.HEALTHY else "still ill"
            counts[word] += 1
            print(
                f"{word:12} {name:44} {found.cause} -> {again.cause} {again.confidence} ({again.outcome}); "
                f"{found.remedy.text[:90]}",
                flush=True,
            )
    print(counts)


def _trained_again(run: Run, found: Diagnosis) -> Diagnosis:
    repaired = Runs(run.path.parent).create(run.config().replace(**found.remedy.changes))
    train(repaired)
    return diagnose(repaired)


if __name__ == "__main__":
    main()
