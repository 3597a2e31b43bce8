"""Weights that are spread over processes: real processes with gloo, their rows against the same training in
this process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from initscope.recording.recorder import Recorder
from initscope.store import Runs

torch.set_num_threads(1)
ROOT = Path(__file__).parents[2]
WORKER = """
    import os, sys, torch, torch.nn.functional as F
    import torch.distributed as dist
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh
    from initscope.recording.recorder import Recorder
    torch.set_num_threads(1)
    rank, world, how, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 13), nn.ReLU(), nn.Linear(13, 4))
    mesh = init_device_mesh("cpu", (world,))
    if how == "fully_shard":
        from torch.distributed.fsdp import fully_shard
        for layer in (model[0], model[2]):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    else:
        from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
        parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x, y = torch.load(f"{folder}/batch.pt")
    mine = slice(rank, None, world) if how == "fully_shard" else slice(None)
    reduced = [0]
    original = dist.all_reduce
    def counted(*arguments, **keywords):
        reduced[0] += 1
        return original(*arguments, **keywords)
    dist.all_reduce = counted
    with Recorder(model, optimizer, runs=f"{folder}/runs", every=2) as recorder:
        for _ in range(4):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[mine]), y[mine])
            loss.backward()
            if how != "tensor":  # torch cannot clip parts and whole tensors together
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            before = reduced[0]
            recorder.step(loss)
            print(reduced[0] - before)
    assert (recorder.run is None) == (rank > 0)
    assert not any(m._forward_hooks for m in model.modules() if how == "tensor" and not m._modules and not list(m.parameters()))
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may outlive the interpreter, and abort it
"""  # noqa: E501


@pytest.mark.parametrize(("how", "world"), [("fully_shard", 2), ("fully_shard", 4), ("tensor", 2)])
def test_parts_add_up_to_the_whole(tmp_path, how, world):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 8, generator=generator), torch.randint(4, (12,), generator=generator)
    torch.save((x, y), tmp_path / "batch.pt")
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'core'}", "OMP_NUM_THREADS": "1"}
    script = textwrap.dedent(WORKER)
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(rank), str(world), how, str(tmp_path)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    outputs = [worker.communicate(timeout=300)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * world
    assert all(output.split() == ["1", "0", "1", "0"] for output in outputs), "one all-reduce a recorded step"

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 13), nn.ReLU(), nn.Linear(13, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with Recorder(model, optimizer, runs=tmp_path / "alone", every=2) as recorder:
        for _ in range(4):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            if how != "tensor":
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            recorder.step(loss)
    (info,) = Runs(tmp_path / "runs").list()
    assert info.status == "finished"
    found, expected = (
        run.read("layers").to_pylist() for run in (Runs(tmp_path / "runs").get(info.run), recorder.run)
    )
    assert len(found) == len(expected) == 6
    for row, one in zip(found, expected, strict=True):
        assert (row["step"], row["layer"]) == (one["step"], one["layer"])
        for metric in ("grad_norm", "grad_rms", "weight_norm", "update_ratio"):
            assert row[metric] == pytest.approx(one[metric], rel=1e-4), (row["step"], row["layer"], metric)
    if how == "fully_shard":
        assert all(row["activation_std"] > 0 and row["activation_grad_rms"] > 0 for row in found)
