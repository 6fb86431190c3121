"""Multi-head attention of which whole heads, or channels of its inputs, have left.

:class:`torch.nn.MultiheadAttention` computes the width of a head from the width of its input. The
module here keeps the two apart. It holds the same parameters under the same names and is called
the same way.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_variadic


def headwise_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    head_dim: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    *,
    q_proj_weight: Tensor | None,
    k_proj_weight: Tensor | None,
    v_proj_weight: Tensor | None,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    mask: Tensor | None,
    dropout_p: float,
    need_weights: bool,
    average_attn_weights: bool,
    is_causal: bool,
) -> tuple[Tensor, Tensor | None]:
    """Attention with heads of a given width (``torch.nn.functional`` derives it from the input).

    Args:
        query: Shape ``(targets, batch, width)``.
        key: Shape ``(sources, batch, width of keys)``.
        value: Shape ``(sources, batch, width of values)``.
        head_dim: Width of a head.
        num_heads: Heads.
        in_proj_weight: Shape ``(3 * num_heads * head_dim, width)``, or None for separate ones.
        in_proj_bias: Shape ``(3 * num_heads * head_dim,)``, or None.
        q_proj_weight: Shape ``(num_heads * head_dim, width)`` where not packed.
        k_proj_weight: The same for the keys.
        v_proj_weight: The same for the values.
        out_proj_weight: Shape ``(width, num_heads * head_dim)``.
        out_proj_bias: Shape ``(width,)``, or None.
        mask: Added to the scores, broadcast to ``(batch, num_heads, targets, sources)``.
        dropout_p: Share of the attention weights dropped.
        need_weights: Return the attention weights too.
        average_attn_weights: ... averaged over the heads.
        is_causal: No target sees a later source; without a mask.

    Returns:
        Outputs ``(targets, batch, width)``, and the attention weights or None.
    """
    weights = (in_proj_weight, q_proj_weight, k_proj_weight, v_proj_weight)
    if has_torch_function_variadic(query, key, value, in_proj_weight, out_proj_weight):
        return handle_torch_function(
            headwise_attention,
            (query, key, value, in_proj_weight, out_proj_weight),
            query,
            key,
            value,
            head_dim,
            num_heads,
            in_proj_weight,
            in_proj_bias,
            q_proj_weight=q_proj_weight,
            k_proj_weight=k_proj_weight,
            v_proj_weight=v_proj_weight,
            out_proj_weight=out_proj_weight,
            out_proj_bias=out_proj_bias,
            mask=mask,
            dropout_p=dropout_p,
            need_weights=need_weights,
            average_attn_weights=average_attn_weights,
            is_causal=is_causal,
        )
    q, k, v = (
        y.view(*y.shape[:2], num_heads, head_dim).permute(1, 2, 0, 3)
        for y in _projected((query, key, value), weights, in_proj_bias)
    )
    scores = None
    if need_weights:
        scores = (q * head_dim**-0.5) @ k.transpose(-2, -1)
        scores = (scores if mask is None else scores + mask).softmax(-1)
        scores = F.dropout(scores, dropout_p) if dropout_p else scores
        y = scores @ v
        scores = scores.mean(1) if average_attn_weights else scores
    else:
        y = F.scaled_dot_product_attention(q, k, v, mask, dropout_p, is_causal)
    y = y.permute(2, 0, 1, 3).flatten(2)
    return F.linear(y, out_proj_weight, out_proj_bias), scores


def _projected(
    inputs: tuple[Tensor, Tensor, Tensor], weights: tuple[Tensor | None, ...], bias: Tensor | None
) -> tuple[Tensor, ...]:
    """Queries, keys and values: one product where all three come of one tensor."""
    packed, *separate = weights
    if packed is not None and inputs[0] is inputs[1] is inputs[2]:
        return F.linear(inputs[0], packed, bias).chunk(3, -1)
    each = separate if packed is None else packed.chunk(3)
    biases = (None,) * 3 if bias is None else bias.chunk(3)
    return tuple(
        F.linear(x, w, b)  # type: ignore[arg-type]
        for x, w, b in zip(inputs, each, biases, strict=True)
    )


class HeadwiseAttention(nn.MultiheadAttention):
    """What a :class:`torch.nn.MultiheadAttention` becomes when heads or channels leave it.

    ``embed_dim`` is the width of queries and outputs; ``num_heads * head_dim`` need not equal it.

    Attributes:
        replaced: Name of the class it was before.
    """

    replaced: str

    @property
    def _qkv_same_embed_dim(self) -> bool:
        # nn.TransformerEncoderLayer takes a fused path in evaluation mode that derives the width
        # of a head from the input; it asks this attribute first.
        return False

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As :meth:`torch.nn.MultiheadAttention.forward`."""
        same = query is key is value
        batched = query.dim() == 3
        if not batched:
            query, key, value = (x.unsqueeze(1) for x in (query, key, value))
        elif self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        if same:
            key = value = query
        if is_causal and attn_mask is None:
            raise RuntimeError("Expected attn_mask together with is_causal=True, found None.")
        causal = is_causal and key_padding_mask is None and not need_weights
        mask = self._mask(query, None if causal else attn_mask, key_padding_mask)
        outputs, weights = headwise_attention(
            query,
            key,
            value,
            self.head_dim,
            self.num_heads,
            self.in_proj_weight,
            self.in_proj_bias,
            q_proj_weight=self.q_proj_weight,
            k_proj_weight=self.k_proj_weight,
            v_proj_weight=self.v_proj_weight,
            out_proj_weight=self.out_proj.weight,
            out_proj_bias=self.out_proj.bias,
            mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            need_weights=need_weights,
            average_attn_weights=average_attn_weights,
            is_causal=causal,
        )
        if not batched:
            return outputs.squeeze(1), None if weights is None else weights.squeeze(0)
        return outputs.transpose(0, 1) if self.batch_first else outputs, weights

    def _mask(
        self, query: Tensor, attention: Tensor | None, padding: Tensor | None
    ) -> Tensor | None:
        """One mask to add to the scores, or None."""
        parts = []
        if attention is not None:
            if attention.dim() == 3:  # (batch * heads, targets, sources)
                attention = attention.view(-1, self.num_heads, *attention.shape[1:])
            parts.append(_additive(attention, query.dtype))
        if padding is not None:
            padding = padding.view(-1, 1, 1, padding.shape[-1])
            parts.append(_additive(padding, query.dtype))
        if len(parts) == 2:
            return parts[0] + parts[1]
        return parts[0] if parts else None

    def extra_repr(self) -> str:
        """Widths and heads."""
        return f"{self.embed_dim}, num_heads={self.num_heads}, head_dim={self.head_dim}"


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as numbers to add; True in a bool mask says: not to be seen."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))
