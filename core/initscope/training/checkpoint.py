"""Where a training stands, and everything that moves in it as one file: weights, optimizer, position and
random state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from initscope.errors import RunFolderError, one_line
from initscope.schema import CHECKPOINT
from initscope.store import Run
from initscope.store.files import replacing
from initscope.training.failure import is_out_of_memory
from initscope.training.ranks import Ranks


@dataclass
class Position:
    """Where in the run training stands, the running sums of the epoch, and the signal last seen at the
    output.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    correct: float = 0.0
    samples: int = 0
    seconds: float = 0.0
    relative_signal: float = math.inf

    def next_epoch(self) -> None:
        self.epoch, self.batch, self.loss_sum, self.correct, self.samples = self.epoch + 1, 0, 0.0, 0.0, 0


class Checkpoint:
    """The checkpoint of one run, read by all of its ranks and written by the first."""

    def __init__(
        self, run: Run, model: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks, device: torch.device
    ):
        self.run, self.model, self.optimizer, self.ranks, self.device = run, model, optimizer, ranks, device
        self.path = run.path / CHECKPOINT

    def save(self, position: Position) -> None:
        """Replace the file. All ranks call this at once: each has a random state."""
        random = self.ranks.gather(torch.get_rng_state())
        random_cuda = (
            self.ranks.gather(torch.cuda.get_rng_state(self.device)) if self.device.type == "cuda" else []
        )
        if not self.ranks.first:
            return
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "position": vars(position),
            "random": random[0],
            "random_of_others": random[1:],
        }
        if random_cuda:
            state |= {"random_cuda": random_cuda[0], "random_cuda_of_others": random_cuda[1:]}
        with replacing(self.path, durable=True) as temporary:
            torch.save(state, temporary)

    def load(self) -> Position:
        """Put model, optimizer and random state back; the position, the very first one without a file. Raises
        RunFolderError.
        """
        if not self.path.exists():
            return Position()
        try:
            state = torch.load(
                self.path, map_location=self.device, weights_only=True
            )  # tensors and numbers only: no code from a file
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            position = Position(**state["position"])
            torch.set_rng_state(self._own(state, "random"))
            if "random_cuda" in state:
                torch.cuda.set_rng_state(self._own(state, "random_cuda"), self.device)
        except (
            Exception
        ) as error:  # damaged bytes, or another network's, come out of torch.load as almost anything
            if is_out_of_memory(error):
                raise
            why = one_line(str(error).splitlines()[0] if str(error) else type(error).__name__)
            raise RunFolderError(
                f"run {self.run.id}: {CHECKPOINT} cannot be used ({why}); delete that file and resume to "
                "train from the first step"
            ) from None
        return position

    def _own(self, state: dict[str, Any], key: str) -> Tensor:
        """This rank's random state; the first one's for a rank that was not there when the checkpoint was
        written.
        """
        return [state[key], *state.get(f"{key}_of_others", [])][self.ranks.rank].cpu()
