"""Structure at fault is called by its name, and what only looks like it is let be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from initscope.diagnosis.diagnose import diagnose
from tests.diagnosis.structure_cases import CASES

pytestmark = pytest.mark.slow  # together: each is a training


@pytest.mark.parametrize("name", CASES)
def test_cause_is_named(name: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    causes, loop = CASES[name]
    found = diagnose(loop(tmp_path))
    evidence = "\n".join(f"{finding.id}: {finding.text}" for finding in (*found.findings, *found.set_aside))
    assert str(found.cause) in causes, f"{found.cause} ({found.confidence}) for {name}\n{evidence}"
