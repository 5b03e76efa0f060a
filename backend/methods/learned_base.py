# SPDX-License-Identifier: GPL-2.0-or-later
"""The closed form that the networks correct, `lmmse`, and those beside it: fitted to a scene, seen as coefficients."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

from torch import Tensor

from ..control import Control
from ..scene import Scene, Tile
from .base import FusionMethod
from .bayes import Bayes
from .hysure import HySure
from .learned_planes import OTHER_FORMS, Subspace
from .lmmse import LMMSE
from .sylvester import Sylvester

_METHODS: dict[str, type[FusionMethod]] = {"hysure": HySure, "sylvester": Sylvester, "bayes": Bayes}
_PRIOR_WEIGHTS = {"lmmse-local": 0.1, "lmmse-global": 4.0}
"""Option `prior` of `lmmse`: what the scene-wide gain counts against the local one."""


@dataclass
class ClosedForm:
    """A fitted closed form.

    Attributes:
        method: the method itself.
        subspace: the basis that it works in.
        trust: `[K]`, share of each coarse coefficient that is signal, 0 to 1.
        others: the fitted methods of `OTHER_FORMS`, in that order.
    """

    method: LMMSE
    subspace: Subspace
    trust: Tensor
    others: list[FusionMethod]

    @property
    def halo(self) -> int:
        """Coarse pixels around a tile that its image and the others' depend on."""
        return max(self.method.halo, *(other.halo for other in self.others))

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

    def other_coefficients(self, tile: Tile, count: int) -> list[Tensor]:
        """Return the first coefficients of the other forms' results, each `[count, rows, cols]`."""
        subspace = self.subspace
        part = Subspace(subspace.basis[:, :count], subspace.projector[:count], subspace.mean)
        return [part.coefficients(other.fuse(tile)) for other in self.others]


def fit_closed_form(scene: Scene, control: Control) -> ClosedForm:
    """Fit the closed form and the others, with their own defaults, to a scene.

    Raises:
        ValueError: no coarse pixel is valid in both images.
    """
    method = LMMSE()
    method.fit(scene, control)
    own = method.subspace
    subspace = Subspace(own.decode.float(), own.encode.float(), own.mean.float())
    others: list[FusionMethod] = []
    silent = control.silent()  # what they would warn of, the closed form has warned of
    for name in OTHER_FORMS:
        if name in _PRIOR_WEIGHTS:
            other: FusionMethod = copy(method)  # what it learned does not depend on this option
            other.parameters = {**method.parameters, "prior": _PRIOR_WEIGHTS[name]}
        else:
            other = _METHODS[name]()
            other.fit(scene, silent)
        others.append(other)
    return ClosedForm(method, subspace, method.reliability.clamp(0, 1).float(), others)
