# SPDX-License-Identifier: GPL-2.0-or-later
"""HyFusion: two coupled streams (DCN) of ERFB, dense blocks of shifted-window attention.

Source: Lee et al., IGARSS 2025, arXiv 2501.04665; block details after the successor HSSDCT (arXiv 2602.00490),
whose code never shifts its windows: here they are shifted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from .blocks import RESIDUAL, SLOPE
from .pretrained import PretrainedModel, register_model
from .swin import Origin, SwinLayer


@dataclass(frozen=True)
class HyFusionConfig:
    """Configuration of HyFusion; the defaults are the recommended compact one for 172 bands.

    Attributes:
        hs_bands, guide_bands: channels of the two inputs.
        ratio: fine pixels per coarse pixel; None for any.
        out_bands: channels of the result; None for `hs_bands`.
        width: channels after the streams (nf): the spectral stream has twice, the spatial one half as many.
        depth: ERFB in each stream.
        growth, window, heads: of an ERFB; heads None for the published rule.
        start: see `PretrainedModel`.
    """

    hs_bands: int = 172
    guide_bands: int = 4
    ratio: int | None = 4
    out_bands: int | None = None
    width: int = 80
    depth: int = 2
    growth: int = 32
    window: int = 8
    heads: int | None = None
    start: tuple[int, ...] = ()


def head_count(width: int, wish: int) -> int:
    """Return the published number of heads, `wish - width mod wish`, or the next smaller one that divides."""
    heads = wish - width % wish
    while width % heads:
        heads -= 1
    return heads


class ERFB(nn.Module):
    """Enhanced residual feature block: four window-attention layers, each seeing all earlier results.

    Args:
        width: channels in and out.
        growth: channels that each of the first three layers adds.
        window: side of the windows; every second layer is shifted by half of it.
        heads: heads wished for; None for 8 - width mod 8.
    """

    def __init__(self, width: int, growth: int = 32, window: int = 8, heads: int | None = None) -> None:
        super().__init__()
        wish = heads or 8 - width % 8
        widths = [width + i * growth for i in range(4)]
        self.layers = nn.ModuleList(
            SwinLayer(w, head_count(w, wish), window, (i % 2) * (window // 2), mlp=1 if i == 3 else 4)
            for i, w in enumerate(widths)
        )
        self.adjust = nn.ModuleList(
            nn.Conv2d(w, width if i == 3 else growth, 1) for i, w in enumerate(widths)
        )
        self.act = nn.LeakyReLU(SLOPE)

    def forward(self, x: Tensor, origin: Origin = (0, 0)) -> Tensor:
        """Return `x + 0.2 f(x)`, `[batch, width, rows, cols]`."""
        seen = x
        for layer, adjust in zip(self.layers[:-1], self.adjust[:-1]):
            seen = torch.cat([seen, self.act(adjust(layer(seen, origin)))], dim=1)
        return x + RESIDUAL * self.adjust[-1](self.layers[-1](seen, origin))


def split_ratio(ratio: int) -> tuple[int, int]:
    """Return the spectral stream's two up-samplings: the divisors nearest to the root, the smaller first."""
    first = max(d for d in range(1, math.isqrt(ratio) + 1) if ratio % d == 0)
    return first, ratio // first


@register_model("hyfusion", HyFusionConfig)
class HyFusion(PretrainedModel):
    """Dual coupled network: a spectral stream from the coarse side, a spatial one from the fine side.

    Args:
        config: see `HyFusionConfig`.
    """

    convolutional = False

    def __init__(self, config: HyFusionConfig) -> None:
        super().__init__(config)
        c = config
        both, out = c.hs_bands + c.guide_bands, c.out_bands or c.hs_bands
        wide, slim = 2 * c.width, c.width // 2
        block = (c.growth, c.window, c.heads)
        self.spectral_in = nn.Conv2d(both, wide, 3, padding=1)
        self.spectral = nn.ModuleList(ERFB(wide, *block) for _ in range(c.depth))
        self.spectral_out = nn.Conv2d(wide, c.width, 3, padding=1)
        self.spatial_in = nn.Conv2d(both, slim, 3, padding=1)
        self.spatial = nn.ModuleList(ERFB(slim, *block) for _ in range(c.depth))
        self.spatial_out = nn.Conv2d(slim, c.width, 3, padding=1)
        self.fuse = nn.Conv2d(c.width, out, 3, padding=1)
        self.refine = ERFB(out, *block)
        self.last = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.act = nn.LeakyReLU(SLOPE)

    def reach(self, ratio: int) -> int:
        """Return how many coarse pixels to each side a fine pixel depends on."""
        block = 4 * (self.config.window - 1)
        first, _ = split_ratio(ratio)
        depth = self.config.depth
        coarse = math.ceil(depth * block / first) + 3
        fine = math.ceil((depth * block + 2) / ratio)
        return max(coarse, fine) + math.ceil((block + 4) / ratio) + 1

    def pixel_bytes(self, ratio: int) -> int:
        """Return the peak of working memory in inference, in float32, for each fine pixel of one sample."""
        c = self.config
        out = c.out_bands or c.hs_bands
        # Feature maps as they grow, and copies of them; attention itself takes a few windows at a time.
        fine = 7 * (max(c.width // 2, out) + 3 * c.growth)
        first, _ = split_ratio(ratio)
        coarse = 7 * (2 * c.width + 3 * c.growth) * first**2 // ratio**2
        return 4 * (max(fine, coarse) + 2 * c.width + c.hs_bands + c.guide_bands)

    def forward(self, hs: Tensor, guide: Tensor, origin: Origin = (0, 0)) -> tuple[Tensor, Tensor]:
        """Fuse.

        Args:
            hs: `[batch, hs_bands, rows, cols]`.
            guide: `[batch, guide_bands, rows * ratio, cols * ratio]`.
            origin: scene coordinates of the guide's first pixel, a multiple of the ratio (windows are aligned
                to the scene, so that tiles fit together).

        Returns:
            The result `[batch, out_bands, rows * ratio, cols * ratio]` and the two streams' sum.

        Raises:
            ValueError: sizes that do not fit each other or the configured ratio.
        """
        ratio = guide.shape[-1] // hs.shape[-1]
        if guide.shape[-2:] != (hs.shape[-2] * ratio, hs.shape[-1] * ratio) or (
            self.config.ratio not in (None, ratio)
        ):
            raise ValueError(
                f"inputs of {tuple(hs.shape[-2:])} and {tuple(guide.shape[-2:])} pixels do not fit the ratio"
            )
        act, up = self.act, functional.interpolate
        first, second = split_ratio(ratio)
        hs_up = up(hs, size=guide.shape[-2:], mode="bilinear")
        guide_down = up(guide, size=hs.shape[-2:], mode="bicubic")
        spatial = act(self.spatial_in(torch.cat([hs_up, guide], dim=1)))
        spatial = self.spatial_out(act(self._blocks(self.spatial, spatial, origin)))
        spectral = act(self.spectral_in(torch.cat([hs, guide_down], dim=1)))
        middle = origin[0] // ratio * first, origin[1] // ratio * first
        spectral = self._blocks(self.spectral, up(spectral, scale_factor=first), middle)
        spectral = self.spectral_out(act(up(spectral, scale_factor=second)))
        joined = spatial + spectral
        return self.last(self.refine(act(self.fuse(joined)), origin)), joined

    @staticmethod
    def _blocks(blocks: nn.ModuleList, x: Tensor, origin: Origin) -> Tensor:
        """Run the ERFB of a stream inside its long skip connection."""
        out = x
        for block in blocks:
            out = block(out, origin)
        return x + out
