"""The command line as a person or a script meets it: JSON on the last line, exit status, one clear line for
every mistake.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys

import psutil
import pytest

from initscope.__main__ import main
from initscope.commands.parser import build_parser
from initscope.config.run_config import RunConfig
from initscope.schema import Status
from initscope.store import Runs, RunWriter, own_process

TINY = [
    "--preset",
    "quick",
    "--model",
    "vgg11",
    "--width",
    "0.0625",
    "--train-samples",
    "320",
    "--batch-size",
    "16",
    "--epochs",
    "3",
]
"""Sixty steps: enough for an outcome."""

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def said(capsys):
    """Runs a command in this process: (exit status, standard output, standard error)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return call


# ---------------------------------------------------------------- a whole story


def test_train_runs_compare_resume_delete(cli, said, runs):
    """Training in a process of its own; the rest in this one."""

    def told(*arguments: object) -> dict:
        status, out, err = said(*arguments, "--json")
        assert status == 0, err
        return json.loads(out.splitlines()[-1])

    trained = [
        cli("train", *TINY, "--init", init, "--json", "--name", f"mein Läufer {init}")
        for init in ("default", "kaiming_normal")
    ]
    for answer, init in zip(trained, ("default", "kaiming_normal"), strict=True):
        assert answer.status == 0, answer.err
        found = answer.json
        assert set(found) == {"run", "status", "outcome", "final", "seconds"} and set(found["final"]) == {
            "loss",
            "accuracy",
            "val_loss",
            "val_accuracy",
        }
        assert (
            found["status"] == "finished"
            and found["seconds"] > 0
            and all(isinstance(v, float) for v in found["final"].values())
        )
        assert "step" in answer.err and "Traceback" not in answer.err, "progress goes to standard error"
        assert (
            len(answer.out.splitlines()) == 2
            and f"after 60 steps (validation accuracy {100 * found['final']['val_accuracy']:.1f} %"
            in answer.out
        )
        assert runs.get(found["run"]).config().init == init
        assert runs.get(found["run"]).info().scores == (
            found["final"]["val_loss"],
            found["final"]["val_accuracy"],
        )
    a, b = (answer.json for answer in trained)
    assert a["outcome"] == "not_converged"

    listed = told("runs")["runs"]
    assert [row["run"] for row in listed] == [b["run"], a["run"]], "newest first"
    assert all({"run", "name", "status", "outcome", "init", "loss", "accuracy"} <= set(row) for row in listed)
    assert listed[1]["name"] == "mein Läufer default" and 0 <= listed[1]["accuracy"] <= 1

    compared = told("compare", a["run"], b["run"])
    keys = {"verdict", "headline", "converged", "p_value", "interval", "changed_fields", "fair", "layers"}
    assert (
        keys <= set(compared)
        and compared["fair"]
        and compared["changed_fields"] == {"init": ["default", "kaiming_normal"]}
    )
    ratios = compared["layers"]
    assert [row["layer"] for row in ratios][::10] == ["conv1_1", "fc3"] and ratios[0]["log10_grad_ratio"] > 2
    status, out, _ = said("compare", "init=default", "init=kaiming_normal")
    assert status == 0 and out.splitlines()[0] == compared["headline"] and "conv1_1" in out

    for refused, why in (
        (("stop", a["run"]), "only a queued or running run"),
        (("resume", a["run"]), "nothing to resume"),
    ):
        status, out, err = said(*refused, "--json")
        assert (status, out) == (2, "") and why in err and len(err.splitlines()) == 1
    assert told("archive", a["run"]) == {"run": a["run"], "archived": True}
    assert [row["run"] for row in told("runs")["runs"]] == [b["run"]]
    assert [row["run"] for row in told("runs", "--archived")["runs"]] == [a["run"]]
    status, _, err = said("compare", "init=default", "init=kaiming_normal")
    assert status == 2 and "no run in" in err, "an archived run is in no group"
    assert told("restore", a["run"])["archived"] is False and len(told("runs")["runs"]) == 2
    assert told("delete", a["run"]) == {"run": a["run"], "deleted": True} and runs.ids() == [b["run"]]


def test_detach_stop_resume(cli, said, runs, two_slots, until):
    """Into the queue and back: stopped by one command, gone on with by another, which Ctrl-C stops again."""
    detached = cli("train", *TINY, "--epochs", "100000", "--detach", "--json")
    assert detached.status == 0 and set(detached.json) == {"run", "status"}
    run = runs.get(detached.json["run"])
    until(lambda: len(run.read("steps")) > 5)
    status, out, _ = said("stop", run.id, "--json")
    assert (status, json.loads(out)) == (0, {"run": run.id, "status": "stopped"}) and run.state()[
        "status"
    ] == "stopped"

    command = [sys.executable, "-m", "initscope", "resume", run.id, "--json"]
    environment = {**os.environ, "INITSCOPE_RUNS": str(runs.root)}
    for number in (signal.SIGINT, signal.SIGTERM):
        before = len(run.read("steps"))
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            until(
                lambda before=before: (
                    run.state()["status"] == "running" and len(run.read("steps")) > before + 5
                )
            )
            process.send_signal(number)
            out, err = process.communicate(timeout=240)
        finally:
            process.kill()
        assert process.returncode == 0 and "Traceback" not in err, err
        answer = json.loads(out.splitlines()[-1])
        assert (answer["run"], answer["status"], answer["outcome"]) == (run.id, "stopped", "undecided")
        assert run.read("steps")["step"].to_pylist() == list(range(run.state()["step"])), (
            "one curve without a seam"
        )


