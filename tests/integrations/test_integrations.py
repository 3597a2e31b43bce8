"""The callbacks in the real frameworks: what they record is what autograd and the framework's own log say."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from initscope.store import Runs

pytestmark = [pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]

lightning = pytest.importorskip("pytorch_lightning")
transformers = pytest.importorskip("transformers")


def samples(count: int = 48) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(
        torch.rand(count, 6, generator=generator), torch.randint(3, (count,), generator=generator)
    )


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def by_hand(
    accumulate: int, batches: int, clip: float | None = None, rates: list[float] | None = None
) -> tuple[list, list, list]:
    """Losses, first layer's gradient norms (before clipping) and update ratios of a plain loop over the same
    data.
    """
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    inputs, targets = samples().tensors
    losses, norms, ratios = [], [], []
    for k in range(0, batches, accumulate):
        optimizer.zero_grad()
        total = 0.0
        for i in range(k, k + accumulate):
            part = slice(8 * (i % 6), 8 * (i % 6) + 8)
            loss = nn.functional.cross_entropy(model(inputs[part]), targets[part]) / accumulate
            loss.backward()
            total += loss.item()
        norms.append(model[0].weight.grad.norm().item())
        before = model[0].weight.detach().clone()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        if rates:
            optimizer.param_groups[0]["lr"] = rates[len(losses)]
        optimizer.step()
        ratios.append(((model[0].weight.detach() - before).norm() / before.norm()).item())
        losses.append(total)
    return losses, norms, ratios


def recorded(run) -> tuple[list, list, list]:
    rows = [row for row in run.read("layers").to_pylist() if row["depth"] == 0]
    return (
        run.read("steps")["loss"].to_pylist(),
        [row["grad_norm"] for row in rows],
        [row["update_ratio"] for row in rows],
    )


class Module(lightning.LightningModule):
    def __init__(self, break_at: int | None = None, error: BaseException | None = None):
        super().__init__()
        self.net, self.break_at, self.error = network(), break_at, error

    def training_step(self, batch, index):
        if self.break_at is not None and index == self.break_at:
            raise self.error
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.net(1000 * batch[0])

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.5)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class TwoOptimizers(Module):
    automatic_optimization = False

    def training_step(self, batch, index):
        for optimizer, part in zip(self.optimizers(), (0, 2), strict=True):
            optimizer.zero_grad()
            self.manual_backward(nn.functional.cross_entropy(self.net(batch[0]), batch[1]) * (1 + part))
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(self.net[i].parameters(), lr=0.1) for i in (0, 2)]


def fit(module, tmp_path, checkpoint=None, **options):
    from initscope.integrations.lightning import InitScopeCallback

    callback = InitScopeCallback(name="my fit", runs=tmp_path, tags=("mine",))
    trainer = lightning.Trainer(
        max_epochs=options.pop("max_epochs", 1),
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[callback],
        **options,
    )
    loader = DataLoader(samples(), batch_size=8)
    try:
        trainer.fit(module, loader, loader, ckpt_path=checkpoint)
    finally:
        trainer.run = callback.recorder.run
    return trainer


@pytest.mark.parametrize(("accumulate", "clip"), [(1, None), (2, 0.01)])
def test_a_lightning_fit_is_what_autograd_says(tmp_path, accumulate, clip):
    module = Module()
    trainer = fit(module, tmp_path, accumulate_grad_batches=accumulate, gradient_clip_val=clip, max_epochs=2)
    run, steps = trainer.run, 12 // accumulate
    rates = [0.5 * 0.5**k for k in range(steps)]
    assert run.read("steps")["learning_rate"].to_pylist() == pytest.approx(rates)
    for found, expected in zip(recorded(run), by_hand(accumulate, 12, clip, rates), strict=True):
        assert found == pytest.approx(expected, rel=1e-4), (
            "no pass of the sanity check or of validation is among them"
        )
    assert run.read("steps")["epoch"].to_pylist() == [0] * (steps // 2) + [1] * (steps // 2)
    info = Runs(tmp_path).list()[0]
    assert (info.status, info.name, info.tags) == ("finished", "my fit", ("mine",)) and set(
        run.read("layers")["layer"].to_pylist()
    ) == {"net.0", "net.2"}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    assert not trainer.optimizers[0]._optimizer_step_post_hooks


@pytest.mark.parametrize(
    ("error", "status"), [(ZeroDivisionError("mine"), "failed"), (KeyboardInterrupt(), "stopped")]
)
def test_a_fit_that_is_left_ends_its_run(tmp_path, error, status):
    module = Module(break_at=3, error=error)
    with pytest.raises((ZeroDivisionError, KeyboardInterrupt, SystemExit)):
        fit(module, tmp_path)
    info = Runs(tmp_path).list()[0]
    assert info.status == status and (info.error or "").startswith(
        "ZeroDivisionError: mine" if status == "failed" else ""
    )
    assert info.state["step"] == 3 and not any(m._forward_hooks for m in module.modules())


def test_several_optimizers_and_bfloat16(tmp_path):
    run = fit(TwoOptimizers(), tmp_path, precision="bf16-mixed").run
    steps, rows = run.read("steps").to_pylist(), run.read("layers").to_pylist()
    assert len(steps) == 6 and all(3 < row["loss"] < 6 for row in steps), "1 x and 3 x a loss near ln 3"
    assert all(row["update_ratio"] > 0 for row in rows)


def test_a_fit_that_goes_on_from_a_checkpoint_counts_on(tmp_path):
    trainer = fit(Module(), tmp_path / "runs")
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    run = fit(Module(), tmp_path / "runs", checkpoint=tmp_path / "half.ckpt", max_epochs=2).run
    assert run.read("steps")["step"].to_pylist() == list(range(6, 12))


class Classifier(nn.Module):
    """A model as transformers has them: labels in, loss out."""

    def __init__(self, break_at: int | None = None, error: BaseException | None = None):
        super().__init__()
        self.net, self.break_at, self.error, self.seen = network(), break_at, error, 0

    def forward(self, x, labels=None):
        self.seen += self.training
        if self.seen - 1 == self.break_at:
            raise self.error
        logits = self.net(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 48

    def __getitem__(self, i):
        x, y = samples().tensors
        return {"x": x[i], "labels": y[i]}


def trainer_of(model, callback, tmp_path, accumulate=1, **options):
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"),
        per_device_train_batch_size=8,
        gradient_accumulation_steps=accumulate,
        num_train_epochs=1,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        optim="sgd",
        learning_rate=0.5,
        lr_scheduler_type="linear",
        max_grad_norm=0.01,
        logging_steps=1,
        **options,
    )

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *_, **__):
            return torch.utils.data.SequentialSampler(Rows())

    return InOrder(
        model=model, args=arguments, train_dataset=Rows(), eval_dataset=Rows(), callbacks=[callback]
    )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_hugging_face_training_is_what_autograd_says(tmp_path, accumulate):
    from initscope.integrations.huggingface import InitScopeCallback

    callback, model = InitScopeCallback(name="my training", runs=tmp_path / "runs"), Classifier()
    trainer = trainer_of(model, callback, tmp_path, accumulate, eval_strategy="steps", eval_steps=2)
    trainer.train()
    run, steps = callback.recorder.run, 6 // accumulate
    rates = [0.5 * (1 - k / steps) for k in range(steps)]
    assert run.read("steps")["learning_rate"].to_pylist() == pytest.approx(rates)
    for found, expected in zip(recorded(run), by_hand(accumulate, 6, 0.01, rates), strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert run.read("steps")["loss"].to_pylist() == pytest.approx(logged, rel=1e-3), "the Trainer's own log"
    assert run.state()["status"] == "finished" and not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("error", "status"), [(ZeroDivisionError("mine"), "failed"), (KeyboardInterrupt(), "stopped")]
)
def test_a_training_that_is_left_ends_its_run(tmp_path, error, status):
    from initscope.integrations.huggingface import InitScopeCallback

    model = Classifier(break_at=3, error=error)
    with pytest.raises(type(error)) as caught, InitScopeCallback(runs=tmp_path / "runs") as callback:
        trainer_of(model, callback, tmp_path).train()
    assert caught.value is error
    info = Runs(tmp_path / "runs").list()[0]
    assert (
        info.status == status
        and info.state["step"] == 3
        and not any(m._forward_hooks for m in model.modules())
    )


def test_a_training_that_was_left_outside_a_block_ends_when_the_next_begins(tmp_path):
    from initscope.integrations.huggingface import InitScopeCallback

    callback = InitScopeCallback(runs=tmp_path / "runs")
    with pytest.raises(ZeroDivisionError):
        trainer_of(Classifier(break_at=2, error=ZeroDivisionError()), callback, tmp_path).train()
    trainer_of(Classifier(), callback, tmp_path).train()
    assert [info.status for info in Runs(tmp_path / "runs").list()] == ["finished", "failed"]


def test_a_transformers_model_made_from_a_config(tmp_path):
    """A real BERT of two narrow layers, gradients accumulated: the loss is the Trainer's."""
    from initscope.integrations.huggingface import InitScopeCallback

    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=12,
        num_labels=3,
    )
    model = transformers.BertForSequenceClassification(config)
    rows = [{"input_ids": torch.arange(10) + i, "labels": torch.tensor(i % 3)} for i in range(16)]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_steps=2,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=1,
    )
    callback = InitScopeCallback(runs=tmp_path / "runs", every=2)
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[callback])
    with warnings.catch_warnings():
        trainer.train()
    steps = callback.recorder.run.read("steps")
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert steps["step"].to_pylist() == [0] and steps["loss"].to_pylist() == pytest.approx(
        logged[:1], rel=1e-3
    )
    layers = set(callback.recorder.run.read("layers")["layer"].to_pylist())
    assert {"bert.encoder.layer.0.attention.self.query", "classifier"} <= layers
    assert np.isfinite(callback.recorder.run.read("layers")["grad_norm"].to_numpy(zero_copy_only=False)).all()


