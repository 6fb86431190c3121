import inspect
import sys
from typing import Any

import pytest
import torch
from torch import nn

from decayprune.app.pretrained.rivals import bisected, remove
from pretrained_toy import Net

BATCH = ({"inputs": torch.randn(8, 4)}, torch.zeros(8, dtype=torch.int64))


def narrow(model: Any, ratio: float) -> None:
    """Keep the first hidden units; what they were taught by goes along."""
    stay = max(1, round(8 * (1 - ratio)))
    model.up.weight = nn.Parameter(model.up.weight[:stay].detach())
    model.up.out_features = stay


@pytest.mark.parametrize("most", [1, 3, 5, 8])
def test_the_least_ratio_that_fits_is_found(most: int) -> None:
    found = bisected(Net(), narrow, lambda cut: cut.up.out_features <= most, ())
    assert found.up.out_features == most


def test_the_cut_sees_gradients_and_leaves_none() -> None:
    model, seen = Net(), []

    def cut(copied: Any, ratio: float) -> None:
        seen.append(copied.up.weight.grad.clone())
        narrow(copied, ratio)

    found = bisected(model, cut, lambda cut: cut.up.out_features <= 4, [BATCH, BATCH])
    assert all(torch.equal(grad, seen[0]) for grad in seen)
    assert float(seen[0].abs().sum()) > 0
    assert model.up.weight.shape == (8, 4)
    assert all(p.grad is None for net in (model, found) for p in net.parameters())


def test_torch_pruning_removes_the_share_of_every_layer() -> None:
    pytest.importorskip("torch_pruning")
    model = Net()
    remove(model, torch.randn(1, 4), "magnitude", pruning_ratio=0.5, ignored_layers=[model.down])
    assert (model.up.out_features, model.down.in_features) == (4, 4)


def test_nothing_is_left_in_what_all_its_pruners_share() -> None:
    tp = pytest.importorskip("torch_pruning")
    defaults = inspect.signature(tp.pruner.BasePruner.__init__).parameters.values()
    shared = [p.default for p in defaults if isinstance(p.default, dict)]
    before = [dict(default) for default in shared]
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 4, 1))
    image = torch.randn(1, 3, 8, 8)
    remove(model, image, "magnitude", pruning_ratio=0.5, ignored_layers=[model[2]])
    assert len(shared) == 4
    assert shared == before


def test_without_torch_pruning_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ModuleNotFoundError, match="pip install torch-pruning"):
        remove(Net(), torch.randn(1, 4), "magnitude", pruning_ratio=0.5)
