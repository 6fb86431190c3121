"""The loader printed in docs/saving.md, taken from the page, on networks of several kinds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.docs.test_blocks import blocks
from torch import Tensor, nn

import decayprune as dp
from decayprune.app.run.models import MODELS

PAGE = Path(__file__).parents[2] / "docs" / "saving.md"


class Tied(nn.Module):
    """The output layer shares the embedding's weight; a buffer that is not saved lies beside."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 12)
        self.inner = nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 12))
        self.out = nn.Linear(12, 11, bias=False)
        self.out.weight = self.embed.weight
        self.register_buffer("scale", torch.tensor(0.5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.out(x + self.inner(x) * self.scale)


IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
NETS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "residual": (MODELS["resnet8"], IMAGES),
    "attention": (MODELS["vit_tiny"], IMAGES),
    "tied": (Tied, torch.arange(10).view(2, 5)),
}


def load_pruned() -> Callable[[str, nn.Module], nn.Module]:
    code = next(c for _, c in blocks(PAGE.read_text(encoding="utf-8")) if c and "load_pruned" in c)
    names: dict[str, Any] = {}
    definition = code.partition("\n\n\nplain = ")[0]
    exec(compile(definition, str(PAGE), "exec", dont_inherit=True), names)
    return names["load_pruned"]


@pytest.mark.parametrize("name", NETS)
def test_it_loads_what_the_library_loads(name: str, tmp_path: Path) -> None:
    make, inputs = NETS[name]
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    schedule = dp.Schedule(stop=1, decay_steps=1)
    # Layer norms whose own width is cut become modules of this library: not what is tested here.
    mixed = [
        group.layer
        for group in dp.inspect(model, inputs).groups
        if any(isinstance(model.get_submodule(layer), nn.LayerNorm) for layer in group.layers)
    ]
    pruner = dp.DecayPruner(
        model,
        optimizer,
        inputs,
        budget=dp.Budget(structures=0.7),
        schedule=schedule,
        rectify=None,
        ignored_layers=mixed,
    )
    while not pruner.finished:
        model(inputs).square().mean().backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    assert pruner.compact().removed > 0
    dp.save(tmp_path, model)

    plain, ours = load_pruned()(str(tmp_path), make()), dp.load(tmp_path, make())
    expected = model.eval()(inputs)
    assert torch.equal(plain.eval()(inputs), expected)
    assert torch.equal(ours.eval()(inputs), expected)
    a, b = plain.state_dict(), ours.state_dict()
    assert list(a) == list(b)
    assert all(torch.equal(a[key], b[key]) for key in a)
    if name == "tied":
        assert plain.out.weight is plain.embed.weight


def test_it_refuses_what_only_the_library_can_load(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)

    model, inputs = make(), torch.randn(2, 5, 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner = dp.DecayPruner(
        model,
        optimizer,
        inputs,
        budget=dp.Budget(structures=0.5),
        schedule=dp.Schedule(stop=0, decay_steps=1),
        rectify=None,
        scope="local",
        ignored_layers=["norm1", "norm2"],
    )
    model(inputs).square().mean().backward()
    optimizer.step()
    pruner.step()
    pruner.compact()
    assert model.self_attn.num_heads == 2
    dp.save(tmp_path, model)
    with pytest.raises(ValueError, match="self_attn reckons with what has left: load it with"):
        load_pruned()(str(tmp_path), make())
    dp.load(tmp_path, make())


def test_it_refuses_buffers_that_only_the_library_can_cut(tmp_path: Path) -> None:
    dp.save(tmp_path, nn.Linear(2, 3))
    path = tmp_path / "structure.json"
    path.write_text(path.read_text().replace('"tied"', '"buffers": {"x": [[0, [1]]]}, "tied"', 1))
    with pytest.raises(ValueError, match="were cut: load it with decayprune"):
        load_pruned()(str(tmp_path), nn.Linear(2, 3))


def test_it_is_about_thirty_lines_of_plain_torch() -> None:
    code = next(c for _, c in blocks(PAGE.read_text(encoding="utf-8")) if c and "load_pruned" in c)
    definition = code.partition("\n\n\nplain = ")[0]
    assert sum(bool(line.strip()) for line in definition.splitlines()) <= 35
    assert "import decayprune" not in definition
