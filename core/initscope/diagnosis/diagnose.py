"""Why did this run not train? Outcome, cause, findings with evidence, remedy: plain frames in, one answer
out. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from initscope.diagnosis.causes import choose
from initscope.diagnosis.curve import outcome_of, read_curve
from initscope.diagnosis.finding import Finding
from initscope.diagnosis.findings import find
from initscope.diagnosis.layer_rows import Frame
from initscope.diagnosis.remedies import Remedy, remedy
from initscope.diagnosis.run_signals import read_signals
from initscope.diagnosis.thresholds import DEFAULT, Thresholds
from initscope.errors import RunFolderError
from initscope.schema import Cause, Outcome
from initscope.store import Run


@dataclass(frozen=True)
class Diagnosis:
    """The answer. ``findings`` bear on the cause; ``set_aside`` are those that a run which trains all the
    same need not worry about.
    """

    run: str
    outcome: Outcome
    cause: Cause
    confidence: float
    findings: tuple[Finding, ...]
    remedy: Remedy
    set_aside: tuple[Finding, ...]
    thresholds: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with the contract's keys."""
        return {
            "run": self.run,
            "outcome": str(self.outcome),
            "cause": str(self.cause),
            "confidence": self.confidence,
            "findings": [finding.to_dict() for finding in self.findings],
            "remedy": asdict(self.remedy),
            "set_aside": [finding.to_dict() for finding in self.set_aside],
            "thresholds": self.thresholds,
        }


def diagnose(run: Run, thresholds: Thresholds = DEFAULT) -> Diagnosis:
    """Diagnose a run from its folder, live or ended."""
    info = run.info()
    if info.status == "unreadable":
        raise RunFolderError(info.error or f"run {run.id} cannot be read")
    return diagnose_frames(
        run.read("steps"),
        run.read("epochs"),
        run.read("layers"),
        info.state,
        info.config,
        thresholds,
        run=run.id,
    )


def diagnose_frames(
    steps: Frame,
    epochs: Frame,
    layers: Frame,
    state: Mapping[str, Any],
    config: Mapping[str, Any],
    thresholds: Thresholds = DEFAULT,
    *,
    run: str = "",
) -> Diagnosis:
    """The same from frames (pyarrow tables or pandas data frames), ``status.json`` and the config mapping."""
    signals = read_signals(steps, epochs, layers, state, config)
    curve = read_curve(signals, thresholds)
    found = find(signals, curve, thresholds)
    cause, confidence = choose(signals, curve, found, thresholds)
    fine = cause is Cause.HEALTHY
    return Diagnosis(
        run=run,
        outcome=outcome_of(signals, curve),
        cause=cause,
        confidence=confidence,
        findings=() if fine else tuple(found),
        remedy=remedy(cause, signals, {finding.id: finding for finding in found}),
        set_aside=tuple(found) if fine else (),
        thresholds=thresholds.title,
    )
