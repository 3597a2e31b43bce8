"""Hooks that measure every layer of a network during one training step, and change nothing.

Three moments are watched: a layer's output in the forward pass, the gradients of its output and weight in the backward
pass (the weight's before any clipping), and the weight around the optimizer's step. Each quantity is one number a layer,
left on the device until the ``StepMeasurements`` that ``collect`` gives is asked for its table.

StepCalls of modules are seen through torch's global hooks: the model itself carries none, so it can be copied and pickled meanwhile, and
transformer layers keep their fast path in evaluation. Code inside ``torch.compile`` is not looked at: what only its forward
pass would tell is missing there.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.nn.modules.module import (
    _global_forward_hooks_with_kwargs,
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from initscope.recording.calls import LayerCall, ProducerIndex, StepCalls
from initscope.recording.grad_scaler import LossScale
from initscope.recording.guard import guarded, raise_fault
from initscope.recording.layers import find_layers, is_activation, is_normalization
from initscope.recording.reading import StepMeasurements, WeightNumbers
from initscope.recording.reductions import (
    Number,
    change_norms,
    copy_norms,
    dead_units,
    forward_statistics,
    norm,
    norms,
)
from initscope.recording.tensors import (
    alike,
    dense,
    function_before,
    is_compiled_output,
    is_dense,
    output_of,
)
from initscope.recording.wrappers import as_optimizers, is_compiled, unwrapped

MEASURING = "measuring the network"
"""What a fault of a hook is told to have happened in."""
RECTIFIERS = (nn.ReLU, nn.ReLU6)
_SCALES = ("norm", "activation")
"""Families whose rows stand between a layer and its nonlinearity."""


@dataclass(eq=False)
class _Weight:
    """One parameter, the rows that show it (several if layers share it), and what was measured of it in this step."""

    parameter: nn.Parameter
    rows: list[int]
    optimizer: int = 0
    scale: Tensor | None = None
    gradient: Number | None = None
    """Norm after the newest backward pass; an optimizer's step makes it the row's."""
    before: Tensor | None = None
    values: dict[str, Number] = field(default_factory=dict)


class LayerMeter:
    """Measures the layers of ``model`` (``layers.find_layers`` says which); a context manager that always takes its hooks off.

    ``armed`` decides whether the coming step is measured. Evaluation passes (``model.eval()`` or ``no_grad``) never are. Of a weight that its
    optimizer updates several times between two ``collect`` the last update counts. In a closure that an optimizer calls several times
    (LBFGS) the first evaluation counts, the one at the weights before the step.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
        layers: str | Sequence[str] | None = None,
        kinds: str | Sequence[str] | None = None,
    ):
        self.outer = model
        self.model = unwrapped(model)
        self.optimizers = as_optimizers(optimizer)
        self.layers = find_layers(self.model, layers, kinds)
        self.names = [layer.name for layer in self.layers]
        self.kinds = [layer.kind for layer in self.layers]
        self.enabled = True
        self._executed: dict[int, None] = {}
        self.activations: dict[str, str] = {}
        self.normalized: set[str] = set()
        self.late_update = False
        """Whether an optimizer stepped between a ``collect`` and the next backward pass: too late to be measured."""
        self.on_forward: Callable[[tuple, dict, Any], None] | None = None
        """Called with (inputs, keyword inputs, output) after every training pass of the whole model."""
        self.on_pass: Callable[[tuple, dict, Any], None] | None = None
        """The same, for ``inspection``."""
        self.fault: Callable[[str, Exception], None] = raise_fault
        """Called with what a hook was doing and what it raised, which never goes on into the training."""
        self.loss_scale = LossScale()
        self._weights: list[_Weight] = []
        self._weight_of: dict[int, _Weight] = {}
        self._calls = [StepCalls() for _ in self.layers]
        self._producers = ProducerIndex()
        self._handles: list[RemovableHandle | _Undo] = []
        self._rectified: set[int] = set()
        """Layers whose output went straight into a rectifier when they were last seen."""
        self._roles = self._assign_roles()
        self._waiting = list(range(len(self.layers)))
        self._others = list(self.model.parameters())
        self._followed: set[nn.Parameter] = set()
        self._heard: dict[int, list[tuple[StepCalls, LayerCall, Number]]] = {}
        self._owned = -1
        self._passes: set[int] = set()
        self._arrived: dict[_Weight, None] = {}
        self._backward_seen = False
        self._stepped: set[int] = set()
        self._inside = False
        self._evaluated: tuple[int, ...] | None = None

    def _assign_roles(self) -> dict[nn.Module, list[Callable]]:
        """What to do after a call of a module; the first to run comes first."""
        roles: dict[nn.Module, list[Callable]] = {}
        for module in self.model.modules():
            if is_activation(module):
                roles[module] = [self._after_activation]
            elif is_normalization(module):
                roles[module] = [self._after_normalization]
        self._rows_of: dict[nn.Module, list[int]] = {}
        for i, layer in enumerate(self.layers):
            self._rows_of.setdefault(layer.module, []).append(i)
            if layer.has_output:
                roles.setdefault(layer.module, []).append(functools.partial(self._after_layer, i))
        return roles

    # -- hooks on and off

    def __enter__(self) -> LayerMeter:
        try:
            self.loss_scale.__enter__()
            self._handles.append(_Undo(self.loss_scale.__exit__))
            self._attach()
            if not is_compiled(self.outer):
                self._handles.append(register_module_forward_pre_hook(self._before_module))
                handle = register_module_forward_hook(self._after_module, with_kwargs=True)
                self._handles += [handle, _Undo(functools.partial(_global_forward_hooks_with_kwargs.pop, handle.id))]  # torch leaves it there
            elif self.outer is not self.model:
                self._handles.append(self.outer.register_forward_hook(_Hook(self._after_outer), with_kwargs=True))
            for k, optimizer in enumerate(self.optimizers):
                self._handles.append(optimizer.register_step_pre_hook(functools.partial(self._before_update, k)))
                self._handles.append(optimizer.register_step_post_hook(functools.partial(self._after_update, k)))
        except BaseException:
            self.__exit__()
            raise
        return self

    def _attach(self) -> None:
        """Follow the parameters that have been made (lazy modules) or have begun to be trained since the last look."""
        waiting = []
        for i in self._waiting:
            parameter = self.layers[i].weight
            if parameter is None:
                waiting.append(i)
                continue
            weight = self._weight_of.get(id(parameter))
            if weight is None:
                weight = self._weight_of[id(parameter)] = _Weight(parameter, [])
                self._weights.append(weight)
                self._owned = -1
            if i not in weight.rows:
                weight.rows.append(i)
            if not self._follow(parameter):
                waiting.append(i)
        self._waiting = waiting
        self._others = [p for p in self._others if not self._follow(p)]

    def _follow(self, parameter: nn.Parameter) -> bool:
        """Whether the parameter's gradients are heard of, from now on at the latest."""
        if parameter in self._followed:
            return True
        if is_lazy(parameter) or not parameter.requires_grad or not parameter.is_leaf:
            return False
        self._followed.add(parameter)
        self._handles.append(parameter.register_post_accumulate_grad_hook(functools.partial(self._gradient_arrives, self._weight_of.get(id(parameter)))))
        return True

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._followed.clear()
        for weight in self._weights:
            weight.before = None

    # -- forward

    def _watching(self) -> bool:
        return (
            self.enabled
            and self.model.training
            and torch.is_grad_enabled()
            and torch._C._functorch.peek_interpreter_stack() is None
            and not torch.jit.is_tracing()
            and not self._evaluating_again()
        )

    def _evaluating_again(self) -> bool:
        """Whether an optimizer calls its closure again, at other weights than those before the step."""
        return self._inside and self._evaluated is not None and self._evaluated != self._versions()

    @guarded(MEASURING)
    def _before_module(self, module: nn.Module, inputs: Any) -> None:
        if torch.compiler.is_compiling() or not self.enabled:
            return
        if module is self.model:
            self._producers.clear()
        rows = self._rows_of.get(module)
        if rows is None or not self.model.training:
            return
        if rows[0] not in self._executed:
            self._executed.update(dict.fromkeys(rows))
        if self.layers[rows[0]].family not in _SCALES and inputs and isinstance(inputs[0], Tensor) and self._watching():
            self._notice_function(inputs[0])

    @guarded(MEASURING)
    def _after_module(self, module: nn.Module, inputs: Any, kwargs: Any, output: Any) -> None:
        if torch.compiler.is_compiling() or not self.enabled:
            return
        if module is self.outer and (self.on_forward is not None or self.on_pass is not None) and self._watching():
            self._tell(inputs, kwargs, output)
        roles = self._roles.get(module)
        if roles is not None and self._watching():
            for role in roles:
                role(module, inputs, output)

    @guarded(MEASURING)
    def _after_outer(self, module: nn.Module, inputs: Any, kwargs: Any, output: Any) -> None:
        if not torch.compiler.is_compiling() and self._watching():
            self._tell(inputs, kwargs, output)

    def _tell(self, inputs: tuple, kwargs: dict, output: Any) -> None:
        for listener in (self.on_forward, self.on_pass):
            if listener is not None:
                listener(inputs, kwargs, output)

    def _after_layer(self, i: int, module: nn.Module, inputs: Any, output: Any) -> None:
        output, samples = output_of(module, output)
        if output is None:
            return
        if self._waiting and i in self._waiting:
            self._attach()  # a lazy module has just made its weight
        seen = output.detach()  # without a graph, and so are the numbers taken from it
        rows = seen if samples == 0 else seen.reshape(1, -1) if samples is None else seen.movedim(samples, 0)
        values = forward_statistics(rows, off=samples == 0 and i in self._rectified)
        below = values.pop("off", None)
        call = LayerCall(output.numel(), values, (output.data_ptr(), output._version), samples is not None, below)
        calls = self._calls[i]
        calls.newest = call
        if self.layers[i].family not in _SCALES:
            self._producers.add(i, call, output)
        if output.requires_grad:
            output.register_hook(functools.partial(self._output_gradient_arrives, calls, call))

    def _after_activation(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(output, Tensor) or is_compiled_output(inputs):
            return
        x = inputs[0] if inputs else output
        before = self._producers.before(x)
        if before is None:
            return
        i, call = before
        self.activations[self.names[i]] = type(module).__name__
        if isinstance(module, RECTIFIERS):
            straight = call.count == x.numel() and call.place == (x.data_ptr(), x._version - (x is output))
            (self._rectified.add if straight else self._rectified.discard)(i)
            call.off = call.below if straight and call.below is not None else dead_units(output)

    def _notice_function(self, x: Tensor) -> None:
        """Notice a nonlinearity that was called as a function (``F.relu``) before a layer: no module's hook sees it."""
        function = function_before(x)
        before = self._producers.before(x) if function is not None else None
        if before is not None and before[1].off is None:
            i, call = before
            if self.activations.setdefault(self.names[i], function) == function == "ReLU":
                call.off = dead_units(x)

    def _after_normalization(self, module: nn.Module, inputs: Any, output: Any) -> None:
        before = self._producers.before(output) if isinstance(output, Tensor) else None
        if before is not None:
            self.normalized.add(self.names[before[0]])

    # -- backward

    @guarded(MEASURING)
    def _output_gradient_arrives(self, calls: StepCalls, call: LayerCall, gradient: Tensor) -> None:
        if self.enabled and not calls.over and is_dense(gradient):
            length = unscaled(norm(gradient.detach()), self.loss_scale.current)
            self._heard.setdefault(torch._C._current_graph_task_id(), []).append((calls, call, length))

    @guarded(MEASURING)
    def _gradient_arrives(self, weight: _Weight | None, parameter: Tensor) -> None:
        """A gradient is whole for this process. It counts as it is at the end of the pass, when it has been averaged over processes."""
        if not self.enabled or torch.compiler.is_compiling() or self._evaluating_again():
            return
        if weight is not None:
            weight.scale = self.loss_scale.current
            self._arrived[weight] = None
        this_pass = torch._C._current_graph_task_id()
        if this_pass not in self._passes:
            self._passes.add(this_pass)
            # Queued twice: what others have queued for the end of the pass (DistributedDataParallel's averaging) comes first.
            later = functools.partial(self._pass_ends, this_pass)
            Variable._execution_engine.queue_callback(lambda: Variable._execution_engine.queue_callback(later))

    @guarded(MEASURING)
    @torch.no_grad()
    def _pass_ends(self, this_pass: int) -> None:
        # Only passes that reach parameters count: others (torch.autograd.grad for an input) are not the loss's.
        for calls, call, length in self._heard.pop(this_pass, ()):
            if calls.over:
                continue
            if not call.gradients:
                calls.reached.append(call)
            call.gradients.append(length)
        self._passes.discard(this_pass)
        if self._passes:
            return  # a pass within a pass (checkpointing)
        self._read_gradients(list(self._arrived))
        self._arrived.clear()
        self._backward_seen = True
        if self._inside and self._evaluated is None:
            self._evaluated = self._versions()

    def _read_gradients(self, weights: list[_Weight]) -> None:
        """Take the norms of the gradients that the optimizer will see."""
        weights = [weight for weight in weights if weight.parameter.grad is not None]
        lengths = norms([dense(weight.parameter.grad) for weight in weights])
        for weight, length in zip(weights, lengths, strict=True):
            weight.gradient = unscaled(length, weight.scale)

    def _versions(self) -> tuple[int, ...]:
        """Changes whenever a weight does."""
        return tuple(weight.parameter._version for weight in self._weights)

    # -- update

    def _of(self, k: int) -> list[_Weight]:
        """Weights that optimizer ``k`` holds; those that none holds go with the first."""
        held = sum(len(group["params"]) for optimizer in self.optimizers for group in optimizer.param_groups)
        if held != self._owned:
            self._owned = held
            owner = {id(p): k for k, o in enumerate(self.optimizers) for group in o.param_groups for p in group["params"]}
            for weight in self._weights:
                weight.optimizer = owner.get(id(weight.parameter), 0)
        return [weight for weight in self._weights if weight.optimizer == k]

    @guarded(MEASURING)
    @torch.no_grad()
    def _before_update(self, k: int, *_: object) -> None:
        if not self.enabled or torch.compiler.is_compiling():
            return
        self._abandon()
        self._inside, self._evaluated = True, None
        weights = self._of(k)
        if torch._C._current_graph_task_id() != -1:  # an optimizer for each parameter, stepped during the backward pass to save memory
            for weight in weights:
                weight.scale = self.loss_scale.current
            self._read_gradients(weights)
            self._backward_seen = True
        for weight in weights:
            if weight.before is None or not alike(weight.before, weight.parameter):
                weight.before = torch.empty_like(weight.parameter)
        for weight, length in zip(weights, copy_norms([w.before for w in weights], [w.parameter.detach() for w in weights]), strict=True):
            weight.values = {"weight": length}

    @guarded(MEASURING)
    @torch.no_grad()
    def _after_update(self, k: int, *_: object) -> None:
        if not self.enabled or torch.compiler.is_compiling():
            return
        self._inside = False
        weights = [weight for weight in self._of(k) if "weight" in weight.values]
        if not self._backward_seen:
            self.late_update = True
            for weight in weights:
                weight.values = {}
            return
        self._stepped.add(k)
        lengths = change_norms([weight.before for weight in weights], [weight.parameter.detach() for weight in weights])
        for weight, moved in zip(weights, lengths, strict=True):
            weight.values["moved"] = moved
            if weight.gradient is not None:
                weight.values["gradient"] = weight.gradient

    def _abandon(self) -> None:
        """Forget a backward pass that did not come to its end."""
        if torch._C._current_graph_task_id() == -1:
            self._passes.clear()
            self._heard.clear()
            self._arrived.clear()
            self.loss_scale.forget()

    # -- the result

    @property
    def backward_seen(self) -> bool:
        """Whether a gradient of a weight was computed since the last ``collect``."""
        return self._backward_seen

    def misses_gradients(self) -> bool:
        """Whether layers ran in a training pass since the last ``collect`` and no gradient came for weights that are trained."""
        ran = any(calls.newest is not None for calls in self._calls)
        return ran and not self._backward_seen and any(weight.parameter.requires_grad for weight in self._weights)

    @torch.no_grad()
    def collect(self) -> StepMeasurements:
        """What this step has shown of every layer, in execution order; a new step begins."""
        weights = []
        for weight in self._weights:
            if "weight" not in weight.values:
                weight.values["weight"] = norm(weight.parameter.detach())
            # Once an optimizer has stepped, a gradient that no optimizer saw is none of this step's.
            if not self._stepped and weight.gradient is not None:
                weight.values.setdefault("gradient", weight.gradient)
            weights.append(WeightNumbers(tuple(weight.rows), weight.parameter.numel(), weight.values))
        reading = StepMeasurements([calls.chosen() for calls in self._calls], weights, self._ordered())
        self.discard()
        return reading

    def discard(self) -> None:
        """Forget the step that was being measured."""
        self._abandon()
        for calls in self._calls:
            calls.over = True
        self._calls = [StepCalls() for _ in self.layers]
        self._producers.clear()
        self._inside = self._backward_seen = False
        self._stepped.clear()
        for weight in self._weights:
            weight.values, weight.gradient = {}, None
        self._attach()

    def _ordered(self) -> list[int]:
        """Layers in the order of their first execution; those never run last."""
        return [*self._executed, *(i for i in range(len(self.layers)) if i not in self._executed)]


class _Hook:
    """A hook that copies and pickles as one that does nothing: a copy of the model is nobody's to measure."""

    def __init__(self, function: Callable):
        self._function = function

    def __call__(self, *arguments: Any) -> None:
        self._function(*arguments)

    def __reduce__(self) -> tuple:
        # Of the standard library, so that the pickle opens where this package is not installed.
        return getattr, (contextlib.nullcontext(), "__exit__")


class _Undo:
    """A function as a removable handle."""

    def __init__(self, remove: Callable):
        self.remove = remove


def unscaled(length: Number, scale: Tensor | None) -> Number:
    """A gradient's norm without the factor of the loss."""
    if scale is None:
        return length
    return length / scale.to(length.device) if isinstance(length, Tensor) else length / scale.item()
