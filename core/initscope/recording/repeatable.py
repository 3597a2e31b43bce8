"""Whether a model's forward pass can be run once more without a trace: read from its code, before it is run.

A copy of a model shares with it whatever is not copied: a generator, an iterator, an open file, a global
counter, a counter in somebody's own object. A second pass would turn them, and the training would go another
way. So a pass is repeated only where everything that it may touch is known: modules, tensors, numbers, and
functions that do the same. What cannot be read counts as not repeatable.
"""

from __future__ import annotations

import argparse
import builtins
import dis
import enum
import functools
import types
import weakref
from collections import OrderedDict, deque
from typing import Any

import torch
from torch import Tensor, nn

from initscope.torch_internals import FORWARD_PRE_HOOKS, is_watched

LIBRARIES = frozenset(
    {"torch", "torchvision", "torchaudio", "transformers", "timm", "einops", "peft", "diffusers", "monai"}
    | {"torch_geometric", "segmentation_models_pytorch", "accelerate", "initscope"}
)
"""Whose modules and functions keep nothing outside of a module between passes."""
PLAIN_MODULES = frozenset(
    {"math", "operator", "itertools", "functools", "typing", "collections", "__future__", "random", "numpy"}
    | {"builtins", "_pytest"}  # how pytest rewrites an assertion
)
"""Whose functions are the same each time, or draw from the generators that are put back after a pass."""
ALONE = (
    "torch.distributed",
    "torch.utils.data",
    "torch.utils.tensorboard",
    "torch.cuda.nvtx",
    "torch.profiler",
)
"""Parts of the libraries that speak with somebody else."""
_PASSING = frozenset({"print", "open", "input", "exec", "eval", "compile", "next", "iter", "globals"})
"""Builtins that leave a trace, or can."""
_SEEDS = frozenset({"manual_seed", "seed", "default_generator", "Generator", "set_rng_state", "save", "load"})
"""Attributes of a library that are no function of their inputs."""
_CONTAINERS = (dict, OrderedDict, list, tuple, set, frozenset, deque, torch.Size)
_NUMBERS = (bool, int, float, complex, str, bytes, type(None))
_VALUES = (*_NUMBERS, enum.Enum, torch.dtype, torch.device, slice, range)
MOST_ITEMS = 1000
"""A longer list or dict among a module's attributes holds data, not layers: no copy is made of it, and a pass
may write to it.
"""
MOST_NUMBERS = 2**20
"""The same for a larger tensor that is no parameter and no buffer."""


def obstacle(model: nn.Module, arguments: Any = ()) -> str | None:
    """What a repeated forward pass might turn, as a clause; None where there is nothing of the kind.

    ``arguments`` are what the pass is called with: they are handed on, so that they may hold tensors, numbers
    and containers of these alone.
    """
    found = _Reader(model).of_pass(model, arguments)
    return None if found is None else f"a second pass might turn {found}"


