"""Forward hooks on the modules of a network that somebody else trains.

A hook in a module's own dictionary travels with every copy and pickle of the module, takes transformer layers
off their fast path in evaluation, and is compiled into graphs. torch's global hooks do none of this, but slow
down every other network of the process. So a module's empty dictionary of hooks is replaced, while it is
watched, by one that shows our hook only where torch calls hooks.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from initscope.torch_internals import (
    FORWARD_PRE_HOOKS,
    WITH_KWARGS,
    compiled_call,
    set_compiled_call,
)


class _Key:
    """Stands where torch has a hook's number; ``kwargs``: the hook takes keyword inputs too."""

    def __init__(self, kwargs: bool):
        self.kwargs = kwargs


class HiddenHooks(OrderedDict):
    """A module's dictionary of hooks. Others' hooks are its items; ours come after them when torch iterates
    over ``items()`` to call them, and are no part of its length, its copies and its pickles.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ours: dict[_Key, Callable] = {}

    def __bool__(self) -> bool:
        return len(self) > 0 or bool(self.ours)

    def items(self) -> Any:
        return [*OrderedDict.items(self), *self.ours.items()] if self.ours else OrderedDict.items(self)

    def __reduce__(self) -> tuple:
        return OrderedDict, (), None, None, iter([*OrderedDict.items(self)])


class HiddenKwargs(OrderedDict):
    """The dictionary that says which hooks take keyword inputs: those of ours that say so themselves."""

    def __contains__(self, key: object) -> bool:
        return key.kwargs if isinstance(key, _Key) else OrderedDict.__contains__(self, key)

    def __reduce__(self) -> tuple:
        return OrderedDict, (), None, None, iter([*OrderedDict.items(self)])


class Handle:
    """Takes one hook off its module again."""

    def __init__(self, module: nn.Module, where: str, hooks: HiddenHooks, key: _Key):
        self._module, self._where, self._hooks, self._key = module, where, hooks, key

    @property
    def lost(self) -> bool:
        """Whether somebody has given the module another dictionary of hooks since."""
        return self._module.__dict__.get(self._where) is not self._hooks

    def remove(self) -> None:
        self._hooks.ours.pop(self._key, None)
        if self._hooks.ours or self.lost:
            return
        for where in (self._where, WITH_KWARGS[self._where]):
            hooks = self._module.__dict__[where]
            # Hooks that others have added meanwhile stay where their handles look for them.
            if type(hooks) in (HiddenHooks, HiddenKwargs) and not len(hooks):
                self._module.__dict__[where] = OrderedDict()


def hook(module: nn.Module, where: str, function: Callable, kwargs: bool = False) -> Handle | RemovableHandle:
    """Have ``function`` called as a hook of ``module``: ``where`` is ``_forward_pre_hooks`` or
    ``_forward_hooks``.
    """
    hooks, flags = module.__dict__[where], module.__dict__[WITH_KWARGS[where]]
    if not isinstance(hooks, HiddenHooks):
        if hooks or flags:
            # Others' handles point to this dictionary, so it stays. Copies and pickles of the module keep a
            # hook that does nothing.
            register = (
                module.register_forward_pre_hook
                if where == FORWARD_PRE_HOOKS
                else module.register_forward_hook
            )
            return register(CopiesAsNothing(function), with_kwargs=kwargs)
        hooks = module.__dict__[where] = HiddenHooks()
    if not isinstance(flags, HiddenKwargs) and kwargs:
        if flags:
            return module.register_forward_hook(CopiesAsNothing(function), with_kwargs=kwargs)
        module.__dict__[WITH_KWARGS[where]] = HiddenKwargs()
    key = _Key(kwargs)
    hooks.ours[key] = function
    return Handle(module, where, hooks, key)


class CopiesAsNothing:
    """A hook that copies and pickles as one that does nothing: a copy of the model is nobody's to measure."""

    def __init__(self, function: Callable):
        self._function = function

    def __call__(self, *arguments: Any) -> None:
        self._function(*arguments)

    def __reduce__(self) -> tuple:
        # Of the standard library, so that the pickle opens where this package is not installed.
        return getattr, (contextlib.nullcontext(), "__exit__")


class Undo:
    """A function as a removable handle."""

    def __init__(self, remove: Callable[[], Any]):
        self.remove = remove


class CompiledCall:
    """A module's own compiled call (``module.compile()``), after which a function is called with (module,
    inputs, keyword inputs, output).

    Such a module calls no hooks. Copies and pickles of a module leave its compiled call out.
    """

    def __init__(self, module: nn.Module, function: Callable):
        self._module, self._function = module, function
        self.original: Any = compiled_call(module)
        set_compiled_call(module, self)

    def __call__(self, *inputs: Any, **kwargs: Any) -> Any:
        output = self.original(*inputs, **kwargs)
        self._function(self._module, inputs, kwargs, output)
        return output

    def remove(self) -> None:
        if compiled_call(self._module) is self:
            set_compiled_call(self._module, self.original)


class CompiledStep:
    """An optimizer's own compiled ``step``, before and after which a function is called.

    Such a step calls no hooks, as the code compiled for it holds none.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, before: Callable[[], Any], after: Callable[[], Any]):
        self._optimizer, self._before, self._after = weakref.ref(optimizer), before, after
        self.original = vars(optimizer)["step"]
        vars(optimizer)["step"] = self

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        self._before()
        result = self.original(*arguments, **keywords)
        self._after()
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)

    def remove(self) -> None:
        optimizer = self._optimizer()
        if optimizer is not None and vars(optimizer).get("step") is self:
            vars(optimizer)["step"] = self.original


def numbered_modules(model: nn.Module) -> Iterator[tuple[nn.Module, list, list]]:
    """(module, its children, its parameters) of each module: what ``structure_changed`` compares with."""
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue  # cannot change, and shows other objects each time
        yield module, list(module._modules.values()), list(module._parameters.values())


def structure_changed(known: list[tuple[nn.Module, list, list]]) -> bool:
    """Whether a module has been given other children or parameters since. Tensors that only stand in for
    parameters (``torch.func.functional_call``) are no change.
    """
    for module, children, parameters in known:
        if (children or module._modules) and list(module._modules.values()) != children:
            return True
        now = module._parameters
        other = (parameters or now) and [*map(id, now.values())] != [*map(id, parameters)]
        if other and all(p is None or isinstance(p, nn.Parameter) for p in now.values()):
            return True
    return False
