"""What torch does not promise to keep, one test a use: a failure says what a new version has moved, and what
breaks by it.
"""

from __future__ import annotations

import copy

import torch
import torch.utils.flop_counter
from torch import nn

from initscope import torch_internals as internals


def test_convolutions_have_one_base():
    for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d):
        assert issubclass(kind, internals.CONVOLUTION), "convolutions are no longer found among the layers"


def test_a_module_keeps_its_hooks_by_number():
    module, calls = nn.Linear(2, 2), []
    module.register_forward_pre_hook(lambda *_: calls.append("before"))
    module.register_forward_hook(lambda *_: calls.append("after"))
    module.register_full_backward_hook(lambda *_: None)
    module.register_full_backward_pre_hook(lambda *_: None)
    module._register_state_dict_hook(lambda *_: None)
    for where in (
        internals.FORWARD_PRE_HOOKS,
        internals.FORWARD_HOOKS,
        internals.BACKWARD_HOOKS,
        internals.BACKWARD_PRE_HOOKS,
        internals.STATE_DICT_HOOKS,
    ):
        assert len(module.__dict__[where]) == 1, f"hooks are not in {where}: nothing would be measured"
    module(torch.ones(1, 2))
    module.__dict__[internals.FORWARD_PRE_HOOKS].clear()
    module.__dict__[internals.FORWARD_HOOKS].clear()
    module(torch.ones(1, 2))
    assert calls == ["before", "after"], "hooks are called from elsewhere than these dictionaries"


def test_hooks_with_keyword_arguments_are_flagged_beside():
    module, seen = nn.Bilinear(2, 2, 1), []
    for where, flags in internals.WITH_KWARGS.items():
        before = where == internals.FORWARD_PRE_HOOKS
        register = module.register_forward_pre_hook if before else module.register_forward_hook
        handle = register(lambda *arguments: seen.append(len(arguments)), with_kwargs=True)
        assert set(module.__dict__[flags]) == {handle.id}, "keyword arguments would not reach our hooks"
    module(torch.ones(1, 2), input2=torch.ones(1, 2))
    assert seen == [3, 4]


def test_a_compiled_step_says_so():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))])
    assert not internals.is_compiled_step(optimizer)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)  # puts a function of its own in the step's place
    assert not internals.is_compiled_step(optimizer)
    optimizer.step = torch.compile(optimizer.step, backend="eager")
    assert internals.is_compiled_step(optimizer), "a compiled step's update would no longer be measured"


def test_a_backward_pass_has_a_number_and_an_end():
    x, seen = torch.ones(2, requires_grad=True), []

    def during(gradient: torch.Tensor) -> None:
        seen.append(internals.backward_pass() != internals.NO_PASS)
        internals.at_the_end_of_the_pass(lambda: seen.append("first"))
        internals.at_the_end_of_the_pass(lambda: seen.append("second"))

    x.register_hook(during)
    (x * 2).sum().backward()
    assert seen == [True, "first", "second"], "gradients would be read before they are whole"
    assert internals.backward_pass() == internals.NO_PASS


def test_a_function_transform_is_noticed():
    seen = []
    torch.func.vmap(lambda x: (seen.append(internals.in_function_transform()), x)[1])(torch.ones(2))
    assert seen == [True] and not internals.in_function_transform(), "wrapped tensors would be read"


def test_writing_to_a_tensor_is_counted():
    x = torch.ones(2)
    before = internals.version(x)
    x[:1].mul_(2)
    assert internals.version(x) == before + 1, "a weight that has changed would pass for the old one"


def test_nodes_of_the_graph_are_numbered_in_order():
    x = torch.ones(2, requires_grad=True)
    first = x * 2
    second = first + 1
    assert internals.sequence_number(first.grad_fn) < internals.sequence_number(second.grad_fn), (
        "an activation would be given to another layer"
    )


def test_a_node_shows_what_it_has_saved():
    x = torch.ones(2, requires_grad=True)
    node = x.exp().grad_fn
    assert internals.saved_names(node) == ["_saved_result"], "a graph that was used up would not be noticed"


