# SPDX-License-Identifier: GPL-2.0-or-later
"""MBFN, the multi-branch fusion network of S3RNet and of CSAKD's teacher and student.

S3RNet (Lee et al., IGARSS 2025, arXiv 2501.07953) is the teacher's configuration trained alone; CSAKD (Hsu et
al., arXiv 2406.19666) trains teacher and student together and keeps the student.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from .blocks import CLRA, CONVS_PER_DFAB, SLOPE
from .pretrained import PretrainedModel, register_model
from .ssawb import SSAWB


@dataclass(frozen=True)
class MBFNConfig:
    """Configuration of an MBFN; the defaults are the published teacher for 172 bands.

    Attributes:
        hs_bands, guide_bands: channels of the two inputs.
        ratio: fine pixels per coarse pixel; None for any (given by the inputs' sizes).
        out_bands: channels of the result; None for `hs_bands`.
        width, growth: channels of a branch and of a dense block's growth.
        blocks: CLRA blocks of the branches Z, V, Q, K (joint fine, joint coarse, HS, guide).
        dense: DFAB in a CLRA block; three as published.
        hs_groups: groups of the convolutions in the HS branch's blocks.
        attention, heads, window: channels, heads and window of the SSAWB.
        start: see `PretrainedModel`.
    """

    hs_bands: int = 172
    guide_bands: int = 4
    ratio: int | None = 4
    out_bands: int | None = None
    width: int = 86
    growth: int = 43
    blocks: tuple[int, int, int, int] = (6, 6, 4, 4)
    dense: int = 3
    hs_groups: int = 1
    attention: int = 64
    heads: int = 4
    window: int | None = None
    start: tuple[int, ...] = ()


TEACHER_BLOCKS = (6, 6, 4, 4)
STUDENT_BLOCKS = (0, 4, 4, 1)
"""The published student ("1441") has a block in branch Z that its forward pass never runs: it is left out here."""
LARGE_TEACHER_BLOCKS = (8, 8, 6, 6)
LARGE_STUDENT_BLOCKS = (2, 4, 4, 4)


def teacher_config(hs_bands: int, guide_bands: int, ratio: int = 4) -> MBFNConfig:
    """Return CSAKD's teacher, which is S3RNet (26,807,686 parameters for 172 + 4 bands)."""
    return MBFNConfig(hs_bands, guide_bands, ratio, blocks=TEACHER_BLOCKS)


def student_config(hs_bands: int, guide_bands: int, ratio: int = 4) -> MBFNConfig:
    """Return CSAKD's student (7,449,946 parameters for 172 + 4 bands)."""
    return MBFNConfig(hs_bands, guide_bands, ratio, blocks=STUDENT_BLOCKS, hs_groups=43)


@register_model("mbfn", MBFNConfig)
class MBFN(PretrainedModel):
    """Four branches (HS, guide, both at coarse and both at fine resolution), joined by an SSAWB.

    Args:
        config: see `MBFNConfig`.
    """

    def __init__(self, config: MBFNConfig) -> None:
        super().__init__(config)
        c = config
        both, out = c.hs_bands + c.guide_bands, c.out_bands or c.hs_bands
        n_z, n_v, n_q, n_k = c.blocks
        self.joint_fine_in = nn.Conv2d(both, c.width, 3, padding=1)
        self.joint_coarse_in = nn.Conv2d(both, c.width, 3, padding=1)
        self.hs_in = nn.Conv2d(c.hs_bands, c.width, 3, padding=1)
        self.guide_in = nn.Conv2d(c.guide_bands, c.width, 3, padding=1)
        self.joint_fine = self._branch(n_z)
        self.joint_coarse = self._branch(n_v)
        self.hs = self._branch(n_q, c.hs_groups)
        self.guide = self._branch(n_k)
        self.fuser = SSAWB(c.width, c.attention, c.heads, c.window)
        self.expand = nn.Conv2d(c.width, out, 3, padding=1)
        self.last = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.act = nn.LeakyReLU(SLOPE)

    def _branch(self, blocks: int, groups: int = 1) -> nn.Sequential:
        c = self.config
        return nn.Sequential(*(CLRA(c.width, c.growth, groups, c.dense) for _ in range(blocks)))

    def reach(self, ratio: int) -> int:
        """Return how many coarse pixels to each side a fine pixel depends on (local attention only)."""
        n_z, n_v, n_q, n_k = self.config.blocks
        convs = CONVS_PER_DFAB * self.config.dense
        fine = max(n_z, n_k) * convs + 1
        coarse = max(n_v, n_q) * convs + 1
        # 2 for the bicubic reduction of the guide, 1 for rounding.
        return max(coarse + 2, math.ceil(fine / ratio)) + math.ceil((self.fuser.reach + 2) / ratio) + 1

    def pixel_bytes(self, ratio: int) -> int:
        """Return the peak of working memory in inference, in float32, for each fine pixel of one sample."""
        c = self.config
        dense = 2 * (c.width + 4 * c.growth)
        fused = 6 * c.width + 4 * c.attention
        attention = 0 if c.window is None else 4 * c.attention**2 // c.heads
        return 4 * (max(dense + 3 * c.width, 4 * c.width + attention + fused) + c.hs_bands + c.guide_bands)

    def features(self, hs: Tensor, guide: Tensor) -> Tensor:
        """Return the fused features `[batch, width, rows, cols]`, which CSAKD distils."""
        ratio = guide.shape[-1] // hs.shape[-1]
        if guide.shape[-2:] != (hs.shape[-2] * ratio, hs.shape[-1] * ratio) or (
            self.config.ratio not in (None, ratio)
        ):
            raise ValueError(
                f"inputs of {tuple(hs.shape[-2:])} and {tuple(guide.shape[-2:])} pixels do not fit the ratio"
            )
        act = self.act
        hs_up = functional.interpolate(hs, size=guide.shape[-2:], mode="bilinear")
        guide_down = functional.interpolate(guide, size=hs.shape[-2:], mode="bicubic")
        z = self.joint_fine(act(self.joint_fine_in(torch.cat([hs_up, guide], dim=1))))
        v = self.joint_coarse(act(self.joint_coarse_in(torch.cat([hs, guide_down], dim=1))))
        k = self.guide(act(self.guide_in(guide)))
        q = self.hs(act(self.hs_in(hs)))
        up = functional.interpolate
        return self.fuser(up(q, scale_factor=ratio), k, up(v, scale_factor=ratio), z)

    def forward(self, hs: Tensor, guide: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse.

        Args:
            hs: `[batch, hs_bands, rows, cols]`.
            guide: `[batch, guide_bands, rows * ratio, cols * ratio]`.

        Returns:
            The result `[batch, out_bands, rows * ratio, cols * ratio]` and the fused features before the head.

        Raises:
            ValueError: sizes that do not fit each other or the configured ratio.
        """
        fused = self.features(hs, guide)
        return self.last(self.act(self.expand(fused))), fused
