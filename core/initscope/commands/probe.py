"""``probe``: one batch, no training."""

from __future__ import annotations

import argparse
import gc
from typing import Any

from initscope.commands.given import config_from
from initscope.errors import ConfigError
from initscope.resources import limits
from initscope.training.loading import without_collection


def probe_command(given: argparse.Namespace) -> dict[str, Any]:
    config = config_from(given)
    if not 1 <= given.seeds <= 1000:
        raise ConfigError(f"seeds must be a whole number from 1 to 1000, not {given.seeds}")
    limits.check_network(
        config.replace(optimizer="sgd", momentum=0), limits.limits()
    )  # no optimizer, no averages
    with without_collection():
        from initscope.theory.probe import report
    gc.freeze()

    result = report(config, given.seeds)
    if not given.json:
        print(f"{'layer':12} {'signal':>10} {'predicted':>10} {'error':>10} {'predicted':>10}")
        for row in result["layers"]:
            pairs = [
                row[side][metric]
                for metric in ("signal_std", "activation_grad_rms")
                for side in ("measured", "predicted")
            ]
            print(
                f"{row['layer']:12} "
                + " ".join(f"{'-' if value is None else format(value, '.2e'):>10}" for value in pairs)
            )
        if reason := result.get("theory"):
            print(f"theory: {reason}")
        print(f"{result['forecast']['outcome'].replace('_', ' ')}: {result['forecast']['reason']}")
    return result
