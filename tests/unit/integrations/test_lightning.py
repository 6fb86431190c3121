"""The adapter to Lightning, against the real framework."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import decayprune as dp

lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
callbacks = pytest.importorskip("lightning.pytorch.callbacks", reason="lightning is not installed")
adapter = pytest.importorskip("decayprune.integrations.lightning", reason="no lightning")

pytestmark = [
    # Of the framework itself, with torch as new as it gets.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:.*(SWA is|lr_scheduler.step|WeightAveraging callback).*"),
]

SCHEDULE = dp.Schedule(start=2, stop=6, rounds=2, decay_steps=4)
EXAMPLES = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(64) % 4


class Module(lightning.LightningModule):  # type: ignore[misc,name-defined]
    """Sixteen optimizer steps in two epochs of eight batches."""

    def __init__(self, width: int = 16, optimizer: str = "SGD") -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(width, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.net(x)
        return found

    def training_step(self, batch: Any, index: int) -> Tensor:
        inputs, targets = batch
        loss = nn.functional.cross_entropy(self(inputs).float(), targets)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        inputs, targets = batch
        self.log("val", nn.functional.cross_entropy(self(inputs).float(), targets))

    def configure_optimizers(self) -> Any:
        if self.hparams["optimizer"] == "SGD":
            optimizer: Any = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        else:
            optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 16)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Portable(adapter.Prunable, Module):  # type: ignore[misc,name-defined]
    """... with the mixin."""


def module(cls: Any = Module, seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    return cls(**options)


def loader(batch: int = 8, shuffle: bool = False) -> Any:
    data = torch.utils.data.TensorDataset(EXAMPLES, CLASSES)
    generator = torch.Generator().manual_seed(3)
    return torch.utils.data.DataLoader(data, batch, shuffle=shuffle, generator=generator)


def pruning(**options: Any) -> Any:
    settings = {"schedule": SCHEDULE, "rectify": None}
    return adapter.DecayPruning(dp.Budget(macs=0.5), **settings | options)


def trainer(folder: Path, *others: Any, **options: Any) -> Any:
    settings = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
        "log_every_n_steps": 1,
    }
    return lightning.Trainer(callbacks=list(others), **settings | options)


def saved(folder: Path, **options: Any) -> Any:
    settings = {"save_top_k": -1, "every_n_train_steps": 1, "filename": "{step}"}
    return callbacks.ModelCheckpoint(folder, **settings | options)


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(EXAMPLES[:4])
    return found


# ---------------------------------------------------------------- settings of the Trainer


@pytest.mark.parametrize(
    ("options", "own"),
    [
        ({}, {}),
        ({"gradient_clip_val": 0.1}, {"rectify": dp.Rectify()}),
        ({"accumulate_grad_batches": 2, "max_epochs": 4}, {}),
        ({"precision": "bf16-mixed"}, {}),
        ({"precision": "bf16-true"}, {}),
        ({}, {"optimizer": "AdamW"}),
    ],
    ids=["plain", "clipping", "accumulation", "bf16-mixed", "bf16-true", "AdamW"],
)
def test_it_prunes_and_cuts(options: dict[str, Any], own: dict[str, Any], tmp_path: Path) -> None:
    kind = {"optimizer": own.pop("optimizer")} if "optimizer" in own else {}
    prune, model = pruning(**own), module(**kind)
    run = trainer(tmp_path, prune, **options)
    run.fit(model, loader(), loader())
    assert prune.report is not None
    assert prune.report.macs_after <= 0.5 * prune.report.macs_before
    assert sum(p.numel() for p in model.parameters()) == prune.report.params_after
    assert run.global_step == 16
    assert prune.pruner.steps < 16
    assert float(run.callback_metrics["macs_left"]) <= 0.5
    assert float(run.callback_metrics["decaying"]) == 0


def test_batches_of_the_training_calibrate_it(tmp_path: Path) -> None:
    prune, model = pruning(schedule=None, calibrate=2), module()
    trainer(tmp_path, prune, max_steps=3).fit(model, loader(shuffle=True))
    assert prune.report.macs_after <= 0.5 * prune.report.macs_before
    assert prune.pruner.steps == 1  # what is chosen on data is cut at once


def test_until_something_is_selected_the_run_is_a_plain_one(tmp_path: Path) -> None:
    plain, watched = module(), module()
    trainer(tmp_path, max_steps=5).fit(plain, loader(shuffle=True))
    late = dp.Schedule(start=6, stop=7, decay_steps=1)
    stop = callbacks.LambdaCallback(on_train_batch_end=partial(_stop, 5))
    trainer(tmp_path, pruning(schedule=late), stop).fit(watched, loader(shuffle=True))
    assert all(map(torch.equal, plain.parameters(), watched.parameters()))


def _stop(at: int, run: Any, *_: Any) -> None:
    run.should_stop = run.global_step >= at


def test_epochs_and_default_schedules(tmp_path: Path) -> None:
    prune = pruning(schedule=None)
    trainer(tmp_path, prune).fit(module(), loader())
    assert prune.pruner.schedule == dp.Schedule.for_run(16)
    prune = pruning(schedule=None, epochs=1)
    trainer(tmp_path, prune, accumulate_grad_batches=2).fit(module(), loader())
    assert prune.pruner.schedule == dp.Schedule.for_run(4)


def test_the_modules_own_example_comes_before_the_data(tmp_path: Path) -> None:
    model, prune = module(), pruning()
    model.example_input_array = torch.randn(3, 3, 8, 8)
    trainer(tmp_path, prune).fit(model, loader())
    assert prune.pruner.structures.batch == 3
    prune = pruning(example_inputs=torch.randn(5, 3, 8, 8))
    trainer(tmp_path, prune).fit(module(), loader())
    assert prune.pruner.structures.batch == 5


class Manual(Module):  # type: ignore[misc,valid-type]
    """Its own loop, which zeroes gradients at once."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, index: int) -> None:
        inputs, targets = batch
        optimizer = self.optimizers()
        self.manual_backward(nn.functional.cross_entropy(self(inputs), targets))
        optimizer.step()
        optimizer.zero_grad()


