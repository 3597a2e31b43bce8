"""The names a person can choose from: models, initializations, data sets. Plain facts, no torch.

The code behind each name lives in ``models``, ``inits`` and ``data``; tests hold the two sides together.
"""

from __future__ import annotations

from dataclasses import dataclass

from initscope.config import factory


@dataclass(frozen=True)
class ModelEntry:
    title: str
    help: str
    batch_norm: bool = False
    """Whether the network of the paper has batch norm: what the config's ``batch_norm`` is if nobody says."""
    dropout: bool = True
    """Whether there is a hidden linear layer that the config's ``dropout`` can follow."""


@dataclass(frozen=True)
class InitEntry:
    title: str
    formula: str
    help: str


@dataclass(frozen=True)
class DataEntry:
    title: str
    help: str
    channels: int | None = None
    classes: int | None = None
    train: int | None = None
    validation: int | None = None


MODELS: dict[str, ModelEntry] = {
    "lenet": ModelEntry("LeNet-5", "3 convolutions, 2 linear layers, tanh"),
    "alexnet": ModelEntry("AlexNet", "5 convolutions, 3 linear layers"),
    "vgg11": ModelEntry("VGG11", "8 convolutions, 3 linear layers"),
    "vgg13": ModelEntry("VGG13", "10 convolutions, 3 linear layers"),
    "vgg16": ModelEntry("VGG16", "13 convolutions, 3 linear layers: the network of the story"),
    "vgg19": ModelEntry("VGG19", "16 convolutions, 3 linear layers"),
    "googlenet": ModelEntry(
        "GoogLeNet", "22 layers deep: 9 inception blocks, 2 auxiliary classifiers in training"
    ),
    "resnet18": ModelEntry(
        "ResNet-18", "17 convolutions with shortcuts, 1 linear layer", batch_norm=True, dropout=False
    ),
    "resnet34": ModelEntry(
        "ResNet-34", "33 convolutions with shortcuts, 1 linear layer", batch_norm=True, dropout=False
    ),
    "resnet50": ModelEntry(
        "ResNet-50", "49 convolutions with shortcuts, 1 linear layer", batch_norm=True, dropout=False
    ),
    "plain34": ModelEntry(
        "Plain-34",
        "ResNet-34 without its shortcuts: the ResNet paper's own control",
        batch_norm=True,
        dropout=False,
    ),
}

INITS: dict[str, InitEntry] = {
    "default": InitEntry(
        "PyTorch default",
        "U(±1/√fan_in), std 1/√(3·fan_in); biases the same",
        "What the modules' own constructors do. Shrinks the signal by about √(1/6) per ReLU layer.",
    ),
    "tutorial": InitEntry(
        "Tutorial's fix",
        "convolutions N(0, 2/fan_out), linear N(0, 0.01²), zero biases",
        "The fix in the story, and torchvision's own for VGG.",
    ),
    "kaiming_normal": InitEntry(
        "Kaiming normal",
        "N(0, 2/fan_in), zero biases",
        "He et al. 2015: keeps the forward variance through ReLU layers.",
    ),
    "kaiming_uniform": InitEntry(
        "Kaiming uniform",
        "U(±√(6/fan_in)), zero biases",
        "He et al. 2015, drawn from a uniform distribution of the same variance.",
    ),
    "xavier_normal": InitEntry(
        "Xavier normal",
        "N(0, 2/(fan_in+fan_out)), zero biases",
        "Glorot and Bengio 2010: made for tanh; halves the variance in every ReLU layer.",
    ),
    "xavier_uniform": InitEntry(
        "Xavier uniform",
        "U(±√(6/(fan_in+fan_out))), zero biases",
        "Glorot and Bengio 2010, uniform of the same variance.",
    ),
    "orthogonal": InitEntry(
        "Orthogonal",
        "rows or columns orthonormal, zero biases",
        "Saxe et al. 2014, gain 1; ReLU layers need --gain 1.414.",
    ),
    "lsuv": InitEntry(
        "LSUV",
        "orthogonal, then each layer divided by the std of its output on one batch, zero biases",
        "Mishkin and Matas 2015: unit variance by measurement rather than by formula.",
    ),
    "auto": InitEntry(
        "Auto",
        "orthogonal, then each gain solved from the network's moments, zero biases",
        "Computed for the network: neither signal nor gradient is lost; reads no data.",
    ),
    "normal_0.01": InitEntry(
        "Normal 0.01", "N(0, 0.01²), zero biases", "Simonyan and Zisserman 2014: the VGG paper's own."
    ),
    "zeros": InitEntry(
        "Zeros", "0, zero biases", "Every unit identical: nothing but the last bias can ever learn."
    ),
}

DATA: dict[str, DataEntry] = {
    "digits": DataEntry(
        "Digits (embedded)",
        "scikit-learn's 1,797 handwritten digits, 8x8, in the package: no download",
        1,
        10,
        1438,
        359,
    ),
    "fashion_mnist": DataEntry(
        "FashionMNIST", "70,000 articles of clothing, 28x28: the story's data", 1, 10, 60_000, 10_000
    ),
    "mnist": DataEntry("MNIST", "70,000 handwritten digits, 28x28", 1, 10, 60_000, 10_000),
    "cifar10": DataEntry("CIFAR-10", "60,000 colour photographs, 32x32", 3, 10, 50_000, 10_000),
}

IMAGE_FOLDER = "image_folder:"
"""Prefix of a data set read from a folder with one sub-folder of images a class."""


def own_batch_norm(model: str) -> bool:
    """Whether a network has batch norm if nobody says: as in its paper; False for one that is not
    registered.
    """
    return model in MODELS and MODELS[model].batch_norm


USE_EMBEDDED = "use the embedded data: --data digits"
"""How a message ends that says that data are missing; whoever shows it can offer just that."""


def init_title(name: str) -> str:
    return INITS[name].title if name in INITS else name


def model_title(name: str) -> str:
    return MODELS[name].title if name in MODELS else factory.title(name)


def data_title(name: str) -> str:
    return DATA[name].title if name in DATA else factory.title(name)
