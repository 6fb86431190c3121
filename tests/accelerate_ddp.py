"""A script that two processes run: ``python accelerate_ddp.py FOLDER`` prunes under DDP."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

import decayprune as dp
from stage import Loader, Net


def main(folder: Path) -> None:
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    bare = Net()
    optimizer = torch.optim.SGD(bare.parameters(), lr=0.05, momentum=0.9)
    examples = [pair for batch in Loader() for pair in zip(*batch, strict=True)]
    loader = DataLoader(examples, batch_size=8)
    model, optimizer, loader = accelerator.prepare(bare, optimizer, loader)
    assert type(model).__name__ == "DistributedDataParallel"
    pruner = dp.DecayPruner(
        accelerator.unwrap_model(model),
        optimizer,
        torch.randn(1, 3, 8, 8),
        budget=dp.Budget(macs=0.5),
        schedule=dp.Schedule(start=2, stop=6, decay_steps=4),
    )
    for epoch in range(2):
        for inputs, targets in loader:
            accelerator.backward(nn.functional.cross_entropy(model(inputs), targets))
            optimizer.step()
            pruner.step()
            optimizer.zero_grad()
        if epoch == 0:
            bare = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
            del model
            accelerator.free_memory()
            report = pruner.compact()
            model, optimizer, loader = accelerator.prepare(bare, optimizer, loader)
    said = {
        "wrapped": type(model).__name__,
        "dense": report.params_before,
        "params_after": report.params_after,
        "left": sum(parameter.numel() for parameter in bare.parameters()),
        "weights": [parameter.tolist() for parameter in bare.parameters()],
    }
    (folder / f"rank{accelerator.process_index}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
