# SPDX-License-Identifier: GPL-2.0-or-later
"""The dense blocks that CSAKD and S3RNet are built from.

Sources: Hsu et al., arXiv 2406.19666 (CSAKD); Lee et al., arXiv 2501.07953 (S3RNet). The dense block is that of
ESRGAN (Wang et al., ECCVW 2018).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SLOPE = 0.2
"""Negative slope of every LeakyReLU of these networks."""
RESIDUAL = 0.2
"""Share of a block's result that is added to its input."""
INIT_SCALE = 0.1
"""Kaiming initialisation is scaled by this, so that a deep stack begins near the identity."""


class DFAB(nn.Module):
    """Dense feature aggregation block: five 3 x 3 convolutions, each seeing all earlier results.

    Args:
        width: channels in and out.
        growth: channels that each of the first four convolutions adds.
        groups: groups of every convolution (1 in the teacher; width // 2 in the student's spectral branch).
    """

    def __init__(self, width: int, growth: int, groups: int = 1) -> None:
        super().__init__()
        outputs = [growth] * 4 + [width]
        self.convs = nn.ModuleList(
            nn.Conv2d(width + i * growth, out, 3, padding=1, groups=groups) for i, out in enumerate(outputs)
        )
        self.act = nn.LeakyReLU(SLOPE)
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight, a=0, mode="fan_in")
            conv.weight.data.mul_(INIT_SCALE)
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x + 0.2 f(x)`, `[batch, width, rows, cols]`."""
        seen = x
        for conv in self.convs[:-1]:
            seen = torch.cat([seen, self.act(conv(seen))], dim=1)
        return x + RESIDUAL * self.convs[-1](seen)


class CLRA(nn.Module):
    """Cross-layer residual aggregation: DFAB in a row inside a residual connection (grouped CLRA: GRG).

    Args:
        width, growth, groups: see `DFAB`.
        dense: DFAB in the row; three as published.
    """

    def __init__(self, width: int, growth: int, groups: int = 1, dense: int = 3) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(DFAB(width, growth, groups) for _ in range(dense)))

    def forward(self, x: Tensor) -> Tensor:
        """Return `[batch, width, rows, cols]`."""
        return x + RESIDUAL * self.blocks(x)


CONVS_PER_DFAB = 5
"""3 x 3 convolutions in a row in one DFAB: its receptive field reaches as many pixels."""
