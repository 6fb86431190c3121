"""Resume in mid-decay: stop, load, go on, and end with the same bits as a run without a stop.

Model, optimizer and pruner are saved together; the file holds tensors, strings and numbers only,
so it loads with ``weights_only=True``.

Run it with ``python examples/resume.py``; a few seconds on one CPU core.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import decayprune as dp

STEPS, STOP_AT = 60, 22


class Run:
    """A model, its optimizer and its pruner, as they are at the start of every run."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(
            *(nn.Linear(20, 64), nn.BatchNorm1d(64), nn.ReLU()),
            *(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU()),
            nn.Linear(64, 5),
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3)
        self.pruner = dp.DecayPruner(
            self.model,
            self.optimizer,
            torch.zeros(2, 20),
            budget=dp.Budget(params=0.4),
            schedule=dp.Schedule.for_run(STEPS),
        )

    def train(self, first: int, last: int) -> None:
        """Steps first .. last - 1; what a step draws follows from its number."""
        for step in range(first, last):
            generator = torch.Generator().manual_seed(step)
            inputs = torch.randn(32, 20, generator=generator)
            F.cross_entropy(self.model(inputs), inputs[:, :5].argmax(1)).backward()
            self.optimizer.step()
            self.pruner.step()
            self.optimizer.zero_grad()

    def parts(self) -> dict[str, Any]:
        """Everything with a ``state_dict``."""
        return {"model": self.model, "optimizer": self.optimizer, "pruner": self.pruner}

    def save(self, path: Path) -> None:
        """Write all states into one file."""
        torch.save({name: part.state_dict() for name, part in self.parts().items()}, path)

    def load(self, path: Path) -> None:
        """Read them back; nothing is unpickled."""
        saved = torch.load(path, weights_only=True)
        for name, part in self.parts().items():
            part.load_state_dict(saved[name])


def main() -> None:
    torch.set_num_threads(1)
    through = Run()
    through.train(0, STEPS)

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint.pt"
        stopped = Run()
        stopped.train(0, STOP_AT)
        stopped.save(checkpoint)
        print(f"stopped at step {STOP_AT}: {stopped.pruner.lifecycle.decaying.numel()} decay")

        resumed = Run()
        resumed.load(checkpoint)
    resumed.train(STOP_AT, STEPS)

    print(f"\n{through.pruner.compact()}\n\n{resumed.pruner.compact()}\n")
    ours, theirs = resumed.model.state_dict(), through.model.state_dict()
    same = all(torch.equal(ours[name], theirs[name]) for name in theirs)
    print(f"same events: {resumed.pruner.events == through.pruner.events}")
    print(f"same weights, bit for bit: {same}")
    if not same:
        raise SystemExit("The resumed run differs from the one without a stop.")


if __name__ == "__main__":
    main()
