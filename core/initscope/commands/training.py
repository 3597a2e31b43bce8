"""``train``, ``resume`` and ``stop``: how the training of one run begins, goes on and ends."""

from __future__ import annotations

import argparse
import gc
import sys
from typing import Any

from tqdm import tqdm

from initscope.commands.given import config_from, runs_of
from initscope.errors import ConfigError, InitScopeError, TrainingFailed, one_line
from initscope.permission import require
from initscope.resources import limits
from initscope.scheduling import launcher
from initscope.schema import Status
from initscope.store import Run, RunInfo, Runs, own_process
from initscope.store.files import number
from initscope.training.loading import load_training
from initscope.training.worker import work

STOP_WAIT_SECONDS = 60


def train_command(given: argparse.Namespace) -> dict[str, Any]:
    config, runs = config_from(given), runs_of(given)
    if given.detach:
        [run] = launcher.submit(runs, [config], given.engine, given.first)
        print(f"queued {run.id}", file=sys.stderr)
        return {"run": run.id, "status": str(run.state()["status"])}
    if given.engine or given.first:
        raise ConfigError(
            "--engine and --first are about the queue, and this run would train here and now; add --detach"
        )
    require("launch a run")  # refused before two seconds are spent on loading
    limits.check([config], 0, runs.root)
    load_training()
    gc.freeze()  # nothing of it is ever to be collected, at the exit neither
    from initscope.training.devices import pick_device

    pick_device(config.device)  # refused before a folder is made
    # Running from the first moment: a supervisor that looks at this folder now must not take it for one that
    # waits.
    return train_here(runs.create(config, Status.RUNNING, **own_process()))


def resume_command(given: argparse.Namespace) -> dict[str, Any]:
    run = runs_of(given).get(given.run)
    launcher.check_resumable(run)
    limits.check([run.config()], 0, run.path.parent)
    (run.path / "stop").unlink(missing_ok=True)
    return train_here(run)


def stop_command(given: argparse.Namespace) -> dict[str, Any]:
    runs = runs_of(given)
    run = runs.get(given.run)
    launcher.stop(runs, run)
    ended = launcher.wait_until_stopped(run, STOP_WAIT_SECONDS)
    status = run.state()["status"]
    print(f"{run.id}: {status}" if ended else launcher.goes_on(run), file=sys.stderr)
    return {"run": run.id, "status": status}


def train_here(run: Run) -> dict[str, Any]:
    """Train ``run`` in this process, under a progress bar; the JSON of what came of it. Raises
    TrainingFailed.
    """
    print(f"{run.id}: {run.config().title} in {run.path}", file=sys.stderr)
    bar = tqdm(unit="step", dynamic_ncols=True, leave=True, file=sys.stderr, mininterval=0.3)

    def progress(position: Any, total: int) -> None:
        bar.total = total
        bar.set_description(f"epoch {position.epoch + 1}", refresh=False)
        bar.set_postfix(loss=f"{position.loss_sum / max(1, position.samples):.3f}", refresh=False)
        bar.update(position.step - bar.n)

    try:
        work(run, progress)
    except (InitScopeError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise TrainingFailed(
            f"run {run.id} failed: {run.info().error or one_line(error)} (traceback in "
            f"{run.path / 'log.txt'})"
        ) from error
    finally:
        bar.close()
    Runs(run.path.parent).settle(run.id)
    result = train_result(run)
    print(_sentence(run.info()))
    return result


def train_result(run: Run) -> dict[str, Any]:
    """The JSON of ``train`` and ``resume``."""
    state = run.state()
    final = {
        "loss": number(state.get("train_loss", state.get("loss"))),
        "accuracy": number(state.get("train_accuracy", state.get("accuracy"))),
        "val_loss": number(state.get("val_loss")),
        "val_accuracy": number(state.get("val_accuracy")),
    }
    return {
        "run": run.id,
        "status": state["status"],
        "outcome": state["outcome"],
        "final": final,
        "seconds": state.get("seconds"),
    }


def _sentence(info: RunInfo) -> str:
    word = str(info.outcome or info.status).replace("_", " ")
    accuracy = info.state.get("val_accuracy")
    chance = info.state.get("chance")
    numbers = (
        f"validation accuracy {100 * accuracy:.1f} %, guessing gives {100 * chance:.1f} %"
        if isinstance(accuracy, float) and chance
        else f"loss {info.loss}"
    )
    return f"{info.run}: {word} after {info.state.get('step')} steps ({numbers})"
