"""A network of one's own, from ``path/to/file.py:factory``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from initscope.config.factory import ARCHITECTURE, Factory, parse
from initscope.config.factory_code import arguments, blamed, load
from initscope.config.pinning import not_taken
from initscope.config.run_config import RunConfig
from initscope.errors import ConfigError


def build(
    config: RunConfig, *, in_channels: int, num_classes: int, sample: Tensor | None = None
) -> nn.Module:
    """The network that the factory of ``config.model`` returns, as its constructors initialized it.

    The factory is given, by name, what its signature asks for: num_classes, in_channels, image_size,
    input_shape (of one sample), width, batch_norm, dropout. With ``sample``, a batch of inputs, one forward
    pass in eval mode checks that it answers with logits (samples, classes), and gives lazy layers their
    shape. Raises ConfigError, or FactoryFailed with the line of the file.
    """
    factory, make = load(config.model, config.model_sha256)
    shape = (
        tuple(sample.shape[1:]) if sample is not None else (in_channels, config.image_size, config.image_size)
    )
    offered = {
        "num_classes": num_classes,
        "in_channels": in_channels,
        "image_size": config.image_size,
        "input_shape": shape,
    }
    asked = arguments(factory, make, {**offered, **{name: getattr(config, name) for name in ARCHITECTURE}})
    usual = RunConfig()
    for name in ARCHITECTURE:
        value = getattr(config, name)
        if value != getattr(usual, name) and name not in asked:
            raise ConfigError(not_taken(factory, name, value, asked), name)
    with blamed(factory):
        model = make(**asked)
    if not isinstance(model, nn.Module):
        what = (
            f"the class {model.__name__}; return {model.__name__}()"
            if isinstance(model, type)
            else type(model).__name__
        )
        raise ConfigError(f"{factory.title} must return an nn.Module, not {what}")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        has = (
            "every parameter has requires_grad=False"
            if any(True for _ in model.parameters())
            else "it has no layer with weights"
        )
        raise ConfigError(
            f"nothing to train in the network of {factory.title}: {has}; return one with weights that can "
            "be trained"
        )
    if sample is not None:
        _check_answer(factory, model, sample[:2], num_classes)
    return model


@torch.no_grad()
def _check_answer(factory: Factory, model: nn.Module, sample: Tensor, classes: int) -> None:
    """Raises unless ``model`` answers ``sample`` with logits (samples, at least ``classes``)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    with blamed(factory):
        answer = model(sample)
    for module, training in modes:
        module.training = training
    if not isinstance(answer, Tensor):
        raise ConfigError(
            f"the network of {factory.title} answers with {type(answer).__name__}, not with a tensor of "
            "logits (samples, classes)"
        )
    if answer.dim() != 2 or len(answer) != len(sample) or answer.shape[1] < classes:
        raise ConfigError(
            f"the network of {factory.title} answers {tuple(sample.shape)} with {tuple(answer.shape)}; "
            f"expected logits ({len(sample)}, {classes})"
        )


def is_own(config: RunConfig) -> bool:
    """Whether the model of ``config`` is a factory."""
    return parse(config.model) is not None