def test_a_diverged_network_is_a_result(said, runs):
    status, out, err = said(
        "train", *TINY, "--optimizer", "sgd", "--learning-rate", "1000", "--init", "kaiming_normal", "--json"
    )
    answer = json.loads(out.splitlines()[-1])
    assert (status, answer["status"], answer["outcome"]) == (0, "finished", "diverged"), err
    assert "NaN" not in out.splitlines()[-1] and all(
        v is None or isinstance(v, float) for v in answer["final"].values()
    )
    [row] = json.loads(said("runs", "--json")[1].splitlines()[-1])["runs"]
    assert row["outcome"] == "diverged" and row["loss"] is None, "JSON has no NaN"


def test_a_run_that_fails_ends_with_status_one(runs, cli):
    """More memory than the process may have: the run is failed, the reason is one line, the traceback is in
    its log.
    """

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))

    arguments = [
        "--preset",
        "quick",
        "--width",
        "0.5",
        "--image-size",
        "1024",
        "--batch-size",
        "1",
        "--train-samples",
        "1",
        "--max-steps",
        "1",
        "--json",
    ]
    command = [sys.executable, "-m", "initscope", "train", *arguments]
    environment = {**os.environ, "INITSCOPE_RUNS": str(runs.root)}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, preexec_fn=limit, timeout=600
    )
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    last = done.stderr.splitlines()[-1]
    [info] = runs.list()
    assert last.startswith(f"error: run {info.run} failed: out of memory") and "Traceback" not in done.stderr
    assert (
        info.status == "failed"
        and info.error.startswith("out of memory")
        and "Traceback" in runs.get(info.run).log_tail(100)
    )
    assert (
        len(runs.get(info.run).read("steps")) == 0 and (runs.get(info.run).path / "layers.parquet").exists()
    )


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("", "COMMAND"),
        ("trian", "invalid choice"),
        ("train --epochs", "expected one argument"),
        ("train --epochs many", "epochs must be a whole number at least 1"),
        ("train --epoch 3", "unknown argument '--epoch'; did you mean \"--epochs\"?"),
        ("train surplus", "unknown argument 'surplus'"),
        ("train --preset slow", "invalid choice"),
        ("train --init kaimng_normal", 'did you mean "kaiming_normal"?'),
        ("train --learning-rate -1", "learning_rate must be a number above 0"),
        ("train --learning-rate=-1e-5", "learning_rate must be a number above 0"),
        ("train --image-size 33", "multiple of 32"),
        ("train --num-classes 3", "digits has 10 classes"),
        ("train --data cifar10 --in-channels 2", "in_channels 2 does not fit"),
        ("train --data nothing", "unknown data set"),
        ("train --batch-norm perhaps", "true or false"),
        ("train --config /no/such.json", "cannot read /no/such.json"),
        ("train --config .", "cannot read ."),
        ("train --config /dev/zero", "it is larger than 1,000,000 bytes"),
        ("train --device mps", "not available"),
        ("train --name a\nb", "name must be text"),
        ("train --nope a\nb", "unknown argument '--nope'"),
        ("train --detach --gain 0", "gain must be a number above 0"),
        ("compare one", "required: B"),
        ("compare one two", "no run 'one'"),
        ("compare init=default init=zeros", "fits init=default"),
        ("compare init=defalt init=zeros", "unknown init"),
        ("compare int=default x", 'did you mean "init"'),
        ("stop ../x", "no run '../x'"),
        ("stop a\nb", "no run"),
        ("resume ..", "no run '..'"),
        ("delete .", "no run '.'"),
        ("delete", "required: RUN"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_trace(said, runs, arguments, why):
    status, out, err = said(*[part for part in arguments.split(" ") if part])
    assert (status, out) == (2, "") and why in err, err
    assert err.startswith("error: ") and len(err.splitlines()) == 1
    assert not runs.root.exists() or not [
        p for p in runs.root.iterdir() if not p.name.startswith(".supervisor")
    ]


def test_mistakes_about_the_runs_folder(said, tmp_path):
    (tmp_path / "file").write_text("")
    for command in (
        ["runs"],
        ["train", *TINY],
        ["train", "--detach"],
        ["stop", "x"],
        ["compare", "init=zeros", "x"],
    ):
        for root in (tmp_path / "file", tmp_path / "file" / "below"):
            status, out, err = said(*command, "--runs", root)
            assert (status, out, len(err.splitlines())) == (2, "", 1), (command, root, out, err)
    status, out, err = said("runs", "--runs", tmp_path / "nothing here", "--json")
    assert (status, json.loads(out)) == (0, {"runs": []}) and "no runs yet" not in out


def test_missing_data_is_bad_input_and_says_what_to_do(said, runs, tmp_path):
    status, out, err = said("train", *TINY, "--data", f"image_folder:{tmp_path / 'none'}", "--json")
    assert (
        (status, out) == (2, "")
        and "one sub-folder of images for each class" in err.splitlines()[-1]
        and "Traceback" not in err
    )
    [info] = runs.list()
    assert info.status == "failed" and info.error in err, "the run says why, too"


def test_a_real_mistake_in_a_real_process(cli, runs):
    for arguments in (("train", "--init", "nope"), ("compare", "a", "b"), ("resume", "..\n")):
        answer = cli(*arguments)
        assert (
            (answer.status, answer.out) == (2, "")
            and answer.err.startswith("error: ")
            and len(answer.err.splitlines()) == 1
        )
    assert not runs.root.exists()


@pytest.mark.parametrize("command", [[], ["train"], ["runs"], ["compare"], ["stop"], ["resume"], ["delete"]])
def test_help_is_no_mistake(command, capsys):
    with pytest.raises(SystemExit) as left:
        main([*command, "--help"])
    out = capsys.readouterr().out
    assert left.value.code == 0 and out.startswith("usage: initscope")
    if command == ["train"]:
        assert all(
            flag in out
            for flag in ("--learning-rate", "--init-seed", "--detach", "--json", "--runs", "--config")
        )


def test_abbreviations_are_not_guessed():
    parsed = build_parser().parse_args(["train", "--init", "zeros"])
    assert parsed.field_init == "zeros" and parsed.field_init_seed is None


# ---------------------------------------------------------------- terminals and pipes


def test_any_name_can_be_shown_on_any_terminal(runs, cli):
    """An old terminal's encoding, and a machine with no locale at all: nothing is an error, and files stay
    UTF-8.
    """
    runs.create(RunConfig(name="实验 · é"), Status.FINISHED)
    runs.create({"name": "lone \ud800", "init": "custom"}, Status.FINISHED, source="recorder")
    for environment in (
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"},
    ):
        plain, asked = cli("runs", **environment), cli("runs", "--json", **environment)
        assert plain.status == asked.status == 0, plain.err + asked.err
        assert [row["name"] for row in asked.json["runs"]] == ["lone \ufffd", "实验 · é"] and len(
            plain.out.splitlines()
        ) == 2
        queued = cli("compare", "name=ö", "name=ö", **environment)
        assert queued.status == 2 and len(queued.err.splitlines()) == 1
    code = (
        "import sys; from initscope.store import Runs; from initscope.config.run_config import RunConfig; "
        "print(Runs(sys.argv[1]).create(RunConfig(name='\\xfc \\u540d')).id)"
    )
    environment = {**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    made = subprocess.run(
        [sys.executable, "-c", code, runs.root], env=environment, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    assert runs.get(made.stdout.strip()).config().name == "ü 名"


def test_names_move_no_cursor_and_settings_are_not_ignored(runs, cli):
    runs.create({"name": "a", "init": "custom"}, Status.FINISHED, source="recorder")
    asked = cli("query", "SELECT '\x1b[31mred\x1b[0m\x07' AS name FROM runs")
    assert asked.status == 0 and asked.out.splitlines()[-1] == r"\x1b[31mred\x1b[0m\x07"
    refused = cli("sweep", "--inits", "default", "--seeds", "1", INITSCOPE_SLOTS="abc")
    assert refused.status == 2 and "INITSCOPE_SLOTS must be a whole number from 1, not 'abc'" in refused.err
    other = cli("runs", "--runs", os.fsdecode(b"/tmp/\xff\xfe"))
    assert other.status == 2 and "a name in UTF-8" in other.err and len(other.err.splitlines()) == 1


def test_a_reader_that_has_seen_enough(runs):
    for i in range(300):
        runs.create({"name": f"{i} " + "x" * 100, "init": "custom"}, Status.FINISHED)
    command = f"{sys.executable} -m initscope runs --runs '{runs.root}' | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, len(done.stdout.splitlines()), done.stderr) == (0, 1, "")


def test_a_run_made_by_hand_is_not_taken_by_a_supervisor(said, runs):
    """``train`` in the foreground is running from the first moment; only what was queued waits."""
    seen = []
    create = Runs.create

    def spy(self, *arguments, **changes):
        made = create(self, *arguments, **changes)
        seen.append(made.state())
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runs, "create", spy)
        assert said("train", *TINY, "--max-steps", "1")[0] == 0
    assert seen[0]["status"] == "running" and seen[0]["pid"] == psutil.Process().pid


def test_two_cannot_work_on_one_run(said, runs):
    run = runs.create(RunConfig(threads=1), Status.RUNNING, **own_process())
    for command, why in (("resume", "is running already"), ("delete", "stop it first")):
        status, _, err = said(command, run.id)
        assert status == 2 and why in err
    RunWriter(run).update(status="stopped")
    from initscope.training.worker import claimed

    with claimed(run):
        status, _, err = said("resume", run.id)
        assert status == 2 and "another process is working on run" in err
