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
        weighted = torch.stack([q, k, v, attended], dim=1) * gates[:, :, None]
        return weighted.sum(dim=1)

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
        query, key, value = (self._split(x) for x in (query, key, value))
        d = query.shape[2]
        query = functional.normalize(query.float(), dim=2)
        key = functional.normalize(key.float(), dim=2)
        product = (query[:, :, :, None] * key[:, :, None]).flatten(1, 3)
        # The mean over a square in two passes, rows then columns.
        side, half = self.window or 1, (self.window or 1) // 2
        mean = functional.avg_pool2d(product, (side, 1), 1, (half, 0), count_include_pad=False)
        mean = functional.avg_pool2d(mean, (1, side), 1, (0, half), count_include_pad=False)
        mean = mean.view(shape[0], self.heads, d, d, *shape[2:])
        attention = (mean * d * math.sqrt(d)).softmax(dim=3).to(value.dtype)
        return (attention * value[:, :, None]).sum(dim=3).reshape(shape)
