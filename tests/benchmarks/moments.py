"""Predicted against measured moments of real networks: ``python -m tests.benchmarks.moments --networks
resnet18 vit --inits default kaiming``.

For every layer that is called once, ``predict`` is compared with one forward and backward pass of the same
weights, for activation_rms, signal_std, correlation (the angle's 1 - correlation, where it is above 1e-3),
activation_grad_rms and grad_rms. The table has for each metric the factor by which prediction and measurement
differ at the median layer and at the worst one, the share of measurements inside the 95 % band, and the
seconds.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from initscope.moments import METRICS, predict
from initscope.moments.trace import call_arguments, output_tensors

SIZE = 96
DRAWS = 3
"""Gradients at the outputs, whose mean squares are averaged."""


def images(batch: int = 8, size: int = SIZE) -> Tensor:
    """Smooth random pictures with some noise: like photographs, neighbouring pixels are alike and samples
    differ.
    """
    low = torch.randn(batch, 3, 6, 6)
    gray = nn.functional.interpolate(torch.randn(batch, 1, 12, 12), size=(size, size), mode="bilinear")
    return (
        0.7 * nn.functional.interpolate(low, size=(size, size), mode="bilinear")
        + 0.7 * gray
        + 0.2 * torch.randn(batch, 3, size, size)
    )


def vision(name: str, size: int = SIZE) -> Callable:
    def build():
        import torchvision

        extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        return torchvision.models.get_model(name, weights=None, **extra), images(size=size)

    return build


def plain(depth: int) -> Callable:
    def build():
        from torchvision.models.resnet import BasicBlock, ResNet

        class Plain(BasicBlock):
            def forward(self, x):
                return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))

        return ResNet(Plain, [(depth - 2) // 8] * 4), images()

    return build


class Mixer(nn.Module):
    """Tolstikhin et al. 2021."""

    class Block(nn.Module):
        def __init__(self, tokens: int, dim: int) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
            self.tokens = nn.Sequential(
                nn.Linear(tokens, 2 * tokens), nn.GELU(), nn.Linear(2 * tokens, tokens)
            )
            self.channels = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
            return x + self.channels(self.norm2(x))

    def __init__(self, depth: int = 8, dim: int = 192, patch: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, dim, patch, patch)
        self.blocks = nn.Sequential(*(self.Block((SIZE // patch) ** 2, dim) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.stem(x).flatten(2).transpose(1, 2))).mean(1))


class UNet(nn.Module):
    """Ronneberger et al. 2015, small, with or without batch norm."""

    def __init__(self, width: int = 32, depth: int = 3, norm: bool = True) -> None:
        super().__init__()

        def block(i: int, o: int) -> nn.Sequential:
            parts = []
            for a in (i, o):
                parts += [nn.Conv2d(a, o, 3, padding=1), *([nn.BatchNorm2d(o)] if norm else []), nn.ReLU()]
            return nn.Sequential(*parts)

        widths = [width * 2**i for i in range(depth + 1)]
        self.down = nn.ModuleList(block(i, o) for i, o in zip([3, *widths[:-1]], widths, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, 2) for w in reversed(widths[:-1]))
        self.join = nn.ModuleList(block(2 * w, w) for w in reversed(widths[:-1]))
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for block in self.down:
            x = block(x if not kept else nn.functional.max_pool2d(x, 2))
            kept.append(x)
        for up, join, skip in zip(self.up, self.join, reversed(kept[:-1]), strict=True):
            x = join(torch.cat([skip, up(x)], 1))
        return self.head(x)


class Encoder(nn.Module):
    def __init__(
        self, depth: int, *, pre: bool, activation: str = "gelu", dim: int = 128, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(500, dim), nn.Parameter(0.02 * torch.randn(1, 32, dim))
        layer = nn.TransformerEncoderLayer(
            dim, 4, 4 * dim, dropout, activation, batch_first=True, norm_first=pre
        )
        self.layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        for part in self.layers.layers:  # TransformerEncoder copies one layer: give each its own draw
            for module in part.modules():
                if isinstance(module, (nn.Linear, nn.MultiheadAttention)):
                    (
                        module._reset_parameters
                        if isinstance(module, nn.MultiheadAttention)
                        else module.reset_parameters
                    )()
        self.head = nn.Linear(dim, 500)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.layers(self.embed(ids) + self.place))


def encoder(depth: int, pre: bool, **kwargs) -> Callable:
    return lambda: (Encoder(depth, pre=pre, **kwargs), torch.randint(0, 500, (8, 32)))


def mlp(depth: int, activation: str) -> Callable:
    def build():
        layers = [nn.Flatten(), nn.Linear(3 * 24 * 24, 256)]
        for _ in range(depth):
            layers += [getattr(nn, activation)(), nn.Linear(256, 256)]
        return nn.Sequential(*layers, getattr(nn, activation)(), nn.Linear(256, 10)), images(size=24)

    return build


def language(name: str) -> Callable:
    def build():
        import transformers as t

        common = {"vocab_size": 500, "num_hidden_layers": 6}
        made = {
            "bert": lambda: t.BertForMaskedLM(
                t.BertConfig(**common, hidden_size=128, num_attention_heads=4, intermediate_size=512)
            ),
            "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(vocab_size=500, n_layer=6, n_embd=128, n_head=4)),
            "llama": lambda: t.LlamaForCausalLM(
                t.LlamaConfig(
                    **common,
                    hidden_size=128,
                    num_attention_heads=4,
                    num_key_value_heads=2,
                    intermediate_size=344,
                )
            ),
            "mixtral": lambda: t.MixtralForCausalLM(
                t.MixtralConfig(
                    **common,
                    hidden_size=128,
                    num_attention_heads=4,
                    num_key_value_heads=2,
                    intermediate_size=256,
                    num_local_experts=4,
                )
            ),
        }[name]()
        return made, {"input_ids": torch.randint(0, 500, (4, 48)), "use_cache": False}

    return build


TORCHVISION = (
    "resnet18",
    "resnet50",
    "googlenet",
    "densenet121",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "convnext_tiny",
    "regnet_y_400mf",
    "vgg16",
    "vgg16_bn",
    "alexnet",
    "squeezenet1_0",
    "shufflenet_v2_x0_5",
    "mobilenet_v2",
    "mnasnet0_5",
    "swin_v2_t",
    "swin_t",
    "resnext50_32x4d",
)
NETWORKS: dict[str, Callable] = {
    **{name: vision(name) for name in TORCHVISION},
    "vit_b_16": vision("vit_b_16", 224),
    "inception_v3": vision("inception_v3", 160),
    "plain34": plain(34),
    "mixer": lambda: (Mixer(), images()),
    "unet": lambda: (UNet(), images(4, 64)),
    "unet_plain": lambda: (UNet(norm=False), images(4, 64)),
    **{f"pre{d}": encoder(d, True) for d in (6, 12, 24, 48)},
    **{f"post{d}": encoder(d, False) for d in (6, 12, 24, 48)},
    "pre6_dropout": encoder(6, True, dropout=0.1),
    "mlp20_relu": mlp(20, "ReLU"),
    "mlp20_tanh": mlp(20, "Tanh"),
    "mlp20_gelu": mlp(20, "GELU"),
    **{name: language(name) for name in ("bert", "gpt2", "llama", "mixtral")},
}


def initialize(model: nn.Module, scheme: str) -> None:
    if scheme in ("default", "zero_head"):
        last = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]
        if scheme == "zero_head":
            nn.init.zeros_(last.weight)
        return
    fill = {
        "kaiming": lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu"),
        "xavier": nn.init.xavier_uniform_,
        "normal_0.02": lambda w: nn.init.normal_(w, 0.0, 0.02),
    }[scheme]
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            fill(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def measured(model: nn.Module, sample) -> dict[str, dict[str, float]]:
    """By layer: METRICS of one pass with a unit Gaussian gradient at the outputs. Layers called twice are
    left out.
    """
    found: dict[str, dict[str, float]] = {}
    calls: dict[str, int] = {}
    sums: dict[str, float] = {}
    squares: dict[str, float] = {}
    handles = []

    def watch(name: str):
        def hook(module, args, output) -> None:
            if not isinstance(output, Tensor):
                return
            calls[name] = calls.get(name, 0) + 1
            x = output.detach().double()
            row = found.setdefault(name, {})
            row["activation_rms"] = x.square().mean().sqrt().item()
            row["signal_std"] = x.var(0, unbiased=False).mean().sqrt().item()
            flat = nn.functional.normalize(x.flatten(1), dim=1)
            n = len(flat)
            row["correlation"] = (
                ((flat.sum(0).square().sum() - flat.square().sum()) / (n * (n - 1))).item()
                if n > 1
                else math.nan
            )
            if output.requires_grad:
                output.register_hook(
                    lambda g: sums.__setitem__(
                        name, sums.get(name, 0.0) + g.double().square().mean().item() / DRAWS
                    )
                )

        return hook

    for name, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            handles.append(module.register_forward_hook(watch(name)))
    args, kwargs = call_arguments(sample)
    outputs = output_tensors(model(*args, **kwargs))
    for draw in range(DRAWS):
        torch.autograd.backward(
            outputs, [torch.randn_like(x) for x in outputs], retain_graph=draw + 1 < DRAWS
        )
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                squares[name] = (
                    squares.get(name, 0.0) + parameter.grad.double().square().mean().item() / DRAWS
                )
                parameter.grad = None
    for handle in handles:
        handle.remove()
    for name, square in sums.items():
        found[name]["activation_grad_rms"] = square**0.5
    for name, square in squares.items():
        owner = name.rpartition(".")[0]
        found.setdefault(name, {})["grad_rms"] = square**0.5
        if name.endswith(".weight") and calls.get(owner, 0) < 2:
            found.setdefault(owner, {})["grad_rms"] = square**0.5
    return {name: row for name, row in found.items() if calls.get(name, 1) == 1}


def compare(predicted, truth, norms: bool = False):
    """(metric, layer, factor, whether inside the band) of what can be compared."""
    for row in predicted.layers:
        if ("norm" in row.kind and not norms) or row.layer not in truth:
            continue
        for metric in METRICS:
            guess, real = getattr(row, metric), truth[row.layer].get(metric)
            if guess is None or real is None or not math.isfinite(real):
                continue
            if metric == "correlation":
                guess, real = 1 - guess, 1 - real
                if max(guess, real) < 1e-3:
                    continue
            if guess <= 1e-30 and real <= 1e-12:
                continue
            factor = guess / real if real > 0 else math.inf
            limit = row.band.get(metric)
            yield metric, row.layer, factor, limit is None or 1 / limit <= factor <= limit, row.made


def off(factor: float) -> float:
    return math.inf if factor <= 0 or not math.isfinite(factor) else max(factor, 1 / factor)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument(
        "--inits", nargs="+", default=["default", "kaiming", "xavier", "normal_0.02", "zero_head"]
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--layers", action="store_true", help="print every layer")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(
        "| network | init | "
        + " | ".join(f"{m} median / worst" for m in METRICS)
        + " | in band | s | sampled, unknown |"
    )
    print("|---" * (len(METRICS) + 5) + "|")
    for name in options.networks:
        for init in options.inits:
            report(name, init, options.seeds, options.layers)


def report(name: str, init: str, seeds: int, layers: bool) -> None:
    found: dict[str, list[float]] = {m: [] for m in METRICS}
    inside: list[bool] = []
    seconds = 0.0
    for seed in range(seeds):
        torch.manual_seed(seed)
        model, sample = NETWORKS[name]()
        model.train()
        initialize(model, init)
        start = time.perf_counter()
        predicted = predict(model, sample)
        seconds = time.perf_counter() - start
        torch.manual_seed(10_000 + seed)
        truth = measured(model, sample)
        for metric, layer, factor, within, made in compare(predicted, truth):
            found[metric].append(off(factor))
            if metric != "correlation":
                inside.append(within)
            if layers:
                print(
                    f"  {metric:20s} {layer:50s} {factor:10.3f} {made} {'' if within else 'outside'}",
                    file=sys.stderr,
                )
    cells = [f"{statistics.median(v):.2f} / {max(v):.2f}" if v else "-" for v in found.values()]
    share = f"{100 * sum(inside) / len(inside):.0f} %" if inside else "-"
    print(
        f"| {name} | {init} | "
        + " | ".join(cells)
        + f" | {share} | {seconds:.1f} | {' '.join((*predicted.sampled, *predicted.unknown))} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
