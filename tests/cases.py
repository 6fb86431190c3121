"""A small zoo: one model per pattern of coupling, each a function returning (model, inputs).

Models are float64, seeded and small enough to reason about by hand. Normalisers get random
statistics and affine parameters, so that nothing is accidentally neutral.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2
from torchvision.ops import FrozenBatchNorm2d

Case = Callable[[], tuple[nn.Module, Any]]
CASES: dict[str, Case] = {}


def case(make: Callable[[], tuple[nn.Module, Any]]) -> Case:
    """Register a case; seed it, make it float64, randomise its normalisers."""

    def seeded() -> tuple[nn.Module, Any]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model, inputs = make()
            model.double().train()
            for module in model.modules():
                if isinstance(
                    module, nn.modules.batchnorm._BatchNorm | nn.GroupNorm | nn.LayerNorm
                ):
                    _randomise(module)
            return model, inputs

    seeded.__name__ = make.__name__
    seeded.__doc__ = make.__doc__
    CASES[make.__name__] = seeded
    return seeded


def _randomise(module: Any) -> None:
    with torch.no_grad():
        for name in ("weight", "bias", "running_mean"):
            if getattr(module, name, None) is not None:
                getattr(module, name).normal_()
        if getattr(module, "running_var", None) is not None:
            module.running_var.uniform_(0.5, 2.0)


def image(channels: int = 3, size: int = 8, batch: int = 2) -> Tensor:
    return torch.randn(batch, channels, size, size, dtype=torch.float64)


def conv_bn(i: int, o: int, k: int = 3, **kw: Any) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, k, padding=k // 2, bias=False, **kw), nn.BatchNorm2d(o))


class Lambda(nn.Module):
    """A model whose forward is a function of its parts."""

    def __init__(self, forward: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self._forward = forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._forward(self, *args, **kwargs)


# ---- convolutions ----------------------------------------------------------------------------


@case
def chain() -> tuple[nn.Module, Any]:
    """conv-bn-relu, conv (no norm)-relu, linear after pooling."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 5, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 4),
    ), image()


@case
def flatten() -> tuple[nn.Module, Any]:
    """A linear layer reads a flattened 6 x 2 x 2 map."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(4),
        nn.Flatten(),
        nn.Linear(24, 7),
        nn.ReLU(),
        nn.Linear(7, 3),
    ), image()


@case
def residual() -> tuple[nn.Module, Any]:
    """Two producers meet in an add: one width."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.relu(m.stem(x))
        y = m.b(F.relu(m.a(x)))
        return m.head(F.relu(x + y).mean((2, 3)))

    return Lambda(
        forward, stem=conv_bn(3, 6), a=conv_bn(6, 4), b=conv_bn(4, 6), head=nn.Linear(6, 3)
    ), image()


@case
def preactivation() -> tuple[nn.Module, Any]:
    """Every consumer has a norm of its own; the stream itself has none."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        x = x + m.b(F.relu(m.n2(m.a(F.relu(m.n1(x))))))
        return m.head(F.relu(m.n3(x)).mean((2, 3)))

    return Lambda(
        forward,
        stem=nn.Conv2d(3, 6, 3, padding=1),
        n1=nn.BatchNorm2d(6),
        a=nn.Conv2d(6, 4, 3, padding=1),
        n2=nn.BatchNorm2d(4),
        b=nn.Conv2d(4, 6, 3, padding=1),
        n3=nn.BatchNorm2d(6),
        head=nn.Linear(6, 3),
    ), image()


@case
def concat() -> tuple[nn.Module, Any]:
    """Two widths side by side, the second one read twice."""

    def forward(m: Any, x: Tensor) -> Tensor:
        a, b = m.a(x), m.b(x)
        return m.head(F.relu(m.c(torch.cat([a, b, b], 1))).mean((2, 3)))

    return Lambda(
        forward,
        a=conv_bn(3, 4),
        b=nn.Conv2d(3, 6, 3, padding=1),
        c=nn.Conv2d(16, 5, 1),
        head=nn.Linear(5, 3),
    ), image()


@case
def dense() -> tuple[nn.Module, Any]:
    """A dense block: every layer reads all before it through a norm of its own."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        x = torch.cat([x, m.a(F.relu(m.n1(x)))], 1)
        x = torch.cat([x, m.b(F.relu(m.n2(x)))], 1)
        return m.head(F.relu(m.n3(x)).mean((2, 3)))

    return Lambda(
        forward,
        stem=nn.Conv2d(3, 4, 3),
        n1=nn.BatchNorm2d(4),
        a=nn.Conv2d(4, 3, 3, padding=1),
        n2=nn.BatchNorm2d(7),
        b=nn.Conv2d(7, 3, 3, padding=1),
        n3=nn.BatchNorm2d(10),
        head=nn.Linear(10, 3),
    ), image()


@case
def split() -> tuple[nn.Module, Any]:
    """chunk: both halves lose the same offsets."""

    def forward(m: Any, x: Tensor) -> Tensor:
        a, b = F.relu(m.stem(x)).chunk(2, 1)
        return m.head(torch.cat([m.a(a), m.b(b)], 1).mean((2, 3)))

    return Lambda(
        forward,
        stem=conv_bn(3, 8),
        a=nn.Conv2d(4, 3, 3),
        b=nn.Conv2d(4, 2, 3),
        head=nn.Linear(5, 3),
    ), image()