def test_manual_optimization(tmp_path: Path) -> None:
    prune = pruning()
    trainer(tmp_path, prune).fit(module(Manual), loader())
    assert prune.report is not None


# ---------------------------------------------------------------- averages


AVERAGES: dict[str, Callable[[], Any]] = {
    "EMA": lambda: callbacks.EMAWeightAveraging(decay=0.5),
    "SWA": lambda: callbacks.StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1),
}


@pytest.mark.parametrize("first", [True, False], ids=["before it", "after it"])
@pytest.mark.parametrize("kind", sorted(AVERAGES))
def test_averages_are_cut_along_whatever_their_order(
    kind: str, first: bool, tmp_path: Path
) -> None:
    average, prune, model = AVERAGES[kind](), pruning(), module()
    order = [average, prune] if first else [prune, average]
    trainer(tmp_path, *order, max_epochs=3).fit(model, loader(), loader())
    assert prune.report is not None
    held = getattr(average._average_model, "module", average._average_model)
    assert [p.shape for p in held.parameters()] == [p.shape for p in model.parameters()]
    assert all(map(torch.equal, held.parameters(), model.parameters()))  # handed over at the end


# ---------------------------------------------------------------- resume and reload


@pytest.mark.parametrize("average", ["", "EMA"])
@pytest.mark.parametrize("at", [4, 12], ids=["before the cut", "after the cut"])
def test_resuming_is_going_on(at: int, average: str, tmp_path: Path) -> None:
    def others() -> list[Any]:
        return [AVERAGES[average]()] if average else []

    whole = module()
    epochs = saved(tmp_path / "saved", every_n_train_steps=0, every_n_epochs=1)
    run = trainer(tmp_path, pruning(), *others(), epochs, max_epochs=4, enable_checkpointing=True)
    run.fit(whole, loader(batch=16))

    again, prune = module(seed=5), pruning()
    run = trainer(tmp_path, *others(), prune, max_epochs=4)
    path = str(tmp_path / "saved" / f"step={at}.ckpt")
    run.fit(again, loader(batch=16), ckpt_path=path)
    assert run.global_step == 16
    assert (prune.report is None) == (at == 12)
    assert dp.structure(again) == dp.structure(whole)
    ours, theirs = again.state_dict(), whole.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_checkpoint_loads_without_a_trainer(tmp_path: Path) -> None:
    model = module(Portable)
    kept = saved(tmp_path / "saved")
    run = trainer(tmp_path, pruning(), kept, enable_checkpointing=True)
    run.fit(model, loader())
    loaded = Portable.load_from_checkpoint(tmp_path / "saved" / "step=16.ckpt")
    assert torch.equal(outputs(loaded), outputs(model))
    run.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    loaded = Portable.load_from_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    assert torch.equal(outputs(loaded), outputs(model))


