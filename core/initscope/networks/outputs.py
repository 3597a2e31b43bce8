"""What a network's output means where it is more than logits: GoogLeNet's auxiliary classifiers in
training.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

AUXILIARY_WEIGHT = 0.3
"""Weight of each auxiliary classifier's loss in the total (Szegedy et al. 2015, section 5)."""


def logits(outputs: Any) -> Tensor:
    """The classifier's logits ``(N, classes)``: the output itself, or its field ``logits``."""
    return outputs if isinstance(outputs, Tensor) else outputs.logits


def answers(outputs: Any) -> list[Tensor]:
    """The classifier's logits, then those of the auxiliary classifiers."""
    if isinstance(outputs, Tensor):
        return [outputs]
    others = [value for name, value in outputs._asdict().items() if name != "logits"]
    return [logits(outputs), *(value for value in others if value is not None)]


def auxiliary_loss(outputs: Any, labels: Tensor) -> Tensor | float:
    """0.3 times the cross-entropy (nats) of each auxiliary classifier; 0 for a network that has none."""
    return AUXILIARY_WEIGHT * sum(F.cross_entropy(other.float(), labels) for other in answers(outputs)[1:])


def training_loss(outputs: Any, labels: Tensor) -> Tensor:
    """What training minimises: the mean cross-entropy of the logits, and the auxiliary classifiers' share."""
    return F.cross_entropy(logits(outputs).float(), labels) + auxiliary_loss(outputs, labels)
