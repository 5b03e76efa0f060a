# SPDX-License-Identifier: GPL-2.0-or-later
"""The closed form that the networks correct: `lmmse`, fitted to a scene and seen as coefficients."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..control import Control
from ..scene import Scene, Tile
from .learned_planes import Subspace
from .lmmse import LMMSE


@dataclass
class ClosedForm:
    """A fitted closed form.

    Attributes:
        method: the method itself.
        subspace: the basis that it works in.
        trust: `[K]`, share of each coarse coefficient that is signal, 0 to 1.
    """

    method: LMMSE
    subspace: Subspace
    trust: Tensor

    @property
    def halo(self) -> int:
        """Coarse pixels around a tile that its image depends on."""
        return self.method.halo

    def registered(self, tile: Tile) -> Tile:
        """Return the tile with its guide in register and the PSF that was found."""
        return self.method.registration.apply(tile)

    @property
    def mtf_gain(self) -> float:
        """The HS sensor's MTF gain at Nyquist that the closed form uses."""
        return self.method.registration.mtf_gain

    def image(self, tile: Tile) -> Tensor:
        """Return the closed form's result, `[bands, rows, cols]`."""
        return self.method.fuse(tile)


def fit_closed_form(scene: Scene, control: Control) -> ClosedForm:
    """Fit the closed form, with its own defaults, to a scene.

    Raises:
        ValueError: no coarse pixel is valid in both images.
    """
    method = LMMSE()
    method.fit(scene, control)
    own = method.subspace
    subspace = Subspace(own.decode.float(), own.encode.float(), own.mean.float())
    return ClosedForm(method, subspace, method.reliability.clamp(0, 1).float())
