"""Does stopping a run once its outcome is certain change outcomes? Replayed on runs that were trained to
their end.

    initscope sweep --runs /tmp/full --stop-when-certain false --inits default,xavier_normal,... --seeds 5
    --vary gain=... python -m tests.benchmarks.early_stop /tmp/full

For every finished run the rule ``initscope.outcome.certain`` is applied to its recorded rows at the end of
each epoch, and the outcome it would have stopped with is held against the one the whole run ended with.
"""

from __future__ import annotations

import math
import sys
from collections import Counter

import pyarrow.compute as pc

from initscope.outcome import certain, judge
from initscope.schema import Outcome, Status
from initscope.store import Run, Runs


def stopped_at(run: Run) -> tuple[int, Outcome] | None:
    """(epochs trained, outcome) where the rule would have stopped this run, None if nowhere before its
    end.
    """
    state = run.state()
    epochs, layers = (
        run.read("epochs").to_pylist(),
        run.read("layers", ["step", "depth", "activation_mean", "activation_std", "signal_std"]),
    )
    steps = run.read("steps", ["step", "epoch"]).to_pydict()
    last_step = {epoch: step for step, epoch in zip(steps["step"], steps["epoch"], strict=True)}
    facts = {"chance": state["chance"], "samples": state["validation_samples"]}
    for i, row in enumerate(epochs[:-1]):
        done = last_step[row["epoch"]]
        at = layers.filter(
            pc.and_(pc.equal(layers["step"], done), pc.equal(layers["depth"], pc.max(layers["depth"])))
        ).to_pylist()[0]
        size = math.hypot(at["activation_mean"], at["activation_std"])
        relative = at["signal_std"] / size if size else 0.0
        accuracies = [epoch["val_accuracy"] for epoch in epochs[: i + 1]]
        if certain(
            accuracies=accuracies,
            steps=done + 1,
            planned=state["total_steps"],
            relative_signal=relative,
            **facts,
        ):
            return i + 1, judge(loss_finite=True, steps=done + 1, accuracy=accuracies[-1], **facts)
    return None


def main(folder: str) -> None:
    counts: Counter[tuple[str, str]] = Counter()
    saved = planned = 0
    changed = []
    for info in Runs(folder).list():
        if info.status != Status.FINISHED or info.state.get("total_steps") != info.state.get("step"):
            continue
        run = Run(Runs(folder).root / info.run)
        epochs = info.config["epochs"]
        stop = stopped_at(run) if info.outcome != Outcome.DIVERGED else None
        planned += epochs
        saved += epochs - stop[0] if stop else 0
        counts[(str(info.outcome), str(stop[1]) if stop else "not stopped")] += 1
        if stop and stop[1] != info.outcome:
            changed.append(
                f"{info.run}: {info.config['init']} gain {info.config['gain']}: {stop[1]} at epoch "
                f"{stop[0]}, {info.outcome} at the end"
            )
    print("| outcome of the whole run | outcome where the rule stops | runs |\n|---|---|---|")
    for (whole, early), count in sorted(counts.items()):
        print(f"| {whole} | {early} | {count} |")
    print(
        f"\n{sum(counts.values())} runs, {len(changed)} outcomes changed, {saved} of {planned} epochs saved"
    )
    print("\n".join(changed))


if __name__ == "__main__":
    main(sys.argv[1])