# -- losses that the model does not make


class OwnLoss(transformers.Trainer):
    """Changes the model's loss, as people do."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        loss = outputs["loss"] * 2 + 7
        return (loss, outputs) if return_outputs else loss


class NoLabels(transformers.Trainer):
    """Makes a loss of its own from outputs that hold none."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(x=inputs["x"], labels=inputs["labels"])
        loss = nn.functional.cross_entropy(outputs["logits"], inputs["labels"])
        return (loss, outputs) if return_outputs else loss


class Bare(Classifier):
    """A model whose output is logits alone."""

    def forward(self, x, labels=None):
        return {"logits": self.net(x)}


@pytest.mark.parametrize(
    ("trainer", "model", "given", "options"),
    [
        (OwnLoss, Classifier, {}, {}),
        (OwnLoss, Classifier, {"gradient_accumulation_steps": 2}, {}),
        (NoLabels, Bare, {}, {}),
        (
            transformers.Trainer,
            Bare,
            {},
            {
                "compute_loss_func": lambda outputs, labels, num_items_in_batch=None: (
                    outputs["logits"].square().mean()
                )
            },
        ),
    ],
    ids=["changed", "changed and accumulated", "own", "function"],
)
def test_the_trainers_own_loss_whatever_made_it(tmp_path, trainer, model, given, options):
    from initscope.integrations.huggingface import InitScopeCallback

    callback = InitScopeCallback(runs=tmp_path / "runs", quiet=True, config={"mine": 1})
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"),
        per_device_train_batch_size=8,
        num_train_epochs=1,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=1,
        label_names=["labels"],
        remove_unused_columns=False,
        **given,
    )
    made = trainer(model=model(), args=arguments, train_dataset=Rows(), callbacks=[callback], **options)
    made.train()
    run = callback.recorder.run
    logged = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    assert run.read("steps")["loss"].to_pylist() == pytest.approx(logged, rel=2e-3, abs=1e-4)
    assert run.state()["status"] == "finished" and run.info().config["own"] == {"mine": 1}
    assert run.state()["facts"]["loss"]["chain"] and not {"compute_loss", "training_step"} & set(
        vars(made)
    ), "nothing is left on the Trainer"


