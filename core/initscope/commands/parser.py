"""The command line: ``initscope COMMAND``. Results on standard output, progress and messages on standard
error.

Exit status 0: it did what was asked (a network that does not converge is a result); 1: a run failed; 2: bad
input.
"""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from initscope.commands.given import DEFAULT_PRESET
from initscope.config.run_config import OPTIONS, PRESETS
from initscope.errors import ConfigError, choose_from, one_line
from initscope.scheduling.engine import ENGINES


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are one line, each from the command that was given."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")

    def parse_known_args(  # type: ignore[override]  # its overloads say no more
        self, args: Any = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """All of them are known: argparse would leave the others to the parser above, which knows no flag of
        this one.
        """
        given, unknown = super().parse_known_args(args, namespace)
        if unknown:
            flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
            self.error(choose_from("argument", unknown[0].partition("=")[0], flags))
        return given, []


def build_parser() -> Parser:
    """Every command with its arguments; config flags come from the config's own declaration.

    ``command`` is the name of the function that carries it out: its module is loaded for the one command that
    is given.
    """
    common = _common()
    configured = _configured(common)
    parser = Parser(prog="initscope", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)

    def add(name: str, module: str, help: str, parent: Parser = common) -> argparse.ArgumentParser:
        added = commands.add_parser(name, parents=[parent], help=help, description=help, allow_abbrev=False)
        added.set_defaults(command=f"initscope.commands.{module}:{name}_command")
        return added

    train = add("train", "training", "train one run here, or --detach it into the queue", configured)
    train.add_argument("--detach", action="store_true", help="queue the run and return at once")
    _queue_options(train)
    probe = add(
        "probe",
        "probe",
        "one batch, no training: each layer measured and predicted, and a forecast",
        configured,
    )
    probe.add_argument(
        "--seeds",
        type=int,
        default=1,
        metavar="N",
        help="measure so many init seeds and give the band (default 1)",
    )
    add(
        "check",
        "check",
        "before training: does a copy learn one batch, and is anything wrong with how the network is put "
        "together?",
        configured,
    )
    sweep = add(
        "sweep", "sweep", "initializations x seeds, as many at once as the machine carries", configured
    )
    sweep.add_argument("--inits", required=True, metavar="A,B", help="initializations, with commas between")
    sweep.add_argument("--seeds", type=int, default=5, metavar="N", help="seeds for each (default 5)")
    sweep.add_argument(
        "--vary",
        action="append",
        default=[],
        metavar="FIELD=1,2",
        help="also vary a number or a switch (at most twice)",
    )
    sweep.add_argument(
        "--models", metavar="A,B", help="the same for each of these networks, with commas between"
    )
    _queue_options(sweep)
    add("runs", "runs", "list all runs").add_argument(
        "--archived", action="store_true", help="list the archived runs instead of the others"
    )
    compare = add("compare", "answers", "did B fix what A suffers from?")
    compare.add_argument("a", metavar="A", help="a run id, or a group such as init=default,sweep=ID")
    compare.add_argument("b", metavar="B")
    report = add("report", "answers", "a run, or the comparison of two, as one HTML file that opens offline")
    report.add_argument("a", metavar="A")
    report.add_argument("b", metavar="B", nargs="?")
    report.add_argument("--output", required=True, metavar="FILE.html")
    export = add("export", "runs", "a run for other tools: CSV, JSON or TensorBoard")
    export.add_argument("run", metavar="RUN", help="a run id")
    export.add_argument(
        "--format", required=True, choices=("csv", "json", "tensorboard"), help="csv: a folder of three files"
    )
    export.add_argument(
        "--output", required=True, metavar="PATH", help="a file or folder that does not exist yet"
    )
    add("diagnose", "answers", "why did this run not train?").add_argument(
        "run", metavar="RUN", help="a run id"
    )
    query = add("query", "query", "ask in SQL over all runs: the views runs, steps, epochs and layers")
    query.add_argument("sql", metavar="SELECT", help="one SELECT, or a recipe: rates, worst, slowest")
    for name, module, help in (
        ("stop", "training", "stop a run after its current step; it can be resumed"),
        ("resume", "training", "go on with a stopped, failed or crashed run, from its checkpoint"),
        ("archive", "runs", "hide an ended run from lists and groups; nothing is deleted"),
        ("restore", "runs", "show an archived run again"),
        ("delete", "runs", "delete the folder of a run that has ended"),
    ):
        add(name, module, help).add_argument("run", metavar="RUN", help="a run id")
    ui = add("ui", "ui", "the dashboard, for this machine, on the runs of the folder you stand in")
    ui.add_argument(
        "--port",
        type=int,
        default=None,
        metavar="N",
        help="port to listen on (default: the first free one from 8501)",
    )
    return parser


def _common() -> Parser:
    """What every command takes."""
    parser = Parser(add_help=False)
    parser.add_argument(
        "--runs",
        metavar="DIR",
        default=None,
        help="folder of all runs, or its address such as s3://bucket/runs (INITSCOPE_RUNS; default runs/)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return parser


def _configured(common: Parser) -> Parser:
    """What a command takes that trains or probes: every config field is a flag."""
    parser = Parser(add_help=False, parents=[common], allow_abbrev=False)
    parser.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        default=None,
        help=f"where to start from (default {DEFAULT_PRESET})",
    )
    parser.add_argument("--config", metavar="FILE", help="a JSON file of config fields, over the preset")
    for spec in OPTIONS.values():
        parser.add_argument(
            spec.flag,
            dest=f"field_{spec.name}",
            metavar=spec.kind.__name__.upper() if not spec.choices else "NAME",
            nargs="?" if spec.kind is bool else None,
            const="true" if spec.kind is bool else None,
            help=f"{spec.help} ({spec.expected}; default {one_line(spec.default)})".replace("%", "%%"),
        )
    return parser


def _queue_options(parser: argparse.ArgumentParser) -> None:
    """Where queued runs train, and in which order."""
    parser.add_argument(
        "--engine",
        default="",
        metavar="|".join(ENGINES),
        help="what works the queue off (default: INITSCOPE_ENGINE, or as it is now: local at first)",
    )
    parser.add_argument("--first", action="store_true", help="before the runs that wait already")
