"""What needs torch, and so a process of its own: torchinfo's table, and probes. Nothing is started for those
who only look.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import streamlit as st

from initscope.config.run_config import RunConfig
from initscope.installation import module_command
from initscope_dashboard.server import access

SUMMARY_SECONDS = 120
NO_PROCESSES = "not measured: nothing is started for those who only look"
PROBE_SECONDS = 300


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
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(config_json)
        file.flush()
        command = module_command("initscope", "probe", "--config", file.name, "--seeds", seeds, "--json")
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return False, f"the probe took longer than {PROBE_SECONDS} seconds"
    if done.returncode:
        return False, (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[
            -1
        ].removeprefix("error: ")
    return True, json.loads(done.stdout.splitlines()[-1])


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
