"""Initializations: one function a scheme, its formula and paper in the docstring.

Every scheme fills the weight of one convolution or linear layer in place. ``initialize`` applies a scheme to
a whole model: weights by the scheme times ``gain``, biases zero (``default`` keeps the constructors' own).
``weight_std`` is each scheme's formula on its own, for theory and for tests that hold measurement and formula
together.

fan_in is the number of inputs a unit sums over, fan_out the number of units an input reaches: for a
convolution ``in_channels / groups * kernel area`` and, as torch counts it, ``out_channels * kernel area`` (He
et al. 2015, section 2.2).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from initscope.config import formulas
from initscope.errors import ConfigError, choose_from
from initscope.torch_internals import CONVOLUTION

LAYERS = (CONVOLUTION, nn.Linear)
"""The layers that an initialization fills: every convolution (transposed ones too) and linear layer."""


def fans(module: nn.Module) -> tuple[int, int]:
    """(fan_in, fan_out) of a convolution or linear layer, from its weight's shape."""
    weight = module.weight
    area = math.prod(weight.shape[2:])
    if getattr(module, "transposed", False):
        return weight.shape[0] // module.groups * area, weight.shape[1] * area
    return weight.shape[1] * area, weight.shape[0] * area


def default(module: nn.Module, generator: torch.Generator) -> None:
    """PyTorch's own: ``kaiming_uniform_(a=sqrt(5))``, that is U(±1/sqrt(fan_in)), std 1/sqrt(3 fan_in).

    Biases are U(±1/sqrt(fan_in)) too. Each ReLU layer passes on 1/6 of the variance (1/3 from the weights,
    1/2 from the ReLU; He et al. 2015, equation 9). The constructor has drawn the values already, so nothing
    is left to do. For transposed convolutions torch takes the fan of the other side: see ``_torch_fan_in``.
    """


def tutorial(module: nn.Module, generator: torch.Generator) -> None:
    """The story's fix and torchvision's VGG: convolutions N(0, 2/fan_out), linear layers N(0, 0.01^2)."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.01, generator=generator)
    else:
        module.weight.normal_(0.0, math.sqrt(2 / fans(module)[1]), generator=generator)


def kaiming_normal(module: nn.Module, generator: torch.Generator) -> None:
    """N(0, 2/fan_in): keeps the forward variance through ReLU layers (He et al. 2015, equation 10)."""
    module.weight.normal_(0.0, math.sqrt(2 / fans(module)[0]), generator=generator)


def kaiming_uniform(module: nn.Module, generator: torch.Generator) -> None:
    """U(±sqrt(6/fan_in)): the variance of ``kaiming_normal``, 2/fan_in (He et al. 2015, equation 10)."""
    bound = math.sqrt(6 / fans(module)[0])
    nn.init.uniform_(module.weight, -bound, bound, generator=generator)


def xavier_normal(module: nn.Module, generator: torch.Generator) -> None:
    """N(0, 2/(fan_in + fan_out)) (Glorot and Bengio 2010, equation 12)."""
    module.weight.normal_(0.0, math.sqrt(2 / sum(fans(module))), generator=generator)


def xavier_uniform(module: nn.Module, generator: torch.Generator) -> None:
    """U(±sqrt(6/(fan_in + fan_out))) (Glorot and Bengio 2010, equation 16)."""
    bound = math.sqrt(6 / sum(fans(module)))
    nn.init.uniform_(module.weight, -bound, bound, generator=generator)


def orthogonal(module: nn.Module, generator: torch.Generator) -> None:
    """Rows (or columns, whichever are fewer) of the flattened weight orthonormal, gain 1 (Saxe et al. 2014,
    section 3).

    The entries' standard deviation is 1/sqrt(max(rows, columns)); rows = output units, columns = fan_in.
    """
    nn.init.orthogonal_(module.weight, generator=generator)


def normal_001(module: nn.Module, generator: torch.Generator) -> None:
    """N(0, 0.01^2) everywhere: the VGG paper's first network (Simonyan and Zisserman 2014, section 3.1)."""
    nn.init.normal_(module.weight, 0.0, 0.01, generator=generator)


def zeros(module: nn.Module, generator: torch.Generator) -> None:
    """All weights zero: units stay identical, and only the last layer's bias has a gradient."""
    nn.init.zeros_(module.weight)


SCHEMES: dict[str, Callable[[nn.Module, torch.Generator], None]] = {
    "default": default,
    "tutorial": tutorial,
    "kaiming_normal": kaiming_normal,
    "kaiming_uniform": kaiming_uniform,
    "xavier_normal": xavier_normal,
    "xavier_uniform": xavier_uniform,
    "orthogonal": orthogonal,
    "lsuv": orthogonal,
    "auto": orthogonal,
    "normal_0.01": normal_001,
    "zeros": zeros,
}
"""What fills one layer's weight. ``lsuv`` and ``auto`` begin as ``orthogonal``; ``rescale_to_unit_variance``
and ``solve_gains`` do the rest.
"""


