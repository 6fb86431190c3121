"""A default device of the user's is for the user's tensors: ours say where they are.

The device here is ``meta``, whose tensors hold nothing: whatever were made there by mistake could
not be read.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import decayprune as dp
from decayprune.app.run import models

SOURCES = Path(dp.__file__).parent
MADE = {
    f"torch.{name}"
    for name in (
        *("zeros", "ones", "arange", "tensor", "full", "empty", "rand", "randn", "randint"),
        *("randperm", "eye", "linspace", "scalar_tensor", "normal"),
    )
}


@pytest.fixture
def net() -> Iterator[tuple[nn.Module, list[tuple[Tensor, Tensor]]]]:
    """A model and batches on the CPU, in a program whose default is another device."""
    importlib.import_module("torch._dynamo")  # that of torch 2.6 cannot be imported under "meta"
    torch.manual_seed(0)
    model = models.build("resnet8", 1, 10, 8)
    batches = [(torch.randn(4, 1, 8, 8), torch.randint(10, (4,))) for _ in range(12)]
    torch.set_default_device("meta")
    try:
        yield model, batches
    finally:
        torch.set_default_device(None)


def train(model: nn.Module, batches: list[tuple[Tensor, Tensor]], step: object) -> None:
    for images, targets in batches:
        nn.functional.cross_entropy(model(images), targets).backward()
        step()
        model.zero_grad()


@pytest.mark.parametrize("calibrated", [False, True])
def test_pruning_resuming_and_saving(net, tmp_path: Path, calibrated: bool) -> None:
    model, batches = net
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    arguments = {
        "budget": dp.Budget(macs=0.5),
        "schedule": dp.Schedule(start=1, stop=6, rounds=2, decay_steps=4),
    }
    if calibrated:
        arguments["calibrate"] = [batches[0][0]]
    pruner = dp.DecayPruner(model, optimizer, batches[0][0], **arguments)

    def step() -> None:
        optimizer.step()
        pruner.step()

    train(model, batches[:3], step)
    pruner.load_state_dict(pruner.state_dict())
    train(model, batches[3:], step)
    report = pruner.compact()
    assert report.macs_after <= 0.5 * report.macs_before
    dp.save(tmp_path / "saved", model)
    with torch.device("cpu"):
        again = models.build("resnet8", 1, 10, 8)
    dp.load(tmp_path / "saved", again)
    assert torch.equal(again(batches[0][0]), model(batches[0][0]))
    assert all(p.device.type == "cpu" for p in model.parameters())


def test_looking(net) -> None:
    model, batches = net
    assert dp.inspect(model, batches[0][0]).structures.num_structures
    dp.benchmark(model, model, batches[0][0], runs=1)


def test_every_tensor_of_the_library_says_where_it_is() -> None:
    """The command's own programs set no default."""
    found = []
    for file in sorted(SOURCES.rglob("*.py")):
        if file.is_relative_to(SOURCES / "app"):
            continue
        calls = (n for n in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(n, ast.Call))
        for call in calls:
            said = {keyword.arg for keyword in call.keywords} & {"device", None}
            if ast.unparse(call.func) in MADE and not said:
                found.append(f"{file.relative_to(SOURCES)}:{call.lineno}")
    assert found == []
