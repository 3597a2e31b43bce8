"""From a configuration or an nn.Module to the list of layers that theory recurses over.

Only geometry and the initialization's formulas are read. ``vgg_layers`` needs no torch, so that the dashboard
can draw the theory curve of any VGG configuration; ``module_layers`` reads a network by the class names of
its modules.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from initscope.config.formulas import bias_std, weight_std
from initscope.config.run_config import RunConfig
from initscope.config.shapes import VGG_BLOCKS, vgg_shapes
from initscope.errors import ConfigError, TheoryUnavailable
from initscope.theory import kernels
from initscope.theory.layers import (
    Activation,
    AdaptivePool,
    BatchNorm,
    Dropout,
    Flatten,
    Layer,
    Pool,
    Weighted,
)

if TYPE_CHECKING:
    from torch import nn


def has_formula(scheme: str) -> bool:
    """Whether ``weight_std`` knows the initialization."""
    try:
        weight_std(scheme, 1, 1, linear=True, longest=1, torch_fan_in=1)
    except TheoryUnavailable:
        return False
    return True


def _weighted(
    name: str,
    kind: str,
    scheme: str,
    gain: float,
    inputs: int,
    outputs: int,
    *,
    area: int = 1,
    bias: bool = True,
    **geometry,
) -> Weighted:
    """A layer of ``inputs`` channels a unit reads and ``outputs`` channels an input reaches, ``area``
    taps.
    """
    fan_in, fan_out = inputs * area, outputs * area
    std = weight_std(
        scheme,
        fan_in,
        fan_out,
        linear=kind == "linear",
        longest=max(fan_in, outputs),
        torch_fan_in=fan_in,
        gain=gain,
    )
    return Weighted(name, kind, std, bias_std(scheme, fan_in) if bias else 0.0, fan_in, fan_out, **geometry)


def vgg_layers(config: RunConfig, *, in_channels: int, num_classes: int) -> list[Layer]:
    """The layers of ``initscope.networks.vgg`` for ``config``, in order of execution. Raises ConfigError for
    another model.
    """
    if config.model not in VGG_BLOCKS:
        raise ConfigError(
            f"only the VGG family is known without building the model, not {config.model!r}", "model"
        )
    init = (config.init, config.gain)
    geometry = {"area": 9, "kernel": (3, 3), "padding": (1, 1)}
    layers: list[Layer] = []
    network = list(vgg_shapes(config, in_channels, num_classes))
    for layer in network:
        if layer.kind == "pool":
            layers.append(Pool((2, 2), (2, 2)))
        elif layer.kind == "conv":
            layers.append(_weighted(layer.name, "conv2d", *init, layer.inputs, layer.outputs, **geometry))
            layers += [BatchNorm()] if config.batch_norm else []
            layers.append(Activation("relu"))
        else:
            layers += [Flatten()] if layer.name == "fc1" else []
            layers.append(_weighted(layer.name, "linear", *init, layer.inputs, layer.outputs))
            if layer is not network[-1]:
                layers.append(Activation("relu"))
                layers += [Dropout(config.dropout)] if config.dropout else []
    return layers


def module_layers(model: nn.Module, scheme: str | None, gain: float = 1.0) -> list[Layer]:
    """The layers of a network whose modules run one after the other, initialized by ``scheme`` times
    ``gain``.

    ``scheme`` None: the standard deviations are read off the weights and biases, two numbers a layer; for
    initializations that have no formula. ``nn.Sequential`` (nested too) is read as it stands, any other
    module as ``torch.fx`` traces it. Raises TheoryUnavailable where the network branches or has a module that
    theory does not know.
    """
    layers = [layer for name, module in _chain(model, "") for layer in _read(name, module, scheme, gain)]
    if not any(isinstance(layer, Weighted) for layer in layers):
        raise TheoryUnavailable("theory needs at least one convolution or linear layer")
    return layers


def _kind(module: object) -> str:
    """Class name of the first class in the module's ancestry that theory reads, else its own."""
    names = [cls.__name__ for cls in type(module).__mro__]
    return next((name for name in names if name in _READERS or name == "Sequential"), names[0])


def _chain(module: nn.Module, name: str) -> Iterator[tuple[str, object]]:
    """(name, module) in order of execution; a function call of a traced network is yielded as its name."""
    kind = _kind(module)
    if kind == "Sequential":
        for child_name, child in module.named_children():
            yield from _chain(child, f"{name}.{child_name}" if name else child_name)
    elif kind in _READERS:
        yield name, module
    else:
        yield from _traced(module, name)


def _traced(module: nn.Module, name: str) -> Iterator[tuple[str, object]]:
    import torch.fx

    try:
        graph = torch.fx.symbolic_trace(module).graph
    except Exception as error:  # tracing runs the user's own forward: anything can come out of it
        raise TheoryUnavailable(
            f"theory cannot follow {type(module).__name__}.forward: {error}".splitlines()[0]
        ) from None
    for node in graph.nodes:
        branches = len(node.all_input_nodes) > 1 or (len(node.users) > 1 and node.op != "placeholder")
        if branches and not _is_shape_query(node):
            raise TheoryUnavailable(
                f"theory knows plain chains of layers; {type(module).__name__} branches at {node.name}"
            )
        if node.op == "call_module":
            inner = f"{name}.{node.target}" if name else str(node.target)
            yield from _chain(module.get_submodule(str(node.target)), inner)
        elif node.op in ("call_function", "call_method"):
            yield node.name, _call(node)


