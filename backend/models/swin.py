# SPDX-License-Identifier: GPL-2.0-or-later
"""Attention in windows that are really shifted, on images of any size, aligned to the scene's pixels.

Source: Liu et al., ICCV 2021 (Swin). Instead of the cyclic shift with its masks, windows start at multiples of
their side plus the shift; those that stick out of the image are padded and the padding is masked. At the border
this gives the same partial windows, and a tile cuts the scene as the whole scene is cut.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

Origin = tuple[int, int]
"""Scene coordinates (row, col) of an image's upper left pixel."""
STRIP_PIXELS = 16_384
"""In inference a layer takes this many pixels at a time, in whole rows of windows."""


class WindowAttention(nn.Module):
    """Multi-head self-attention within square windows, with a learned bias for each relative position.

    Args:
        width: channels; must be a multiple of `heads`.
        heads: attention heads.
        window: side of a window in pixels.
        shift: offset of the windows in pixels, 0 <= shift < window.
    """

    def __init__(self, width: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{width} channels cannot be split over {heads} heads")
        if not 0 <= shift < window:
            raise ValueError("the shift must lie within the window")
        self.heads, self.window, self.shift = heads, window, shift
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.position_bias = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.position_bias, std=0.02)
        step = torch.arange(window)
        place = torch.stack(torch.meshgrid(step, step, indexing="ij")).flatten(1)
        relative = place[:, :, None] - place[:, None, :] + window - 1
        self.register_buffer("index", relative[0] * (2 * window - 1) + relative[1], persistent=False)

    def padding(self, size: int, start: int) -> tuple[int, int]:
        """Return the padding before and after `size` pixels that begin at scene coordinate `start`."""
        before = (start - self.shift) % self.window
        return before, -(before + size) % self.window

    def forward(self, x: Tensor, origin: Origin = (0, 0)) -> Tensor:
        """Attend.

        Args:
            x: `[batch, rows, cols, width]`.
            origin: scene coordinates of the first pixel, to which the windows are aligned.
        """
        batch, rows, cols, width = x.shape
        w, heads = self.window, self.heads
        top, bottom = self.padding(rows, origin[0])
        left, right = self.padding(cols, origin[1])
        padded = functional.pad(x, (0, 0, left, right, top, bottom))
        n_r, n_c = padded.shape[1] // w, padded.shape[2] // w
        tokens = padded.view(batch, n_r, w, n_c, w, width).transpose(2, 3).reshape(-1, w * w, width)
        q, k, v = self.qkv(tokens).view(-1, w * w, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        bias = self.position_bias[self.index].permute(2, 0, 1)[None].to(q.dtype)
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        if top or bottom or left or right:
            # Only windows at the border hold padding. Theirs are few: done again with the mask, which for all
            # windows would be the largest array here.
            mask = self._mask(x, (rows, cols), (top, bottom, left, right))
            partial = torch.nonzero((mask < 0).flatten(1).any(dim=1))[:, 0]
            mask = mask[partial].repeat(batch, 1, 1, 1).to(q.dtype)
            partial = (partial + n_r * n_c * torch.arange(batch, device=x.device)[:, None]).flatten()
            again = functional.scaled_dot_product_attention(
                q[partial], k[partial], v[partial], attn_mask=bias + mask
            )
            out = out.index_copy(0, partial, again)
        out = self.project(out.transpose(1, 2).reshape(-1, w * w, width))
        out = out.view(batch, n_r, n_c, w, w, width).transpose(2, 3).reshape(padded.shape)
        return out[:, top : top + rows, left : left + cols]

    def _mask(self, x: Tensor, size: tuple[int, int], pads: tuple[int, int, int, int]) -> Tensor:
        """Return `[windows, 1, 1, window**2]`: very negative at keys that are padding."""
        w = self.window
        top, bottom, left, right = pads
        real = functional.pad(x.new_ones(size), (left, right, top, bottom))
        keys = (
            real.view(real.shape[0] // w, w, real.shape[1] // w, w).transpose(1, 2).reshape(-1, 1, 1, w * w)
        )
        return (1.0 - keys) * -1e4


class SwinLayer(nn.Module):
    """Norm, (shifted) window attention, residual; norm, MLP with GELU, residual.

    Args:
        width, heads, window, shift: see `WindowAttention`.
        mlp: width of the MLP relative to `width`.
    """

    def __init__(self, width: int, heads: int, window: int, shift: int, mlp: int = 4) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = WindowAttention(width, heads, window, shift)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, mlp * width), nn.GELU(), nn.Linear(mlp * width, width))

    def forward(self, x: Tensor, origin: Origin = (0, 0)) -> Tensor:
        """Return the same shape as `x`, `[batch, width, rows, cols]`."""
        if torch.is_grad_enabled() or x.shape[2] * x.shape[3] <= STRIP_PIXELS:
            return self._strip(x, origin)
        # Rows of windows know nothing of each other: some at a time bound the memory and stay in the cache.
        window, rows = self.attention.window, x.shape[2]
        first = (self.attention.shift - origin[0]) % window or window
        step = max(1, STRIP_PIXELS // (x.shape[3] * window)) * window
        edges = [0, *range(first, rows, step), rows]
        strips = [self._strip(x[:, :, a:b], (origin[0] + a, origin[1])) for a, b in zip(edges, edges[1:])]
        return torch.cat(strips, dim=2)

    def _strip(self, x: Tensor, origin: Origin) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = x + self.attention(self.norm_attention(x), origin)
        x = x + self.mlp(self.norm_mlp(x))
        return x.permute(0, 3, 1, 2)
