"""Networks for small images that the command can train: residual nets, VGG and a small ViT.

Plain torch, in the shapes the pruning literature uses. Two choices were made so that as much as
possible can be cut: residual shortcuts are a 1x1 convolution with BatchNorm wherever the shape
changes (option B of He et al.; zero padding, option A, would tie the widths of all stages
together), and attention has separate q, k and v projections whose heads are counted from the
tensor, so that whole heads can leave. A stage is narrowed by the factor ``width``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import signature

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    # No bias: a BatchNorm, which has one, always follows.
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


def _initialise(model: nn.Module) -> None:
    """He initialisation of convolutions, by fan-out; the rest keeps torch's defaults."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = _shortcut(inputs, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, inputs, H, W)`` to ``(B, channels, H / stride, W / stride)``."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; four times as wide outside as inside."""

    expansion = 4

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        outputs = channels * self.expansion
        self.conv1 = _conv(inputs, channels, 1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv(channels, channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = _conv(channels, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, inputs, H, W)`` to ``(B, 4 * channels, H / stride, W / stride)``."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """Residual network for small images: a 3x3 stem, stages that halve the image, one linear.

    Args:
        block: The residual block of every stage.
        depths: Blocks in each stage.
        widths: Channels of each stage (inside the blocks).
        in_channels: Channels of the images.
        num_classes: Size of the output.

    Reference: He et al., arXiv 1512.03385, section 4.2, with option B shortcuts.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        widths: Sequence[int],
        in_channels: int = 3,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        channels = widths[0]
        self.conv1 = _conv(in_channels, channels)
        self.bn1 = nn.BatchNorm2d(channels)
        stages = []
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            blocks: list[nn.Module] = []
            for index in range(depth):
                blocks.append(block(channels, width, 2 if stage > 0 and index == 0 else 1))
                channels = width * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(channels, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(B, in_channels, H, W)`` to logits ``(B, num_classes)``."""
        x = F.relu(self.bn1(self.conv1(x)))
        logits: Tensor = self.fc(self.stages(x).mean(dim=(2, 3)))
        return logits


class VGG(nn.Module):
    """VGG with BatchNorm for small images: convolutions, then one linear layer.

    Pooling rounds up, so images of any size pass (32 pixels give the usual net; 28 and 8 work).

    Args:
        plan: Channels of each convolution; ``0`` stands for a 2x2 max pooling.
        in_channels: Channels of the images.
        num_classes: Size of the output.

    Reference: Simonyan and Zisserman, arXiv 1409.1556, configurations D and E, with the single
    classifier layer that is customary on CIFAR.
    """

    def __init__(self, plan: Sequence[int], in_channels: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for width in plan:
            if width == 0:
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
                continue
            layers += [_conv(channels, width), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(B, in_channels, H, W)`` to logits ``(B, num_classes)``."""
        logits: Tensor = self.classifier(self.features(x).mean(dim=(2, 3)))
        return logits


class Attention(nn.Module):
    """Self-attention with separate projections; the number of heads follows the tensors."""

    def __init__(self, dim: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens ``(B, T, dim)`` to ``(B, T, dim)``."""
        q, k, v = (
            layer(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        heads = F.scaled_dot_product_attention(q, k, v)
        y: Tensor = self.out(heads.transpose(1, 2).flatten(2))
        return y


class TransformerBlock(nn.Module):
    """Pre-norm attention and MLP, each with a residual."""

    def __init__(self, dim: int, head_dim: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, head_dim)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens ``(B, T, dim)`` to ``(B, T, dim)``."""
        x = x + self.attention(self.norm1(x))
        y: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return y


class ViT(nn.Module):
    """Vision transformer for small images: patches, learnt positions, mean over the tokens.

    Args:
        image_size: Height and width of the images, a multiple of ``patch``.
        patch: Height and width of a patch.
        dim: Width of the residual stream.
        depth: Number of blocks.
        head_dim: Channels of one attention head; divides ``dim``.
        in_channels: Channels of the images.
        num_classes: Size of the output.

    Raises:
        ValueError: The image is not a whole number of patches.

    Reference: Dosovitskiy et al., arXiv 2010.11929, with mean pooling instead of a class token.
    """

    def __init__(
        self,
        image_size: int = 32,
        patch: int = 4,
        dim: int = 192,
        depth: int = 6,
        head_dim: int = 32,
        in_channels: int = 3,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        if image_size % patch:
            raise ValueError(
                f"ViT needs images that are a whole number of {patch}x{patch} patches; found "
                f"{image_size}x{image_size}. Choose another model or resize the images."
            )
        self.patches = nn.Conv2d(in_channels, dim, patch, patch)
        self.positions = nn.Parameter(torch.empty(1, (image_size // patch) ** 2, dim))
        self.blocks = nn.Sequential(
            *(TransformerBlock(dim, head_dim, 4 * dim) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(dim)
        self.fc = nn.Linear(dim, num_classes)
        nn.init.trunc_normal_(self.positions, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(B, in_channels, H, W)`` to logits ``(B, num_classes)``."""
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        logits: Tensor = self.fc(self.norm(self.blocks(x)).mean(dim=1))
        return logits


_VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
_VGG19 = (64, 64, 0, 128, 128, 0, *(256,) * 4, 0, *(512,) * 4, 0, *(512,) * 4, 0)


def _scaled(widths: Sequence[int], factor: float) -> list[int]:
    return [max(1, round(width * factor)) if width else 0 for width in widths]


def resnet8(in_channels: int = 3, num_classes: int = 10, width: float = 1.0) -> ResNet:
    """ResNet-8: three stages of one block, 16, 32 and 64 channels wide (times ``width``)."""
    return ResNet(BasicBlock, [1] * 3, _scaled((16, 32, 64), width), in_channels, num_classes)


def resnet8_wide(in_channels: int = 3, num_classes: int = 10) -> ResNet:
    """The same six times as wide: large enough for its layers to take most of the time."""
    return resnet8(in_channels, num_classes, width=6.0)


def resnet20(in_channels: int = 3, num_classes: int = 10, width: float = 1.0) -> ResNet:
    """ResNet-20: three stages of three blocks, 16, 32 and 64 channels wide (times ``width``)."""
    return ResNet(BasicBlock, [3] * 3, _scaled((16, 32, 64), width), in_channels, num_classes)


def resnet56(in_channels: int = 3, num_classes: int = 10, width: float = 1.0) -> ResNet:
    """ResNet-56: three stages of nine blocks, 16, 32 and 64 channels wide (times ``width``)."""
    return ResNet(BasicBlock, [9] * 3, _scaled((16, 32, 64), width), in_channels, num_classes)


def resnet50(in_channels: int = 3, num_classes: int = 10, width: float = 1.0) -> ResNet:
    """ResNet-50 for small images: bottlenecks, four stages, a 3x3 stem without pooling."""
    widths = _scaled((64, 128, 256, 512), width)
    return ResNet(Bottleneck, (3, 4, 6, 3), widths, in_channels, num_classes)


def vgg16(in_channels: int = 3, num_classes: int = 10, width: float = 1.0) -> VGG:
    """VGG-16 with BatchNorm, the usual CIFAR net: thirteen convolutions and one linear."""
    return VGG(_scaled(_VGG16, width), in_channels, num_classes)


def vgg16_slim(in_channels: int = 3, num_classes: int = 10) -> VGG:
    """VGG-16 with BatchNorm at a quarter of its width: quick on a CPU."""
    return vgg16(in_channels, num_classes, width=0.25)


def vgg19(in_channels: int = 3, num_classes: int = 10, width: float = 1.0) -> VGG:
    """VGG-19 with BatchNorm: sixteen convolutions and one linear."""
    return VGG(_scaled(_VGG19, width), in_channels, num_classes)


def vit_tiny(in_channels: int = 3, num_classes: int = 10, image_size: int = 32) -> ViT:
    """ViT of six blocks, width 192, six heads of 32, patches of 4x4."""
    return ViT(image_size, in_channels=in_channels, num_classes=num_classes)


def vit_slim(in_channels: int = 3, num_classes: int = 10, image_size: int = 32) -> ViT:
    """ViT of four blocks, width 96, six heads of 16, a grid of 4x4 patches: quick on a CPU."""
    return ViT(
        image_size,
        patch=image_size // 4,
        dim=96,
        depth=4,
        head_dim=16,
        in_channels=in_channels,
        num_classes=num_classes,
    )


MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet8": resnet8,
    "resnet8_wide": resnet8_wide,
    "resnet20": resnet20,
    "resnet56": resnet56,
    "resnet50": resnet50,
    "vgg16": vgg16,
    "vgg16_slim": vgg16_slim,
    "vgg19": vgg19,
    "vit_tiny": vit_tiny,
    "vit_slim": vit_slim,
}
"""The names that ``decayprune prune --model`` understands."""


def build(name: str, in_channels: int, num_classes: int, image_size: int) -> nn.Module:
    """One of :data:`MODELS` for images of a given shape.

    Raises:
        ValueError: There is no model of that name.
    """
    key = name.replace("-", "_").lower()
    if key not in MODELS:
        raise ValueError(
            f"--model expects one of {', '.join(MODELS)}, torchvision:NAME, timm:NAME, or "
            f"pkg.mod:factory for your own; found {name!r}."
        )
    factory = MODELS[key]
    needs_size = "image_size" in signature(factory).parameters
    size = {"image_size": image_size} if needs_size else {}
    return factory(in_channels, num_classes, **size)
