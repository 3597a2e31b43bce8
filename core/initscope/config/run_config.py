"""One run's configuration: frozen, validated, JSON both ways.

A field is declared once, in ``RunConfig``, by ``option(...)``: title, help, unit, choices and bounds. The
command line and the sidebar form are made from that declaration. Importing this costs no torch.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from initscope.config import catalog, factory
from initscope.config.option import Option, is_plain_text, option
from initscope.errors import ConfigError, choose_from, one_line

MAX_NAME = 120
MAX_TAGS = 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TAG = re.compile(r"[^\s,][^,\n]{0,39}")


def _check_data(value: str) -> str | None:
    if value in catalog.DATA or (
        value.startswith(catalog.IMAGE_FOLDER) and len(value) > len(catalog.IMAGE_FOLDER)
    ):
        return None
    if factory.parse(value):
        return factory.refusal(value)
    return choose_from("data set", value, [*catalog.DATA, catalog.IMAGE_FOLDER + "DIR", factory.FORM])


def _check_sha256(value: str) -> str | None:
    return (
        None
        if not value or _SHA256.fullmatch(value)
        else f"expected 64 hexadecimal digits, not {one_line(value)}"
    )


def _check_name(value: str) -> str | None:
    return None if len(value) <= MAX_NAME else f"at most {MAX_NAME} characters, not {len(value)}"


def _check_tags(value: tuple[str, ...]) -> str | None:
    if len(value) > MAX_TAGS:
        return f"at most {MAX_TAGS} tags, not {len(value)}"
    bad = [tag for tag in value if not _TAG.fullmatch(tag) or not is_plain_text(tag)]
    return f"a tag is 1 to 40 characters without commas, not {one_line(bad[0])}" if bad else None


def title_of(config: Mapping[str, Any]) -> str:
    """A run's name, or one made from what usually tells runs apart: "default · seed 0", "kaiming_normal × 0.4
    · seed 1", and the network if it is not the story's; only that where a loop of somebody's own left no
    seed.
    """
    if config.get("name"):
        return str(config["name"])
    if config.get("init_seed") is None:
        return str(config.get("model") or config.get("init"))
    gain = config.get("gain", 1.0)
    scaled = "" if gain == 1 else f" × {gain:g}" if isinstance(gain, (int, float)) else f" × {gain}"
    model = str(config.get("model", RunConfig.model))
    network = "" if model == RunConfig.model else f" · {model.rpartition(':')[2]}"
    return f"{config.get('init')}{scaled} · seed {config['init_seed']}{network}"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides how a run goes. Two equal configs give the same loss curve on the same
    machine.
    """

    model: str = option(
        "vgg16", str, "Model", "The network", choices=tuple(catalog.MODELS), check=factory.refusal, own=True
    )
    width: float = option(
        1.0, float, "Width", "Multiplies every channel and hidden-unit count", above=0, high=4
    )
    image_size: int = option(
        224, int, "Image size", "Images are resized to this", unit="pixels", low=1, high=1024
    )
    in_channels: int | None = option(
        None,
        int,
        "Input channels",
        "1 turns colour to grey, 3 repeats grey; empty: as the data has",
        low=1,
        high=4,
        optional=True,
    )
    num_classes: int | None = option(
        None,
        int,
        "Classes",
        "Units of the last layer; empty: as the data has",
        low=2,
        high=100_000,
        optional=True,
    )
    batch_norm: bool | None = option(
        None,
        bool,
        "Batch norm",
        "Batch normalisation after every convolution; empty: as in the network's paper (ResNets have it)",
        optional=True,
    )
    """True or False once the config is made."""
    dropout: float = option(
        0.0, float, "Dropout", "Probability at each hidden linear layer", low=0, high=0.95
    )
    init: str = option(
        "default", str, "Initialization", "How the weights begin", choices=tuple(catalog.INITS), group="main"
    )
    gain: float = option(
        1.0, float, "Gain", "Multiplies every initial weight (not the biases)", above=0, high=1000
    )
    init_seed: int = option(
        0, int, "Seed", "Seed of the initial weights", low=0, high=2**31 - 1, group="main"
    )
    data: str = option("digits", str, "Data", "The data set", check=_check_data, group="main")
    data_seed: int = option(
        0, int, "Data seed", "Seed of the order of the data and of dropout", low=0, high=2**31 - 1
    )
    normalize: str = option(
        "unit",
        str,
        "Input scale",
        "unit: pixels in [0, 1], as in the story; standardize: zero mean and unit variance over the "
        "training split",
        choices=("unit", "standardize"),
    )
    train_samples: int | None = option(
        None,
        int,
        "Training samples",
        "Use only so many, from the start of the split; empty: all",
        low=1,
        high=10**9,
        optional=True,
    )
    optimizer: str = option(
        "adam", str, "Optimizer", "The update rule", choices=("adam", "adamw", "sgd"), group="main"
    )
    learning_rate: float = option(
        1e-3, float, "Learning rate", "Peak learning rate", above=0, high=1000, group="main"
    )
    momentum: float = option(0.9, float, "Momentum", "For SGD; Adam's first-moment decay", low=0, high=0.9999)
    weight_decay: float = option(
        0.0, float, "Weight decay", "L2 penalty (decoupled for adamw)", low=0, high=100
    )
    schedule: str = option(
        "constant", str, "Schedule", "Learning rate over the run", choices=("constant", "cosine", "step")
    )
    warmup_steps: int = option(
        0, int, "Warm-up", "Steps over which the learning rate grows from 0", unit="steps", low=0, high=10**7
    )
    clip_grad_norm: float | None = option(
        None,
        float,
        "Clip gradients",
        "Largest global gradient norm; empty: no clipping",
        above=0,
        high=1e9,
        optional=True,
    )
    batch_size: int = option(64, int, "Batch size", "Samples a step", unit="samples", low=1, high=65_536)
    epochs: int = option(
        20, int, "Epochs", "Passes over the training data", low=1, high=100_000, group="main"
    )
    max_steps: int | None = option(
        None,
        int,
        "Most steps",
        "Stop after so many steps; empty: all epochs",
        unit="steps",
        low=1,
        high=10**9,
        optional=True,
    )
    stop_when_certain: bool = option(
        False,
        bool,
        "Stop when certain",
        "End at an epoch from which the outcome can no longer change (see initscope.outcome.certain)",
    )
    precision: str = option(
        "float32",
        str,
        "Precision",
        "bfloat16: autocast, which sees no difference below 0.4 % of a value; auto: bfloat16 where the "
        "device computes in it",
        choices=("float32", "bfloat16", "auto"),
    )
    device: str = option(
        "auto", str, "Device", "auto: a GPU if there is one", choices=("auto", "cpu", "cuda", "mps")
    )
    threads: int = option(
        0,
        int,
        "Threads",
        "Processor threads of each process; 0: all cores. Part of the config because sums in another order "
        "round differently",
        low=0,
        high=1024,
    )
    processes: int = option(
        1,
        int,
        "Processes",
        "Processes that share every batch (DistributedDataParallel), a GPU for each where there are some; "
        "batch norm takes each share's own statistics",
        low=1,
        high=1024,
    )
    record_every: int = option(
        1, int, "Record every", "Layer rows every so many steps", unit="steps", low=1, high=10**6
    )
    checkpoint: str = option(
        "until_finished",
        str,
        "Checkpoints",
        "Written at every epoch and stop; kept until the run has finished, or always",
        choices=("until_finished", "keep"),
    )
    name: str = option(
        "", str, "Name", "A name for people; empty: made from initialization and seed", check=_check_name
    )
    tags: tuple[str, ...] = option(
        (), tuple, "Tags", "Words to find the run by, with commas between", check=_check_tags
    )
    sweep: str = option("", str, "Sweep", "The group of runs this one belongs to", check=_check_name)
    model_sha256: str = option(
        "",
        str,
        "Model's file",
        "SHA-256 of the file of a model of your own: no other is run; empty: filled in",
        check=_check_sha256,
    )
    data_sha256: str = option(
        "",
        str,
        "Data's file",
        "SHA-256 of the file of data of your own: no other is run; empty: filled in",
        check=_check_sha256,
    )

    def __post_init__(self) -> None:
        for spec in OPTIONS.values():
            object.__setattr__(self, spec.name, spec.parse(getattr(self, spec.name)))
        if self.batch_norm is None:
            object.__setattr__(self, "batch_norm", catalog.own_batch_norm(self.model))
        self._check_model_fits()
        self._check_data_fits()
        self._check_shares()

    def _check_model_fits(self) -> None:
        """The registered networks halve the image five times; one of your own may take any size."""
        if self.model in catalog.MODELS and self.image_size % 32:
            raise ConfigError(
                f"image_size: must be a multiple of 32 (five 2x2 poolings), not {self.image_size}",
                "image_size",
            )
        if self.dropout and self.model in catalog.MODELS and not catalog.MODELS[self.model].dropout:
            raise ConfigError(
                f"dropout must be 0 for {self.model}, not {self.dropout:g}: it has no hidden linear layer "
                "to drop out",
                "dropout",
            )

    def _check_data_fits(self) -> None:
        """Refuse now what the data could never take, so that no run is made of it."""
        entry = catalog.DATA.get(self.data)
        if entry is None:
            return
        if self.num_classes and entry.classes and self.num_classes < entry.classes:
            raise ConfigError(
                f"num_classes {self.num_classes} is too small: {self.data} has {entry.classes} classes; "
                "leave it out, or ask for at least as many",
                "num_classes",
            )
        if (
            self.in_channels
            and entry.channels
            and entry.channels > 1
            and self.in_channels not in (1, entry.channels)
        ):
            raise ConfigError(
                f"in_channels {self.in_channels} does not fit {self.data}, which has {entry.channels}; use "
                f"{entry.channels} or 1",
                "in_channels",
            )

    def _check_shares(self) -> None:
        """A process without samples has nothing to do, and batch norm needs two for a variance."""
        least = self.processes * (2 if self.batch_norm and self.processes > 1 else 1)
        if self.batch_size < least:
            each = (
                "two samples of each batch for each, as batch norm does"
                if self.batch_norm
                else "a sample of each batch for each"
            )
            raise ConfigError(
                f"processes {self.processes} need {each}: a batch_size of at least {least}, not "
                f"{self.batch_size}",
                "processes",
            )

    @property
    def title(self) -> str:
        """The name, or one made from what usually tells runs apart."""
        return title_of(dataclasses.asdict(self))

    def replace(self, /, **changes: Any) -> RunConfig:
        """A copy with some fields changed, validated. Raises ConfigError for an unknown field or a bad value.

        A new ``model`` brings its own ``batch_norm``, unless that is given too or was another than the old
        model's own.
        """
        values = dataclasses.asdict(self)
        if self.batch_norm == catalog.own_batch_norm(self.model):
            values["batch_norm"] = None
        return RunConfig.from_dict({**values, **changes})

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: every field, tuples as lists."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """The config of a mapping; missing fields take their defaults. Raises ConfigError in one line."""
        if not isinstance(values, Mapping):
            raise ConfigError(f"a config must be a JSON object, not {one_line(values)}")
        for key in values:
            if key not in OPTIONS:
                raise ConfigError(choose_from("config field", key, OPTIONS))
        return cls(**values)

    @classmethod
    def from_json(cls, text: str | bytes) -> RunConfig:
        """Inverse of ``json.dumps(config.to_dict())``. Raises ConfigError in one line."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"not valid JSON: {error}; expected an object of config fields") from None
        return cls.from_dict(values)