@case
def depthwise() -> tuple[nn.Module, Any]:
    """An inverted residual: the depthwise convolution belongs to the width it filters."""
    return nn.Sequential(
        conv_bn(3, 6, 1),
        nn.ReLU6(),
        conv_bn(6, 6, groups=6),
        nn.ReLU6(),
        conv_bn(6, 4, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    ), image()


@case
def depthwise_multiplier() -> tuple[nn.Module, Any]:
    """Two filters per channel, with bias, no norm."""
    return nn.Sequential(
        nn.Conv2d(3, 5, 1),
        nn.Conv2d(5, 10, 3, groups=5),
        nn.ReLU(),
        nn.Conv2d(10, 4, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 36, 3),
    ), image()


@case
def grouped() -> tuple[nn.Module, Any]:
    """A convolution of two groups: each loses the same offsets, inputs and outputs."""
    return nn.Sequential(
        conv_bn(3, 6),
        nn.ReLU(),
        conv_bn(6, 8, groups=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    ), image()


@case
def channel_shuffle() -> tuple[nn.Module, Any]:
    """view, transpose, view: both halves lose the same offsets."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.relu(m.stem(x))
        b, c, h, w = x.shape
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        return m.head(F.relu(m.a(x)).mean((2, 3)))

    return Lambda(
        forward, stem=conv_bn(3, 8), a=nn.Conv2d(8, 4, 3, groups=2), head=nn.Linear(4, 3)
    ), image()


@case
def squeeze_excite() -> tuple[nn.Module, Any]:
    """A gate of the same width, through a bottleneck."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.silu(m.stem(x))
        gate = torch.sigmoid(m.up(F.relu(m.down(x.mean((2, 3), keepdim=True)))))
        return m.head(m.out(gate * x).mean((2, 3)))

    return Lambda(
        forward,
        stem=conv_bn(3, 6),
        down=nn.Conv2d(6, 3, 1),
        up=nn.Conv2d(3, 6, 1),
        out=conv_bn(6, 4),
        head=nn.Linear(4, 3),
    ), image()


@case
def prelu() -> tuple[nn.Module, Any]:
    """Slopes per channel."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.PReLU(6),
        nn.Conv2d(6, 4, 3),
        nn.PReLU(),
        nn.Flatten(),
        nn.Linear(64, 3),
    ), image()


@case
def sigmoid() -> tuple[nn.Module, Any]:
    """0 does not map to 0: only the consumer's columns scale the function."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.Sigmoid(),
        nn.Conv2d(6, 4, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 3),
    ), image()


@case
def no_affine() -> tuple[nn.Module, Any]:
    """A norm without affine parameters hides the filter's length."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False),
        nn.BatchNorm2d(6, affine=False),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3),
        nn.Flatten(),
        nn.Linear(64, 3),
    ), image()


@case
def transposed() -> tuple[nn.Module, Any]:
    """Up and down again, one transposed convolution in two groups."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 4, 2, stride=2),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2),
        nn.ReLU(),
        nn.Conv2d(6, 2, 3),
    ), image()


@case
def instance_norm() -> tuple[nn.Module, Any]:
    """Norms that treat every channel by itself."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.InstanceNorm2d(6, affine=True),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3),
        nn.GroupNorm(4, 4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 3),
    ), image()


@case
def mixing_norms() -> tuple[nn.Module, Any]:
    """Norms that mix channels of one width: as many leave each group of the group norm."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.gn(m.stem(x)).mean((2, 3))
        return m.head(m.down(F.gelu(m.up(m.ln(x)))) + x)

    return Lambda(
        forward,
        stem=nn.Conv2d(3, 6, 3),
        gn=nn.GroupNorm(2, 6),
        ln=nn.LayerNorm(6),
        up=nn.Linear(6, 9),
        down=nn.Linear(9, 6),
        head=nn.Linear(6, 3),
    ), image()


@case
def layer_scale() -> tuple[nn.Module, Any]:
    """A raw parameter per channel."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        return m.head((x + m.gamma * m.a(x)).flatten(2).mean(2))

    return Lambda(
        forward,
        stem=nn.Conv2d(3, 6, 3, padding=1),
        a=nn.Conv2d(6, 6, 3, padding=1),
        gamma=nn.Parameter(torch.randn(6, 1, 1)),
        head=nn.Linear(6, 3),
    ), image()


@case
def padded_shortcut() -> tuple[nn.Module, Any]:
    """A shortcut widened by zeros: only what lies inside the padding can leave."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.relu(m.stem(x))
        y = m.a(x) + F.pad(x, (0, 0, 0, 0, 1, 1))
        return m.head(F.relu(y).mean((2, 3)))

    return Lambda(forward, stem=conv_bn(3, 4), a=conv_bn(4, 6), head=nn.Linear(6, 3)), image()


