"""Hooks that measure every layer of a network during one training step, and change nothing.

The life of a step, in order:

1. Forward. Before the model's own call the structure is compared with what is known (``_discover`` follows a
   change). After each layer its output is reduced to a few numbers, kept as a ``LayerCall``
   (``_after_layer``); activations and normalizations find the layer they stand behind and note it
   (``_after_activation``). Of compiled code nothing is seen: once the model's call has returned, a copy runs
   over the first samples instead (``_shadow``).
2. Backward. The gradient of an output is heard of by a hook on that tensor and reduced
   (``_output_gradient_arrives``); it counts once the pass has reached a parameter. A parameter's own hook
   notes that its gradient has arrived (``_gradient_arrives``).
3. The pass ends. Gradients are read as they are now, averaged over processes but not yet clipped
   (``_pass_ends``). A loop that frees them during the pass is found out in the first one, and then they are
   read when they arrive.
4. Optimizer. Before its step each weight is copied, with its norm taken on the way (``_before_update``);
   after it the norm of the difference is taken (``_after_update``). An optimizer nobody told of that updates
   the same weights takes the other's place. Until one has been heard to step, weights are copied when the
   pass has ended and compared when the step is read: a step in a larger compiled function calls no hooks.
5. Read. ``collect`` hands all numbers over as ``StepMeasurements``; those of a GPU still lie there and come
   in one transfer (``HostCopy``), those of weights that are spread over processes are first added up in one
   all-reduce (``sharding``). A new step begins, with parameters that have been made, thawed or replaced
   since.

Only the model's own modules, parameters and optimizers are hooked (``hooks`` says how its copies stay free of
that); of the process there is one hook that looks at which optimizers step.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from initscope.errors import ConfigError
from initscope.recording.calls import LayerCall, ProducerIndex, StepCalls
from initscope.recording.grad_scaler import LossScale
from initscope.recording.guard import guarded, raise_fault
from initscope.recording.hooks import (
    CompiledCall,
    CompiledStep,
    Handle,
    Undo,
    hook,
    numbered_modules,
    structure_changed,
)
from initscope.recording.layers import (
    Layer,
    find_layers,
    is_activation,
    is_normalization,
    is_scripted,
    unmeasured,
)
from initscope.recording.quantities import OF_WEIGHTS, Weight
from initscope.recording.quantities.gradient_norm import unscaled
from initscope.recording.reading import StepMeasurements, WeightNumbers
from initscope.recording.reductions import Number, dead_units, forward_statistics, norm
from initscope.recording.repeatable import obstacle
from initscope.recording.shadow import shadow_pass
from initscope.recording.sharding import sum_over_processes
from initscope.recording.tensors import (
    function_before,
    is_compiled_output,
    is_dense,
    is_readable,
    is_shared,
    local,
    output_of,
)
from initscope.recording.wrappers import as_optimizers, is_compiled, unwrapped
from initscope.torch_internals import (
    FORWARD_HOOKS,
    FORWARD_PRE_HOOKS,
    NO_PASS,
    at_the_end_of_the_pass,
    backward_pass,
    begin_gradient_hooks,
    compiled_call,
    gradient_hooks,
    in_function_transform,
    insides,
    is_compiled_step,
    version,
)

MEASURING = "measuring the network"
"""What a fault of a hook is told to have happened in."""
RECTIFIERS = (nn.ReLU, nn.ReLU6)
_SCALES = ("norm", "activation")
"""Families whose rows stand between a layer and its nonlinearity."""


class LayerMeter:
    """Measures the layers of ``model`` (``layers.find_layers`` says which); a context manager that always
    takes its hooks off.

    ``enabled`` decides whether the coming step is measured. Passes without gradients (``no_grad``) never are,
    those of a model in evaluation mode only if a backward pass follows. Of a weight that its optimizer
    updates several times between two ``collect`` the last update counts. In a closure that an optimizer calls
    several times (LBFGS) the first evaluation counts, the one at the weights before the step.

    ``names`` and ``kinds`` say what the rows of ``StepMeasurements.order`` are; where layers are added or
    replaced, both grow.
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
        self.names: list[str] = []
        self.kinds: list[str] = []
        self.enabled = True
        self.thoroughly = True
        """Whether the coming step is measured with the costly quantities (``stable_rank``) too."""
        self.follows_another = False
        """Whether this process only adds its parts of weights to what another one records: it looks at no
        output.
        """
        self.activations: dict[str, str] = {}
        self.normalized: set[str] = set()
        self.empty_update = False
        """Whether an optimizer stepped without a gradient having been computed."""
        self.late_update = False
        """Whether an optimizer stepped between a ``collect`` and the next backward pass: too late to be
        measured.
        """
        self.trained_in_evaluation = False
        """Whether a backward pass has followed a pass of the model in evaluation mode."""
        self.shadow: dict[str, Any] = {}
        """Of a compiled model: ``samples`` of the ``batch`` that the forward columns hold for, or how the
        second pass ``failed``.
        """
        self.on_forward: Callable[[tuple, dict, Any], None] | None = None
        """Called with (inputs, keyword inputs, output) after every training pass of the whole model."""
        self.on_pass: Callable[[tuple, dict, Any], None] | None = None
        """The same, for ``inspection``."""
        self.fault: Callable[[str, Exception], None] = raise_fault
        """Called with what a hook was doing and what it raised, which never goes on into the training."""
        self.loss_scale = LossScale()
        self._choice = layers, kinds
        self._numbers: dict[tuple[str, str, int], int] = {}
        self._layer_of: dict[int, Layer] = {}
        self._executed: dict[int, None] = {}
        self._quantities = [quantity() for quantity in OF_WEIGHTS]
        self._weights: list[Weight] = []
        self._weight_of: dict[int, Weight] = {}
        self._calls: list[StepCalls] = []
        self._producers = ProducerIndex()
        self._handles: list[Any] = []
        self._on_modules: list[Handle | RemovableHandle | CompiledCall] = []
        self._on_optimizers: list[list[RemovableHandle | CompiledStep]] = []
        self._followed: dict[int, tuple[nn.Parameter, RemovableHandle, int]] = {}
        self._rectified: set[int] = set()
        """Layers whose output went straight into a rectifier when they were last seen."""
        self._heard: dict[int, list[tuple[StepCalls, LayerCall, Number]]] = {}
        self._owned = -1
        self._strangers: weakref.WeakKeyDictionary[torch.optim.Optimizer, int] = weakref.WeakKeyDictionary()
        """Optimizers of other networks, with how many parameters they held."""
        self._passes: set[int] = set()
        self._arrived: dict[Weight, None] = {}
        self._backward_seen = self._backward_since_update = False
        self._stepped: set[int] = set()
        self._updating: int | None = None
        """Which optimizer's step is under way."""
        self._unheard = bool(self.optimizers)
        """Whether weights are watched from the end of the backward pass on, because no optimizer has been
        heard to step yet.
        """
        self._evaluated: tuple[int, ...] | None = None
        self._entered = self._shadowed = False
        self._shadow_rows: set[int] | None = None
        self._know(find_layers(self.model, layers, kinds))

    # -- which layers there are

    @property
    def layers(self) -> list[Layer]:
        """The layers that there are now."""
        return [*self._layer_of.values()]

    def _know(self, layers: Sequence[Layer]) -> None:
        """Take ``layers`` for those of the model; what was known by name and kind keeps its number."""
        self._layer_of = {}
        seen: dict[tuple[str, str], int] = {}
        for layer in layers:
            key = layer.name, layer.kind, seen.setdefault((layer.name, layer.kind), 0)
            seen[layer.name, layer.kind] += 1
            i = self._numbers.setdefault(key, len(self.names))
            if i == len(self.names):
                self.names.append(layer.name)
                self.kinds.append(layer.kind)
                self._calls.append(StepCalls())
            self._layer_of[i] = layer
        self.unmeasured = unmeasured(self.model)
        """Which layers cannot be measured, and why; None if all can."""
        self.loss_only = self.unmeasured is not None and not self._layer_of
        """Whether no layer can be measured: then only the outermost module and the optimizers are hooked."""
        self._known = list(numbered_modules(self.model))
        self._executed = {}
        self._roles = self._assign_roles()
        self._own = {id(p): p for p in self.model.parameters()}
        self.sharded = any(map(is_shared, self._own.values()))
        """Whether weights are spread over processes: then every one of them has to ``collect``."""
        self._waiting = [*self._layer_of]
        self._others = [*self._own.values()]
        self._was = self._weight_of
        self._weights, self._weight_of, self._owned = [], {}, -1

    def _assign_roles(self) -> dict[nn.Module, list[Callable]]:
        """What to do after a call of a module; the first to run comes first."""
        roles: dict[nn.Module, list[Callable]] = {}
        for module in self.model.modules():
            if is_activation(module):
                roles[module] = [self._after_activation]
            elif is_normalization(module):
                roles[module] = [self._after_normalization]
        self._rows_of: dict[nn.Module, list[int]] = {}
        for i, layer in self._layer_of.items():
            self._rows_of.setdefault(layer.module, []).append(i)
            if layer.has_output:
                roles.setdefault(layer.module, []).append(functools.partial(self._after_layer, i))
        return roles

    def _discover(self) -> None:
        """Follow a change: layers, parameters or hooks that are new, gone or others."""
        deaf = [p for p, _, within in self._followed.values() if insides(p) != within]
        if self.loss_only or (
            not deaf
            and not structure_changed(self._known)
            and not any(isinstance(h, Handle) and h.lost for h in self._on_modules)
        ):
            return
        try:
            layers = find_layers(self.model, *self._choice)
        except ConfigError:  # nothing is left of what was chosen
            layers = []
        self._know(layers)
        for key in [key for key in self._followed if key not in self._own]:
            self._followed.pop(key)[1].remove()
        for parameter in [p for p in deaf if id(p) in self._followed]:
            self._followed.pop(id(parameter))[1].remove()
            begin_gradient_hooks(parameter)
        self._hook_modules()
        self._attach()

    # -- hooks on and off

    def __enter__(self) -> LayerMeter:
        try:
            self._entered = True
            self.loss_scale.__enter__()
            self._handles.append(Undo(self.loss_scale.__exit__))
            self._hook_modules()
            self._attach()
            self._on_optimizers = [self._hook_optimizer(optimizer) for optimizer in self.optimizers]
            if self.optimizers:
                self._handles.append(register_optimizer_step_pre_hook(self._before_any_update))
        except BaseException:
            self.__exit__()
            raise
        return self

    def _hook_modules(self) -> None:
        for handle in self._on_modules:
            handle.remove()
        handles: list[Handle | RemovableHandle | CompiledCall] = []
        self._on_modules = handles
        if self.follows_another:
            return
        for module in [] if self.loss_only else [*dict.fromkeys([self.model, *self._rows_of])]:
            handles.append(hook(module, FORWARD_PRE_HOOKS, self._before_module))
        for module in () if self.loss_only else self._roles:
            handles.append(hook(module, FORWARD_HOOKS, self._after_module))
        if is_scripted(self.outer):
            return
        if compiled_call(self.outer) is not None:
            handles.append(CompiledCall(self.outer, self._after_model))
        else:
            handles.append(hook(self.outer, FORWARD_HOOKS, self._after_model, kwargs=True))

    def _hook_optimizer(self, optimizer: torch.optim.Optimizer) -> list[RemovableHandle | CompiledStep]:
        reference = weakref.ref(optimizer)
        before = functools.partial(self._before_update, reference)
        after = functools.partial(self._after_update, reference)
        if is_compiled_step(optimizer):
            return [CompiledStep(optimizer, before, after)]
        return [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]

    def _attach(self) -> None:
        """Follow the parameters that have been made (lazy modules) or have begun to be trained since the last
        look.
        """
        waiting = []
        for i in self._waiting:
            parameter = self._layer_of[i].weight
            if parameter is None:
                waiting.append(i)
                continue
            weight = self._weight_of.get(id(parameter))
            if weight is None:
                weight = self._weight_of[id(parameter)] = self._was.get(id(parameter)) or Weight(
                    parameter, [], is_readable(local(parameter))
                )
                weight.rows = []
                self._weights.append(weight)
                self._owned = -1
            if i not in weight.rows:
                weight.rows.append(i)
            if not self._follow(parameter):
                waiting.append(i)
        self._waiting = waiting
        if self.loss_only:
            return
        self._others = [p for p in self._others if not self._follow(p)]

    def _follow(self, parameter: nn.Parameter) -> bool:
        """Whether the parameter's gradients are heard of, from now on at the latest."""
        if id(parameter) in self._followed:
            return True
        if not self._entered or is_lazy(parameter) or not parameter.requires_grad or not parameter.is_leaf:
            return False
        handle = parameter.register_post_accumulate_grad_hook(self._gradient_arrives)
        hooks = gradient_hooks(parameter)
        for key in [key for key in hooks if key != handle.id]:
            hooks[key] = hooks.pop(key)  # ours comes before one that frees the gradient
        self._followed[id(parameter)] = parameter, handle, insides(parameter)
        return True

    def __exit__(self, *exception: object) -> None:
        following = [handle for _, handle, _ in self._followed.values()]
        for handle in [
            *self._handles,
            *self._on_modules,
            *(h for pair in self._on_optimizers for h in pair),
            *following,
        ]:
            handle.remove()
        self._handles.clear()
        self._on_modules.clear()
        self._on_optimizers.clear()
        self._followed.clear()
        self._entered = False
        for weight in self._weights:
            weight.before = None

    # -- forward

    def _watching(self) -> bool:
        return (
            self.enabled
            and torch.is_grad_enabled()
            and not in_function_transform()
            and not torch.jit.is_tracing()
            and not self._evaluating_again()
        )

    def _evaluating_again(self) -> bool:
        """Whether an optimizer calls its closure again, at other weights than those before the step."""
        return (
            self._updating is not None and self._evaluated is not None and self._evaluated != self._versions()
        )

    @guarded(MEASURING)
    def _before_module(self, module: nn.Module, inputs: Any) -> None:
        if torch.compiler.is_compiling() or not self.enabled:
            return
        watching = self._watching()
        if module is self.model and watching:
            self._producers.clear()
            if not self.sharded:  # there a pass puts whole parameters in place of its own
                self._discover()
        rows = self._rows_of.get(module)
        if rows is None or not (watching or self.model.training):
            return
        if rows[0] not in self._executed:  # checkpointing runs it without gradients first
            self._executed.update(dict.fromkeys(rows))
        first = inputs[0] if inputs and watching else None
        if isinstance(first, Tensor) and self._layer_of[rows[0]].family not in _SCALES and is_dense(first):
            self._notice_function(first)

    @guarded(MEASURING)
    def _after_module(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if torch.compiler.is_compiling() or not self.enabled:
            return
        roles = self._roles.get(module)
        if roles is not None and self._watching():
            for role in roles:
                role(module, inputs, output)

    @guarded(MEASURING)
    def _after_model(self, module: nn.Module, inputs: Any, kwargs: Any, output: Any) -> None:
        if torch.compiler.is_compiling() or not self.enabled or not self._watching():
            return
        trained = self.model.training or self.trained_in_evaluation
        for listener in (self.on_forward, self.on_pass) if trained else ():
            if listener is not None:
                listener(inputs, kwargs, output)
        if trained and not self._shadowed and is_compiled(self.outer):
            self._shadow(inputs, kwargs)

    def _after_layer(self, i: int, module: nn.Module, inputs: Any, output: Any) -> None:
        output, samples = output_of(module, output)
        if output is None:
            return
        if self._waiting and i in self._waiting and not self.sharded:
            self._attach()  # a lazy module has just made its weight
        seen = output.detach()  # without a graph, and so are the numbers taken from it
        rows = seen if samples == 0 else seen.reshape(1, -1) if samples is None else seen.movedim(samples, 0)
        values = forward_statistics(rows, off=samples == 0 and i in self._rectified)
        below = values.pop("off", None)
        place = output.data_ptr(), version(output)
        call = LayerCall(output.numel(), values, place, samples is not None, not self.model.training, below)
        calls = self._calls[i]
        if self._shadow_rows is not None:
            if i in self._shadow_rows:
                calls.reached.append(call)
        elif call.evaluating:
            calls.candidate = call
        else:
            calls.newest = call
        if self._layer_of[i].family not in _SCALES:
            self._producers.add(i, call, output)
        if output.requires_grad:
            output.register_hook(functools.partial(self._output_gradient_arrives, calls, call))

    def _after_activation(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(output, Tensor) or not is_dense(output) or is_compiled_output(inputs):
            return
        x = inputs[0] if inputs else output
        before = self._producers.before(x, output)
        if before is None:
            return
        i, call = before
        self.activations[self.names[i]] = type(module).__name__
        if isinstance(module, RECTIFIERS):
            straight = call.count == x.numel() and call.place == (x.data_ptr(), version(x) - (x is output))
            (self._rectified.add if straight else self._rectified.discard)(i)
            call.off = call.below if straight and call.below is not None else dead_units(output)

    def _notice_function(self, x: Tensor) -> None:
        """Notice a nonlinearity that was called as a function (``F.relu``) before a layer: no module's hook
        sees it.
        """
        function = function_before(x)
        before = self._producers.before(x) if function is not None else None
        if before is not None and function is not None:
            self._note_function(before, function, x)

    def _note_function(self, before: tuple[int, LayerCall], function: str, output: Tensor) -> None:
        i, call = before
        if call.off is None and self.activations.setdefault(self.names[i], function) == function == "ReLU":
            call.off = dead_units(output)

    def _after_normalization(self, module: nn.Module, inputs: Any, output: Any) -> None:
        before = self._producers.before(output) if isinstance(output, Tensor) and is_dense(output) else None
        if before is not None:
            self.normalized.add(self.names[before[0]])

    def _shadow(self, inputs: tuple, kwargs: dict) -> None:
        """Measure by a second pass, uncompiled and over few samples, the layers that compiled code has
        run.
        """
        self._shadowed = True
        rows = {i for i in self._layer_of if self._calls[i].newest is None and not self._calls[i].reached}
        if not rows or "failed" in self.shadow or self.follows_another:
            return
        if not self.shadow and (kept := obstacle(self.model, [inputs, kwargs])) is not None:
            self.shadow = {"failed": kept}
            return
        producers, self._producers = self._producers, ProducerIndex()
        self._shadow_rows = rows
        try:
            samples, batch = shadow_pass(self.model, inputs, kwargs, self._after_shadow, self._after_function)
            self.shadow = {"samples": samples, "batch": batch}
        except Exception as error:  # a model that cannot be copied, or that cannot run twice
            self.shadow = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
            for i in rows:
                self._calls[i].reached.clear()
        finally:
            self._producers, self._shadow_rows = producers, None

    def _after_shadow(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._executed.update(
            dict.fromkeys(i for i in self._rows_of.get(module, ()) if i not in self._executed)
        )
        for role in self._roles.get(module, ()):
            role(module, inputs, output)

    def _after_function(self, function: str, output: Tensor) -> None:
        before = self._producers.before(output)
        if before is not None:
            self._note_function(before, function, output)

    # -- backward

    @guarded(MEASURING)
    def _output_gradient_arrives(self, calls: StepCalls, call: LayerCall, gradient: Tensor) -> None:
        if self.enabled and not calls.over and is_dense(gradient):
            length = unscaled(norm(gradient.detach()), self.loss_scale.current)
            self._heard.setdefault(backward_pass(), []).append((calls, call, length))

    @guarded(MEASURING)
    @torch.no_grad()
    def _gradient_arrives(self, parameter: Tensor) -> None:
        """A gradient is whole for this process. It counts as it is at the end of the pass, when it has been
        averaged over processes.
        """
        self._backward_since_update = True
        if not self.enabled or torch.compiler.is_compiling() or self._evaluating_again():
            return
        weight = self._weight_of.get(id(parameter))
        if weight is not None:
            weight.scale = self.loss_scale.current
            self._arrived[weight] = None
            for quantity in self._quantities:
                quantity.gradient_arrives(weight)
        this_pass = backward_pass()
        if this_pass not in self._passes:
            self._passes.add(this_pass)
            # Queued twice: what others have queued for the end of the pass (DistributedDataParallel's
            # averaging) comes first.
            later = functools.partial(self._pass_ends, this_pass)
            at_the_end_of_the_pass(lambda: at_the_end_of_the_pass(later))

    @guarded(MEASURING)
    @torch.no_grad()
    def _pass_ends(self, this_pass: int) -> None:
        # Only passes that reach parameters count: others (torch.autograd.grad for an input) are not the
        # loss's.
        for calls, call, length in self._heard.pop(this_pass, ()):
            if calls.over:
                continue
            if not call.gradients:
                calls.reached.append(call)
                self.trained_in_evaluation |= call.evaluating
            call.gradients.append(length)
        self._passes.discard(this_pass)
        if self._passes:
            return  # a pass within a pass (checkpointing)
        arrived = list(self._arrived)
        for quantity in self._quantities:
            quantity.gradients_ready(arrived)
        self._arrived.clear()
        self._backward_seen = True
        if self._updating is not None and self._evaluated is None:
            self._evaluated = self._versions()
        if self._unheard:
            self._watch([weight for weight in self._weights if weight.readable])

    def _versions(self) -> tuple[int, ...]:
        """Changes whenever a weight does."""
        return tuple(version(weight.parameter) for weight in self._weights)

    # -- update

    @guarded(MEASURING)
    def _before_any_update(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        """Follow an optimizer that nobody has told of: one made anew takes the place of the one whose weights
        it updates.
        """
        if (
            torch.compiler.is_compiling()
            or self._updating is not None
            or any(optimizer is known for known in self.optimizers)
        ):
            return
        count = sum(len(group["params"]) for group in optimizer.param_groups)
        if self._strangers.get(optimizer) == count:
            return
        held = _held(optimizer)
        if not any(id(p) in held for p in self.model.parameters()):
            self._strangers[optimizer] = count
            return
        own = {
            id(p) for p in self.model.parameters() if p.requires_grad
        }  # what has been frozen since, nobody updates
        place = next(
            (k for k, known in enumerate(self.optimizers) if (_held(known) & own) <= held),
            len(self.optimizers),
        )
        if place == len(self.optimizers):
            self.optimizers.append(optimizer)
            self._on_optimizers.append([])
        for handle in self._on_optimizers[place]:
            handle.remove()
        self.optimizers[place], self._owned = optimizer, -1
        self._on_optimizers[place] = self._hook_optimizer(
            optimizer
        )  # torch calls these next, for this same step

    def _number_of(self, reference: weakref.ref) -> int | None:
        optimizer = reference()
        return next((k for k, known in enumerate(self.optimizers) if known is optimizer), None)

    def _of(self, k: int) -> list[Weight]:
        """Weights that optimizer ``k`` holds and that can be read; those that none holds go with the
        first.
        """
        held = sum(len(group["params"]) for optimizer in self.optimizers for group in optimizer.param_groups)
        if held != self._owned:
            self._owned = held
            owner = {key: k for k, optimizer in enumerate(self.optimizers) for key in _held(optimizer)}
            for weight in self._weights:
                holder = owner.get(id(weight.parameter))
                weight.optimizer, weight.held = holder or 0, holder is not None
        return [weight for weight in self._weights if weight.optimizer == k and weight.readable]

    @guarded(MEASURING)
    @torch.no_grad()
    def _before_update(self, reference: weakref.ref, *_: object) -> None:
        k = self._number_of(reference)
        if not self.enabled or torch.compiler.is_compiling() or k is None or self._updating is not None:
            return  # also an optimizer that another one calls: the whole step is the other's
        self._abandon()
        self._discover()
        self._updating, self._evaluated, self._unheard = k, None, False
        weights = self._of(k)
        within = (
            backward_pass() != NO_PASS
        )  # an optimizer for each parameter, stepped during the backward pass to save memory
        by_hand = not (
            self._backward_seen or self._backward_since_update
        )  # somebody has put gradients there: per-sample ones, averaged
        if within or by_hand:
            fresh = [w for w in weights if within or w.has_new_gradient]
            for weight in fresh:
                weight.scale = self.loss_scale.current
            for quantity in self._quantities:
                quantity.gradients_ready(fresh)
            self._backward_seen = within or bool(fresh)
        self._watch(weights)

    def _watch(self, weights: Sequence[Weight]) -> None:
        """Note what ``weights`` are before they are updated."""
        for quantity in self._quantities:
            if self.thoroughly or not quantity.costly:
                quantity.before_update(weights)

    @guarded(MEASURING)
    @torch.no_grad()
    def _after_update(self, reference: weakref.ref, *_: object) -> None:
        k = self._number_of(reference)
        late = self._backward_since_update
        self._backward_since_update = False
        if not self.enabled or torch.compiler.is_compiling() or k is None or self._updating != k:
            return
        self._updating = None
        weights = [weight for weight in self._of(k) if "weight" in weight.values]
        for weight in weights:
            weight.use_gradient()
        if not self._backward_seen:
            self.late_update |= late
            self.empty_update |= not late
            for weight in weights:
                weight.values = {}
            return
        self._stepped.add(k)
        for quantity in self._quantities:
            quantity.after_update(weights)

    def _abandon(self) -> None:
        """Forget a backward pass that did not come to its end."""
        if backward_pass() == NO_PASS:
            self._passes.clear()
            self._heard.clear()
            self._arrived.clear()
            self.loss_scale.forget()

    # -- the result

    @property
    def backward_seen(self) -> bool:
        """Whether a gradient of a weight was computed since the last ``collect``."""
        return self._backward_seen

    def gradients_unheard(self) -> bool:
        """Whether weights have gradients though none was heard to arrive, nor an optimizer to step."""
        return self._unheard and any(weight.parameter.grad is not None for weight in self._weights)

    def misses_gradients(self) -> bool:
        """Whether layers ran in a training pass since the last ``collect`` and no gradient came for weights
        that are trained.
        """
        ran = any(calls.newest is not None for calls in self._calls)
        return (
            ran
            and not self._backward_seen
            and any(weight.parameter.requires_grad for weight in self._weights)
        )

    @torch.no_grad()
    def collect(self) -> StepMeasurements:
        """What this step has shown of every layer, in execution order; a new step begins.

        Where weights are spread over processes (``sharded``), all of them have to call this for the same
        steps.
        """
        try:
            if self._unheard:
                self._update_unheard()
            for quantity in self._quantities:
                quantity.at_the_end(self._weights, bool(self._stepped))
            weights = [
                WeightNumbers(tuple(weight.rows), weight.parameter.numel(), weight.values)
                for weight in self._weights
            ]
        finally:  # the others wait for this process, whatever has gone wrong in it
            sum_over_processes([(weight.parameter, weight.values) for weight in self._weights])
        for calls in self._calls:
            if calls.newest is None and self.trained_in_evaluation and self._backward_seen:
                calls.newest = calls.candidate
        reading = StepMeasurements(
            [calls.chosen() for calls in self._calls], weights, self._ordered(), self._quantities
        )
        self.discard()
        return reading

    def _update_unheard(self) -> None:
        """Take what has become of the weights since the backward pass for the update: an optimizer whose step
        is part of a larger compiled function calls no hooks. Weights that have stayed had none, perhaps.
        """
        weights = [weight for weight in self._weights if "weight" in weight.values]
        for weight in weights:
            weight.values["unheard"] = 1.0
        for quantity in self._quantities:
            quantity.after_update(weights)

    def discard(self) -> None:
        """Forget the step that was being measured."""
        self._abandon()
        for calls in self._calls:
            calls.over = True
        self._calls = [StepCalls() for _ in self.names]
        self._producers.clear()
        self._updating = None
        self._backward_seen = False
        self._stepped.clear()
        for weight in self._weights:
            weight.values, weight.gradient, weight.on_arrival = {}, None, None
        self._discover()
        self._shadowed = False
        self._attach()

    def _ordered(self) -> list[int]:
        """Layers in the order of their first execution; those never run last."""
        return [
            *(i for i in self._executed if i in self._layer_of),
            *(i for i in self._layer_of if i not in self._executed),
        ]


def _held(optimizer: torch.optim.Optimizer) -> set[int]:
    """Ids of the optimizer's parameters."""
    return {id(p) for group in optimizer.param_groups for p in group["params"]}
