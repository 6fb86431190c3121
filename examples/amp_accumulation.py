"""Mixed precision, gradient accumulation and clipping: where the pruner's calls go.

``pruner.step()`` may be called after every micro-batch: it acts only where the optimizer really
stepped, so it also sits out the steps that GradScaler skips. ``pruner.observe()`` reads the
gradients after they are unscaled and before they are clipped.

Run it with ``python examples/amp_accumulation.py [cuda]``; a few seconds on one CPU core.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from torch import nn

import decayprune as dp

STEPS, ACCUMULATE, BATCH = 60, 4, 16


def net() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, stride=2, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
    )


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    device = sys.argv[1] if len(sys.argv) > 1 else "cpu"
    dtype = torch.float16 if device == "cuda" else torch.bfloat16
    model = net().to(device)
    example_inputs = torch.randn(1, 3, 16, 16, device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    scaler = torch.amp.GradScaler(device)
    pruner = dp.DecayPruner(
        model,
        optimizer,
        example_inputs,
        budget=dp.Budget(macs=0.5, params=0.6),  # both hold in the end
        schedule=dp.Schedule.for_run(STEPS),  # optimizer steps, not micro-batches
    )
    for micro_batch in range(STEPS * ACCUMULATE):
        targets = torch.randint(10, (BATCH,), device=device)
        inputs = torch.randn(BATCH, 3, 16, 16, device=device) + targets.view(-1, 1, 1, 1) / 3
        with torch.autocast(device, dtype):
            loss = F.cross_entropy(model(inputs), targets) / ACCUMULATE
        scaler.scale(loss).backward()
        if (micro_batch + 1) % ACCUMULATE:
            continue
        scaler.unscale_(optimizer)
        pruner.observe()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        pruner.step()
        optimizer.zero_grad()
        if pruner.steps % 12 == 0:
            left = pruner.remaining()
            print(
                f"optimizer step {pruner.steps:2}  loss {loss.item() * ACCUMULATE:.3f}  "
                f"{pruner.lifecycle.decaying.numel():2} decay  MACs {left['macs']:.0%}  "
                f"parameters {left['params']:.0%}"
            )
    print(f"\nfinished: {pruner.finished}\n\n{pruner.compact()}")


if __name__ == "__main__":
    main()
