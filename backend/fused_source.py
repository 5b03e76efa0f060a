# SPDX-License-Identifier: GPL-2.0-or-later
"""What an assessment compares, read window by window: a scene interpolated, fused, or at a stage of its method."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .degradation import Range, coarse_support, fill_invalid, interpolation_matrix, separable
from .io.source import Source
from .methods.base import FusionMethod
from .scene import FILL_REACH, Scene


class InterpolatedSource(Source):
    """The HS image interpolated to the fine grid: the control of every comparison."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self.bands = scene.hs.bands
        self.rows, self.cols = scene.shape

    def read(self, rows: Range, cols: Range) -> tuple[Tensor, Tensor]:
        """Read a window; see `Source.read`."""
        scene, ratio = self._scene, self._scene.ratio
        height, width = scene.coarse_shape
        coarse_rows = coarse_support(rows, ratio, height, 2 * FILL_REACH)
        coarse_cols = coarse_support(cols, ratio, width, 2 * FILL_REACH)
        values, mask = scene.hs.read(coarse_rows, coarse_cols)
        image = separable(
            interpolation_matrix(rows, coarse_rows, ratio, height),
            interpolation_matrix(cols, coarse_cols, ratio, width),
            fill_invalid(values, mask, FILL_REACH),
        )
        y = torch.arange(*rows) // ratio - coarse_rows[0]
        x = torch.arange(*cols) // ratio - coarse_cols[0]
        return image, mask[y][:, x]


class MethodSource(Source):
    """A scene fused on the fly, tile by tile."""

    def __init__(self, scene: Scene, method: FusionMethod) -> None:
        self._scene, self._method = scene, method
        self.bands = scene.hs.bands
        self.rows, self.cols = scene.shape

    def read(self, rows: Range, cols: Range) -> tuple[Tensor, Tensor]:
        """Read a window; see `Source.read`."""
        tile = self._scene.tile(rows, cols, self._method.halo)
        return self._method.fuse(tile).to(torch.float32).cpu(), tile.mask.cpu()


class StagedSource(Source):
    """One stage of a method on a scene, fused on the fly; all stages of a window are computed at once."""

    def __init__(self, scene: Scene, method: FusionMethod, name: str, last: dict[Any, Any]) -> None:
        self._scene, self._method, self._name, self._last = scene, method, name, last
        self.bands = scene.hs.bands
        self.rows, self.cols = scene.shape

    def read(self, rows: Range, cols: Range) -> tuple[Tensor, Tensor]:
        """Read a window; see `Source.read`."""
        if (rows, cols) not in self._last:
            self._last.clear()  # one window at a time is kept
            tile = self._scene.tile(rows, cols, self._method.halo)
            images = {k: v.to(torch.float32).cpu() for k, v in self._method.stages(tile).items()}
            self._last[rows, cols] = images, tile.mask.cpu()
        images, mask = self._last[rows, cols]
        return images[self._name], mask


def method_sources(scene: Scene, method: FusionMethod) -> dict[str, Source]:
    """Return a scene as fused by a fitted method, and as its earlier stages made it where it has any."""
    if not method.stage_names:
        return {"fused": MethodSource(scene, method)}
    last: dict[Any, Any] = {}
    return {name: StagedSource(scene, method, name, last) for name in ("fused", *method.stage_names)}
