"""The VGG family, exactly: parameters, names, map sizes, options; and the same function as torchvision's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from initscope import networks
from initscope.config import catalog
from initscope.config.run_config import RunConfig
from initscope.config.shapes import VGG_BLOCKS
from initscope.networks import vgg
from initscope.networks.inits import LAYERS


def on_meta(*args, **options) -> nn.Sequential:
    """The architecture without its weights: no memory, no time."""
    with torch.device("meta"):
        return vgg(*args, **options)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def weighted(model: nn.Module) -> dict[str, nn.Module]:
    return {name: m for name, m in model.named_modules() if isinstance(m, LAYERS)}


def shapes(model: nn.Module, channels: int, size: int) -> dict[str, tuple[int, ...]]:
    """{module: shape of its output} for one image."""
    x, seen = torch.empty(1, channels, size, size, device="meta"), {}
    for name, module in model.named_children():
        x = module(x)
        seen[name] = tuple(x.shape[1:])
    return seen


def test_vgg16_is_the_network_of_the_story():
    model = on_meta()
    assert parameters(model) == 134_300_362
    blocks = {1: (2, 64), 2: (2, 128), 3: (3, 256), 4: (3, 512), 5: (3, 512)}
    names = [f"conv{b}_{i}" for b, (count, _) in blocks.items() for i in range(1, count + 1)] + [
        "fc1",
        "fc2",
        "fc3",
    ]
    assert list(weighted(model)) == names
    assert not any(isinstance(m, (nn.Dropout, nn.BatchNorm2d)) for m in model.modules())

    out = shapes(model, 1, 224)
    for block, (count, channels) in blocks.items():
        size = 224 // 2 ** (block - 1)
        for i in range(1, count + 1):
            conv = model.get_submodule(f"conv{block}_{i}")
            assert (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (1, 1))
            assert out[conv_name := f"conv{block}_{i}"] == (channels, size, size), conv_name
        assert out[f"pool{block}"] == (channels, size // 2, size // 2)
    assert out["flatten"] == (25088,) and out["fc1"] == out["fc2"] == (4096,) and out["fc3"] == (10,)

    # Each weighted layer but the last is followed by a ReLU, and nothing else stands between.
    order = list(model)
    for name, layer in list(weighted(model).items())[:-1]:
        assert isinstance(order[order.index(layer) + 1], nn.ReLU), name
    assert order[-1] is model.fc3


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("name", list(VGG_BLOCKS))
def test_layers_are_torchvisions(name, batch_norm):
    import torchvision

    with torch.device("meta"):
        theirs = getattr(torchvision.models, name + "_bn" * batch_norm)(num_classes=10)
    ours = on_meta(name, in_channels=3, batch_norm=batch_norm)
    assert [tuple(p.shape) for p in ours.parameters()] == [tuple(p.shape) for p in theirs.parameters()]


def test_it_computes_what_torchvisions_vgg16_computes():
    """Their weights in our network: the same logits for a 224x224 image."""
    import torchvision

    with torch.device("meta"):
        theirs = torchvision.models.vgg16(num_classes=10)
    generator = torch.Generator().manual_seed(0)
    theirs.to_empty(device="cpu").eval()
    for p in theirs.parameters():
        p.data.uniform_(-1, 1, generator=generator).mul_(1 / p[0].numel() ** 0.5)
    ours = on_meta(in_channels=3)
    state = dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True))
    ours.load_state_dict(state, assign=True)
    image = torch.rand(1, 3, 224, 224, generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(ours(image), theirs(image))


def test_options():
    assert parameters(on_meta(batch_norm=True)) == 134_300_362 + 2 * (2 * 64 + 2 * 128 + 3 * 256 + 6 * 512)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in on_meta(batch_norm=True)) == 13
    dropped = [m for m in on_meta(dropout=0.3) if isinstance(m, nn.Dropout)]
    assert [m.p for m in dropped] == [0.3, 0.3]
    assert parameters(on_meta(in_channels=3)) == 134_300_362 + 2 * 64 * 9
    assert parameters(on_meta(num_classes=7)) == 134_300_362 - 3 * 4097

    for size in (32, 64, 224, 1024):
        out = shapes(on_meta(image_size=size, in_channels=4, num_classes=3), 4, size)
        assert out["pool5"] == (512, size // 32, size // 32) and out["fc3"] == (3,)
    for width in (0.001, 0.0625, 0.25, 1.5):
        out = shapes(on_meta(image_size=32, width=width), 1, 32)
        assert out["conv1_1"][0] == max(1, round(64 * width)) and out["conv5_3"][0] == max(
            1, round(512 * width)
        )
        assert out["fc1"] == out["fc2"] == (max(1, round(4096 * width)),)
        assert out["fc3"] == (10,), "the classes are not scaled"

    for bad in ({"name": "vgg15"}, {"image_size": 100}):
        with pytest.raises(ValueError, match=r"vgg15|multiple of 32"):
            on_meta(**bad)


@pytest.mark.parametrize("name", list(catalog.MODELS))
def test_every_model_of_the_catalog_builds_and_runs(name):
    config = RunConfig(
        model=name, width=0.03, image_size=64, dropout=0.5 * catalog.MODELS[name].dropout, batch_norm=True
    )
    before = torch.get_rng_state()
    model = networks.build(config, in_channels=3, num_classes=5)
    assert torch.equal(torch.get_rng_state(), before), "building a model drew from the global random state"
    assert model.eval()(torch.rand(2, 3, 64, 64)).shape == (2, 5)
    assert set(VGG_BLOCKS) <= set(catalog.MODELS)


def test_weights_depend_on_the_seed_alone():
    def weights(**changes):
        config = RunConfig(width=0.03, image_size=32, **changes)
        return list(networks.build(config, in_channels=1, num_classes=10, sample=sample).parameters())

    sample = torch.rand(8, 1, 32, 32)
    for init in catalog.INITS:
        torch.manual_seed(1)
        first = weights(init=init, init_seed=3)
        torch.manual_seed(2)
        dropout = 0.0 if init == "auto" else 0.5  # which looks at the network as it trains, dropout included
        again = weights(init=init, init_seed=3, data_seed=9, dropout=dropout)
        assert all(map(torch.equal, first, again)), init
        other = weights(init=init, init_seed=4)
        differ = [not torch.equal(a, b) for a, b in zip(first, other, strict=True) if a.dim() > 1]
        assert all(differ) or init == "zeros", init