@case
def pixel_shuffle() -> tuple[nn.Module, Any]:
    """Four channels make up one."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.PixelShuffle(2), nn.ReLU(), nn.Conv2d(3, 2, 3)
    ), image()


@case
def conv_1d_and_3d() -> tuple[nn.Module, Any]:
    """Other numbers of dimensions."""

    def forward(m: Any, x: Tensor, v: Tensor) -> Tensor:
        a = F.relu(m.b1(m.a1(x))).mean(2)
        b = F.max_pool3d(F.relu(m.b3(m.a3(v))), 2).mean((2, 3, 4))
        return m.head(torch.cat([a, b], 1))

    return Lambda(
        forward,
        a1=nn.Conv1d(3, 5, 3),
        b1=nn.BatchNorm1d(5),
        a3=nn.Conv3d(2, 4, 3),
        b3=nn.BatchNorm3d(4),
        head=nn.Linear(9, 3),
    ), (
        torch.randn(2, 3, 9, dtype=torch.float64),
        torch.randn(2, 2, 6, 6, 6, dtype=torch.float64),
    )


# ---- buffers and sizes that modules remember -------------------------------------------------


@case
def frozen_statistics() -> tuple[nn.Module, Any]:
    """Batch norms of buffers alone, as detectors have them, and sines added to every position."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.relu(m.n2(m.b(F.relu(m.n1(m.a(x))))))
        return m.head(x.flatten(2).transpose(1, 2) + m.sines[:, : x.shape[2] * x.shape[3]])

    norms = [FrozenBatchNorm2d(width) for width in (6, 4)]
    for norm in norms:
        for buffer in norm.buffers():
            buffer.uniform_(0.5, 2.0)
    model = Lambda(
        forward,
        a=nn.Conv2d(3, 6, 3, padding=1),
        n1=norms[0],
        b=nn.Conv2d(6, 4, 3, padding=1),
        n2=norms[1],
        head=nn.Linear(4, 3),
    )
    model.register_buffer("sines", torch.randn(1, 100, 4))
    return model, image()


@case
def bias_table() -> tuple[nn.Module, Any]:
    """An attention whose bias is a table (heads, offsets) that a buffer of offsets reads."""

    def forward(m: Any, x: Tensor) -> Tensor:
        q, k, v = m.qkv(x).view(2, 5, 3, -1, 2).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, m.table[:, m.offsets])
        return m.head(y.transpose(1, 2).flatten(2))

    model = Lambda(
        forward, qkv=nn.Linear(6, 24), table=nn.Parameter(torch.randn(4, 9)), head=nn.Linear(8, 3)
    )
    model.register_buffer("offsets", torch.arange(5)[:, None] - torch.arange(5) + 4)
    return model, torch.randn(2, 5, 6, dtype=torch.float64)


# ---- sharing, inputs, outputs ----------------------------------------------------------------


@case
def shared() -> tuple[nn.Module, Any]:
    """One layer called twice."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.relu(m.stem(x))
        x = F.relu(m.a(x))
        x = F.relu(m.a(x))
        return m.head(x.mean((2, 3)))

    return Lambda(
        forward,
        stem=nn.Conv2d(3, 6, 3, padding=1),
        a=nn.Conv2d(6, 6, 3, padding=1),
        head=nn.Linear(6, 3),
    ), image()


@case
def tied() -> tuple[nn.Module, Any]:
    """Input embedding and output layer are one parameter."""

    def forward(m: Any, tokens: Tensor) -> Tensor:
        x = m.embed(tokens)
        return m.out(x + m.down(F.relu(m.up(x))))

    model = Lambda(
        forward,
        embed=nn.Embedding(11, 6),
        up=nn.Linear(6, 8),
        down=nn.Linear(8, 6),
        out=nn.Linear(6, 11, bias=False),
    )
    model.out.weight = model.embed.weight
    return model, torch.arange(10).view(2, 5)


@case
def keywords() -> tuple[nn.Module, Any]:
    """Keyword inputs, a dict as output; the width that is returned stays."""

    def forward(m: Any, *, image: Tensor, scale: Tensor) -> dict[str, Any]:
        x = F.relu(m.a(image)) * scale
        return {"features": [m.b(x)], "logits": m.head(x.mean((2, 3)))}

    return Lambda(forward, a=nn.Conv2d(3, 6, 3), b=nn.Conv2d(6, 4, 3), head=nn.Linear(6, 3)), {
        "image": image(),
        "scale": torch.tensor(2.0, dtype=torch.float64),
    }


@case
def auxiliary() -> tuple[nn.Module, Any]:
    """A head that runs in train mode only."""

    def forward(m: Any, x: Tensor) -> Any:
        x = F.relu(m.stem(x))
        y = m.head(F.relu(m.a(x)).mean((2, 3)))
        return (y, m.aux(x.mean((2, 3)))) if m.training else y

    return Lambda(
        forward,
        stem=conv_bn(3, 6),
        a=conv_bn(6, 4),
        head=nn.Linear(4, 3),
        aux=nn.Linear(6, 3),
    ), image()


# ---- attention -------------------------------------------------------------------------------


class Attention(nn.Module):
    """Separate projections, heads by reshape; ``key_heads`` < ``heads``: grouped queries."""

    def __init__(self, width: int, heads: int, key_heads: int, head_dim: int, sdpa: bool) -> None:
        super().__init__()
        self.heads, self.key_heads, self.head_dim, self.sdpa = heads, key_heads, head_dim, sdpa
        self.q = nn.Linear(width, heads * head_dim)
        self.k = nn.Linear(width, key_heads * head_dim)
        self.v = nn.Linear(width, key_heads * head_dim)
        self.out = nn.Linear(heads * head_dim, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.q(x).view(b, n, self.heads, self.head_dim).transpose(1, 2)
        k = self.k(x).view(b, n, self.key_heads, self.head_dim).transpose(1, 2)
        v = self.v(x).view(b, n, self.key_heads, self.head_dim).transpose(1, 2)
        if self.key_heads != self.heads:
            times = self.heads // self.key_heads
            shape = (b, self.key_heads, times, n, self.head_dim)
            k = k[:, :, None].expand(shape).reshape(b, self.heads, n, self.head_dim)
            v = v[:, :, None].expand(shape).reshape(b, self.heads, n, self.head_dim)
        if self.sdpa:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            scores = q @ k.transpose(-2, -1) / self.head_dim**0.5
            y = scores.softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(b, n, -1))


def _transformer(attention: nn.Module) -> tuple[nn.Module, Any]:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = x + m.attention(m.n1(x))
        x = x + m.down(F.gelu(m.up(m.n2(x))))
        return m.head(x.mean(1))

    return Lambda(
        forward,
        n1=nn.LayerNorm(8),
        attention=attention,
        n2=nn.LayerNorm(8),
        up=nn.Linear(8, 10),
        down=nn.Linear(10, 8),
        head=nn.Linear(8, 3),
    ), torch.randn(2, 5, 8, dtype=torch.float64)


@case
def attention_sdpa() -> tuple[nn.Module, Any]:
    """Whole heads leave."""
    return _transformer(Attention(8, 4, 4, 3, sdpa=True))


@case
def attention_matmul() -> tuple[nn.Module, Any]:
    """The same written out."""
    return _transformer(Attention(8, 4, 4, 3, sdpa=False))


@case
def attention_grouped() -> tuple[nn.Module, Any]:
    """Two query heads to a key head leave with it."""
    return _transformer(Attention(8, 4, 2, 3, sdpa=True))


@case
def attention_module() -> tuple[nn.Module, Any]:
    """nn.TransformerEncoderLayer: heads and feed-forward leave, the width of its input stays."""
    return nn.Sequential(
        nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), nn.Linear(8, 3)
    ), torch.randn(2, 5, 8, dtype=torch.float64)


@case
def attention_bias() -> tuple[nn.Module, Any]:
    """A bias per head, as a parameter and gathered from a table: it leaves with its head."""

    def forward(m: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (f(x).view(b, n, -1, 3).transpose(1, 2) for f in (m.q, m.k, m.v))
        table = m.table[m.index.flatten()].view(n, n, -1).permute(2, 0, 1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=m.bias)
        scores = q @ k.transpose(-2, -1) + table[None]
        y = y + scores.softmax(-1) @ v
        return m.head(y.transpose(1, 2).flatten(2))

    linear = partial(nn.Linear, 8, 12)
    model = Lambda(
        forward,
        q=linear(),
        k=linear(),
        v=linear(),
        bias=nn.Parameter(torch.randn(4, 5, 5)),
        table=nn.Parameter(torch.randn(9, 4)),
        head=nn.Linear(12, 3),
    )
    model.register_buffer("index", torch.arange(25).view(5, 5) % 9)
    return model, torch.randn(2, 5, 8, dtype=torch.float64)


def _grouped_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Two query heads share a key and a value; torch repeats those by itself from 2.5 on."""
    if torch.__version__ >= (2, 5):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