@pytest.mark.parametrize("accumulate", [1, 2])
def test_smoothed_labels(tmp_path, accumulate):
    from initscope.integrations.huggingface import InitScopeCallback

    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=12,
        num_labels=3,
    )
    rows = [{"input_ids": torch.arange(10) + i, "labels": torch.tensor(i % 3)} for i in range(16)]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=accumulate,
        num_train_epochs=1,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=1,
        label_smoothing_factor=0.2,
    )
    callback = InitScopeCallback(runs=tmp_path / "runs", quiet=True)
    trainer = transformers.Trainer(
        model=transformers.BertForSequenceClassification(config),
        args=arguments,
        train_dataset=rows,
        callbacks=[callback],
    )
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert (
        callback.recorder.run.read("steps")["loss"].to_pylist() == pytest.approx(logged, rel=1e-3)
        and len(logged) == 4 // accumulate
    )


def test_a_stop_ends_a_training_of_either_framework(tmp_path):
    from initscope.integrations.huggingface import InitScopeCallback

    class StopAtOnce(transformers.TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            callback.recorder.writer._flushed = -np.inf  # the writer looks at the disk again
            if state.global_step == 1:
                callback.recorder.run.request_stop()

    callback = InitScopeCallback(runs=tmp_path / "hf", quiet=True)
    trainer = trainer_of(Classifier(), callback, tmp_path)
    trainer.add_callback(StopAtOnce())
    trainer.train()
    (info,) = Runs(tmp_path / "hf").list()
    assert info.status == "stopped" and info.state["step"] == trainer.state.global_step == 2


# -- Lightning's corners


class Corner(Module):
    def __init__(self, kind: str):
        super().__init__()
        self.kind, self.seen = kind, []

    def training_step(self, batch, index):
        if self.kind == "skips" and index % 3 == 1:
            return None
        loss = super().training_step(batch, index)
        self.seen.append(loss.item())
        return loss

    def configure_optimizers(self):
        if self.kind == "no optimizer":
            return None
        return (
            torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)
            if self.kind == "lbfgs"
            else torch.optim.SGD(self.parameters(), lr=0.5)
        )


