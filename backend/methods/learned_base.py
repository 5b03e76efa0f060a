# SPDX-License-Identifier: GPL-2.0-or-later
"""The closed form that the networks correct, `lmmse`, and those beside it: fitted to a scene, seen as coefficients."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ..control import Control
from ..scene import Scene, Tile
from .base import FusionMethod
from .bayes import Bayes
from .gsa import GSA
from .hysure import HySure
from .learned_planes import OTHER_FORMS, Subspace, expanded, expanded_scene
from .lmmse import LMMSE
from .mtf_glp_fs import MtfGlpFs
from .sfim_hs import SfimHs
from .sylvester import Sylvester


@dataclass(frozen=True)
class _Form:
    """How one of `OTHER_FORMS` is made.

    Attributes:
        method: its class.
        options: that differ from the method's defaults.
        refit: False where it is the closed form itself with options that its fit does not depend on.
        expanded: whether it sees the guide's logarithms beside the guide.
    """

    method: type[FusionMethod]
    options: Mapping[str, Any] = field(default_factory=dict)
    refit: bool = True
    expanded: bool = False


_FORMS = {
    "hysure": _Form(HySure),
    "sylvester": _Form(Sylvester),
    "bayes": _Form(Bayes),
    "lmmse-local": _Form(LMMSE, {"prior": 0.1}, refit=False),
    "lmmse-global": _Form(LMMSE, {"prior": 4.0}, refit=False),
    "gsa": _Form(GSA),
    "lmmse-expanded": _Form(LMMSE, expanded=True),
    "sfim-hs": _Form(SfimHs),
    "mtf-glp-fs": _Form(MtfGlpFs),
    "lmmse-nominal": _Form(LMMSE, {"register": False}),
}


@dataclass
class ClosedForm:
    """A fitted closed form.

    Attributes:
        method: the method itself.
        subspace: the basis that it works in.
        trust: `[K]`, share of each coarse coefficient that is signal, 0 to 1.
        others: the fitted methods of `OTHER_FORMS`, in that order.
        guide_mean: `[guide bands]`, means of the guide over the scene.
    """

    method: LMMSE
    subspace: Subspace
    trust: Tensor
    others: list[FusionMethod]
    guide_mean: Tensor

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
        wide = replace(tile, guide=expanded(tile.guide, self.guide_mean), _lowpass={})
        return [
            part.coefficients(other.fuse(wide if _FORMS[name].expanded else tile))
            for name, other in zip(OTHER_FORMS, self.others)
        ]


def fit_closed_form(scene: Scene, control: Control) -> ClosedForm:
    """Fit the closed form and the others to a scene.

    Raises:
        ValueError: no coarse pixel is valid in both images.
    """
    method = LMMSE()
    method.fit(scene, control)
    own = method.subspace
    subspace = Subspace(own.decode.float(), own.encode.float(), own.mean.float())
    silent = control.silent()  # what they would warn of, the closed form has warned of
    wide, guide_mean = expanded_scene(scene, silent)
    others: list[FusionMethod] = []
    for name in OTHER_FORMS:
        form = _FORMS[name]
        if form.refit:
            other = form.method(form.options)
            other.fit(wide if form.expanded else scene, silent)
        else:
            other = copy(method)
            other.parameters = {**method.parameters, **form.options}
        others.append(other)
    return ClosedForm(method, subspace, method.reliability.clamp(0, 1).float(), others, guide_mean)