@torch.no_grad()
def initialize(
    model: nn.Module, scheme: str, *, gain: float = 1.0, seed: int = 0, sample: Any = None
) -> nn.Module:
    """Fill the weights of every convolution and linear layer of ``model`` in place, and return it.

    Layers are visited in module order with one generator seeded by ``seed``. ``gain`` multiplies the weights.
    ``lsuv`` needs ``sample``, a batch of inputs; ``auto`` looks at its shapes, or guesses them, and warns of
    the layers whose gain it could not solve: they stay as they were. Raises ConfigError for an unknown scheme
    (listing those there are) or a missing sample.
    """
    if scheme not in SCHEMES:
        raise ConfigError(choose_from("init", scheme, SCHEMES), "init")
    generator = torch.Generator().manual_seed(seed)
    before = {name: p.clone() for name, p in model.named_parameters()} if scheme == "auto" else {}
    for module in model.modules():
        if isinstance(module, LAYERS):
            SCHEMES[scheme](module, generator)
            if scheme != "default" and module.bias is not None:
                module.bias.zero_()
    if scheme == "lsuv":
        if sample is None:
            raise ConfigError(
                "init lsuv measures a batch of inputs, and none was given; pass sample=", "init"
            )
        rescale_to_unit_variance(model, sample)
    elif scheme == "auto":
        solve_gains(model, generator, before, sample)
    if gain != 1.0:
        for module in model.modules():
            if isinstance(module, LAYERS):
                module.weight.mul_(gain)
    return model


def solve_gains(
    model: nn.Module, generator: torch.Generator, before: dict[str, torch.Tensor], sample: Any
) -> None:
    """The second half of ``auto`` (``networks.auto``): gains from the moments of the network's graph, of the
    joint projection of ``nn.MultiheadAttention`` too.

    A layer whose gain is not known has its parameters of ``before`` back, and a warning names it.
    """
    from initscope.networks import auto

    weights = {}
    for owner, module in model.named_modules():
        prefix = f"{owner}." if owner else ""
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            weights[f"{prefix}in_proj_weight"] = module.in_proj_weight
            nn.init.orthogonal_(module.in_proj_weight, generator=generator)
        elif isinstance(module, LAYERS):
            weights[f"{prefix}weight"] = module.weight
    embeddings = {m.weight.data_ptr() for m in model.modules() if isinstance(m, nn.Embedding)}
    tied = {name for name, weight in weights.items() if weight.data_ptr() in embeddings}
    failed = auto.solve(model, {n: w for n, w in weights.items() if n not in tied}, sample)
    failed |= dict.fromkeys(tied, "it is an embedding's too")
    for name in failed:
        owner = name.rpartition(".")[0]
        for kind, parameter in model.get_submodule(owner).named_parameters(recurse=False):
            parameter.copy_(before.get(f"{owner}.{kind}" if owner else kind, parameter))
    if failed:
        reasons: dict[str, list[str]] = {}
        for name, why in failed.items():
            reasons.setdefault(why, []).append(name.removesuffix(".weight"))
        told = "; ".join(f"{', '.join(names)}: {why}" for why, names in reasons.items())
        warnings.warn(f"auto left these layers as PyTorch initializes them. {told}", stacklevel=3)


LSUV_TOLERANCE = 0.1
LSUV_TRIES = 10


class _Reached(Exception):
    """Ends a forward pass at the layer that was to be measured."""


@torch.no_grad()
def rescale_to_unit_variance(model: nn.Module, sample: torch.Tensor) -> None:
    """Layer-sequential unit variance (Mishkin and Matas 2015, algorithm 1): from the input to the output,
    divide each weight by the standard deviation of its layer's output on ``sample`` until the variance is
    within 0.1 of one.

    A layer whose output is constant, or not finite, is left as it is.
    """
    training = model.training
    model.eval()
    try:
        for module in [m for m in model.modules() if isinstance(m, LAYERS)]:
            for _ in range(LSUV_TRIES):
                variance = _output_variance(model, module, sample)
                if not math.isfinite(variance) or variance == 0 or abs(variance - 1) < LSUV_TOLERANCE:
                    break
                module.weight.div_(math.sqrt(variance))
    finally:
        model.train(training)


def _output_variance(model: nn.Module, module: nn.Module, sample: torch.Tensor) -> float:
    """Variance of ``module``'s output when ``model`` sees ``sample``; NaN if the module is not reached."""
    seen = math.nan

    def stop(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        nonlocal seen
        seen = output.float().var(correction=0).item()
        raise _Reached

    handle = module.register_forward_hook(stop)
    try:
        model(sample)
    except _Reached:
        pass  # measured: the layers above it need not run
    finally:
        handle.remove()
    return seen


def weight_std(scheme: str, module: nn.Module, gain: float = 1.0) -> float:
    """Standard deviation that ``scheme``'s formula gives the weights of ``module``; NaN where the data decide
    (``lsuv``) or the network (``auto``).
    """
    if scheme in ("lsuv", "auto"):
        return math.nan
    longest = max(module.weight.shape[0], module.weight[0].numel())
    return formulas.weight_std(
        scheme,
        *fans(module),
        linear=isinstance(module, nn.Linear),
        longest=longest,
        torch_fan_in=_torch_fan_in(module),
        gain=gain,
    )


def bias_std(scheme: str, module: nn.Module) -> float:
    """Standard deviation of the initial biases of ``module``: 1/sqrt(3 fan_in) for ``default``, else 0."""
    return 0.0 if module.bias is None else formulas.bias_std(scheme, _torch_fan_in(module))


def _torch_fan_in(module: nn.Module) -> int:
    """What torch's constructors count as fan_in: the weight's size without its first dimension, also where
    that is the input.
    """
    return module.weight[0].numel()