@case
def attention_rotary() -> tuple[nn.Module, Any]:
    """Rotary positions and a norm inside each head: its width stays, heads leave."""

    def turn(x: Tensor, angle: Tensor) -> Tensor:
        first, second = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
        return x * angle.cos() + torch.cat([-second, first], -1) * angle.sin()

    def forward(m: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (f(x).view(b, n, -1, 4).transpose(1, 2) for f in (m.q, m.k, m.v))
        angle = torch.arange(n, dtype=x.dtype)[:, None] * torch.ones(4, dtype=x.dtype)
        q, k = turn(m.norm(q), angle), turn(k, angle)
        y = _grouped_attention(q, k, v)
        return m.head(y.transpose(1, 2).flatten(2))

    return Lambda(
        forward,
        q=nn.Linear(6, 16),
        k=nn.Linear(6, 8),
        v=nn.Linear(6, 8),
        norm=nn.LayerNorm(4),
        head=nn.Linear(16, 3),
    ), torch.randn(2, 5, 6, dtype=torch.float64)


class FusedAttention(nn.Module):
    """One product makes queries, keys and values, split by an attribute (as GPT-2 does)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 24) / 3)
        self.bias = nn.Parameter(torch.randn(24))
        self.split_size, self.head_dim = 8, 2
        self.out = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.addmm(self.bias, x.view(-1, 8), self.weight).view(*x.shape[:2], -1)
        heads = [
            t.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)
            for t in y.split(self.split_size, dim=2)
        ]
        y = F.scaled_dot_product_attention(*heads)
        return self.out(y.transpose(1, 2).flatten(2))


@case
def attention_fused() -> tuple[nn.Module, Any]:
    """Heads leave queries, keys and values of one weight; the split follows."""
    return _transformer(FusedAttention())


@case
def windows() -> tuple[nn.Module, Any]:
    """unfold, fold, pixel_unshuffle, nn.ChannelShuffle."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = F.fold(F.unfold(m.a(x), 2, stride=2), (8, 8), 2, stride=2)
        y = m.shuffle(F.relu(m.b(F.pixel_unshuffle(y, 2))))
        return m.head(y.unfold(2, 2, 2).mean((2, 3, 4)))

    return Lambda(
        forward,
        a=nn.Conv2d(3, 4, 1),
        b=nn.Conv2d(16, 6, 1),
        shuffle=nn.ChannelShuffle(2),
        head=nn.Linear(6, 3),
    ), image()


class PartialBlock(nn.Module):
    """Half of the width goes through a layer (as C2f does), at a place kept as an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.c = 4
        self.stem, self.a = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, second = F.relu(self.stem(x)).split((self.c, self.c), 1)
        y = torch.cat([first, second, F.relu(self.a(second))], 1)
        return self.head(y.mean((2, 3)))


@case
def split_by_attribute() -> tuple[nn.Module, Any]:
    """The attribute follows the cut."""
    return PartialBlock(), image()


@case
def stacked() -> tuple[nn.Module, Any]:
    """stack, sum and unbind: equal places of the branches leave together."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = torch.stack([m.a(x), m.b(x)], 1)
        first, second = torch.relu(y).unbind(1)
        return m.head(torch.max(first, second) + y.sum(1))

    return Lambda(forward, a=nn.Linear(4, 6), b=nn.Linear(4, 6), head=nn.Linear(6, 3)), torch.randn(
        2, 4, dtype=torch.float64
    )


@case
def bag() -> tuple[nn.Module, Any]:
    """EmbeddingBag and a raw matrix product."""

    def forward(m: Any, tokens: Tensor) -> Tensor:
        return m.head(torch.tanh(m.bag(tokens) @ m.weight))

    return Lambda(
        forward,
        bag=nn.EmbeddingBag(11, 6, mode="mean"),
        weight=nn.Parameter(torch.randn(6, 5)),
        head=nn.Linear(5, 3),
    ), torch.arange(10).view(2, 5)


@case
def message_passing() -> tuple[nn.Module, Any]:
    """A graph: every node adds what its neighbours send, by index_add."""
    sender, receiver = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([1, 2, 3, 0, 2])

    def forward(m: Any, nodes: Tensor) -> Tensor:
        x = m.own(nodes)
        sent = m.send(nodes)[sender]
        return m.head(F.relu(x.index_add(0, receiver, sent, alpha=0.5)))

    return Lambda(
        forward, own=nn.Linear(5, 6), send=nn.Linear(5, 6), head=nn.Linear(6, 3)
    ), torch.randn(4, 5, dtype=torch.float64)


@case
def gated_mlp() -> tuple[nn.Module, Any]:
    """SwiGLU: the ungated branch carries."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return m.down(F.silu(m.gate(x)) * m.up(x))

    return Lambda(
        forward, gate=nn.Linear(4, 6), up=nn.Linear(4, 6), down=nn.Linear(6, 3)
    ), torch.randn(2, 4, dtype=torch.float64)


@case
def tokens() -> tuple[nn.Module, Any]:
    """Patches, class token, positions, a norm-free mixer with batch norms."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([m.token.expand(x.shape[0], -1, -1), x], 1) + m.positions
        x = m.norm(x.transpose(1, 2)).transpose(1, 2)
        return m.head(x[:, 0])

    return Lambda(
        forward,
        patch=nn.Conv2d(3, 6, 4, stride=4),
        token=nn.Parameter(torch.randn(1, 1, 6)),
        positions=nn.Parameter(torch.randn(1, 5, 6)),
        norm=nn.BatchNorm1d(6),
        head=nn.Linear(6, 3),
    ), image()


@case
def recurrent() -> tuple[nn.Module, Any]:
    """An LSTM between layers: its units leave with their rows in every gate."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y, _ = m.lstm(m.a(x))
        return m.head(F.relu(m.b(y[:, -1])))

    return Lambda(
        forward,
        a=nn.Linear(4, 6),
        lstm=nn.LSTM(6, 5, batch_first=True),
        b=nn.Linear(5, 7),
        head=nn.Linear(7, 3),
    ), torch.randn(2, 5, 4, dtype=torch.float64)


# ---- normalisers that count what left, attention by head ---------------------------------------


class ChannelsFirst(nn.LayerNorm):
    """A layer norm over dimension 1, as ConvNeXt has it."""

    def forward(self, input: Tensor) -> Tensor:
        x = input.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class StandardisedConv(nn.Conv2d):
    """Weight standardisation as BiT has it: nothing in the layer scales a filter."""

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, correction=0)
        weight = (self.weight - mean) / torch.sqrt(variance + 1e-4)
        return self._conv_forward(x, weight, self.bias)


class ScaledConv(nn.Conv2d):
    """Weight standardisation as NFNet has it, with a gain for each filter."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.scale, self.eps = 1.7 * self.weight[0].numel() ** -0.5, 1e-4
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        rows, gain = (
            self.weight.reshape(1, self.out_channels, -1),
            (self.gain * self.scale).view(-1),
        )
        weight = F.batch_norm(rows, None, None, gain, training=True, momentum=0.0, eps=self.eps)
        return self._conv_forward(x, weight.reshape_as(self.weight), self.bias)


@case
def standardised() -> tuple[nn.Module, Any]:
    """Weight-standardised convolutions: with gains, and before a group norm."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.relu(m.stem(x))
        x = F.silu(m.depthwise(F.relu(m.grouped(x)))) + x
        return m.head(F.relu(m.norm(m.bare(x))).mean((2, 3)))

    return Lambda(
        forward,
        stem=ScaledConv(3, 8, 3, padding=1),
        grouped=ScaledConv(8, 8, 3, padding=1, groups=2),
        depthwise=ScaledConv(8, 8, 3, padding=1, groups=8, bias=False),
        bare=StandardisedConv(8, 6, 3, bias=False),
        norm=nn.GroupNorm(2, 6),
        head=nn.Linear(6, 3),
    ), image()


class PlainRMSNorm(nn.Module):
    """An RMS norm in words of its own, as language models have it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)
        self.variance_epsilon = 1e-3

    def forward(self, x: Tensor) -> Tensor:
        variance = x.pow(2).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(variance + self.variance_epsilon))


