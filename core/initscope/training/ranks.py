"""One run trained by several processes: each computes its share of every batch, and their gradients add up to
the whole batch's.

Every rank loads the same data in the same order and builds the same weights. Each weighs the mean loss over
its share by the share's size, and the gradients are summed, not averaged, over the ranks: what the optimizer
gets is the gradient of the whole batch's mean loss, however unevenly a batch divides.
"""

from __future__ import annotations

import datetime as dt
import os

import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn

from initscope.errors import ConfigError

PATIENCE = dt.timedelta(days=1)
"""A rank waits so long for the others (the first one validates alone). That one has died is for their parent
to notice.
"""


class Ranks:
    """This process among those that train a run; by default it is alone, and nothing below changes
    anything.
    """

    def __init__(self, rank: int = 0, count: int = 1):
        self.rank, self.count = rank, count

    @property
    def first(self) -> bool:
        """Whether this is the one that records, validates and keeps the checkpoint."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        return self.count > 1

    def share(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, int]:
        """(images, labels, number of samples that count) of this rank; the first ranks have one more where a
        batch does not divide.

        A rank without a sample of its own (a last batch smaller than there are ranks) takes the batch's first
        one, which does not count.
        """
        if not self.several:
            return images, labels, len(labels)
        mine = labels.tensor_split(self.count)[self.rank]
        if not len(mine):
            return images[:1], labels[:1], 0
        return images.tensor_split(self.count)[self.rank], mine, len(mine)

    def wrap(self, model: nn.Module, unused: bool) -> nn.Module:
        """The model as training calls it; ``unused``: it may have parameters that a step does not use."""
        if not self.several:
            return model
        wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=unused)
        wrapped.register_comm_hook(None, _add_up)
        return wrapped

    def sum(self, values: Tensor) -> Tensor:
        """``values`` added up over all ranks, in place."""
        if self.several:
            dist.all_reduce(values)
        return values

    def agree(self, value: bool) -> bool:
        """The first rank's ``value``, on all: no rank may go on alone, or leave the others waiting."""
        if not self.several:
            return value
        answer = torch.tensor([value], dtype=torch.uint8)
        dist.broadcast(answer, src=0)
        return bool(answer.item())

    def gather(self, values: Tensor) -> list[Tensor]:
        """Every rank's ``values``, a CPU tensor of one shape."""
        if not self.several:
            return [values]
        found = [torch.empty_like(values) for _ in range(self.count)]
        dist.all_gather(found, values)
        return found


def _add_up(state, bucket):  # DistributedDataParallel wants no annotations here that are texts
    """Gradients summed over the ranks, where DistributedDataParallel's own way is their mean."""
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0])


def join(rank: int, count: int, meeting: str, device: torch.device) -> Ranks:
    """Meet the other ranks of this machine through the file ``meeting``: NCCL where they have GPUs, gloo on
    CPUs and for what is decided together.

    Raises ConfigError where there is not a GPU for each.
    """
    if device.type == "mps":
        raise ConfigError(
            "processes: Apple's GPU trains with one process; use --device cpu for more", "processes"
        )
    if device.type == "cuda":
        if count > torch.cuda.device_count():
            raise ConfigError(
                f"processes {count} need a GPU each, and here are {torch.cuda.device_count()}; use fewer, "
                "or --device cpu",
                "processes",
            )
        torch.cuda.set_device(rank)
    loopback = next(
        name
        for name, addresses in psutil.net_if_addrs().items()
        if any(a.address == "127.0.0.1" for a in addresses)
    )
    for setting in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(setting, loopback)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend, init_method=f"file://{meeting}", rank=rank, world_size=count, timeout=PATIENCE
    )
    return Ranks(rank, count)


def leave() -> None:
    """Wait for the others and part. Only for a training that has come to its end: after an error the others
    are not to be kept.
    """
    dist.barrier()
    dist.destroy_process_group()
