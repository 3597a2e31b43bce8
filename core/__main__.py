"""The command line: ``python -m core COMMAND``. Results on standard output, progress and messages on standard error.

Exit status 0: it did what was asked (a network that does not converge is a result); 1: a run failed; 2: bad input.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from core import config as configs
from core import factories, limits
from core.config import OPTIONS, PRESETS, RunConfig
from core.engines import ENGINES
from core.errors import ConfigError, InitScopeError, TrainingFailed, one_line
from core.loading import load_training, without_collection
from core.schema import LIVE, Status
from core.store import Run, RunInfo, Runs, default_root, own_process
from core.store.files import number

DEFAULT_PRESET = "quick"
STOP_WAIT_SECONDS = 60


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    try:
        given = build_parser().parse_args(arguments)
        with factories.trusted():
            result = given.command(given)
        if given.json:
            print(json.dumps(finite(result)))
        sys.stdout.flush()
        return 0
    except InitScopeError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader has seen enough, as in `runs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 1


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for them."""
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):  # noqa: PLR0124
        return None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


# ---------------------------------------------------------------- the parser


def build_parser() -> Parser:
    """Every command with its arguments; config flags come from the config's own declaration."""
    common = Parser(add_help=False)
    common.add_argument("--runs", metavar="DIR", default=None, help="folder of all runs, or its address such as s3://bucket/runs (INITSCOPE_RUNS; default runs/)")
    common.add_argument("--json", action="store_true", help="print one JSON object as the last line")

    configured = Parser(add_help=False, parents=[common], allow_abbrev=False)
    configured.add_argument("--preset", choices=tuple(PRESETS), default=None, help=f"where to start from (default {DEFAULT_PRESET})")
    configured.add_argument("--config", metavar="FILE", help="a JSON file of config fields, over the preset")
    for spec in OPTIONS.values():
        configured.add_argument(
            spec.flag,
            dest=f"field_{spec.name}",
            metavar=spec.kind.__name__.upper() if not spec.choices else "NAME",
            nargs="?" if spec.kind is bool else None,
            const="true" if spec.kind is bool else None,
            help=f"{spec.help} ({spec.expected}; default {one_line(spec.default)})".replace("%", "%%"),
        )

    parser = Parser(prog="python -m core", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)

    def add(name: str, command: Callable, help: str, parent: Parser = common) -> argparse.ArgumentParser:
        added = commands.add_parser(name, parents=[parent], help=help, description=help, allow_abbrev=False)
        added.set_defaults(command=command)
        return added

    train = add("train", train_command, "train one run here, or --detach it into the queue", configured)
    train.add_argument("--detach", action="store_true", help="queue the run and return at once")
    queue_options(train)
    probe = add("probe", probe_command, "one batch, no training: each layer measured and predicted, and a forecast", configured)
    probe.add_argument("--seeds", type=int, default=1, metavar="N", help="measure so many init seeds and give the band (default 1)")
    sweep = add("sweep", sweep_command, "initializations x seeds, as many at once as the machine carries", configured)
    sweep.add_argument("--inits", required=True, metavar="A,B", help="initializations, with commas between")
    sweep.add_argument("--seeds", type=int, default=5, metavar="N", help="seeds for each (default 5)")
    sweep.add_argument("--vary", action="append", default=[], metavar="FIELD=1,2", help="also vary a number or a switch (at most twice)")
    sweep.add_argument("--models", metavar="A,B", help="the same for each of these networks, with commas between")
    queue_options(sweep)
    add("runs", runs_command, "list all runs")
    compare = add("compare", compare_command, "did B fix what A suffers from?")
    compare.add_argument("a", metavar="A", help="a run id, or a group such as init=default,sweep=ID")
    compare.add_argument("b", metavar="B")
    report = add("report", report_command, "a run, or the comparison of two, as one HTML file that opens offline")
    report.add_argument("a", metavar="A")
    report.add_argument("b", metavar="B", nargs="?")
    report.add_argument("--output", required=True, metavar="FILE.html")
    export = add("export", export_command, "a run for other tools: CSV, JSON or TensorBoard")
    export.add_argument("run", metavar="RUN", help="a run id")
    export.add_argument("--format", required=True, choices=("csv", "json", "tensorboard"), help="csv: a folder of three files")
    export.add_argument("--output", required=True, metavar="PATH", help="a file or folder that does not exist yet")
    add("diagnose", diagnose_command, "why did this run not train?").add_argument("run", metavar="RUN", help="a run id")
    query = add("query", query_command, "ask in SQL over all runs: the views runs, steps, epochs and layers")
    query.add_argument("sql", metavar="SELECT", help="one SELECT, or a recipe: rates, worst, slowest")
    for name, command, help in (
        ("stop", stop_command, "stop a run after its current step; it can be resumed"),
        ("resume", resume_command, "go on with a stopped, failed or crashed run, from its checkpoint"),
        ("delete", delete_command, "delete the folder of a run that has ended"),
    ):
        add(name, command, help).add_argument("run", metavar="RUN", help="a run id")
    return parser


