"""Which parameters of a model make a row: its weights, layer by layer, chosen by name pattern and by kind.

A layer is a module that holds parameters of its own. One row stands for one weight: a layer with a single
weight goes by its own name (``features.3``), one with several adds the parameter's (``lstm.weight_ih_l0``),
and so does a module that has layers inside besides (``cls_token``). Biases make no row unless a module holds
nothing else. A weight that is computed from others (``spectral_norm``, ``weight_norm``, pruning) stands for
the parameters that are trained: it is never read itself, because reading may change it.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from initscope.errors import ConfigError, choose_from
from initscope.torch_internals import CONVOLUTION

KINDS: dict[str, tuple[type[nn.Module], ...]] = {
    "conv": (CONVOLUTION,),
    "linear": (nn.Linear, nn.Bilinear),
    "embedding": (nn.Embedding, nn.EmbeddingBag),
    "recurrent": (nn.RNNBase, nn.RNNCellBase),
    "attention": (nn.MultiheadAttention,),
    "norm": (),
    "activation": (),
    "other": (),
}
"""Families of layers. ``norm``: every normalization; ``activation``: nonlinearities with weights (PReLU);
``other``: a module of one's own that holds parameters directly.
"""
DEFAULT_KINDS = ("conv", "linear", "embedding", "recurrent", "attention", "other")
"""All but ``norm`` and ``activation``, whose few weights scale what the layers before them computed."""
_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module")
"""Path segments by which torch wraps a module that keeps its meaning."""
_FLAT = "FullyShardedDataParallel"
_LISTED = 12
"""Names that an error message lists."""


@dataclass(frozen=True, eq=False)
class Layer:
    """One row: a parameter, the module whose calls are watched for it, and whether that module's output is
    this row's.

    ``kind`` is the class in lower case (``conv2d``), ``family`` one of ``KINDS``.
    """

    name: str
    kind: str
    family: str
    module: nn.Module
    owner: nn.Module
    key: str
    has_output: bool

    @property
    def weight(self) -> nn.Parameter | None:
        """The parameter; None while a lazy module has not made it."""
        parameter = self.owner._parameters.get(self.key)
        return None if parameter is None or is_lazy(parameter) else parameter

    @property
    def plain(self) -> bool:
        """Whether the parameter is the weight that the layer multiplies by, not what that is computed
        from.
        """
        return self.key == "weight"


def find_layers(
    model: nn.Module, patterns: str | Sequence[str] | None = None, kinds: str | Sequence[str] | None = None
) -> list[Layer]:
    """The rows of ``model`` in the order of its modules.

    ``patterns``: shell patterns (``"blocks.*.attn*"``), matched with the names; a name of a module chooses
    what is inside, too. ``kinds``: families (``KINDS``) or classes in lower case (``"conv2d"``). Without
    ``kinds``: ``DEFAULT_KINDS``, or everything that ``patterns`` name. Raises ConfigError if nothing is left,
    and says what there is. Of what cannot be measured (``unmeasured``) there are none.
    """
    everything = [] if is_flat(model) else _all_layers(model)
    if not everything and unmeasured(model) is not None:
        return []
    if not everything:
        classes = sorted({type(module).__name__ for module in model.modules()})
        raise ConfigError(f"nothing to record: the model has no layer with weights, only {_few(classes)}")
    patterns = [patterns] if isinstance(patterns, str) else patterns
    wanted = (
        _check_kinds(kinds, everything)
        if kinds is not None
        else DEFAULT_KINDS
        if patterns is None
        else tuple(KINDS)
    )
    chosen = [layer for layer in everything if layer.family in wanted or layer.kind in wanted]
    if not chosen:
        there = sorted({layer.family for layer in everything})
        raise ConfigError(
            f"nothing to record: the model has no layer of kind {', '.join(wanted)}; it has "
            f"{', '.join(there)}: choose them with kinds="
        )
    if patterns is None:
        return chosen
    for pattern in patterns:
        if not any(_matches(layer.name, pattern) for layer in chosen):
            raise ConfigError(
                f"no layer's name matches {pattern!r}; there are {_few([layer.name for layer in chosen])}"
            )
    return [layer for layer in chosen if any(_matches(layer.name, pattern) for pattern in patterns)]


def unmeasured(model: nn.Module) -> str | None:
    """Which layers of ``model`` nobody can measure, why, and what to do, in one sentence; None if there are
    none.
    """
    if is_flat(model):
        return (
            "no layers are measured, only loss, learning rate and outcome: FullyShardedDataParallel makes "
            "one flat parameter of several weights, in which no layer's can be told; shard the model with "
            "torch.distributed.fsdp.fully_shard, or record it under DistributedDataParallel"
        )
    for path, module in model.named_modules():
        if is_scripted(module):
            return (
                f"the layers of {clean(path) or 'the model'} are not measured: it was made by "
                "torch.jit.script or trace, whose layers cannot be watched; record the model it was made from"
            )
    return None


def is_scripted(module: nn.Module) -> bool:
    """Whether ``module`` was made by ``torch.jit.script`` or ``trace``: it takes no hooks."""
    return isinstance(module, torch.jit.ScriptModule)


def is_flat(model: nn.Module) -> bool:
    """Whether several weights of ``model`` are pieces of one parameter (``FullyShardedDataParallel``)."""
    return any(base.__name__ == _FLAT for module in model.modules() for base in type(module).__mro__)


def is_normalization(module: nn.Module) -> bool:
    """Whether ``module`` is a batch, layer, group, instance or RMS norm, torch's or anybody's, by its class
    name.
    """
    name = type(module).__name__
    return not name.startswith("_") and name.rstrip("123dD").endswith("Norm")


def is_activation(module: nn.Module) -> bool:
    """Whether ``module`` is one of torch's element-wise nonlinearities."""
    return type(module).__module__ == "torch.nn.modules.activation" and not isinstance(
        module, nn.MultiheadAttention
    )


