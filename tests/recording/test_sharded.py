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

from initscope.diagnosis.diagnose import diagnose
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


FLAT = """
    import os, sys, torch, torch.nn.functional as F
    import torch.distributed as dist
    from torch import nn
    from torch.distributed.fsdp import FullyShardedDataParallel
    from initscope.recording.recorder import Recorder
    torch.set_num_threads(1)
    rank, original, folder = int(sys.argv[1]), sys.argv[2] == "original", sys.argv[3]
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    x, y = torch.load(f"{folder}/batch.pt")
    def train(recorded):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 4))
        model = FullyShardedDataParallel(model, use_orig_params=original, device_id=torch.device("cpu"))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        recorder, losses = Recorder(model, optimizer, runs=f"{folder}/runs").__enter__() if recorded else None, []
        for _ in range(9):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[rank::2]), y[rank::2])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if recorder is not None:
                assert recorder.step(loss)
        if recorder is not None:
            recorder.__exit__(None, None, None)
            assert (recorder.run is None) == (rank > 0)
        return losses, [p.detach().clone() for p in model.parameters()], torch.get_rng_state()
    bare, recorded = train(False), train(True)
    assert bare[0] == recorded[0]
    assert all(map(torch.equal, bare[1], recorded[1])) and torch.equal(bare[2], recorded[2])
    print(*bare[0])
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)
"""  # noqa: E501


def start(script, tmp_path, ranks, *arguments):
    """Real processes that run ``script`` with their rank, ``arguments`` and the folder; they are given one
    batch.
    """
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 8, generator=generator), torch.randint(4, (12,), generator=generator)
    torch.save((x, y), tmp_path / "batch.pt")
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'core'}", "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), str(rank), *arguments, str(tmp_path)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]


@pytest.mark.parametrize("kept", ["original", "flat"])
def test_flat_parameters_are_recorded_by_their_loss(tmp_path, kept):
    """FullyShardedDataParallel: no layer can be told, and the training goes on, with its loss recorded."""
    workers = start(FLAT, tmp_path, 2, kept)
    outputs = [worker.communicate(timeout=300) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    told = [errors.count("no layers are measured") for _, errors in outputs]
    assert told == [1, 0], "one line, of the process that records"
    (info,) = Runs(tmp_path / "runs").list()
    run = Runs(tmp_path / "runs").get(info.run)
    steps = run.read("steps").to_pylist()
    assert [row["loss"] for row in steps] == pytest.approx([*map(float, outputs[0][0].split())], rel=1e-6)
    assert {row["learning_rate"] for row in steps} == {0.1}
    assert run.read("layers").num_rows == 0
    assert (info.status, info.outcome, info.state["facts"]["targets"]["kind"]) == (
        "finished",
        "undecided",
        "classes",
    )
    assert "recording_error" not in info.state["facts"]
    assert "No layers are measured" in diagnose(run).remedy.text


TALKING = """
    import os, sys, torch
    import torch.distributed as dist
    from torch import nn
    from initscope.recording import twins
    from initscope.recording.apart import Communicates
    torch.set_num_threads(1)
    rank, folder = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    class Synchronized(nn.BatchNorm1d):  # as SyncBatchNorm: it speaks with the others while it trains
        def forward(self, x):
            if self.training:
                mean = x.mean(0)
                dist.all_reduce(mean)
                x = x - mean / 2
            return super().forward(x)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 4), Synchronized(4))
    x = torch.randn(6, 8)
    before, random = model[1].running_mean.clone(), torch.get_rng_state()
    if rank == 0:  # the other one takes no part
        with twins.undisturbed(model):
            assert twins.mixing(model, ((x,), {}))["leak"] == 0.0
            try:
                twins.mode_gap(model, [((x,), {})], [model[1]])
                raise AssertionError("it spoke")
            except Communicates as refused:
                print(refused)
        assert torch.equal(model[1].running_mean, before) and torch.equal(torch.get_rng_state(), random)
    model(x)  # now both do
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)
"""


def test_a_pass_that_speaks_with_other_processes_is_not_tried_alone(tmp_path):
    workers = start(TALKING, tmp_path, 2)
    outputs = [worker.communicate(timeout=300) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    assert "forward pass communicates (c10d.allreduce_" in outputs[0][0] and not outputs[1][0]


@pytest.mark.parametrize(("how", "world"), [("fully_shard", 3), ("tensor", 2)])
def test_parts_add_up_to_the_whole(tmp_path, how, world):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 8, generator=generator), torch.randint(4, (12,), generator=generator)
    workers = start(WORKER, tmp_path, world, str(world), how)
    outputs = [worker.communicate(timeout=300) for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * world, outputs
    assert all(output.split() == ["1", "0", "1", "0"] for output, _ in outputs), (
        "one all-reduce a recorded step"
    )

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
