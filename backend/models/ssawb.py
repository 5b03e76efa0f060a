# SPDX-License-Identifier: GPL-2.0-or-later
"""SSAWB, the spatial-spectral attention weight block of S3RNet (CSA, cross self-attention, in CSAKD)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class SSAWB(nn.Module):
    """Channel attention across four branches, then a sigmoid gate that weighs them pixel by pixel.

    With 1 x 1 convolutions `q = Wq Q`, `k = Wk K`, `v = Wv V`, split into heads of d channels:
    `a = softmax(q k' / sqrt(d))` (the product sums over all pixels), `Z' = Wo (a v) + Z`,
    `g = sigmoid(Wg [Q, K, V, Z'])`, and the result is `g1 Q + g2 K + g3 V + g4 Z'`.

    The published sum over all pixels makes a result depend on the size of the input, so tiles would not fit
    together. With `window` the product is instead the mean over the window around each pixel, times the same
    sqrt(d) scaling, of channel vectors of unit norm: a fixed receptive field, and logits that stay bounded.

    Args:
        width: channels of each branch.
        reduced: channels of the attention, over all heads.
        heads: number of heads; must divide `reduced`.
        window: None for the published form, or the odd side in pixels of the window of the local form.
    """

    def __init__(self, width: int, reduced: int = 64, heads: int = 4, window: int | None = None) -> None:
        super().__init__()
        if reduced % heads:
            raise ValueError("the attention's channels must be a multiple of its heads")
        if window is not None and window % 2 == 0:
            raise ValueError("the window's side must be odd")
        self.heads, self.window = heads, window
        self.query = nn.Conv2d(width, reduced, 1)
        self.key = nn.Conv2d(width, reduced, 1)
        self.value = nn.Conv2d(width, reduced, 1)
        self.project = nn.Conv2d(reduced, width, 1)
        self.gate = nn.Conv2d(4 * width, 4, 1)

    @property
    def reach(self) -> int:
        """Pixels to each side that a result depends on (the published form: all, so none is stated)."""
        return 0 if self.window is None else self.window // 2

    def forward(self, q: Tensor, k: Tensor, v: Tensor, z: Tensor) -> Tensor:
        """Fuse four branches, each `[batch, width, rows, cols]`, into one of the same shape."""
        query, key, value = self.query(q), self.key(k), self.value(v)
        mixed = self._everywhere(query, key, value) if self.window is None else self._local(query, key, value)
        attended = self.project(mixed) + z
        gates = torch.sigmoid(self.gate(torch.cat([q, k, v, attended], dim=1)))
        fused = q * gates[:, :1]
        for branch, gate in zip((k, v, attended), gates.split(1, dim=1)[1:]):
            fused = torch.addcmul(fused, branch, gate.to(branch.dtype))
        return fused

    def _split(self, x: Tensor) -> Tensor:
        """Return `[batch, heads, d, rows, cols]`."""
        return x.unflatten(1, (self.heads, -1))

    def _everywhere(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        shape = value.shape
        query, key, value = (self._split(x).flatten(3) for x in (query, key, value))
        # Logits reach tens: half precision would not hold them.
        logits = query.float() @ key.float().transpose(2, 3) / math.sqrt(query.shape[2])
        return (logits.softmax(dim=-1).to(value.dtype) @ value).reshape(shape)

    def _local(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        shape = value.shape
        # Plane by plane: softmax and sums over a few channels are slow where these are the innermost axis.
        query, key, value = (self._split(x.contiguous()) for x in (query, key, value))
        d = query.shape[2]
        query, key = unit_norm(query.float()), unit_norm(key.float())
        product = (query[:, :, :, None] * key[:, :, None]).flatten(1, 3)
        # The mean over a square in two passes, rows then columns.
        mean = window_mean(window_mean(product, 2, self.window or 1), 3, self.window or 1)
        mean = mean.view(shape[0], self.heads, d, d, *shape[2:])
        attention = (mean * d * math.sqrt(d)).softmax(dim=3).to(value.dtype)
        return (attention * value[:, :, None]).sum(dim=3).reshape(shape)


def unit_norm(vectors: Tensor) -> Tensor:
    """Return `[batch, heads, d, rows, cols]` with vectors (along d) of unit norm; zero ones stay zero."""
    return vectors * vectors.square().sum(dim=2, keepdim=True).clamp_min(1e-24).rsqrt()


def window_mean(image: Tensor, dim: int, window: int) -> Tensor:
    """Return the mean along an axis over the window around each pixel, over those pixels that exist.

    By sums of 1, 2, 4, ... pixels: a few additions instead of one for each pixel of the window, and, unlike
    running sums, nothing from outside the window enters, not even by rounding.

    Args:
        image: `[batch, channels, rows, cols]`.
        dim: 2 for rows, 3 for columns.
        window: odd side.
    """
    half, size = window // 2, image.shape[dim]
    part = functional.pad(image, (0, 0, half, half) if dim == 2 else (half, half, 0, 0))
    total: Tensor | None = None
    start, span, left = 0, 1, window
    while left:
        if left & 1:
            taken = part.narrow(dim, start, size)
            total = taken if total is None else total + taken
            start += span
        left >>= 1
        if left:
            count = part.shape[dim] - span
            part = part.narrow(dim, 0, count) + part.narrow(dim, span, count)
            span *= 2
    place = torch.arange(size, device=image.device)
    seen = (place + half).clamp_max(size - 1) - (place - half).clamp_min(0) + 1
    share = seen.to(image.dtype).reciprocal()
    return (image if total is None else total) * (share[:, None] if dim == 2 else share)