def test_a_compact_checkpoint_is_tested_and_predicted_with(tmp_path: Path) -> None:
    model = module()
    kept = saved(tmp_path / "saved")
    trainer(tmp_path, pruning(), kept, enable_checkpointing=True).fit(model, loader())
    dense = module(seed=5)
    run = trainer(tmp_path, pruning())
    path = str(tmp_path / "saved" / "step=16.ckpt")
    predicted = run.predict(dense, _inputs(), ckpt_path=path)
    assert torch.equal(torch.cat(predicted), outputs(model))
    assert "load_model_state_dict" not in vars(run.strategy)


def _inputs() -> Any:
    return torch.utils.data.DataLoader(EXAMPLES[:4], 4)


def test_the_best_model_is_one_of_the_pruned(tmp_path: Path) -> None:
    model, prune = module(), pruning()
    kept = callbacks.ModelCheckpoint(tmp_path / "saved", monitor="val", filename="{step}")
    stop = callbacks.EarlyStopping("val", patience=100)
    run = trainer(tmp_path, prune, kept, stop, enable_checkpointing=True, val_check_interval=2)
    run.fit(model, loader(), loader())
    step = int(Path(kept.best_model_path).stem.partition("=")[2])
    assert step >= prune.pruner.steps
    found = run.validate(model, loader(), ckpt_path="best", verbose=False)
    assert found[0]["val"] == pytest.approx(float(kept.best_model_score))
    assert float(stop.best_score) == pytest.approx(float(kept.best_model_score))


# ---------------------------------------------------------------- several processes


@pytest.mark.slow
def test_two_processes_cut_while_they_train(tmp_path: Path) -> None:
    """Wrapped before the pruner is built; the wrapper is made anew at the cut."""
    root = Path(__file__).parents[3]
    script = root / "tests" / "lightning_ddp.py"
    paths = os.pathsep.join([str(root / "src"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(tmp_path)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert found.returncode == 0, found.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0]["cut"]
    assert ranks[0]["steps"] == 12
    assert ranks[0]["left"] == ranks[0]["params_after"]
    assert ranks[0]["weights"] == ranks[1]["weights"]


def test_processes_that_hand_weights_back_are_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path, pruning(), strategy="ddp_fork", devices=2)
    with pytest.raises(Exception, match=r"Use strategy=.ddp."):
        run.fit(module(), loader())


# ---------------------------------------------------------------- refusals


class Two(Module):  # type: ignore[misc,valid-type]
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.SGD(self.net[:3].parameters(), lr=0.1),
            torch.optim.AdamW(self.net[3:].parameters()),
        ]


def test_several_optimizers_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"one optimizer, found 2 \(SGD, AdamW\)"):
        trainer(tmp_path, pruning()).fit(module(Two), loader())


def test_schedules_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="decays last 4 steps, but this training has 8"):
        trainer(tmp_path, pruning(), max_epochs=1).fit(module(), loader())
    with pytest.raises(ValueError, match="schedule= or epochs=, found both"):
        pruning(epochs=2)
    with pytest.raises(ValueError, match=r"pass DecayPruning\(schedule=\.\.\.\)"):
        trainer(tmp_path, pruning(schedule=None), max_epochs=-1).fit(module(), loader())


def test_training_that_ends_too_early_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stop = callbacks.LambdaCallback(on_train_batch_end=partial(_stop, 5))
    prune = pruning()
    trainer(tmp_path, prune, stop).fit(module(), loader())
    assert prune.report is None
    assert "Training ended at step 5 before pruning did; nothing was cut." in caplog.text


def test_a_second_fit_goes_on_with_the_cut_module(tmp_path: Path) -> None:
    prune, model = pruning(), module()
    trainer(tmp_path, prune).fit(model, loader())
    report, before = prune.report, copy.deepcopy(model)
    trainer(tmp_path, prune).fit(model, loader())
    assert prune.report is report
    assert dp.structure(model) == dp.structure(before)
    assert os.environ.get("PL_GLOBAL_SEED") is None