def test_gradient_hooks_run_in_the_order_of_their_dictionary():
    x, calls = torch.ones(2, requires_grad=True), []
    one = x.register_post_accumulate_grad_hook(lambda _: calls.append("one"))
    x.register_post_accumulate_grad_hook(lambda _: calls.append("two"))
    hooks = internals.gradient_hooks(x)
    hooks[one.id] = hooks.pop(one.id)
    x.sum().backward()
    assert calls == ["two", "one"], "a loop that frees gradients in such a hook would free them before ours"


def test_hooks_of_a_tensor_whose_insides_were_exchanged():
    x, calls = nn.Parameter(torch.ones(2)), []
    x.register_post_accumulate_grad_hook(lambda _: calls.append("lost"))
    before = internals.insides(x)
    torch.utils.swap_tensors(x, nn.Parameter(torch.ones(2)))
    assert internals.insides(x) != before, "nothing would tell that gradients are no longer heard of"
    internals.begin_gradient_hooks(x)
    x.register_post_accumulate_grad_hook(lambda _: calls.append("new"))
    x.sum().backward()
    assert calls == ["new"], "gradients would not be heard of, or a hook that was lost would be back"


def test_a_compiled_module_has_one_call_that_can_be_replaced():
    module = nn.Linear(2, 2)
    assert internals.compiled_call(module) is None and not internals.holds_compiled(module)
    module.compile(backend="eager")
    assert internals.compiled_call(module) is not None and internals.holds_compiled(module)
    internals.set_compiled_call(module, lambda x: "ours")
    assert module(torch.ones(1, 2)) == "ours", "compiled modules would not be recorded"
    internals.set_compiled_call(module, None)
    assert not internals.holds_compiled(copy.deepcopy(module))
    assert internals.holds_compiled(torch.compile(nn.Linear(2, 2), backend="eager"))


def test_the_factor_of_a_loss_is_known_without_waiting():
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    assert internals.loss_scale(scaler) is None
    scaler.scale(torch.ones(()))
    assert internals.loss_scale(scaler).item() == 8, "gradients would be recorded with the loss's factor"


def test_many_tensors_are_reduced_together():
    a, b = [torch.full((3,), 2.0), torch.full((4,), 1e-30)], [torch.ones(3), torch.zeros(4)]
    norms = internals.norm_all(a, torch.float64)
    assert [n.dtype for n in norms] == [torch.float64] * 2
    assert torch.allclose(torch.stack(list(norms)), torch.tensor([12**0.5, 2e-30], dtype=torch.float64))
    internals.subtract_all(a, b)
    assert a[0].tolist() == [1, 1, 1]
    internals.copy_all(b, a)
    assert torch.equal(b[0], a[0])


def test_operations_can_be_watched_and_run_without_numbers():
    class Count(internals.TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            self.seen += len(internals.tree_leaves((arguments, keywords)))
            return function(*arguments, **(keywords or {}))

    with Count() as count:
        torch.ones(2) + torch.ones(2)
    assert count.seen > 0
    with internals.FakeTensorMode() as mode:
        made = internals.tree_map(mode.from_tensor, {"x": torch.ones(2, 3)})["x"]
        assert isinstance(made, internals.FakeTensor) and made.T.shape == (3, 2)


def test_whoever_watches_operations_is_noticed():
    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), keywords=None):
            return function(*arguments, **(keywords or {}))

    assert not internals.is_watched()
    with torch.device("cpu"):
        assert not internals.is_watched(), "a default device is nobody who watches"
        with Watch():
            assert internals.is_watched(), "a pass of ours would be counted as the training's"
    with torch.utils.flop_counter.FlopCounterMode(display=False):
        assert internals.is_watched()
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert internals.is_watched()
    handle.remove()
    assert not internals.is_watched()


def test_views_of_fake_tensors_share_memory():
    with internals.FakeTensorMode():
        x = torch.ones(4, 4)
        assert internals.share_memory(x[1:], x.view(16)), "a write through a view would not be followed"
        assert not internals.share_memory(x, torch.ones(4, 4))
