"""Nets as people write them: GAN, super-resolution, sequences, VAE, Siamese, FiLM, RNN ..."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm

from .measure import Draw, Make


class Generator(nn.Module):
    """DCGAN: transposed convolutions up from a vector."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for into, out in ((64, 128), (128, 64), (64, 32)):
            layers += [nn.ConvTranspose2d(into, out, 4, 2, 1), nn.BatchNorm2d(out), nn.ReLU()]
        self.main = nn.Sequential(*layers, nn.ConvTranspose2d(32, 3, 4, 2, 1), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        return self.main(z[:, :, None, None].expand(-1, -1, 2, 2))


class Discriminator(nn.Module):
    """SNGAN: every convolution under a spectral norm."""

    def __init__(self) -> None:
        super().__init__()
        norm, layers = parametrizations.spectral_norm, []
        for into, out in ((3, 32), (32, 64), (64, 128)):
            layers += [norm(nn.Conv2d(into, out, 4, 2, 1)), nn.LeakyReLU(0.2)]
        self.main, self.score = nn.Sequential(*layers), norm(nn.Linear(128, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.score(self.main(x).sum((2, 3)))


class SuperResolution(nn.Module):
    """EDSR: residual blocks, then a pixel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 32, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1)
            )
            for _ in range(4)
        )
        self.up = nn.Sequential(
            nn.Conv2d(32, 128, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(32, 3, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = features = self.head(x)
        for block in self.blocks:
            x = x + 0.1 * block(x)
        return self.up(x + features)


class DenseSuperResolution(nn.Module):
    """RRDB: every convolution reads all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 32, 3, padding=1)
        self.grow = nn.ModuleList(nn.Conv2d(32 + 16 * i, 16, 3, padding=1) for i in range(3))
        self.join, self.tail = nn.Conv2d(80, 32, 1), nn.Conv2d(32, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        parts = [x]
        for layer in self.grow:
            parts.append(F.leaky_relu(layer(torch.cat(parts, 1)), 0.2))
        x = x + 0.2 * self.join(torch.cat(parts, 1))
        return self.tail(F.interpolate(x, scale_factor=2))


class Temporal(nn.Module):
    """TCN: dilated, causal convolutions under a weight norm."""

    def __init__(self) -> None:
        super().__init__()
        widths, norm = [4, 32, 32, 48], parametrizations.weight_norm
        pairs = list(itertools.pairwise(widths))
        self.first = nn.ModuleList(
            norm(nn.Conv1d(a, b, 3, dilation=2**i)) for i, (a, b) in enumerate(pairs)
        )
        self.second = nn.ModuleList(
            norm(nn.Conv1d(b, b, 3, dilation=2**i)) for i, (_, b) in enumerate(pairs)
        )
        self.skip = nn.ModuleList(nn.Conv1d(a, b, 1) if a != b else nn.Identity() for a, b in pairs)
        self.out = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        for i, (first, second, skip) in enumerate(
            zip(self.first, self.second, self.skip, strict=True)
        ):
            pad = (2 * 2**i, 0)
            y = F.relu(second(F.pad(F.relu(first(F.pad(x, pad))), pad)))
            x = F.relu(y + skip(x))
        return self.out(x[:, :, -1])


class WaveNet(nn.Module):
    """Gated, dilated convolutions with skips, under the old weight norm."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Conv1d(8, 32, 1)
        self.gated = nn.ModuleList(
            weight_norm(nn.Conv1d(32, 64, 2, dilation=2**i, padding=2**i)) for i in range(4)
        )
        self.skips = nn.ModuleList(nn.Conv1d(32, 48, 1) for _ in range(4))
        self.residual = nn.ModuleList(nn.Conv1d(32, 32, 1) for _ in range(4))
        self.end = nn.Sequential(nn.ReLU(), nn.Conv1d(48, 32, 1), nn.ReLU(), nn.Conv1d(32, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, length, total = self.start(x), x.shape[-1], 0
        for gated, skip, residual in zip(self.gated, self.skips, self.residual, strict=True):
            a, b = gated(x)[..., :length].chunk(2, 1)
            y = torch.tanh(a) * torch.sigmoid(b)
            total, x = total + skip(y), x + residual(y)
        return self.end(total)


class Autoencoder(nn.Module):
    """VAE; in evaluation mode of the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.mean, self.log_variance = nn.Linear(64 * 64, 16), nn.Linear(64 * 64, 16)
        self.decode = nn.Sequential(
            nn.Linear(16, 64 * 64),
            nn.ReLU(),
            nn.Unflatten(1, (64, 8, 8)),
            nn.ConvTranspose2d(64, 32, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(32, 3, 4, 2, 1),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.encode(x)
        mean, log_variance = self.mean(x), self.log_variance(x)
        noise = torch.randn_like(mean) if self.training else torch.zeros_like(mean)
        return self.decode(mean + noise * torch.exp(log_variance / 2)), mean, log_variance


class Siamese(nn.Module):
    """Two images through one net, compared."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, 2),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
        )
        self.embed, self.score = nn.Linear(64, 32), nn.Linear(32, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = (self.embed(self.net(x).flatten(1)) for x in (a, b))
        return self.score((a - b).abs())


class Film(nn.Module):
    """A condition scales and shifts every channel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32, affine=False)
        self.film = nn.Sequential(nn.Linear(10, 40), nn.ReLU(), nn.Linear(40, 64))
        self.second, self.out = nn.Conv2d(32, 48, 3, padding=1), nn.Linear(48, 4)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.film(condition)[:, :, None, None].chunk(2, 1)
        x = F.relu(self.norm(self.first(x)) * (1 + scale) + shift)
        return self.out(F.relu(self.second(x)).mean((2, 3)))


class Hypernetwork(nn.Module):
    """One net writes the weights of a layer of another."""

    def __init__(self) -> None:
        super().__init__()
        self.write = nn.Sequential(nn.Linear(6, 48), nn.ReLU(), nn.Linear(48, 16 * 16))
        self.read, self.out = (
            nn.Linear(8, 16),
            nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 3)),
        )

    def forward(self, x: Tensor, task: Tensor) -> Tensor:
        weight = self.write(task).view(16, 16)
        return self.out(F.relu(F.linear(F.relu(self.read(x)), weight)))


class Recurrent(nn.Module):
    """Words through an RNN of some kind to classes."""

    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.rnn = kind(32, 48, batch_first=True, **options)
        width = 96 if options.get("bidirectional") else 48
        self.out = nn.Sequential(nn.Linear(width, 40), nn.ReLU(), nn.Linear(40, 5))

    def forward(self, words: Tensor) -> Tensor:
        return self.out(self.rnn(self.embed(words))[0].mean(1))


class Keyword(nn.Module):
    """A CRNN: convolutions over a spectrogram, a GRU over time."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d((2, 1))
        )
        self.rnn, self.out = nn.GRU(16 * 10, 40, batch_first=True), nn.Linear(40, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.net(x).flatten(1, 2).transpose(1, 2)
        return self.out(self.rnn(x)[1][-1])


class StandardisedConv(nn.Conv2d):
    """Weight standardisation, as BiT does it."""

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, correction=0)
        weight = (self.weight - mean) / torch.sqrt(variance + 1e-6)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class Standardised(nn.Module):
    """A net of weight-standardised convolutions and group norms."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = StandardisedConv(3, 32, 3), StandardisedConv(32, 64, 3)
        self.norms = nn.ModuleList([nn.GroupNorm(8, 32), nn.GroupNorm(8, 64)])
        self.out = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norms[0](self.first(x)))
        return self.out(F.relu(self.norms[1](self.second(x))).mean((2, 3)))


def _words() -> Tensor:
    return torch.randint(0, 50, (2, 12))


def _image() -> Tensor:
    return torch.randn(2, 3, 32, 32)


NETS: dict[str, tuple[Callable[[], nn.Module], Draw]] = {
    "gan_generator": (Generator, lambda: torch.randn(2, 64)),
    "gan_discriminator": (Discriminator, _image),
    "edsr": (SuperResolution, _image),
    "rrdb": (DenseSuperResolution, _image),
    "tcn": (Temporal, lambda: torch.randn(2, 4, 40)),
    "wavenet": (WaveNet, lambda: torch.randn(2, 8, 64)),
    "vae": (Autoencoder, _image),
    "siamese": (Siamese, lambda: (_image(), _image())),
    "film": (Film, lambda: (_image(), torch.randn(2, 10))),
    "hypernetwork": (Hypernetwork, lambda: (torch.randn(4, 8), torch.randn(6))),
    "gru": (lambda: Recurrent(nn.GRU), _words),
    "lstm": (lambda: Recurrent(nn.LSTM, num_layers=2), _words),
    "lstm_both_ways": (lambda: Recurrent(nn.LSTM, bidirectional=True), _words),
    "crnn": (Keyword, lambda: torch.randn(2, 1, 20, 16)),
    "weight_standardised": (Standardised, _image),
}


def _entry(build: Callable[[], nn.Module], draw: Draw) -> Make:
    return lambda: (build(), draw)


MODELS: dict[str, Make] = {f"own_{name}": _entry(*entry) for name, entry in NETS.items()}
