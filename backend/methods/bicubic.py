# SPDX-License-Identifier: GPL-2.0-or-later
"""Plain interpolation of the HS image: the control."""

from __future__ import annotations

from torch import Tensor

from ..control import Control
from ..scene import Scene, Tile
from .base import FusionMethod


class Bicubic(FusionMethod):
    """Cubic convolution (Keys, IEEE TASSP 29(6), 1981, a = -1/2), centred sampling; looks at no guide."""

    def fit(self, scene: Scene, control: Control) -> None:
        """Nothing to learn."""

    def fuse(self, tile: Tile) -> Tensor:
        """Return the interpolated tile, `[bands, rows, cols]`."""
        return tile.upsample(tile.hs)
