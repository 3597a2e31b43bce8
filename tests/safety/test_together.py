"""Several people at once on the same run, and everything a deletion must never reach."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from initscope.__main__ import main
from initscope.config.run_config import RunConfig
from initscope.errors import InitScopeError, RunFolderError, RunNotFound
from initscope.scheduling import launcher
from initscope.store import RUN_ID, Run, Runs, own_process
from initscope.training.worker import work
from tests.safety.damage import template

pytestmark = pytest.mark.timeout(900)
ROOT = Path(__file__).resolve().parents[2]

PERSON = """
import json, random, sys
from initscope.scheduling import launcher
from initscope.config.run_config import RunConfig
from initscope.errors import InitScopeError
from initscope.store import Runs
runs, me = Runs(sys.argv[1]), int(sys.argv[2])
chance, told = random.Random(me), {}
launcher.ensure_supervisor = lambda runs: None  # the race is about the folder; nothing needs to train
print("ready", flush=True)
sys.stdin.readline()
for turn in range(60):
    run_id = f"run-{turn % 12}"
    act = chance.choice(["stop", "resume", "rename", "tag", "delete", "create", "list"])
    try:
        if act == "create": runs.create(RunConfig(), run_id=run_id)
        elif act == "list": [info.error for info in runs.list()]
        else:
            run = runs.get(run_id)
            {"stop": lambda: launcher.stop(runs, run), "resume": lambda: launcher.resume(runs, run), "delete": run.delete,
             "rename": lambda: run.edit(name=f"by {me}"), "tag": lambda: run.edit(tags=f"t{me}")}[act]()
        key = f"{act} done"
    except InitScopeError as error:
        key = f"{act} {type(error).__name__}"
    told[key] = told.get(key, 0) + 1
