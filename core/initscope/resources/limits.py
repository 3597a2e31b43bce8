"""What an operator allows: every setting in one place, and the refusal before anything starts.

All are environment variables; nothing set means no limit, but that a run which cannot fit into the memory
there is, is refused always.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from initscope.config.run_config import RunConfig
from initscope.errors import LimitExceeded
from initscope.resources.memory import Estimate, estimate, size

SETTINGS = {
    "INITSCOPE_MAX_RUNS": "runs that train at once, whatever the threads allow",
    "INITSCOPE_MAX_QUEUE": "runs that may wait",
    "INITSCOPE_MAX_EPOCHS": "epochs of a run",
    "INITSCOPE_MAX_PARAMETERS": "weights and biases of a network",
    "INITSCOPE_DISK_QUOTA": "bytes under the folder of runs, such as 20GB",
    "INITSCOPE_MEMORY": "bytes a run may take, such as 8GB (default: what the machine or its container has)",
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMGT]?)(i?)B?")
_CGROUP = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True)
class Limits:
    """The operator's limits; None: none. Bytes for ``disk_quota`` and ``memory``."""

    max_runs: int | None = None
    max_queue: int | None = None
    max_epochs: int | None = None
    max_parameters: int | None = None
    disk_quota: int | None = None
    memory: int | None = None

    @property
    def memory_of_a_run(self) -> int:
        """Bytes that a run may have here: what is set, else what there is."""
        return self.memory if self.memory is not None else memory()


def limits() -> Limits:
    """As set in the environment now. Raises LimitExceeded, naming the setting, for one that is no size or
    count.
    """
    return Limits(**{name.removeprefix("INITSCOPE_").lower(): _read(name) for name in SETTINGS})


def _read(name: str) -> int | None:
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    match = _SIZE.fullmatch(text)
    if match is None:
        raise LimitExceeded(
            f"{name} must be a number such as 10 or 20GB, not {text[:40]!r}; the operator must correct it "
            "before anything starts"
        )
    number, prefix, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** " KMGT".index(prefix.upper() or " "))


def check(configs: Sequence[RunConfig], waiting: int, root: Path) -> None:
    """Refuse runs that are beyond a limit, before the first is made. ``waiting`` runs are in the queue of
    ``root`` already.

    Raises LimitExceeded with what was asked for, the limit, and the setting's name.
    """
    allowed = limits()
    if allowed.max_queue is not None and waiting + len(configs) > allowed.max_queue:
        raise LimitExceeded(
            f"{waiting} runs wait and {len(configs)} more would be over "
            f"INITSCOPE_MAX_QUEUE={allowed.max_queue}; wait, or launch fewer"
        )
    if allowed.disk_quota is not None and (used := usage(root)) >= allowed.disk_quota:
        raise LimitExceeded(
            f"runs take {size(used)} of the {size(allowed.disk_quota)} that INITSCOPE_DISK_QUOTA allows; "
            "delete some first"
        )
    for config in dict.fromkeys(configs):
        check_one(config, allowed)


def check_one(config: RunConfig, allowed: Limits) -> None:
    """The limits of a single run: its epochs, its network's size, and whether it fits into memory."""
    if allowed.max_epochs is not None and config.epochs > allowed.max_epochs:
        raise LimitExceeded(
            f"{config.epochs} epochs are over INITSCOPE_MAX_EPOCHS={allowed.max_epochs}; ask for fewer"
        )
    check_network(config, allowed)


def check_network(config: RunConfig, allowed: Limits) -> None:
    """Refuse a network that is too large or cannot fit into memory, for training it or for a look at one
    batch.
    """
    needed = estimate(config)
    if needed is None:
        return  # one of somebody's own, known once it is built: its process looks before it begins
    check_size(needed.parameters, allowed)
    if config.device == "cpu" or (config.device == "auto" and not _accelerator()):
        check_memory(needed, allowed.memory_of_a_run)


def check_size(parameters: int, allowed: Limits) -> None:
    """Refuse a network with more weights and biases than allowed. Raises LimitExceeded."""
    if allowed.max_parameters is not None and parameters > allowed.max_parameters:
        raise LimitExceeded(
            f"the network has {parameters:,} parameters, over "
            f"INITSCOPE_MAX_PARAMETERS={allowed.max_parameters:,}; choose a smaller width or model"
        )


def check_memory(needed: Estimate, there: int) -> None:
    """Refuse what needs more than ``there`` bytes. Raises LimitExceeded with both figures."""
    if needed.total > there:
        raise LimitExceeded(
            f"the run needs about {size(needed.total)} of memory ({needed.words}), and there are "
            f"{size(there)}; {needed.advice}"
        )


def _accelerator() -> bool:
    """Whether a run that leaves the device open may find a GPU, whose memory only its own process can ask
    for.
    """
    return sys.platform == "darwin" or os.path.exists("/dev/nvidia0")


def memory() -> int:
    """Bytes of memory that processes here may have: the machine's, or less if a container says so."""
    found = psutil.virtual_memory().total
    for path in _CGROUP:
        try:
            found = min(found, int(path.read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return found


def usage(root: Path) -> int:
    """Bytes of all files under ``root``; links are not followed, files that vanish meanwhile are not
    counted.
    """
    total, folders = 0, [str(root)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
        except OSError:
            continue
    return total