def test_lbfgs_records_the_loss_before_its_step(tmp_path):
    module = Corner("lbfgs")
    run = fit(module, tmp_path).run
    found = run.read("steps")["loss"].to_pylist()
    assert len(found) == 6 and len(module.seen) > 12, "the closure was evaluated again and again"
    assert found[0] == pytest.approx(module.seen[0]) and set(np.round(found, 5)) <= set(
        np.round(module.seen, 5)
    )


def test_a_batch_without_a_loss_has_a_row_that_says_so(tmp_path):
    run = fit(Corner("skips"), tmp_path).run
    assert [loss is None for loss in run.read("steps")["loss"].to_pylist()] == [False, True, False] * 1 + [
        False,
        True,
        False,
    ]
    rows = [row for row in run.read("layers").to_pylist() if row["depth"] == 0]
    assert len(rows) == 6 and [row["grad_norm"] is None for row in rows] == [False, True, False] * 2
    assert run.state()["outcome"] == "undecided"


def test_a_fit_without_an_optimizer(tmp_path):
    run = fit(Corner("no optimizer"), tmp_path).run
    assert len(run.read("steps")) == 6 and run.state()["status"] == "finished"
    assert all(row["update_ratio"] is None and row["grad_norm"] > 0 for row in run.read("layers").to_pylist())


def test_callbacks_can_be_copied_and_sent(tmp_path):
    import copy
    import pickle

    from initscope.integrations.lightning import InitScopeCallback

    trainer = fit(Module(), tmp_path)
    (used,) = [one for one in trainer.callbacks if isinstance(one, InitScopeCallback)]
    for twin in (pickle.loads(pickle.dumps(used)), copy.deepcopy(used)):
        assert twin.recorder is None and twin.options == used.options and used.recorder is not None