print(json.dumps(told))
"""  # noqa: E501


def test_many_people_on_the_same_runs(runs):
    """Four processes stop, resume, rename, delete and create the same twelve runs: every refusal is one of
    ours, nothing is torn.
    """
    people = [
        subprocess.Popen(
            [sys.executable, "-c", PERSON, str(runs.root), str(i)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(4)
    ]
    for person in people:
        assert person.stdout.readline() == "ready\n", person.communicate()
    told: dict[str, int] = {}
    for person in people:
        person.stdin.write("\n")
        person.stdin.flush()
    for person in people:
        out, err = person.communicate(timeout=240)
        assert person.returncode == 0, err[-2000:]
        for key, count in json.loads(out).items():
            told[key] = told.get(key, 0) + count
    assert {"stop done", "resume done", "rename done", "delete done", "create done"} <= set(told), told
    assert [info for info in runs.list() if info.status == "unreadable"] == []
    assert [name for name in os.listdir(runs.root) if name.startswith((".new-", ".deleted-"))] == [], (
        "no rest of a deletion"
    )


def all_at_once(*acts) -> list[object]:
    """The result or the error of each, begun at the same moment by threads of their own."""
    barrier, results = threading.Barrier(len(acts)), [None] * len(acts)

    def go(i):
        barrier.wait()
        try:
            results[i] = acts[i]()
        except InitScopeError as error:
            results[i] = error

    threads = [threading.Thread(target=go, args=(i,)) for i in range(len(acts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_two_edits_are_both_kept(runs):
    for _ in range(20):
        run = runs.create(RunConfig(), "finished")
        assert (
            all_at_once(
                lambda run=run: run.edit(name="A"),
                lambda run=run: run.edit(tags="b"),
                lambda run=run: run.edit(notes="c"),
            )
            == [None] * 3
        )
        assert run.meta() == {"name": "A", "tags": ["b"], "notes": "c"}


def test_one_of_two_deletes_and_one_of_two_resumes(runs, monkeypatch):
    monkeypatch.setattr(launcher, "ensure_supervisor", lambda runs: None)
    for _ in range(10):
        run = runs.create(RunConfig(), "stopped")
        results = all_at_once(run.delete, run.delete, run.delete)
        assert results.count(None) == 1 and all(isinstance(r, (RunNotFound, type(None))) for r in results), (
            results
        )
        run = runs.create(RunConfig(), "stopped")
        results = all_at_once(
            lambda run=run: launcher.resume(runs, run), lambda run=run: launcher.resume(runs, run)
        )
        assert results.count(None) == 1 and launcher.queued(runs).count(run.id) == 1, results
        launcher.stop(runs, run)
        results = all_at_once(run.delete, lambda run=run: launcher.resume(runs, run))
        assert results.count(None) == 1, results
        assert run.path.exists() == (run.id in launcher.queued(runs)), "deleted, or waiting: never both"


NAMES = [
    "..",
    ".",
    "",
    "../outside",
    "../../etc",
    "/etc",
    "/",
    "a/../../outside",
    "a\\..\\..",
    "x" * 10_000,
    "a\0b",
    "\u202egnp",
    "．．",
    "‥",
    "a\n",
    "~",
    "%2e%2e",
    "ｒｕｎ",
    "é",
    "e\u0301",
    "\ud800",
    "CON",
    "-rf",
    ".queue",
    ".supervisor.lock",
    "outside",
]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_outside_can_be_named(runs, tmp_path, name):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "status.json").write_text('{"status": "finished"}')
    runs.create(RunConfig(), "finished")
    before = sorted(tmp_path.rglob("*"))
    for act in (
        lambda: runs.get(name).delete(),
        lambda: runs.select(name)[0].delete(),
        lambda: runs.create(RunConfig(), run_id=name or ".."),
    ):
        with pytest.raises(InitScopeError) as refused:
            act()
            assert name in ("CON", "outside"), "a plain name may be a run's"
            raise RunNotFound("made")
        assert len(str(refused.value)) < 1000
    assert set(before) <= set(tmp_path.rglob("*"))


def census(folder: Path) -> dict[str, tuple]:
    """All that is there, with its kind, time of change and content."""
    found = {}
    for path in sorted(folder.rglob("*")):
        seen = path.lstat()
        found[str(path)] = (
            seen.st_mode,
            seen.st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() and not path.is_symlink() else "",
        )
    return found


ODD = [
    "..",
    "",
    "../../etc",
    "/etc/passwd",
    "x" * 10_000,
    "\u202egnp",
    "\u200b",
    "a\u0301" * 60,
    "．．",
    "-rf",
    ".queue",
    "init=default,sweep=" + "y" * 9_000,
]


def test_no_command_reaches_outside(runs, tmp_path, monkeypatch, capsys):
    """Every word that a command takes, odd: done inside the folder of runs, or refused in one line that can
    be read; outside it nothing changes.
    """
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "status.json").write_text('{"status": "finished"}')
    monkeypatch.chdir(outside)
    monkeypatch.setattr(launcher, "ensure_supervisor", lambda runs: None)
    run, before = template(runs), census(outside)
    for name in ODD:
        for command in (
            ["delete"],
            ["stop"],
            ["resume"],
            ["compare", run.id],
            ["report", "--output", "r.html"],
            ["export", "--format", "csv", "--output", "e"],
            ["query"],
            *(
                ["train", "--detach", flag]
                for flag in ("--name", "--tags", "--sweep", "--model", "--data", "--config")
            ),
        ):
            status = main([*command, name])
            said = capsys.readouterr().err.strip()
            assert status == 0 or (status == 2 and len(said.splitlines()) == 1 and len(said) < 1_100), (
                command,
                name[:40],
                status,
                said[:300],
            )
    assert main(["query", "\udcff"]) == 2, "a byte that is no text, as a shell passes it on"
    assert census(outside) == before
    assert all(RUN_ID.fullmatch(name) for name in os.listdir(runs.root) if name[0] != "."), (
        "what was made is a run"
    )
    assert [info.error for info in runs.list() if info.status == "unreadable"] == []


def test_links_and_pipes_in_place_of_our_files(runs, tmp_path, monkeypatch):
    """Nothing is written, touched or shown through them, neither in a run nor beside it; nobody waits for
    ever.
    """
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("the owner's own")
    before = census(outside)
    for name in (
        "log.txt",
        "meta.json",
        "config.json",
        "status.json",
        "parts",
        "checkpoint.pt",
        "worker.lock",
    ):
        run = runs.create(RunConfig(), "stopped", error=None)
        (run.path / name).unlink(missing_ok=True) if name != "parts" else (run.path / name).rmdir()
        (run.path / name).symlink_to(outside / ("." if name == "parts" else "secret"))
        assert "own" not in run.log_tail() and "own" not in str(run.info())
        for act in (lambda run=run: launcher.resume(runs, run), lambda run=run: work(run)):
            with pytest.raises(InitScopeError):
                act()
        run.delete() if name != "worker.lock" else shutil.rmtree(run.path)
    live = runs.create(RunConfig(), "running", **own_process())
    (live.path / "stop").symlink_to(outside / "new")
    with pytest.raises(RunFolderError):
        live.request_stop()
    pipe = runs.create(RunConfig(), "stopped")
    (pipe.path / "log.txt").unlink()
    os.mkfifo(pipe.path / "log.txt")
    with pytest.raises(RunFolderError, match=r"log\.txt is neither a file nor a folder; remove it"):
        work(pipe)
    for name in (".queue", ".supervisor.lock", ".supervisor.log"):
        for put in (lambda path: path.symlink_to(outside), os.mkfifo):
            shutil.rmtree(runs.root / ".queue", ignore_errors=True)
            put(runs.root / name)
            for act in (
                lambda: launcher.submit(runs, [RunConfig()]),
                lambda: launcher.stop(runs, live),
                lambda: launcher.prepare(runs),
            ):
                with pytest.raises(
                    RunFolderError, match=rf"\{name} in .* is a (link|pipe); nothing is written through it"
                ):
                    act()
            launcher.ensure_served(runs)
            (runs.root / name).unlink()
    assert census(outside) == before


def test_links_lead_a_deletion_nowhere(runs, tmp_path):
    """A run that is a link is not deleted; links inside a run go, what they lead to stays."""
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "status.json").write_text('{"status": "finished"}')
    (outside / "deep" / "file").write_text("precious")
    runs.create(RunConfig(), "finished")
    (runs.root / "linked").symlink_to(outside)
    assert "linked" not in runs.ids()
    for act in (lambda: runs.get("linked").delete(), lambda: Run(runs.root / "linked").delete()):
        with pytest.raises(RunFolderError, match="is a link"):
            act()
    run = runs.create(RunConfig(), "finished")
    (run.path / "inner").symlink_to(outside)
    (run.path / "parts" / "up").symlink_to("/")
    run.delete()
    assert (
        not run.path.exists()
        and (outside / "deep" / "file").read_text() == "precious"
        and (runs.root / "linked").is_symlink()
    )
    # A whole folder of runs that is a link is somebody's choice, and works.
    (tmp_path / "alias").symlink_to(runs.root)
    alias = Runs(tmp_path / "alias")
    made = alias.create(RunConfig(), "finished")
    made.delete()
    assert made.id not in runs.ids()


def test_a_live_run_is_not_deleted(runs, python, until):
    """Neither by its state nor, before its first word, by its claim."""
    from initscope.store import claimed, own_process

    live = runs.create(RunConfig(), "running", **own_process())
    with pytest.raises(InitScopeError, match="stop it first"):
        live.delete()
    quiet = runs.create(RunConfig(), "stopped")
    holder = python(
        "import sys, time\nfrom initscope.store import Run, claimed\nwith claimed(Run(sys.argv[1])):\n "
        "print('held', flush=True)\n time.sleep(60)",
        quiet.path,
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(InitScopeError, match="another process is working"), claimed(quiet):
        raise AssertionError("two at once")
    holder.kill()
    until(lambda: holder.poll() is not None)
    quiet.delete()
