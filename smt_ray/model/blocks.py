"""Pre-norm Transformer parts shared by encoder, decoder and cells.

Shapes: N rows, T tokens in a row, D width, H heads, d = D / H width of a head.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor, nn

Rotation = Complex[Tensor, "*T half_d"]
"""Rotary angles of positions, as complex numbers of modulus 1."""


def rms_norm(x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
    """Divide each vector by its root mean square; a zero vector stays zero."""
    return F.rms_norm(x, (x.shape[-1],), eps=1e-6)


def normalize(x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
    """Give each vector mean 0 and variance 1: the norm inside of blocks, fused on any device."""
    return F.layer_norm(x, (x.shape[-1],), eps=1e-6)


def rotation(length: int, head_width: int, device: torch.device) -> Rotation:
    """Return the rotary position angles (RoPE, arXiv:2104.09864) of positions 0..length-1."""
    half = head_width // 2
    frequencies = 10_000.0 ** (-torch.arange(half, device=device) / half)
    angles = torch.arange(length, device=device)[:, None] * frequencies
    return torch.polar(torch.ones_like(angles), angles)


def sinusoids(positions: Int[Tensor, "*T"], width: int) -> Float[Tensor, "*T D"]:
    """Return sines and cosines of absolute positions, of mean square 1/2 (arXiv:1706.03762).

    Rotary angles tell distances alone. "As far after the marker as the answer is before it" is no
    distance, but a fixed linear map of these.
    """
    half = width // 2
    frequencies = 10_000.0 ** (-torch.arange(half, device=positions.device) / half)
    angles = positions[..., None] * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


def rotate(x: Float[Tensor, "N H T d"], by: Rotation) -> Float[Tensor, "N H T d"]:
    """Rotate each head's pairs of neighbouring numbers by the angles of their positions."""
    whole = x if x.dtype == torch.float64 else x.float()  # complex numbers have 32 bits at least
    pairs = torch.view_as_complex(whole.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * by).flatten(-2).to(x.dtype)


class Linear(nn.Linear):
    """Linear map without bias; weights are N(0, 1 / fan-in), or zero at a branch's end."""

    def __init__(self, inputs: int, outputs: int, *, zero: bool = False) -> None:
        """Create the map; `zero` makes the branch that it ends begin as the identity."""
        super().__init__(inputs, outputs, bias=False)
        if zero:
            nn.init.zeros_(self.weight)
        else:
            nn.init.normal_(self.weight, std=inputs**-0.5)


class MLP(nn.Module):
    """Two linear maps around a SiLU."""

    def __init__(self, width: int, ratio: int) -> None:
        """Create the maps; the hidden width is `ratio * width`."""
        super().__init__()
        self.up = Linear(width, ratio * width)
        self.down = Linear(ratio * width, width, zero=True)

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        """Map each vector."""
        return self.down(F.silu(self.up(x)))


class Attention(nn.Module):
    """Multi-head attention of `x` to itself, with normalised queries and keys."""

    def __init__(self, width: int, heads: int) -> None:
        """Create the projections."""
        super().__init__()
        self.heads = heads
        self.query = Linear(width, width)
        self.key_value = Linear(width, 2 * width)
        self.out = Linear(width, width, zero=True)

    def forward(
        self,
        x: Float[Tensor, "N T D"],
        *,
        by: Rotation | None = None,
        causal: bool = False,
        visible: Bool[Tensor, "N T"] | None = None,
        last: int | None = None,
    ) -> Float[Tensor, "N Q D"]:
        """Attend; with `last`, only the last Q = `last` positions ask (all T answer).

        Args:
            x: the stream.
            by: rotary angles of its positions.
            causal: let a position see itself and earlier ones only; not together with `visible`.
            visible: the positions of each row that others may see.
            last: how many positions at the end ask.
        """
        assert not (causal and visible is not None)
        length = x.shape[1]
        asked = length if last is None else last
        query = rearrange(self.query(x[:, length - asked :]), "n t (h d) -> n h t d", h=self.heads)
        key, value = rearrange(
            self.key_value(x), "n t (two h d) -> two n h t d", two=2, h=self.heads
        )
        query, key = normalize(query), normalize(key)
        if by is not None:
            query, key = rotate(query, by[length - asked :]), rotate(key, by)
        mask = None if visible is None else visible[:, None, None]
        if causal and 1 < asked < length:
            mask = _causal_tail(asked, length, x.device)
        y = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal and asked == length
        )
        return self.out(rearrange(y, "n h t d -> n t (h d)"))


def _causal_tail(asked: int, length: int, device: torch.device) -> Bool[Tensor, "Q T"]:
    """Return which of `length` keys each of the last `asked` positions may see."""
    everything = torch.ones(asked, length, dtype=torch.bool, device=device)
    return everything.tril(diagonal=length - asked)


class ShortConvolution(nn.Module):
    """Add the few positions before to each one, weighted by channel: a causal convolution.

    A position then knows its neighbours before any attention has learned to find them, which is
    half of what recall needs ("what came after the marker?").
    """

    def __init__(self, width: int, before: int) -> None:
        """Create the weights of the positions `before` each one."""
        super().__init__()
        self.weight = nn.Parameter(torch.randn(before, width) * (2 * before) ** -0.5)

    def forward(self, x: Float[Tensor, "N T D"]) -> Float[Tensor, "N T D"]:
        """Mix; nothing is before the first position."""
        mixed = x
        for back, weight in enumerate(self.weight, start=1):
            mixed = mixed + F.pad(x, (0, 0, back, 0))[:, : x.shape[1]] * weight
        return mixed


class Block(nn.Module):
    """One pre-norm Transformer block: attention, then an MLP, each added to the stream."""

    def __init__(self, width: int, heads: int, ratio: int) -> None:
        """Create the block."""
        super().__init__()
        self.attention = Attention(width, heads)
        self.mlp = MLP(width, ratio)

    def forward(
        self,
        x: Float[Tensor, "N T D"],
        *,
        by: Rotation | None = None,
        causal: bool = False,
        visible: Bool[Tensor, "N T"] | None = None,
        last: int | None = None,
    ) -> Float[Tensor, "N Q D"]:
        """Map the stream; with `last`, only its last Q = `last` positions."""
        stream = x if last is None else x[:, -last:]
        stream = stream + self.attention(
            normalize(x), by=by, causal=causal, visible=visible, last=last
        )
        return stream + self.mlp(normalize(stream))


class Embedding(nn.Embedding):
    """Token embedding with unit variance: it weighs as much as a normalised memory token."""

    def forward(self, tokens: Int[Tensor, "*rows"]) -> Float[Tensor, "*rows D"]:
        """Look the tokens up."""
        return super().forward(tokens)
