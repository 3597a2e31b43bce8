"""Trains reports, asks for diagnoses, and says how right they were."""

from __future__ import annotations

import importlib
import math
import pkgutil
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tests.reports
from initscope import InitScopeError, Recorder, diagnose
from tests.reports.registry import HEALTHY, REPORTS, UNKNOWN, Report

RIGHT, FAIR, UNHELPFUL, MISLEADING, FALSE_ALARM, REFUSED = (
    "right",
    "fair",
    "unhelpful",
    "misleading",
    "false alarm",
    "refused",
)
VERDICTS = (RIGHT, FAIR, UNHELPFUL, MISLEADING, FALSE_ALARM, REFUSED)
"""From best to worst.

right: the true cause by name, or ``healthy`` for what trains. fair: ``unknown`` with a finding that leads to
the cause, or ``unknown`` for what trains. unhelpful: ``unknown`` without one. misleading: another cause, or
``healthy`` for what is broken. false alarm: a cause for what trains. refused: the Recorder or the diagnosis
raised an error over a loop that runs without it.
"""


@dataclass(frozen=True)
class Answer:
    """One run of a report, broken or ``fixed``, and what the diagnosis said of it.

    ``score`` is the loop's own; ``seconds`` of processor time.
    """

    report: str
    fixed: bool
    seed: int
    cause: str
    confidence: float
    findings: tuple[str, ...]
    verdict: str
    score: float
    seconds: float
    error: str = ""


def load() -> dict[str, Report]:
    """All reports by name: importing a file of cases registers them."""
    for module in pkgutil.iter_modules(tests.reports.__path__):
        if module.name.startswith("cases_"):
            importlib.import_module(f"tests.reports.{module.name}")
    return REPORTS


def answer(name: str, fixed: bool, seed: int, runs: Path | None = None) -> Answer:
    """Train report ``name`` once with ``seed`` on one thread and judge its diagnosis; keep the run in
    ``runs``.
    """
    case = load()[name]
    torch.set_num_threads(1)
    began = time.process_time()
    with tempfile.TemporaryDirectory(prefix="reports-") as folder, warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # a stranger's loop warns of what is wrong with it; the diagnosis must find it without
        torch.manual_seed(seed)
        loop = case.make(fixed)
        try:
            found = diagnose(_train(case, loop, fixed, runs or Path(folder)))
        except InitScopeError as error:
            return Answer(
                name,
                fixed,
                seed,
                REFUSED,
                0.0,
                (),
                REFUSED,
                math.nan,
                time.process_time() - began,
                f"{type(error).__name__}: {error}",
            )
    lines = tuple(f"{finding.id}: {finding.text}" for finding in found.findings)
    cause = str(found.cause)
    return Answer(
        name,
        fixed,
        seed,
        cause,
        found.confidence,
        lines,
        verdict(case, fixed, cause, lines),
        loop.score(),
        time.process_time() - began,
    )


def _train(case: Report, loop: Any, fixed: bool, runs: Path) -> Any:
    kept: list[tuple[float, float]] = []
    with Recorder(
        loop.model, loop.optimizer, name=f"{case.name}, {'fixed' if fixed else 'as reported'}", runs=runs
    ) as recorder:
        for i in range(loop.steps):
            result = loop.step(i)
            loss, correct = result if isinstance(result, tuple) else (result, None)
            number = i // loop.epoch if loop.epoch else 0
            recorder.step(loss, correct, epoch=number)
            if not loop.epoch:
                continue
            kept.append((_number(loss), math.nan if correct is None else _number(correct)))
            if (i + 1) % loop.epoch == 0:
                recorder.epoch(
                    number, *(sum(column) / len(kept) for column in zip(*kept, strict=True)), *loop.validate()
                )
                kept.clear()
    return recorder.run


def _number(value: Tensor | float) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else float(value)


def verdict(case: Report, fixed: bool, cause: str, findings: Iterable[str]) -> str:
    """How right ``cause`` is (``VERDICTS``); ``findings`` as "id: text"."""
    if fixed or case.cause == HEALTHY:
        return RIGHT if cause == HEALTHY else FAIR if cause == UNKNOWN else FALSE_ALARM
    if cause == UNKNOWN:
        text = "\n".join(findings).lower()
        leads = any(word.lower() in text for word in case.evidence)
        if not leads and case.evidence:
            return UNHELPFUL
        return RIGHT if case.cause == UNKNOWN else FAIR
    return RIGHT if cause == case.cause or cause in case.also else MISLEADING


def run_all(names: Iterable[str], seeds: int, jobs: int, runs: Path | None = None) -> Iterator[Answer]:
    """Every form of every named report with ``seeds`` seeds, ``jobs`` at a time; answers in order, as they
    come.
    """
    tasks = [
        (name, fixed, seed, runs) for name in names for fixed in load()[name].forms for seed in range(seeds)
    ]
    if jobs <= 1:
        for task in tasks:
            yield answer(*task)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(answer, *zip(*tasks, strict=True))


# ---------------------------------------------------------------- what is printed


def rows(answers: Iterable[Answer]) -> list[dict[str, Any]]:
    """One JSON-ready row an answer."""
    return [
        {**asdict(one), "true_cause": REPORTS[one.report].cause, "held_out": REPORTS[one.report].held_out}
        for one in answers
    ]


def print_table(answers: list[Answer]) -> None:
    """One line a form of a report, then totals over runs, all and held out."""
    grouped: dict[tuple[str, bool], list[Answer]] = {}
    for one in answers:
        grouped.setdefault((one.report, one.fixed), []).append(one)
    print(f"{'report':46} {'':7} {'true cause':22} {'score':>11}  answers, one a seed (confidence): verdict")
    for (name, fixed), group in grouped.items():
        case = REPORTS[name]
        said = ", ".join(f"{one.cause} {one.confidence:.2f}: {one.verdict}" for one in group)
        scores = [one.score for one in group]
        span = f"{min(scores):.2f}..{max(scores):.2f}"
        truth = HEALTHY if fixed else case.cause
        title, form = name + (" *" if case.held_out else ""), "fixed" if fixed else "as is"
        print(f"{title:46} {form:7} {truth:22} {span:>11}  {said}")
        for one in group:
            if one.error:
                print(f"{'':8}seed {one.seed}: {one.error}")
    print("\n* held out")
    for title, chosen in (
        ("all", answers),
        ("held out", [one for one in answers if REPORTS[one.report].held_out]),
    ):
        for what, part in (
            (
                "as reported",
                [one for one in chosen if not one.fixed and REPORTS[one.report].cause != HEALTHY],
            ),
            ("fixed", [one for one in chosen if one.fixed]),
            ("healthy, odd", [one for one in chosen if REPORTS[one.report].cause == HEALTHY]),
        ):
            counts = ", ".join(f"{sum(one.verdict == word for one in part)} {word}" for word in VERDICTS)
            print(f"{title:9} {what:13} {len(part):4} runs: {counts}")
    seconds = [one.seconds for one in answers] or [0.0]
    print(f"{sum(seconds):.0f} s of processor time, {max(seconds):.1f} s the longest run")