class _Reader:
    """Reads each object once; the first obstacle ends the reading."""

    def __init__(self, model: nn.Module) -> None:
        self._seen: dict[int, Any] = {}
        self._own = {id(x) for x in (*model.parameters(), *model.buffers())}

    def of_pass(self, model: nn.Module, arguments: Any) -> str | None:
        if is_watched():
            return "a mode that watches every operation"
        for name, module in model.named_modules():
            found = self._module(module)
            if found is not None:
                return f"{name or 'the model'}: {found}"
        return self._arguments(arguments)

    def _arguments(self, value: Any) -> str | None:
        if isinstance(value, (Tensor, *_VALUES)):
            return None
        if type(value) in (tuple, list):
            return self._first(self._arguments(item) for item in value)
        if isinstance(value, dict):
            return self._first(self._arguments(item) for item in value.values())
        return f"an input of type {type(value).__name__}"

    @staticmethod
    def _first(found: Any) -> str | None:
        return next((one for one in found if one is not None), None)

    def _module(self, module: nn.Module) -> str | None:
        cls = type(module)
        for name in ("__call__", "forward"):
            found = self._method(cls, name)
            if found is not None:
                return found
        if cls.__getattr__ is not nn.Module.__getattr__ and not _is_library(cls.__getattr__.__module__):
            return "attributes of its own making"
        for hook in module.__dict__.get(FORWARD_PRE_HOOKS, {}).values():
            if not _is_library(getattr(hook, "__module__", None) or type(hook).__module__):
                return "a hook before its forward pass"
        for name, value in vars(module).items():
            if name.startswith("_") and name in vars(_EMPTY):
                continue  # torch's own: parameters, buffers, hooks, submodules, which are read as such
            found = self._value(value)
            if found is not None:
                return f"{found} in .{name}"
        return None

    def _method(self, cls: type, name: str) -> str | None:
        """The method that ``name`` means in ``cls``, and those of ``cls`` that it calls."""
        for base in cls.__mro__:
            if name in vars(base):
                return None if _is_library(base.__module__) else self._function(vars(base)[name], cls)
        return None

    def _value(self, value: Any) -> str | None:
        if isinstance(value, (*_VALUES, nn.Module)) or id(value) in self._seen:
            return None
        if isinstance(value, Tensor):
            small = value.numel() <= MOST_NUMBERS or isinstance(value, nn.Parameter) or id(value) in self._own
            return None if small else "a large tensor that is no buffer"
        if type(value) in _CONTAINERS:
            self._seen[id(value)] = value
            if len(value) > MOST_ITEMS:
                return "a long list"
            items = value.values() if isinstance(value, dict) else value
            return self._first(self._value(item) for item in items)
        return self._callable(value)

    def _callable(self, value: Any) -> str | None:
        """A function, class or object that code may call."""
        if isinstance(value, (type, types.BuiltinFunctionType, types.MethodType)):
            if isinstance(value, types.MethodType) and isinstance(value.__self__, nn.Module):
                return self._function(value.__func__, type(value.__self__))
            return self._type(value) if isinstance(value, type) else self._builtin(value)
        if isinstance(value, types.FunctionType):
            return None if _is_library(value.__module__) else self._function(value, None)
        if isinstance(value, functools.partial):
            parts = (value.func, *value.args, *value.keywords.values())
            return self._first(self._value(part) for part in parts)
        if isinstance(value, torch.Generator):
            return "a torch.Generator"
        if isinstance(value, weakref.ref):
            return self._value(value())
        # A library's object: a configuration, an operation.
        kind = type(value)
        if _is_library(kind.__module__) or _is_record(value):
            return None
        return f"an object of type {kind.__name__}"

    def _type(self, kind: type) -> str | None:
        if (
            _is_library(kind.__module__)
            or kind.__module__ in PLAIN_MODULES
            or issubclass(kind, BaseException)
        ):
            return None
        if kind.__module__ == "builtins" and kind.__name__ not in _PASSING:
            return None
        if issubclass(kind, enum.Enum) or hasattr(kind, "_fields") or hasattr(kind, "__dataclass_fields__"):
            return None  # tuples with names, records
        return f"the class {kind.__name__}"

    @staticmethod
    def _builtin(function: Any) -> str | None:
        module = getattr(function, "__module__", None) or type(getattr(function, "__self__", None)).__module__
        if _is_library(module) or module in PLAIN_MODULES or module in ("_operator", "_functools"):
            return None
        if module == "builtins" and function.__name__ not in _PASSING:
            return None
        return f"{getattr(function, '__name__', 'a function')}()"

    def _function(self, function: Any, cls: type | None) -> str | None:
        """Somebody's own function, as a method of ``cls`` if it is one."""
        function = getattr(function, "__func__", function)  # class and static methods
        while not isinstance(function, types.FunctionType) and hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        if isinstance(function, property):
            return self._function(function.fget, cls)
        if not isinstance(function, types.FunctionType):
            return None if isinstance(function, _VALUES) else f"an object of type {type(function).__name__}"
        key = id(function.__code__)
        if key in self._seen:
            return None
        self._seen[key] = function
        names = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        return self._code(function.__code__, function.__globals__, names, cls)

    def _code(
        self, code: types.CodeType, known: dict[str, Any], cells: dict[str, types.CellType], cls: type | None
    ) -> str | None:
        previous: Any = None
        before = ""
        for step in dis.get_instructions(code):
            name, found = step.argval, None
            if step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
                return f"the global {name}"
            if step.opname in ("STORE_DEREF", "DELETE_DEREF") and name in cells:
                return f"{name}, which an outer function holds"
            if step.opname == "STORE_ATTR" and before not in ("LOAD_FAST", "LOAD_FAST_BORROW", "SWAP"):
                return f".{name} of what is no module"
            if step.opname == "IMPORT_NAME" and not _is_known(name):
                return f"the module {name}"
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
                previous = known.get(name, getattr(builtins, name, None))
                found = self._named(name, previous)
            elif step.opname in ("LOAD_DEREF", "LOAD_CLASSDEREF") and name in cells:
                found = self._cell(name, cells[name])
            elif step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
                found = self._attribute(name, previous, cls)
                previous = getattr(previous, name, None) if isinstance(previous, types.ModuleType) else None
            elif step.opname not in ("PRECALL", "CACHE", "PUSH_NULL", "RESUME", "COPY_FREE_VARS"):
                previous = None
            if found is not None:
                return found
            before = step.opname
        inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
        return self._first(self._code(one, known, cells, cls) for one in inner)

    def _named(self, name: str, value: Any) -> str | None:
        if isinstance(value, types.ModuleType):
            return None if _is_known(value.__name__) else f"the module {value.__name__}"
        if isinstance(value, (*_VALUES, type(NotImplemented))):
            return None
        if isinstance(value, tuple) and all(isinstance(item, _VALUES) for item in value):
            return None
        if isinstance(value, type) or (callable(value) and not isinstance(value, nn.Module)):
            return self._callable(value)
        return f"the global {name}"

    def _cell(self, name: str, cell: types.CellType) -> str | None:
        try:
            value = cell.cell_contents
        except ValueError:  # not yet bound
            return f"{name}, which an outer function holds"
        return None if name == "__class__" else self._named(name, value)

    def _attribute(self, name: str, owner: Any, cls: type | None) -> str | None:
        if isinstance(owner, types.ModuleType):
            value = getattr(owner, name, None)
            if name in _SEEDS or (owner is builtins and name in _PASSING):
                return f"{owner.__name__}.{name}"
            if isinstance(value, types.ModuleType):
                return None if _is_known(value.__name__) else f"the module {value.__name__}"
            return None
        if name == "__class__":
            return "its class"
        if cls is None:
            return None
        # Perhaps a method of its own: self is not followed through the code, its names are.
        return self._method(cls, name)


_EMPTY = nn.Module()


def _is_record(value: Any) -> bool:
    """Whether ``value`` is somebody's configuration: names with numbers and texts, and no methods."""
    kind = type(value)
    known = kind in (types.SimpleNamespace, argparse.Namespace) or (
        hasattr(kind, "__dataclass_fields__")
        and not any(callable(x) and not name.startswith("__") for name, x in vars(kind).items())
    )
    items = vars(value).values() if known and hasattr(value, "__dict__") else ()
    return known and all(isinstance(item, (*_NUMBERS, tuple)) for item in items)


def _is_library(name: str | None) -> bool:
    name = name or ""
    return name.partition(".")[0] in LIBRARIES and not name.startswith(ALONE)


def _is_known(name: str) -> bool:
    return _is_library(name) or name.partition(".")[0] in PLAIN_MODULES
