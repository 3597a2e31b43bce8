"""The one vocabulary: tables and columns on disk, states, outcomes and verdicts, with their titles and units.

Everything that names a column (recorder, store, queries, figures) takes the name from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True)
class Column:
    """One column of a parquet table. ``dtype`` is an Arrow type name; ``unit`` is empty for pure numbers."""

    name: str
    dtype: str
    title: str
    help: str
    unit: str = ""


STEPS = (
    Column("step", "int32", "Step", "Optimizer steps before this one, from 0"),
    Column("epoch", "int32", "Epoch", "Epoch of the step, from 0"),
    Column("loss", "float64", "Loss", "Mean cross-entropy of the batch, before the update", "nats"),
    Column("accuracy", "float64", "Accuracy", "Share of the batch classified correctly, before the update"),
    Column("learning_rate", "float64", "Learning rate", "Learning rate of the first parameter group"),
    Column("seconds", "float64", "Time", "Training time since the run began, validation included", "s"),
)

EPOCHS = (
    Column("epoch", "int32", "Epoch", "Completed epoch, from 0"),
    Column(
        "train_loss",
        "float64",
        "Training loss",
        "Mean over the epoch's batches, each before its update",
        "nats",
    ),
    Column(
        "train_accuracy", "float64", "Training accuracy", "Over the epoch's samples, each before its update"
    ),
    Column(
        "val_loss", "float64", "Validation loss", "Mean over the validation split, after the epoch", "nats"
    ),
    Column("val_accuracy", "float64", "Validation accuracy", "Over the validation split, after the epoch"),
    Column("seconds", "float64", "Time", "Training time since the run began", "s"),
)

LAYERS = (
    Column("step", "int32", "Step", "Optimizer steps before this one, from 0"),
    Column("layer", "string", "Layer", "Name of the layer in the model"),
    Column("depth", "int32", "Depth", "Order of execution, 0 = nearest the input"),
    Column("kind", "string", "Kind", "Class of the layer, lower case"),
    Column(
        "grad_norm",
        "float32",
        "Gradient norm",
        "L2 norm of the loss gradient for the weight, before clipping",
    ),
    Column(
        "grad_rms",
        "float32",
        "Gradient RMS",
        "Gradient norm over the square root of the weight count: comparable between layers",
    ),
    Column("weight_norm", "float32", "Weight norm", "L2 norm of the weight before the update"),
    Column(
        "update_ratio", "float32", "Update ratio", "|w_after - w_before| / |w_before|; about 1e-3 is usual"
    ),
    Column(
        "activation_mean",
        "float32",
        "Pre-activation mean",
        "Mean of the layer's output over samples and units",
    ),
    Column(
        "activation_std",
        "float32",
        "Pre-activation std",
        "Standard deviation of the layer's output over samples and units",
    ),
    Column(
        "signal_std",
        "float32",
        "Signal",
        "Standard deviation of a unit's pre-activation across the samples, root-mean-squared over units: "
        "what is left of the input",
    ),
    Column(
        "activation_grad_rms",
        "float32",
        "Error signal",
        "RMS of the loss gradient for the layer's pre-activation: what is left of the error on its way back",
    ),
    Column(
        "dead_fraction",
        "float32",
        "Dead units",
        "Share of ReLU units that output zero for every sample of the batch",
    ),
    Column(
        "stable_rank",
        "float32",
        "Stable rank",
        "|W|_F^2 / |W|_2^2 of the weight as a matrix of outputs by inputs: 1 if one direction holds all its "
        "gain, its rank if all hold the same; taken of one recorded step in a hundred",
    ),
    Column(
        "nonfinite",
        "int32",
        "Non-finite",
        "How many of weight, gradient, output and output gradient hold a NaN or an infinity (0 to 4)",
    ),
)

METRICS = (
    Column("step", "int32", "Step", "The step that recorder.step() had told last, 0 before the first"),
    Column("name", "string", "Metric", "The name that recorder.log() was given"),
    Column("value", "float64", "Value", "The number it was given, in units of its own"),
)
"""What a loop measures itself (``recorder.log({"name": value})``), one row a number: ``metrics.parquet``,
which is there only if there is a row. ``pandas.read_parquet(...).pivot_table(index="step", columns="name",
values="value")`` makes a column a name.
"""

TABLES: dict[str, tuple[Column, ...]] = {
    "steps": STEPS,
    "epochs": EPOCHS,
    "layers": LAYERS,
    "metrics": METRICS,
}

OPTIONAL_TABLES = frozenset({"metrics"})
"""Tables of which a run without such rows has no file."""

LAYER_METRICS: tuple[str, ...] = tuple(
    c.name for c in LAYERS if c.name not in ("step", "layer", "depth", "kind")
)
"""Measured columns of the layers table, in file order."""

SELDOM = frozenset({"stable_rank"})
"""Metrics that are taken of few of the recorded steps: in all others every layer's value is null."""

MISSING = -1e30
"""Stands for "not measured" on the way to disk, where it becomes null; no metric takes this value."""

COLUMN: dict[str, Column] = {c.name: c for table in reversed(TABLES.values()) for c in table}


class Status(StrEnum):
    """Where a run is in its life. ``stopping`` and ``crashed`` are seen by readers, not written by the run
    itself.
    """

    QUEUED = "queued"
    RUNNING = "running"
    STOPPING = "stopping"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"
    CRASHED = "crashed"


LIVE = frozenset({Status.QUEUED, Status.RUNNING, Status.STOPPING})
"""States in which rows may still arrive."""

CHECKPOINT = "checkpoint.pt"
"""The file of a run's folder from which training goes on."""


class Outcome(StrEnum):
    """What became of the training; ``outcome.judge`` holds the definition."""

    CONVERGED = "converged"
    NOT_CONVERGED = "not_converged"
    DIVERGED = "diverged"
    UNDECIDED = "undecided"


class Verdict(StrEnum):
    """The answer of a comparison of A with B."""

    FIXED = "fixed"
    NOT_FIXED = "not_fixed"
    NOT_NEEDED = "not_needed"
    WORSE = "worse"
    UNDECIDED = "undecided"


class Cause(StrEnum):
    """Why a run went as it went."""

    INIT_TOO_SMALL = "init_too_small"
    INIT_TOO_LARGE = "init_too_large"
    SYMMETRIC_INIT = "symmetric_init"
    LR_TOO_HIGH = "lr_too_high"
    LR_TOO_LOW = "lr_too_low"
    DEAD_RELU = "dead_relu"
    SATURATED_ACTIVATION = "saturated_activation"
    NOT_UPDATING = "not_updating"
    INPUT_SCALE = "input_scale"
    TARGET_SCALE = "target_scale"
    BATCHNORM_STATISTICS = "batchnorm_statistics"
    CLASS_COLLAPSE = "class_collapse"
    GRADIENT_ACCUMULATES = "gradient_accumulates"
    WEIGHT_DECAY_TOO_HIGH = "weight_decay_too_high"
    UNREGISTERED_LAYERS = "unregistered_layers"
    DATA_ORDER = "data_order"
    SAMPLES_MIXED = "samples_mixed"
    NUMERIC_FAULT = "numeric_fault"
    LABELS_UNRELATED = "labels_unrelated"
    LOSS_MISUSE = "loss_misuse"
    OVERFITTING = "overfitting"
    HEALTHY = "healthy"
    UNKNOWN = "unknown"
