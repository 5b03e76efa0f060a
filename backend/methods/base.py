# SPDX-License-Identifier: GPL-2.0-or-later
"""The one interface of every fusion method, classical or learned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from ..control import Control
from ..degradation import INTERPOLATION_REACH
from ..errors import ErrorCode, HyperSharpError
from ..estimate import TileNeeds
from ..scene import Scene, Tile


class Configured:
    """What has options by name.

    Args:
        parameters: the options that differ from `defaults`.

    Raises:
        HyperSharpError: code `usage`; an option that there is not.
    """

    defaults: ClassVar[Mapping[str, Any]] = {}
    """Options by name, with their default values."""

    def __init__(self, parameters: Mapping[str, Any] | None = None) -> None:
        unknown = sorted(set(parameters or {}) - set(self.defaults))
        if unknown:
            known = ", ".join(self.defaults) or "none"
            raise HyperSharpError(
                f"unknown method option {', '.join(unknown)}", f"its options are: {known}", ErrorCode.USAGE
            )
        self.parameters: dict[str, Any] = {**self.defaults, **(parameters or {})}


class FusionMethod(Configured, ABC):
    """A fusion method: one look at the whole scene at coarse resolution, then tile by tile.

    Subclasses set `defaults` (their options) and, when they look further than interpolation does, `halo`.

    Args:
        parameters: the method's own options; unknown ones are refused.
    """

    halo: int = INTERPOLATION_REACH
    """Coarse pixels around a tile that its values depend on."""
    pixel_bytes: int = 0
    """Working memory, in bytes for each fine pixel of a tile and its context, beside its result and the guide."""
    context: int = 0
    """With `pixel_bytes`: coarse pixels around a tile on which all is computed, not only read, as on itself."""
    inner_bytes: int = 0
    """With `pixel_bytes`: more of it, for each fine pixel of a tile and `inner_context` coarse pixels around it."""
    inner_context: int = 0
    """See `inner_bytes`."""
    fixed_bytes: int = 0
    """Working memory, in bytes, of a step that does not grow with the tile; it has ended before that of `pixel_bytes`
    is needed."""
    stage_names: tuple[str, ...] = ()
    """What `stages` gives beside the result, in the order in which it is made; empty for a method of one piece."""
    plan: Mapping[str, float] = {}
    """Relative durations for the progress (`Control.plan`): of stages that `fit` begins, and of the pipeline's own
    where they differ from a classical method's."""
    watch: Callable[[Tile, str, Tensor], None] | None = None
    """Told, for each tile that is fused, of what a stage of `stage_names` made of it, `[bands, rows, cols]`."""

    def tile_needs(self, ratio: int) -> TileNeeds:
        """Return what choosing a tile's size depends on; `ratio`: fine pixels per coarse pixel."""
        return TileNeeds(
            (self.context if self.pixel_bytes else self.halo) * ratio,
            self.pixel_bytes,
            self.inner_context * ratio,
            self.inner_bytes,
            self.fixed_bytes,
        )

    @abstractmethod
    def fit(self, scene: Scene, control: Control) -> None:
        """Learn from the whole scene at coarse resolution what the tiles will need (weights, gains)."""

    @abstractmethod
    def fuse(self, tile: Tile) -> Tensor:
        """Return the fused tile, `[bands, rows, cols]`, in the HS image's units.

        Depends on nothing but the tile and what `fit` learned, so that tiling cannot be seen.
        """

    def stages(self, tile: Tile) -> dict[str, Tensor]:
        """Return what each stage of `stage_names` made of a tile, and the result as "fused", `[bands, rows, cols]`."""
        return {"fused": self.fuse(tile)}

    def describe(self) -> dict[str, Any]:
        """Return what `fit` learned that a person wants to see in the report (JSON-ready)."""
        return {}