class OnePlusNorm(PlainRMSNorm):
    """An RMS norm that scales by one more than its weight, as Gemma's."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.variance_epsilon = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return y * (1.0 + self.weight)


class GammaLayerNorm(nn.Module):
    """A layer norm over dimension 1 in words of its own, as the first ConvNeXt had it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(width, 1, 1) + 0.5)
        self.beta = nn.Parameter(torch.randn(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        return (x - mean) / torch.sqrt(variance + 1e-6) * self.gamma + self.beta


class ResponseNorm(nn.Module):
    """Global response normalisation with channels last, as ConvNeXt V2 has it."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.randn(1, 1, 1, width))
        self.bias = nn.Parameter(torch.randn(1, 1, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        strength = torch.linalg.vector_norm(x, ord=2, dim=(1, 2), keepdim=True)
        share = strength / (strength.mean(dim=-1, keepdim=True) + self.eps)
        return self.weight * (x * share) + self.bias + x


class ResponseNormFirst(nn.Module):
    """The same with channels first, and in other words."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.beta, self.gamma = nn.Parameter(torch.randn(width)), nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        strength = x.norm(p=2, dim=(2, 3), keepdim=True)
        share = strength / (strength.mean(1, keepdim=True) + 1e-4)
        return x + torch.addcmul(
            self.beta.view(1, -1, 1, 1), self.gamma.view(1, -1, 1, 1), x * share
        )


class OwnForward(nn.LayerNorm):
    """Channels last, with a forward of its own for a fast path, as timm's."""

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


@case
def moved_weights() -> tuple[nn.Module, Any]:
    """Weights that are moved before they are used: transposed, divided, on the left."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.gelu(x @ m.first.T)
        gate, value = m.both.contiguous().chunk(2)
        x = F.linear(x, gate).sigmoid() * F.linear(x, value)
        x = (m.left @ x.mT).mT
        return m.head(m.c(m.b(x)))

    return Lambda(
        forward,
        first=nn.Parameter(torch.randn(6, 4)),
        both=nn.Parameter(torch.randn(12, 6)),
        left=nn.Parameter(torch.randn(6, 6)),
        b=nn.Linear(6, 5),
        c=nn.Linear(5, 7),
        head=nn.Linear(7, 3),
    ), torch.randn(2, 5, 4, dtype=torch.float64)


@case
def experts() -> tuple[nn.Module, Any]:
    """A mixture of experts with the weights of all of them in one parameter each."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        weights = m.router(x).softmax(-1)
        result = torch.zeros_like(x)
        for expert in range(3):
            gate, up = F.linear(x, m.up[expert]).chunk(2, -1)
            result = result + weights[:, expert, None] * F.linear(F.silu(gate) * up, m.down[expert])
        stacked = torch.bmm(x.expand(3, -1, -1), m.up.mT).chunk(2, -1)
        stacked = torch.bmm(stacked[0] * stacked[1], m.down.mT).sum(0)
        return m.head(x + result + stacked)

    return Lambda(
        forward,
        stem=nn.Linear(4, 6),
        router=nn.Linear(6, 3),
        up=nn.Parameter(torch.randn(3, 10, 6)),
        down=nn.Parameter(torch.randn(3, 6, 5)),
        head=nn.Linear(6, 2),
    ), torch.randn(5, 4, dtype=torch.float64)


@case
def einsums() -> tuple[nn.Module, Any]:
    """An attention in einsums, with weights of three dimensions: whole heads leave."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        q, k, v = (torch.einsum("bnc,chd->bhnd", x, w) for w in (m.q, m.k, m.v))
        scores = torch.einsum("b h n d, b h m d -> b h n m", q, k)
        bias = m.table[torch.arange(25) % 7].view(5, 5, -1).permute(2, 0, 1)[None]
        scores = (scores + (bias + torch.eye(5, dtype=x.dtype).expand(2, 1, 5, 5))).softmax(-1)
        y = torch.einsum("...nm,...md->...nd", scores, v)
        y = torch.einsum("bhnd,hde->bhne", y, m.each)
        return m.head(x + torch.einsum("bhnd,hdc->bnc", y, m.out))

    def weight(*shape: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(*shape) / 2)

    return Lambda(
        forward,
        stem=nn.Linear(4, 8),
        q=weight(8, 2, 4),
        k=weight(8, 2, 4),
        v=weight(8, 2, 4),
        table=weight(7, 2),
        each=weight(2, 4, 3),
        out=weight(2, 3, 8),
        head=nn.Linear(8, 3),
    ), torch.randn(2, 5, 4, dtype=torch.float64)


@case
def generator() -> tuple[nn.Module, Any]:
    """Outputs of a linear layer become feature maps: whole maps leave."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.first(x)
        x = F.relu(m.norm(x.view(x.shape[0], -1, 2, 2)))
        x = m.second(m.up(x).flatten(1))
        return m.head(F.relu(m.maps(x)))

    return Lambda(
        forward,
        first=nn.Linear(4, 24),
        norm=nn.BatchNorm2d(6),
        up=nn.ConvTranspose2d(6, 5, 2, 2),
        second=nn.Linear(80, 12),
        maps=nn.Unflatten(1, (3, 2, 2)),
        head=nn.Conv2d(3, 2, 1),
    ), torch.randn(2, 4, dtype=torch.float64)


@case
def token_mixer() -> tuple[nn.Module, Any]:
    """As MLP-Mixer: a layer runs over the tokens, and the channels pass through it."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        x = x + m.tokens(m.norm(x).mT).mT
        return m.head(x + m.down(F.gelu(m.up(x))))

    return Lambda(
        forward,
        stem=nn.Linear(4, 6),
        norm=nn.LayerNorm(6),
        tokens=nn.Linear(5, 5),
        up=nn.Linear(6, 8),
        down=nn.Linear(8, 6),
        head=nn.Linear(6, 3),
    ), torch.randn(2, 5, 4, dtype=torch.float64)


@case
def learned_queries() -> tuple[nn.Module, Any]:
    """Parameters that go through a norm and layers of their own before they meet a width."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        y = (m.query(m.norm(m.queries)) @ x.mT).softmax(-1) @ x
        return m.head((1 + m.gain) * y * m.decay.exp() + m.queries)

    return Lambda(
        forward,
        stem=nn.Linear(4, 6),
        queries=nn.Parameter(torch.randn(3, 6)),
        norm=nn.LayerNorm(6),
        query=nn.Linear(6, 6),
        gain=nn.Parameter(torch.randn(6)),
        decay=nn.Parameter(torch.randn(6)),
        head=nn.Linear(6, 3),
    ), torch.randn(2, 5, 4, dtype=torch.float64)


@case
def l2_norms() -> tuple[nn.Module, Any]:
    """Roots of sums of squares over the channels: they do not see channels of zeros."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.relu(m.a(x))
        norm = x.pow(2).sum(1, keepdim=True).sqrt() + 1e-6
        x = m.weight.unsqueeze(0).unsqueeze(2).unsqueeze(3).expand_as(x) * (x / norm)
        x = F.normalize(m.b(x), dim=1) * 5**0.5 * m.gamma + m.beta
        x = m.c(x)
        x = x / torch.norm(x, dim=1, keepdim=True).expand_as(x)
        return m.head(x)

    return Lambda(
        forward,
        a=nn.Conv2d(3, 6, 3),
        weight=nn.Parameter(torch.rand(6) + 0.5),
        b=nn.Conv2d(6, 5, 3),
        gamma=nn.Parameter(torch.rand(5, 1, 1) + 0.5),
        beta=nn.Parameter(torch.randn(5, 1, 1)),
        c=nn.Conv2d(5, 4, 1),
        head=nn.Conv2d(4, 3, 1),
    ), image()


@case
def picked() -> tuple[nn.Module, Any]:
    """Places picked by number, the same ones for all channels or found channel by channel."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        peek = x[:, :, -1]  # a slice that is only asked for its shape
        length = peek.size(1) + peek.shape[0]
        index = m.score.topk(4).indices
        x = x.gather(1, index[None, :, None].expand(2, -1, x.shape[2]))
        x = torch.take_along_dim(x, index[None, :, None] % 4, 1)
        y = torch.zeros_like(x).scatter_add(1, (index[None, :, None] % 4).expand_as(x), x)
        y = m.b(y + x.sort(1)[0] + x.cummax(1)[0] + x.topk(4, 1)[0])
        y = y.gather(1, y.argsort(1))
        return m.head(y * length)

    return Lambda(
        forward,
        a=nn.Linear(4, 6),
        score=torch.tensor([0.3, 0.1, 0.5, 0.2, 0.9]),
        b=nn.Linear(6, 6),
        head=nn.Linear(6, 3),
    ), torch.randn(2, 5, 4, dtype=torch.float64)


@case
def other_operators() -> tuple[nn.Module, Any]:
    """Fourier transforms over places, products that add, distances to a codebook."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        x = (
            torch.fft.irfft(torch.fft.rfft(x, dim=1), n=5, dim=1)
            + torch.fft.fft2(x, dim=(0, 1)).real
        )
        scores = torch.baddbmm(torch.ones_like(x @ x.mT), x, x.mT, beta=0.5, alpha=0.1)
        y = m.b(torch.logaddexp(scores @ x, x))
        near = torch.cdist(y, m.codes).softmax(-1)
        return m.head(near @ m.codes)

    return Lambda(
        forward,
        a=nn.Linear(4, 6),
        b=nn.Linear(6, 5),
        codes=nn.Parameter(torch.randn(7, 5)),
        head=nn.Linear(5, 3),
    ), torch.randn(2, 5, 4, dtype=torch.float64)


@case
def norms_of_their_own() -> tuple[nn.Module, Any]:
    """Normalisers of other libraries, by no name that we know: every width between leaves."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.first(m.stem(x)).flatten(2).transpose(1, 2)
        x = m.last(x + m.a(x))
        x = x + m.down(F.gelu(m.up(m.plus(x))))
        return m.head(m.plus(x).mean(1))

    return Lambda(
        forward,
        stem=nn.Conv2d(3, 8, 3),
        first=GammaLayerNorm(8),
        a=nn.Linear(8, 8),
        last=OwnForward(8),
        plus=OnePlusNorm(8),
        up=nn.Linear(8, 12),
        down=nn.Linear(12, 8),
        head=nn.Linear(8, 3),
    ), image()


@case
def response_norms() -> tuple[nn.Module, Any]:
    """Channels last between linear layers after a GELU, channels first between convolutions."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.first(F.gelu(m.stem(x))).permute(0, 2, 3, 1)
        x = m.down(m.last(F.gelu(m.up(x))))
        return m.head(x.mean((1, 2)))

    return Lambda(
        forward,
        stem=nn.Conv2d(3, 8, 3),
        first=ResponseNormFirst(8),
        up=nn.Linear(8, 12),
        last=ResponseNorm(12),
        down=nn.Linear(12, 8),
        head=nn.Linear(8, 3),
    ), image()


@case
def counting_norms() -> tuple[nn.Module, Any]:
    """Every norm that mixes channels, on widths that a layer hands out."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.first(m.stem(x))
        x = m.all(m.a(F.gelu(x))).mean((2, 3))
        x = x + m.down(F.gelu(m.up(m.ln(x))))
        return m.head(m.own(m.c(m.bare(m.b(m.rms(x))))))

    return Lambda(
        forward,
        stem=nn.Conv2d(3, 8, 3),
        first=ChannelsFirst(8),
        a=nn.Conv2d(8, 6, 3),
        all=nn.GroupNorm(1, 6),
        ln=nn.LayerNorm(6, bias=False),
        up=nn.Linear(6, 9),
        down=nn.Linear(9, 6),
        rms=nn.RMSNorm(6),
        b=nn.Linear(6, 7),
        bare=nn.LayerNorm(7, elementwise_affine=False),
        c=nn.Linear(7, 5),
        own=PlainRMSNorm(5),
        head=nn.Linear(5, 3),
    ), image()


@case
def vision_transformer() -> tuple[nn.Module, Any]:
    """Pre-norm blocks on a residual stream with class token and positions: all of it leaves."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([m.token.expand(x.shape[0], -1, -1), x], 1) + m.positions
        return m.head(m.norm(m.blocks(x))[:, 0])

    block = partial(
        nn.TransformerEncoderLayer, 8, 4, 12, dropout=0.0, batch_first=True, norm_first=True
    )
    return Lambda(
        forward,
        patch=nn.Conv2d(3, 8, 4, stride=4),
        token=nn.Parameter(torch.randn(1, 1, 8)),
        positions=nn.Parameter(torch.randn(1, 5, 8)),
        blocks=nn.Sequential(block(activation="gelu"), block()),
        norm=nn.LayerNorm(8),
        head=nn.Linear(8, 3),
    ), image()


@case
def padded_encoder() -> tuple[nn.Module, Any]:
    """nn.TransformerEncoder with a padding mask, which packs its tokens in evaluation mode."""

    def forward(m: Any, tokens: Tensor, unseen: Tensor) -> Tensor:
        x = m.encoder(m.embed(tokens), src_key_padding_mask=unseen)
        return m.head(x[:, 0])

    layer = nn.TransformerEncoderLayer(8, 4, 12, dropout=0.0, batch_first=True)
    return Lambda(
        forward,
        embed=nn.Embedding(11, 8),
        encoder=nn.TransformerEncoder(layer, 2),
        head=nn.Linear(8, 3),
    ), (torch.arange(10).view(2, 5), torch.tensor([[False] * 5, [False] * 3 + [True] * 2]))


@case
def cross_attention() -> tuple[nn.Module, Any]:
    """Keys and values of widths of their own, masks, sequence first; one with packed weights."""

    def forward(m: Any, x: Tensor, memory: Tensor) -> Tensor:
        unseen = torch.zeros(2, memory.shape[0], dtype=torch.bool)
        unseen[0, -1] = True
        k, v = m.k(memory), m.v(memory)
        y = m.separate(m.q(x), k, v, key_padding_mask=unseen, need_weights=False)[0]
        causal = nn.Transformer.generate_square_subsequent_mask(x.shape[0], dtype=x.dtype)
        y = y + m.packed(y, F.relu(y), y, attn_mask=causal)[0]
        y = y + m.packed(y, y, y, attn_mask=causal, is_causal=True, need_weights=False)[0]
        return m.head(y)

    return Lambda(
        forward,
        q=nn.Linear(5, 8),
        k=nn.Linear(4, 6),
        v=nn.Linear(4, 7),
        separate=nn.MultiheadAttention(8, 4, kdim=6, vdim=7),
        packed=nn.MultiheadAttention(8, 2, bias=False),
        head=nn.Linear(8, 3),
    ), (torch.randn(3, 2, 5, dtype=torch.float64), torch.randn(4, 2, 4, dtype=torch.float64))


@case
def attention_unbatched() -> tuple[nn.Module, Any]:
    """Without a batch dimension; the weights of every head are an output and stay."""

    def forward(m: Any, x: Tensor) -> Any:
        x = m.a(m.stem(x), m.stem(x), m.stem(x))[0]
        y, weights = m.b(x, x, x, average_attn_weights=False)
        return m.head(y), weights

    return Lambda(
        forward,
        stem=nn.Linear(4, 6),
        a=nn.MultiheadAttention(6, 3, batch_first=True),
        b=nn.MultiheadAttention(6, 3, batch_first=True),
        head=nn.Linear(6, 3),
    ), torch.randn(5, 4, dtype=torch.float64)


def swin(kind: type[nn.Module]) -> tuple[nn.Module, Any]:
    """Two attentions in windows, one of them shifted, on a residual stream; rows do not fit."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        x = x + m.a(m.norm(x))
        x = x + m.b(x)
        return m.head(x.mean((1, 2)))

    return Lambda(
        forward,
        stem=nn.Linear(3, 12),
        norm=nn.LayerNorm(12),
        a=kind(12, [3, 3], [0, 0], 4),
        b=kind(12, [3, 3], [1, 1], 2),
        head=nn.Linear(12, 3),
    ), torch.randn(2, 4, 5, 3, dtype=torch.float64)


@case
def shifted_windows() -> tuple[nn.Module, Any]:
    """Swin: heads and the residual width, which torchvision takes for one another."""
    return swin(ShiftedWindowAttention)


@case
def shifted_windows_2() -> tuple[nn.Module, Any]:
    """Swin of version 2: part of the qkv bias is zeroed in each call, so that the heads stay."""
    return swin(ShiftedWindowAttentionV2)
