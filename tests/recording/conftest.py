from __future__ import annotations

from collections.abc import Iterator

import pytest

from initscope.recording import open_recorders


@pytest.fixture(autouse=True)
def no_recorder_left_open() -> Iterator[None]:
    """What a test leaves open on purpose ends with it, and watches nothing of the next."""
    yield
    for recorder in list(open_recorders._open):
        recorder.leave("the test ended")
