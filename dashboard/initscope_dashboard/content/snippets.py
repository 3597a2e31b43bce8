"""Plain PyTorch that does what a remedy or a comparison says, for the kinds of layers that a run has: to copy
into one's own loop.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from initscope.schema import Cause

_CONV = {
    "conv1d": "nn.Conv1d",
    "conv2d": "nn.Conv2d",
    "conv3d": "nn.Conv3d",
    "convtranspose1d": "nn.ConvTranspose1d",
    "convtranspose2d": "nn.ConvTranspose2d",
    "convtranspose3d": "nn.ConvTranspose3d",
}
_LINEAR = {"linear": "nn.Linear", "nondynamicallyquantizablelinear": "nn.Linear", "bilinear": "nn.Bilinear"}
_ATTENTION = ("multiheadattention",)
_EMBEDDING = {"embedding": "nn.Embedding", "embeddingbag": "nn.EmbeddingBag"}
_RECURRENT = {
    "lstm": "nn.LSTM",
    "gru": "nn.GRU",
    "rnn": "nn.RNN",
    "lstmcell": "nn.LSTMCell",
    "grucell": "nn.GRUCell",
    "rnncell": "nn.RNNCell",
}

_FILL = {
    "kaiming_normal": 'nn.init.kaiming_normal_({w}, nonlinearity="relu")',
    "kaiming_uniform": 'nn.init.kaiming_uniform_({w}, nonlinearity="relu")',
    "linear": 'nn.init.kaiming_normal_({w}, nonlinearity="linear")',
    "xavier_normal": "nn.init.xavier_normal_({w})",
    "xavier_uniform": "nn.init.xavier_uniform_({w})",
    "orthogonal": "nn.init.orthogonal_({w})",
    "normal_0.01": "nn.init.normal_({w}, std=0.01)",
}
_INIT_CAUSES = (
    Cause.INIT_TOO_SMALL,
    Cause.INIT_TOO_LARGE,
    Cause.SYMMETRIC_INIT,
    Cause.SATURATED_ACTIVATION,
    Cause.DEAD_RELU,
)


def remedy(cause: str, advised: Mapping[str, Any], kinds: Collection[str], optimizer: str = "") -> str:
    """Code for the remedy of ``cause``; ``advised``: its configuration fields, ``kinds``: classes of the
    run's layers in lower case. Empty where no few lines would do it.
    """
    if cause in _INIT_CAUSES:
        return initialization(
            str(advised.get("init") or "kaiming_normal"), kinds, gain=float(advised.get("gain") or 1.0)
        )
    if cause in (Cause.LR_TOO_HIGH, Cause.LR_TOO_LOW) and advised.get("learning_rate"):
        return f'for group in optimizer.param_groups:\n    group["lr"] = {advised["learning_rate"]:g}\n'
    if cause == Cause.NOT_UPDATING:
        name = (
            optimizer.partition(",")[0]
            if optimizer.replace(",", "").replace(" ", "").isidentifier()
            else "Adam"
        )
        return (
            f"model.requires_grad_(True)\noptimizer = torch.optim.{name}(model.parameters(), lr=1e-3)  # "
            "this model's, made after it was built\n"
        )
    if cause == Cause.INPUT_SCALE:
        return (
            "# once, over the training set (samples first)\nmean = inputs.mean(0, keepdim=True)\nstd = "
            "inputs.std(0, keepdim=True).clamp_min(1e-6)\n\n"
            "# for every batch, of validation too\ninputs = (inputs - mean) / std\n"
        )
    return ""


def initialization(scheme: str, kinds: Collection[str], gain: float = 1.0) -> str:
    """A function that fills a model's weights by ``scheme`` (a name of ``initscope.initialize``, or "linear":
    N(0, 1 / fan_in)), times ``gain``, and the line that calls it. Empty for a scheme that takes more than a
    line a layer, or if no layer's kind is known.
    """
    attention = any(kind in _ATTENTION or kind.startswith("nondynamically") for kind in kinds)
    if scheme == "kaiming_normal" and attention:
        scheme = "linear"  # projections of attention have no ReLU behind them
    fill = _FILL.get(scheme)
    if fill is None:
        return ""
    return _function(fill, kinds, f"mul_({gain:g})" if gain != 1 else "")


def of_size(std_fan_in: float, kinds: Collection[str]) -> str:
    """The same for weights from N(0, g^2 / fan_in) with g = ``std_fan_in``."""
    return _function(f"nn.init.normal_({{w}}, std={std_fan_in:.2g} * {{w}}[0].numel() ** -0.5)", kinds, "")


def _function(fill: str, kinds: Collection[str], scaled: str) -> str:
    plain = [name for table in (_CONV, _LINEAR) for kind, name in table.items() if kind in kinds]
    attention = any(kind in _ATTENTION or kind.startswith("nondynamically") for kind in kinds)
    if attention and "nn.Linear" not in plain:
        plain.append("nn.Linear")
    plain = list(dict.fromkeys(plain))
    embeddings = [name for kind, name in _EMBEDDING.items() if kind in kinds]
    recurrent = [name for kind, name in _RECURRENT.items() if kind in kinds]
    branches = []
    after = [f"module.weight.{scaled}"] if scaled else []
    if plain:
        branches.append(
            (
                _classes(plain),
                [
                    fill.format(w="module.weight"),
                    *after,
                    "if module.bias is not None:",
                    "    nn.init.zeros_(module.bias)",
                ],
            )
        )
    if attention:
        in_proj = [
            "if module.in_proj_weight is not None:",
            "    for weight in module.in_proj_weight.chunk(3):  # query, key, value",
            f"        {fill.format(w='weight')}",
            *([f"        weight.{scaled}"] if scaled else []),
        ]
        branches.append(
            (
                "nn.MultiheadAttention",
                [*in_proj, "if module.in_proj_bias is not None:", "    nn.init.zeros_(module.in_proj_bias)"],
            )
        )
    if recurrent:
        rows = [
            "for name, weight in module.named_parameters():",
            "    if weight.dim() > 1:",
            "        nn.init.orthogonal_(weight)",
            "    else:",
            "        nn.init.zeros_(weight)",
        ]
        branches.append((_classes(recurrent), rows))
    if embeddings:
        branches.append((_classes(embeddings), ["nn.init.normal_(module.weight, std=0.02)"]))
    if not branches:
        return ""
    lines = [
        "import torch",
        "from torch import nn",
        "",
        "",
        "@torch.no_grad()",
        "def initialize(model):",
        "    for module in model.modules():",
    ]
    for i, (classes, body) in enumerate(branches):
        lines.append(f"        {'el' if i else ''}if isinstance(module, {classes}):")
        lines += [f"            {line}" for line in body]
    lines += ["", "", "initialize(model)  # before the optimizer is made and the first step is taken"]
    return "\n".join(lines) + "\n"


def _classes(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"({', '.join(names)})"