def queue_options(parser: argparse.ArgumentParser) -> None:
    """Where queued runs train, and in which order."""
    parser.add_argument(
        "--engine", default="", metavar="|".join(ENGINES), help="what works the queue off (default: INITSCOPE_ENGINE, or as it is now: local at first)"
    )
    parser.add_argument("--first", action="store_true", help="before the runs that wait already")


def config_from(given: argparse.Namespace) -> RunConfig:
    """The config that preset, file and flags make together, each over the one before, with its own files pinned. Raises ConfigError."""
    values: dict[str, Any] = {}
    stated: set[str] = set()
    if given.config:
        try:
            saved = json.loads(Path(given.config).read_bytes())
        except OSError as error:
            raise ConfigError(f"cannot read {given.config}: {error.strerror or error}; check the path and who may read it") from None
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{given.config} is not valid JSON: {one_line(str(error))}; correct it, or take the config.json of a run") from None
        if not isinstance(saved, dict):
            raise ConfigError(f"{given.config} must hold a JSON object, not {one_line(saved)}")
        # A run's own config.json is welcome as it is.
        saved = saved["config"] if isinstance(saved.get("config"), dict) else saved
        values.update(saved)
        stated |= {name for name, value in saved.items() if name in OPTIONS and value != OPTIONS[name].default}
    typed = {name: value for name in OPTIONS if (value := getattr(given, f"field_{name}")) is not None}
    for role in factories.ROLES:
        if role in typed:
            values[f"{role}_sha256"] = ""  # the file's digest belonged to the other model or data
    return factories.pin(configs.preset(given.preset or DEFAULT_PRESET).replace(**{**values, **typed}), stated | set(typed))


def runs_of(given: argparse.Namespace) -> Runs:
    return Runs(given.runs or default_root())


# ---------------------------------------------------------------- commands


def train_command(given: argparse.Namespace) -> dict[str, Any]:
    config, runs = config_from(given), runs_of(given)
    if given.detach:
        from core.launcher import submit

        [run] = submit(runs, [config], given.engine, given.first)
        print(f"queued {run.id}", file=sys.stderr)
        return {"run": run.id, "status": str(run.state()["status"])}
    if given.engine or given.first:
        raise ConfigError("--engine and --first are about the queue, and this run would train here and now; add --detach")
    load_training()
    gc.freeze()  # nothing of it is ever to be collected, at the exit neither
    from core.trainer import pick_device

    pick_device(config.device)  # refused before a folder is made
    limits.check([config], 0, runs.root)
    # Running from the first moment: a supervisor that looks at this folder now must not take it for one that waits.
    return _train_here(runs.create(config, Status.RUNNING, **own_process()))


def _train_here(run: Run) -> dict[str, Any]:
    from tqdm import tqdm

    from core.worker import work

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
        raise TrainingFailed(f"run {run.id} failed: {run.info().error or one_line(error)} (traceback in {run.path / 'log.txt'})") from error
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
    return {"run": run.id, "status": state["status"], "outcome": state["outcome"], "final": final, "seconds": state.get("seconds")}


def _sentence(info: RunInfo) -> str:
    word = str(info.outcome or info.status).replace("_", " ")
    accuracy = info.state.get("val_accuracy")
    chance = info.state.get("chance")
    numbers = f"validation accuracy {accuracy:.1%}, guessing gives {chance:.1%}" if isinstance(accuracy, float) and chance else f"loss {info.loss}"
    return f"{info.run}: {word} after {info.state.get('step')} steps ({numbers})"


