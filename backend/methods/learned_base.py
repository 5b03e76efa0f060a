# SPDX-License-Identifier: GPL-2.0-or-later
"""The closed form that the networks correct, `lmmse`, and those beside it: fitted to a scene, seen as coefficients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..control import Control
from ..scene import Scene, Tile
from .base import FusionMethod
from .context import coefficients_by_strips
from .gsa import GSA
from .kernel_regression import KERNEL_COMPONENTS, KernelRegression
from .learned_planes import (
    KERNEL_FORM,
    OTHER_FORMS,
    ComponentStatistics,
    Subspace,
    component_statistics,
    consistent,
)
from .lmmse import LMMSE
from .sfim_hs import SfimHs


@dataclass(frozen=True)
class _Form:
    """How one of `OTHER_FORMS` is made.

    Attributes:
        method: its class.
        options: that differ from the method's defaults.
        refit: False where it is the closed form itself with options that its fit does not depend on.
    """

    method: type[FusionMethod]
    options: Mapping[str, Any] = field(default_factory=dict)
    refit: bool = True


_FORMS = {
    "lmmse-local": _Form(LMMSE, {"prior": 0.1}, refit=False),
    "gsa": _Form(GSA),
    "sfim-hs": _Form(SfimHs),
}


@dataclass
class ClosedForm:
    """A fitted closed form.

    Attributes:
        method: the method itself.
        subspace: the basis that it works in.
        statistics: of its components.
        trust: `[K]`, share of each coarse coefficient that is signal, 0 to 1.
        kernel: the fitted kernel regression.
        others: the other fitted methods of `OTHER_FORMS`, by name.
    """

    method: LMMSE
    subspace: Subspace
    statistics: ComponentStatistics
    trust: Tensor
    kernel: KernelRegression
    others: dict[str, FusionMethod]

    @property
    def halo(self) -> int:
        """Coarse pixels around a tile that its image and the others' depend on."""
        return max(self.method.halo, *(other.halo for other in self.others.values()))

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

    def estimated(self, tile: Tile, bands: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Return the coefficients of the closed form's result and some bands of it; see `coefficients_by_strips`."""
        return coefficients_by_strips(self.method, self.subspace, tile, bands)

    def regressed(self, tile: Tile) -> Tensor:
        """Return all the coefficients that kernel regression gives, `[12 or the rank, rows, cols]`."""
        return self.kernel.coefficients(tile, min(KERNEL_COMPONENTS, len(self.trust)))

    def completion(self, estimate: Tensor, regressed: Tensor, ratio: int, count: int) -> Tensor:
        """Return what to add to the coefficients from `count` on, to put kernel regression's in their place.

        Networks correct the first coefficients alone; of what is done to those after them, what the HS sensor would
        see is taken away.

        Args:
            estimate: the closed form's coefficients on whole coarse pixels, `[K, rows, cols]`.
            regressed: see `regressed`.
            ratio: fine pixels per coarse pixel.
            count: coefficients to leave.

        Returns:
            `[coefficients regressed - count, rows, cols]`, of no coefficient at all where there are no more.
        """
        step = regressed[count:] - estimate[count : len(regressed)]
        return consistent(step, ratio, self.mtf_gain, self.trust[count : len(regressed)])

    def other_coefficients(self, tile: Tile, regressed: Tensor, count: int) -> list[Tensor]:
        """Return the first coefficients of the other forms' results, each `[count, rows, cols]`.

        Args:
            tile: of whole coarse pixels.
            regressed: see `regressed`; one of the other forms.
            count: how many.
        """
        part = self.part(0, count)
        found = {name: coefficients_by_strips(other, part, tile)[0] for name, other in self.others.items()}
        return [*({KERNEL_FORM: regressed[:count], **found}[name] for name in OTHER_FORMS)]

    def part(self, start: int, stop: int) -> Subspace:
        """Return the subspace of the coefficients from `start` up to `stop`."""
        own = self.subspace
        return Subspace(own.basis[:, start:stop], own.projector[start:stop], own.mean)


def fit_base(scene: Scene, control: Control) -> tuple[LMMSE, Subspace, ComponentStatistics]:
    """Fit the closed form alone; return it, its basis and what is known of its components.

    Raises:
        ValueError: no coarse pixel is valid in both images.
    """
    method = LMMSE()
    method.fit(scene, control)
    own = method.subspace
    subspace = Subspace(own.decode.float(), own.encode.float(), own.mean.float())
    return method, subspace, component_statistics(scene, subspace, control)


def fit_closed_form(scene: Scene, control: Control) -> ClosedForm:
    """Fit the closed form and the others to a scene.

    Raises:
        ValueError: no coarse pixel is valid in both images.
        HyperSharpError: code `no_weights`; what kernel regression has learned is missing or damaged.
    """
    method, subspace, statistics = fit_base(scene, control)
    silent = control.silent()  # what they would warn of, the closed form has warned of
    kernel = KernelRegression(method, subspace, statistics)
    kernel.fit(scene, control)
    others: dict[str, FusionMethod] = {}
    for name, form in _FORMS.items():
        if form.refit:
            other = form.method(form.options)
            other.fit(scene, silent)
        else:
            other = copy(method)
            other.parameters = {**method.parameters, **form.options}
        others[name] = other
    trust = method.reliability.clamp(0, 1).float()
    return ClosedForm(method, subspace, statistics, trust, kernel, others)
