"""``check``: what can be known of a network before it is trained."""

from __future__ import annotations

import argparse
import gc
from typing import Any

from initscope.commands.given import config_from
from initscope.resources import limits
from initscope.training.loading import without_collection


def check_command(given: argparse.Namespace) -> dict[str, Any]:
    config = config_from(given)
    limits.check_network(config, limits.limits())
    with without_collection():
        from initscope import networks
        from initscope.checking.check import check
        from initscope.networks.outputs import training_loss
        from initscope.theory.probe import first_batch
        from initscope.training.optimizers import build_optimizer
    gc.freeze()

    images, labels, classes = first_batch(config)
    channels = images.shape[1 if images.dim() == 4 else -1]
    model = networks.build(config, in_channels=channels, num_classes=classes, sample=images)
    found = check(model, (images, labels), training_loss, build_optimizer(config, model))
    if not given.json:
        print(found.headline)
        for title, findings in (("", found.findings), ("note: ", found.notes)):
            for finding in findings:
                print(f"  {title}{finding.id}: {finding.text}")
                if not title:
                    print(
                        "".join(f"    | {line}\n" for line in found.snippets[finding.id].splitlines()), end=""
                    )
    return found.to_dict()