def probe_command(given: argparse.Namespace) -> dict[str, Any]:
    config = config_from(given)
    if not 1 <= given.seeds <= 1000:
        raise ConfigError(f"seeds must be a whole number from 1 to 1000, not {given.seeds}")
    with without_collection():
        from core.probe import report
    gc.freeze()

    result = report(config, given.seeds)
    if not given.json:
        print(f"{'layer':12} {'signal':>10} {'predicted':>10} {'error':>10} {'predicted':>10}")
        for row in result["layers"]:
            pairs = [row[side][metric] for metric in ("signal_std", "activation_grad_rms") for side in ("measured", "predicted")]
            print(f"{row['layer']:12} " + " ".join(f"{'-' if value is None else format(value, '.2e'):>10}" for value in pairs))
        if reason := result.get("theory"):
            print(f"no prediction: {reason}")
        print(f"{result['forecast']['outcome'].replace('_', ' ')}: {result['forecast']['reason']}")
    return result


def sweep_command(given: argparse.Namespace) -> dict[str, Any]:
    from tqdm import tqdm

    from core import launcher, sweep, trainability

    axes = [sweep.parse_axis(text) for text in given.vary]
    inits = [name.strip() for name in given.inits.split(",") if name.strip()]
    base = config_from(given)
    for axis in axes:  # every value of an axis must be able to reach a factory of one's own
        for value in axis.values:
            factories.pin(base.replace(**{axis.field: value}), (axis.field,))
    if given.field_stop_when_certain is None:
        base = base.replace(stop_when_certain=True)
    if given.models:
        axes.insert(0, sweep.models_axis(given.models))
        if given.field_batch_norm is not None:  # for every network, whatever its paper has
            axes.append(sweep.Axis("batch_norm", (base.batch_norm,)))
    name = base.sweep or sweep.name_of(base, networks=bool(given.models))
    configs = sweep.plan(base, inits, given.seeds, name, axes, slots=launcher.slots())
    runs = runs_of(given)
    launched = sweep.launch(runs, configs, given.engine, given.first)
    print(f"sweep {name}: {len(configs)} runs, {len(configs) - len(launched)} there already", file=sys.stderr)
    wanted = sweep.covering(configs, runs)
    try:
        form = "{percentage:3.0f}%|{bar}| {desc} [{elapsed}<{remaining}]"
        # smoothing=0: the time left from the mean speed since the start; ``initial`` is what was there before.
        with tqdm(total=1.0, bar_format=form, smoothing=0, miniters=0, dynamic_ncols=True, file=sys.stderr, mininterval=0.3) as bar:
            trouble = ""
            for ended, share in sweep.watch(runs, wanted):
                bar.set_description_str(f"{ended} of {len(wanted)} runs", refresh=False)
                if bar.n == 0:
                    bar.initial = share
                bar.update(share - bar.n)
                launcher.keep_going(runs)
                if trouble != (trouble := launcher.state(runs).trouble) and trouble:
                    bar.write(f"{trouble}; what is queued waits", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"the sweep goes on in the background; repeat the command to watch it again, or stop its runs ({name})", file=sys.stderr)
        raise
    by = ("init", *[axis.field for axis in axes])
    infos = [runs.get(run_id).info() for run_id in wanted]
    failed = [info for info in infos if info.status in (Status.FAILED, Status.CRASHED)]
    if failed:
        told = f"{len(failed)} of {len(infos)} runs failed; {failed[0].run}: {failed[0].error}"
        if len(failed) == len(infos):
            raise TrainingFailed(told)
        print(told, file=sys.stderr)
    rows = sweep.table(infos, by)
    if not given.json:
        for row in rows:
            cell = "  ".join(f"{field} {row[field]}" for field in by)
            silent = f"; {row['undecided']} undecided" if row["undecided"] else ""
            print(f"{cell}: {row['converged']} of {row['runs']} converged (95 % interval {row['low']:.0%} to {row['high']:.0%}{silent})")
        if len(axes) == 2:
            print("\n".join(trainability.sentences(base, rows, inits, axes)))
    return {"sweep": name, "rows": rows}


def runs_command(given: argparse.Namespace) -> dict[str, Any]:
    infos = runs_of(given).list()
    if not given.json:
        if not infos:
            print("no runs yet; start one: python -m core train --preset quick --init default", file=sys.stderr)
        for info in infos:
            loss = "" if info.loss is None else f"{info.loss:.3f}"
            accuracy = "" if info.accuracy is None else f"{info.accuracy:.1%}"
            print(f"{info.run:45} {info.status:10} {info.outcome or '':14} {loss:>8} {accuracy:>7}  {info.name}")
    return {"runs": [run_row(info) for info in infos]}