def _is_shape_query(node) -> bool:
    """``x.view(x.size(0), -1)`` uses x twice, and is still a chain."""
    return all(
        (user.op == "call_method" and user.target in ("size", "view", "reshape", "flatten"))
        or "getattr" in user.name
        for user in node.users
    ) or (node.op == "call_method" and node.target in ("view", "reshape"))


def _call(node) -> object:
    """A function or method call as something ``_read`` understands."""
    name = node.target if isinstance(node.target, str) else node.target.__name__
    if name in ("size", "getattr", "getitem", "contiguous", "shape"):
        return "identity"
    if name in ("view", "reshape", "flatten"):
        return "flatten"
    name = {"relu_": "relu", "hardtanh": "", "dropout": ""}.get(name, name)
    if name == "leaky_relu":
        return Activation(name, _argument(node, 1, "negative_slope"))
    if name in kernels.ACTIVATIONS:
        return name
    if name in ("max_pool2d", "avg_pool2d", "boolean_dispatch", "fn") and node.target is not None:
        size, stride, padding = (
            _argument(node, at, keyword)
            for at, keyword in ((1, "kernel_size"), (2, "stride"), (3, "padding"))
        )
        return Pool(_pair(size), _pair(stride or size), _pair(padding or 0), maximum=name != "avg_pool2d")
    raise TheoryUnavailable(f"theory does not know the function {name or node.name!r}")


def _argument(node, position: int, keyword: str):
    return node.kwargs.get(keyword, node.args[position] if len(node.args) > position else None)


def _pair(value) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[-1]))


def _read(name: str, module: object, scheme: str | None, gain: float) -> list[Layer]:
    if module == "flatten":
        return [Flatten()]
    if isinstance(module, str):
        return [Activation(module)] if module != "identity" else []
    if isinstance(module, Activation | Pool):
        return [module]
    return _READERS[_kind(module)](name, module, scheme, gain)


def _read_conv(name, module, scheme, gain) -> list[Layer]:
    if isinstance(module.padding, str) or module.padding_mode != "zeros":
        raise TheoryUnavailable(f"theory knows zero padding given in pixels, not that of {name}")
    area = math.prod(module.kernel_size)
    geometry = {
        "kernel": module.kernel_size,
        "stride": module.stride,
        "padding": module.padding,
        "dilation": module.dilation,
    }
    inputs, outputs = module.in_channels // module.groups, module.out_channels
    # fan_out of the formulas counts all output channels; an input reaches those of its own group.
    layer = _weighted(
        name,
        "conv2d",
        scheme or "default",
        gain,
        inputs,
        outputs,
        area=area,
        bias=module.bias is not None,
        **geometry,
    )
    layer = replace(layer, fan_out=outputs // module.groups * area)
    return [layer if scheme else _as_measured(layer, module)]


def _read_linear(name, module, scheme, gain) -> list[Layer]:
    sizes = (module.in_features, module.out_features)
    layer = _weighted(name, "linear", scheme or "default", gain, *sizes, bias=module.bias is not None)
    return [layer if scheme else _as_measured(layer, module)]


def _as_measured(layer: Weighted, module) -> Weighted:
    """The root mean squares of the module's own weight and bias in place of a formula's."""
    stds = [
        float(p.detach().double().square().mean().sqrt()) if p is not None else 0.0
        for p in (module.weight, module.bias)
    ]
    return replace(layer, weight_std=stds[0], bias_std=stds[1])


def _read_pool(maximum: bool):
    return lambda name, m, *_: [
        Pool(_pair(m.kernel_size), _pair(m.stride or m.kernel_size), _pair(m.padding), maximum)
    ]


_READERS = {
    "Conv2d": _read_conv,
    "Linear": _read_linear,
    "MaxPool2d": _read_pool(maximum=True),
    "AvgPool2d": _read_pool(maximum=False),
    "AdaptiveAvgPool2d": lambda name, m, *_: [AdaptivePool(_pair(m.output_size))],
    "Flatten": lambda *_: [Flatten()],
    "Identity": lambda *_: [],
    "Dropout": lambda name, m, *_: [Dropout(m.p)] if m.p else [],
    "BatchNorm2d": lambda name, m, *_: [BatchNorm(m.eps)],
    "BatchNorm1d": lambda name, m, *_: [BatchNorm(m.eps)],
    "LeakyReLU": lambda name, m, *_: [Activation("leaky_relu", m.negative_slope)],
    "ReLU": lambda *_: [Activation("relu")],
    "Tanh": lambda *_: [Activation("tanh")],
    "Sigmoid": lambda *_: [Activation("sigmoid")],
    "GELU": lambda *_: [Activation("gelu")],
    "SiLU": lambda *_: [Activation("silu")],
    "ELU": lambda *_: [Activation("elu")],
    "Softplus": lambda *_: [Activation("softplus")],
}
