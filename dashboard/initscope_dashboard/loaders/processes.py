"""What needs torch, and so a process of its own: torchinfo's table, and probes. Nothing is started for those
who only look.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import streamlit as st

from initscope.config.pinning import pin
from initscope.config.run_config import RunConfig
from initscope.errors import InitScopeError
from initscope.installation import module_command
from initscope_dashboard.server import access

SUMMARY_SECONDS = 120
NO_PROCESSES = "not measured: nothing is started for those who only look"
PROBE_SECONDS = 300
CHECK_SECONDS = 180
_checking = threading.BoundedSemaphore(2)
"""Each check keeps a core busy, and whoever may launch may ask."""


@st.cache_data(max_entries=32, show_spinner="Building the network to measure it …")
def torchinfo_table(config_json: str) -> tuple[bool, str]:
    """(whether it worked, torchinfo's table or why there is none). torch lives in another process: this one
    never loads it.
    """
    command = module_command("initscope.networks.summary", config_json)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SUMMARY_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return False, f"torchinfo took longer than {SUMMARY_SECONDS} seconds"
    if done.returncode:
        last = done.stderr.strip().splitlines()
        return False, last[-1] if last else f"exit status {done.returncode}"
    return True, done.stdout


def torchinfo(config: RunConfig) -> tuple[bool, str]:
    """``torchinfo_table`` of a configuration; what does not change the network does not change the cache's
    key.
    """
    if not access.may_change():
        return False, NO_PROCESSES
    shape = ("model", "width", "image_size", "in_channels", "num_classes", "batch_norm", "dropout", "data")
    values = config.to_dict()
    return torchinfo_table(json.dumps({key: values[key] for key in shape}, sort_keys=True))


@st.cache_data(max_entries=256, show_spinner=False)
def _probe(config_json: str, seeds: int) -> tuple[bool, Any]:
    """(whether it worked, the probe's JSON or why there is none), measured in a process of its own: it needs
    torch.
    """
    return _answer("probe", config_json, PROBE_SECONDS, "--seeds", seeds)


def _answer(command: str, config_json: str, seconds: float, *more: Any) -> tuple[bool, Any]:
    """(whether it worked, the JSON that a command of the command line prints of a config, or its one line of
    refusal).
    """
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(config_json)
        file.flush()
        line = module_command("initscope", command, "--config", file.name, *more, "--json")
        try:
            done = subprocess.run(line, capture_output=True, text=True, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            return False, f"the {command} took longer than {seconds:g} seconds"
    if done.returncode:
        told = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return False, told.removeprefix("error: ")
    return True, json.loads(done.stdout.splitlines()[-1])


def check_key(config: RunConfig) -> str:
    """What is checked, as JSON; what a run is called does not change it."""
    return json.dumps(config.replace(name="", tags=(), sweep="").to_dict(), sort_keys=True)


def check(config: RunConfig) -> tuple[bool, Any]:
    """(whether it worked, ``initscope check``'s JSON or in one line why there is none)."""
    if not access.may_change():
        return False, NO_PROCESSES
    try:
        key = check_key(pin(config))  # a file of somebody's own that was changed is checked anew
    except InitScopeError as error:
        return False, str(error)
    if not _checking.acquire(timeout=CHECK_SECONDS):
        return False, "two other checks are under way; ask again in a moment"
    try:
        worked, found = _check(key)
    finally:
        _checking.release()
    if not worked:
        _check.clear(key)  # what stood in its way may be gone the next time
    return worked, found


@st.cache_data(max_entries=64, show_spinner="A copy learns one batch …")
def _check(config_json: str) -> tuple[bool, Any]:
    return _answer("check", config_json, CHECK_SECONDS)


def probes(config: RunConfig, inits: Sequence[str], seeds: int) -> tuple[dict[str, dict], dict[str, str]]:
    """({initialization: probe}, {initialization: why it has none}); those not seen before are measured side
    by side.
    """
    if not access.may_change():
        return {}, dict.fromkeys(inits, NO_PROCESSES)
    configs = [
        json.dumps(config.replace(init=init, name="", tags=()).to_dict(), sort_keys=True) for init in inits
    ]
    with st.spinner("Sending one batch through the network …"), ThreadPoolExecutor(max_workers=2) as pool:
        results = list(pool.map(lambda text: _probe(text, seeds), configs))
    good = {init: value for init, (worked, value) in zip(inits, results, strict=True) if worked}
    return good, {init: value for init, (worked, value) in zip(inits, results, strict=True) if not worked}