def run_row(info: RunInfo) -> dict[str, Any]:
    """One row of the JSON of ``runs``."""
    return {
        "run": info.run,
        "name": info.name,
        "status": info.status,
        "outcome": info.outcome,
        "init": info.init,
        "loss": info.loss,
        "accuracy": info.accuracy,
        **({"error": info.error} if info.error else {}),
    }


def compare_command(given: argparse.Namespace) -> dict[str, Any]:
    from core.diagnosis.compare import compare

    runs = runs_of(given)
    result = compare(runs.select(given.a), runs.select(given.b))
    if not given.json:
        print(result.headline)
        if result.warning:
            print(result.warning)
        for row in result.layers:
            ratio = row["log10_grad_ratio"]
            print(f"  {row['layer']:12} first-step gradient B/A: {'undefined' if ratio is None else f'10^{ratio:+.1f}'}")
    return result.to_dict()


def diagnose_command(given: argparse.Namespace) -> dict[str, Any]:
    from core.diagnosis.diagnose import diagnose

    found = diagnose(runs_of(given).get(given.run))
    if not given.json:
        print(f"{found.run}: {found.outcome.replace('_', ' ')}, {found.cause} (confidence {found.confidence:.0%})")
        for finding in found.findings:
            print(f"  {finding.id}: {finding.text}")
        print(f"remedy: {found.remedy.text}")
    return found.to_dict()


def report_command(given: argparse.Namespace) -> dict[str, Any]:
    runs = runs_of(given)
    sides = [side for side in (given.a, given.b) if side]
    for side in sides:
        runs.select(side)  # a wrong name is reported here, before another process begins
    # Figures live in the dashboard, and core knows no screen: a process of its own draws them.
    command = [sys.executable, "-m", "dashboard.report", *sides, "--output", str(Path(given.output).resolve()), "--runs", str(runs.root.resolve())]
    done = subprocess.run(command, cwd=Path(__file__).resolve().parents[1], stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ConfigError(f"no report was written: {last.removeprefix('error: ')}")
    print(f"wrote {given.output}", file=sys.stderr)
    return {"output": given.output, "runs": sides}


def export_command(given: argparse.Namespace) -> dict[str, Any]:
    from core.export import export

    run = runs_of(given).get(given.run)
    output = export(run, given.format, given.output)
    print(f"wrote {output}", file=sys.stderr)
    return {"run": run.id, "format": given.format, "output": str(output)}


def query_command(given: argparse.Namespace) -> dict[str, Any]:
    from core.store.query import query

    answer = query(runs_of(given), given.sql)
    columns = answer.rows.column_names
    rows = [{key: _plain(value) for key, value in row.items()} for row in answer.rows.to_pylist()]
    if not given.json:
        cells = [columns, *([_cell(row[name]) for name in columns] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for line in cells:
            print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    if answer.cut:
        print(f"only the first {len(rows):,} rows are shown; ask for fewer, such as with LIMIT", file=sys.stderr)
    return {"columns": columns, "rows": rows, "cut": answer.cut}


def _plain(value: Any) -> Any:
    """A value of SQL's as JSON has it: times and what else it lacks as text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else " ".join(str(value).split())


def stop_command(given: argparse.Namespace) -> dict[str, Any]:
    from core import launcher

    runs = runs_of(given)
    run = runs.get(given.run)
    launcher.stop(runs, run)
    deadline = time.monotonic() + STOP_WAIT_SECONDS
    while run.state()["status"] in LIVE and time.monotonic() < deadline:
        time.sleep(0.1)
    status = run.state()["status"]
    print(f"{run.id}: {status}", file=sys.stderr)
    return {"run": run.id, "status": status}


def resume_command(given: argparse.Namespace) -> dict[str, Any]:
    from core import launcher

    run = runs_of(given).get(given.run)
    launcher.check_resumable(run)
    (run.path / "stop").unlink(missing_ok=True)
    return _train_here(run)


def delete_command(given: argparse.Namespace) -> dict[str, Any]:
    run = runs_of(given).get(given.run)
    run.delete()
    print(f"deleted {run.id}", file=sys.stderr)
    return {"run": run.id, "deleted": True}


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  a name the terminal cannot show is no error
    sys.exit(main())