OPTIONS: dict[str, Option] = {
    field.name: Option(name=field.name, **field.metadata) for field in dataclasses.fields(RunConfig)
}
"""Every field's declaration, by name, in order."""


def quick() -> RunConfig:
    """Digits at 32x32, quarter-width VGG16, five epochs, one thread: about ten seconds a run on a laptop
    core.
    """
    return RunConfig(data="digits", image_size=32, width=0.25, epochs=5, threads=1)


def tutorial_32() -> RunConfig:
    """FashionMNIST at 32x32, full-width VGG16, five epochs, at a rate of 1e-4: at the story's 1e-3 its own
    fix stayed at 10 % in some seeds (tests/benchmarks/LOG.md). At 1e-4 PyTorch's weights train too, more
    slowly.
    """
    return story_32().replace(learning_rate=1e-4)


def tutorial_224() -> RunConfig:
    """The same at 224x224, 20 epochs. For a GPU; the rate was chosen at 32x32, where it could be measured."""
    return story_224().replace(learning_rate=1e-4)


def story_32() -> RunConfig:
    """The story's own rate, 1e-3, at 32x32, five epochs: on the edge for every initialization; several seeds
    tell.
    """
    return RunConfig(data="fashion_mnist", image_size=32, epochs=5)


def story_224() -> RunConfig:
    """The story's own setting: FashionMNIST at 224x224, full-width VGG16, Adam at 1e-3, 20 epochs. For a
    GPU.
    """
    return RunConfig(data="fashion_mnist", image_size=224, epochs=20)


PRESETS: dict[str, Callable[[], RunConfig]] = {
    "quick": quick,
    "tutorial_32": tutorial_32,
    "tutorial_224": tutorial_224,
    "story_32": story_32,
    "story_224": story_224,
}


def preset(name: str) -> RunConfig:
    """The whole config of a preset. Raises ConfigError for an unknown name."""
    if name not in PRESETS:
        raise ConfigError(choose_from("preset", name, PRESETS), "preset")
    return PRESETS[name]()


def changed_fields(
    a: Mapping[str, Any], b: Mapping[str, Any], ignore: tuple[str, ...] = ("name", "tags", "sweep")
) -> dict[str, list]:
    """Fields in which two config mappings differ: {field: [value in a, value in b]}."""
    keys = [*a, *(key for key in b if key not in a)]
    pairs = {key: [_value(side, key) for side in (a, b)] for key in keys if key not in ignore}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _value(config: Mapping[str, Any], key: str) -> Any:
    """A field's value; one that a whole config of an older version lacks has its default."""
    return config.get(key, OPTIONS[key].default if key in OPTIONS and "data" in config else None)
