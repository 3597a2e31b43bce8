"""Every use of what torch does not promise to keep, in one place.
``tests/recording/test_torch_internals.py`` has a test for each, which says what breaks when a version moves
it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import Variable
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

__all__ = [
    "BACKWARD_HOOKS",
    "BACKWARD_PRE_HOOKS",
    "CONVOLUTION",
    "FORWARD_HOOKS",
    "FORWARD_PRE_HOOKS",
    "NO_PASS",
    "STATE_DICT_HOOKS",
    "WITH_KWARGS",
    "FakeTensor",
    "FakeTensorMode",
    "TorchDispatchMode",
    "at_the_end_of_the_pass",
    "backward_pass",
    "begin_gradient_hooks",
    "compiled_call",
    "copy_all",
    "gradient_hooks",
    "holds_compiled",
    "in_function_transform",
    "insides",
    "is_compiled_step",
    "is_watched",
    "loss_scale",
    "norm_all",
    "saved_names",
    "sequence_number",
    "set_compiled_call",
    "share_memory",
    "subtract_all",
    "tree_leaves",
    "tree_map",
    "version",
]

CONVOLUTION = nn.modules.conv._ConvNd
"""The base of all convolutions, transposed ones too."""

FORWARD_PRE_HOOKS = "_forward_pre_hooks"
FORWARD_HOOKS = "_forward_hooks"
BACKWARD_HOOKS = "_backward_hooks"
BACKWARD_PRE_HOOKS = "_backward_pre_hooks"
STATE_DICT_HOOKS = "_state_dict_hooks"
"""Attributes of a module: its hooks by number, in the order in which they are called."""
WITH_KWARGS = {
    FORWARD_PRE_HOOKS: "_forward_pre_hooks_with_kwargs",
    FORWARD_HOOKS: "_forward_hooks_with_kwargs",
}
"""Beside the hooks: which of them are called with keyword arguments."""

NO_PASS = -1
"""What ``backward_pass`` says outside of one."""


def backward_pass() -> int:
    """The number of the backward pass that this thread runs, else ``NO_PASS``."""
    return torch._C._current_graph_task_id()


def at_the_end_of_the_pass(function: Callable[[], Any]) -> None:
    """Call ``function`` once the running backward pass has ended, after what was asked for before."""
    Variable._execution_engine.queue_callback(function)


def in_function_transform() -> bool:
    """Whether ``torch.func`` (vmap, grad, jvp) runs this code: tensors are wrapped, and hold no numbers."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def is_watched() -> bool:
    """Whether a mode (a counter of operations, a tracer, somebody's own) or a hook of all modules sees what
    is computed now.
    """
    hooks = nn.modules.module
    modes = [m for m in _get_current_function_mode_stack() if not isinstance(m, DeviceContext)]
    return bool(
        torch._C._len_torch_dispatch_stack()
        or modes  # other than torch.set_default_device's
        or hooks._global_forward_hooks
        or hooks._global_forward_pre_hooks
    )


def version(x: Tensor) -> int:
    """How often ``x`` or a view of its memory was written to."""
    return x._version


def sequence_number(node: Any) -> int:
    """The order in which a thread made the nodes of autograd's graph: later ones have higher numbers."""
    return node._sequence_nr()


def saved_names(node: Any) -> list[str]:
    """Names of the attributes by which a node of autograd's graph shows what it keeps for the backward
    pass.
    """
    return [name for name in dir(node) if name.startswith("_saved_")]


def gradient_hooks(parameter: Tensor) -> MutableMapping[int, Callable]:
    """The hooks of ``register_post_accumulate_grad_hook``, by their handles' ids, in order of their calls."""
    return parameter._post_accumulate_grad_hooks


def insides(x: Tensor) -> int:
    """Identity of what is behind ``x`` in C++. ``torch.utils.swap_tensors`` exchanges it, and then hooks for
    gradients are shown as before and never called.
    """
    return x._cdata


def begin_gradient_hooks(parameter: Tensor) -> None:
    """Let the next hook for gradients be one that is called, and those that are not called any more stay
    so.
    """
    parameter._post_accumulate_grad_hooks = OrderedDict()


def compiled_call(module: nn.Module) -> Callable | None:
    """What ``module.compile()`` calls in place of the module's own code; None if it was not compiled."""
    return module._compiled_call_impl


def set_compiled_call(module: nn.Module, call: Callable | None) -> None:
    """Put ``call`` in its place."""
    module._compiled_call_impl = call


def holds_compiled(module: nn.Module) -> bool:
    """Whether ``module`` was compiled, in place or as what ``torch.compile`` gives."""
    children: Mapping[str, nn.Module | None] = module._modules
    return "_orig_mod" in children or compiled_call(module) is not None


def is_compiled_step(optimizer: torch.optim.Optimizer) -> bool:
    """Whether somebody has put a compiled function in place of this optimizer's ``step``: it calls no
    hooks.
    """
    return hasattr(vars(optimizer).get("step"), "_torchdynamo_orig_callable")


def loss_scale(scaler: torch.amp.GradScaler) -> Tensor | None:
    """The factor that ``scaler`` multiplies losses by, without waiting for a device; None before the
    first.
    """
    return scaler._get_scale_async()


def share_memory(one: Tensor, other: Tensor) -> bool:
    """Whether both are views of the same memory; also for fake tensors, which have no address."""
    return one.untyped_storage()._cdata == other.untyped_storage()._cdata


def norm_all(tensors: Sequence[Tensor], kind: torch.dtype | None = None) -> Sequence[Tensor]:
    """L2 norms, summed in ``kind``, with few kernels on a GPU."""
    return torch._foreach_norm(list(tensors), 2, kind)


def copy_all(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy each of ``sources`` into its target."""
    torch._foreach_copy_(list(targets), list(sources))


def subtract_all(targets: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    """Subtract each of ``others`` from its target, in place."""
    torch._foreach_sub_(list(targets), list(others))