def clean(name: str) -> str:
    """A module's path without the segments of wrappers such as ``torch.compile``'s."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _all_layers(model: nn.Module) -> list[Layer]:
    layers: list[Layer] = []
    projections = {id(m.out_proj): m for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    for path, module in model.named_modules():
        name = clean(path)
        if isinstance(module, nn.utils.parametrize.ParametrizationList) or is_scripted(module):
            continue  # its parameters belong to the layer, or to code that takes no hooks
        weights = list(_weights(module))
        if not weights:
            continue
        # Attention multiplies by its last matrix itself and never calls the module that holds it.
        caller = projections.get(id(module), module)
        container = any(p is not None for child in _children(module) for p in child.parameters())
        alone = len(weights) == 1 and not container
        for owner, key in weights:
            full = name if alone else f"{name}.{key}" if name else key
            last = (owner, key) == weights[-1] and not container
            layers.append(Layer(full or "model", _kind(module), _family(module), caller, owner, key, last))
    return layers


def _children(module: nn.Module) -> Iterable[nn.Module]:
    return (child for name, child in module.named_children() if name != "parametrizations")


def _weights(module: nn.Module) -> Iterable[tuple[nn.Module, str]]:
    """(owner, key) of the module's own weights; its biases where it holds nothing else. Whole numbers
    (quantized, frozen) are no weights.
    """
    own = [(module, key) for key, parameter in module._parameters.items() if _is_trainable_kind(parameter)]
    parametrized = module._modules.get("parametrizations")
    for target, origins in parametrized.items() if isinstance(parametrized, nn.ModuleDict) else ():
        if not _is_bias(target):
            own += [
                (origins, key)
                for key, parameter in origins._parameters.items()
                if _is_trainable_kind(parameter)
            ]
    return [(owner, key) for owner, key in own if not _is_bias(key)] or own


def _is_trainable_kind(parameter: nn.Parameter | None) -> bool:
    return parameter is not None and (parameter.is_floating_point() or parameter.is_complex())


def _is_bias(key: str) -> bool:
    return re.search(r"(^|_)bias(_|$)", key) is not None


def _kind(module: nn.Module) -> str:
    made = getattr(module, "cls_to_become", None) or type(module)  # what a lazy module turns into
    return "linear" if made is nn.modules.linear.NonDynamicallyQuantizableLinear else made.__name__.lower()


def _family(module: nn.Module) -> str:
    for family, classes in KINDS.items():
        if isinstance(module, classes):
            return family
    return "norm" if is_normalization(module) else "activation" if is_activation(module) else "other"


def _check_kinds(kinds: str | Sequence[str], layers: Sequence[Layer]) -> tuple[str, ...]:
    kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    available = [*KINDS, *sorted({layer.kind for layer in layers} - set(KINDS))]
    for kind in kinds:
        if kind not in available and not _is_torch_layer(kind):
            raise ConfigError(choose_from("kind of layer", kind, available))
    return kinds


def _is_torch_layer(kind: str) -> bool:
    return kind in {name.lower() for name in nn.modules.__all__}


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, pattern + ".*")


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
