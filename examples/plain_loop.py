"""The plain loop: train on digits, decay-prune to half of the MACs, cut, fine-tune, save.

Run it with ``python examples/plain_loop.py``; it takes a few seconds on one CPU core and needs
scikit-learn for the images.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import decayprune as dp

EPOCHS, FINETUNE_EPOCHS, BATCH = 9, 3, 64


class Net(nn.Module):
    """A convolutional network with one residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        self.one = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32))
        self.two = nn.Sequential(nn.Conv2d(32, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 1, 8, 8) to logits (B, 10)."""
        x = F.relu(self.stem(x))
        x = F.relu(x + self.two(F.relu(self.one(x))))
        return self.head(F.max_pool2d(x, 2).amax((2, 3)))


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images, their labels, test images, their labels."""
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    labels = torch.tensor(found.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:1400], order[1400:]
    return images[train], labels[train], images[test], labels[test]


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of right answers."""
    model.eval()
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    images, labels, test_images, test_labels = digits()
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    steps_per_epoch = len(images) // BATCH

    pruner = dp.DecayPruner(  # <- one
        model,
        optimizer,
        images[:1],
        budget=dp.Budget(macs=0.5),
        schedule=dp.Schedule.for_run(EPOCHS * steps_per_epoch),
    )
    for epoch in range(EPOCHS + FINETUNE_EPOCHS):
        model.train()
        for batch in torch.randperm(len(images))[: steps_per_epoch * BATCH].view(-1, BATCH):
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            pruner.step()  # <- two
            optimizer.zero_grad()
        print(
            f"epoch {epoch + 1:2}  accuracy {accuracy(model, test_images, test_labels):.1%}  "
            f"MACs committed to stay {pruner.remaining()['macs']:.0%}"
        )
        if epoch + 1 == EPOCHS:
            print(f"\n{pruner.compact()}\n")  # <- three; the epochs that follow fine-tune

    kinds = [event.kind for event in pruner.events]
    print({kind: kinds.count(kind) for kind in ("decay", "release", "prune")})
    with tempfile.TemporaryDirectory() as folder:
        dp.save(folder, model)
        print("saved:", ", ".join(sorted(path.name for path in Path(folder).iterdir())))
        loaded = dp.load(folder, Net()).eval()
    same = torch.equal(loaded(test_images), model(test_images))
    print(f"a fresh model that loads it gives the same outputs, bit for bit: {same}")


if __name__ == "__main__":
    main()
