"""The functions that ``import initscope`` offers beside the Recorder: short names over the rooms that do the
work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from initscope.errors import ConfigError
from initscope.store import Run, Runs

if TYPE_CHECKING:
    import torch
    from torch import nn

    from initscope.checking.check import Check
    from initscope.comparison.compare import Comparison
    from initscope.diagnosis.diagnose import Diagnosis

RunLike = Run | str | Path
"""A run: the object, its id in the default folder of runs, or the path of its folder."""


def runs(folder: str | Path | None = None) -> Runs:
    """All runs in ``folder``: a path or an address such as ``s3://bucket/runs``; None: the default folder.

    for info in initscope.runs().list():
        print(info.run, info.status, info.outcome)
    """
    return Runs(folder)


def diagnose(run: RunLike) -> Diagnosis:
    """Why ``run`` did not train: cause, confidence, findings and a remedy.

        with Recorder(model, optimizer, name="my net") as recorder:
            ...
        print(initscope.diagnose(recorder.run).cause)

    Raises RunNotFound if there is no such run, RunFolderError if it cannot be read.
    """
    from initscope.diagnosis.diagnose import diagnose as diagnose_run

    return diagnose_run(_run(run))


def compare(a: RunLike | Iterable[RunLike], b: RunLike | Iterable[RunLike]) -> Comparison:
    """Whether side ``b`` trains where side ``a`` does not: verdict, headline, seeds, p-value.

        initscope.compare("name=my net", "name=my net, scaled").headline

    A side is one run, several, or a group such as ``"name=my net"`` or ``"init=default,sweep=ID"`` in the
    default folder of runs. Raises ConfigError if a run is on both sides, RunNotFound if a side is empty.
    """
    from initscope.comparison.compare import compare as compare_runs

    return compare_runs(_side(a), _side(b))


def probe(
    model: nn.Module, batch: tuple[Any, Any], loss: Callable[[Any, Any], Any] | None = None
) -> list[dict[str, Any]]:
    """Measure each layer of ``model`` on one ``batch`` (inputs, targets), forward and backward, without
    training.

        for row in initscope.probe(model, next(iter(loader)), torch.nn.functional.cross_entropy):
            print(row["layer"], row["signal_std"], row["grad_rms"])

    ``loss(outputs, targets)`` is the mean loss of the batch (default: cross entropy). Returns one row a layer
    in order of execution; ``initscope.theory.METRICS`` says what each number is. The model is left as it was.
    """
    from initscope.networks.outputs import training_loss
    from initscope.theory.probe import probe as probe_model

    inputs, targets = batch
    return probe_model(model, inputs, targets, loss or training_loss)


def check(
    model: nn.Module,
    batch: Any,
    loss_fn: Callable[[Any, Any], Any] | None = None,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
) -> Check:
    """What can be known before a training: a copy of ``model`` learns one ``batch`` for a few seconds;
    nothing of yours is touched.

        found = initscope.check(model, next(iter(loader)), torch.nn.functional.cross_entropy, optimizer)
        print(found.headline)

    ``batch`` is (inputs, targets), or a dict of keyword arguments for a model that computes its own loss.
    ``found.findings`` should be mended before training, ``found.snippets`` has code for each. Raises
    ConfigError for a model that cannot be copied or a loss that is not one number.
    """
    from initscope.checking.check import check as check_model

    return check_model(model, batch, loss_fn, optimizer)


def initialize(
    model: nn.Module, scheme: str, *, gain: float = 1.0, seed: int = 0, sample: Any = None
) -> nn.Module:
    """Fill the weights of ``model`` in place by ``scheme`` and return it.

        initscope.initialize(model, "kaiming_normal")
        initscope.initialize(model, "lsuv", sample=next(iter(loader))[0])
        initscope.initialize(model, "auto", sample=torch.zeros(4, 3, 224, 224))

    ``auto`` solves each gain from the network's own moments and reads of ``sample`` only the shapes (without
    one it tries those that the first layer allows); layers that it cannot solve stay as they were, and a
    warning names them.
    Raises ConfigError for an unknown scheme (it lists those there are), or for ``lsuv`` without a ``sample``.
    """
    from initscope.networks.inits import initialize as fill

    return fill(model, scheme, gain=gain, seed=seed, sample=sample)


def _run(run: RunLike) -> Run:
    if isinstance(run, Run):
        return run
    if isinstance(run, Path) or "/" in str(run):
        path = Path(run).expanduser().resolve()
        return Runs(path.parent).get(path.name)
    if isinstance(run, str):
        return Runs().get(run)
    raise ConfigError(f"a run is a Run, its id or its folder, not {type(run).__name__}")


def _side(side: RunLike | Iterable[RunLike]) -> list[Run]:
    if isinstance(side, str) and "=" in side and "/" not in side:
        return Runs().select(side)
    if isinstance(side, (Run, str, Path)):
        return [_run(side)]
    return [_run(run) for run in side]
