"""A script that two processes run: ``python lightning_ddp.py FOLDER`` fits and cuts under DDP."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import decayprune as dp
from decayprune.integrations.lightning import DecayPruning, Prunable


class Module(Prunable, LightningModule):
    """Twelve optimizer steps of two ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.net(x))
        return found

    def training_step(self, batch: Any, index: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def main(folder: Path) -> None:
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(48, 6), torch.arange(48) % 3)
    schedule = dp.Schedule(start=2, stop=4, decay_steps=3)
    prune, module = DecayPruning(dp.Budget(macs=0.5), schedule=schedule), Module()
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        strategy="ddp",
        devices=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
    )
    trainer.callbacks.append(prune)
    trainer.fit(module, DataLoader(data, batch_size=4))
    trainer.save_checkpoint(folder / "last.ckpt")
    said = {
        "cut": prune.report is not None,
        "params_after": None if prune.report is None else prune.report.params_after,
        "left": sum(parameter.numel() for parameter in module.parameters()),
        "wrapped": type(trainer.strategy.model).__name__,
        "steps": trainer.global_step,
        "weights": [parameter.tolist() for parameter in module.parameters()],
    }
    (folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
