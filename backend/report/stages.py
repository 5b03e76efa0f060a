# SPDX-License-Identifier: GPL-2.0-or-later
"""What the report shows of a method's stages: what each gained, the prior's picture, how the data terms fell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..scene import Tile
from .indices import number, show

Array = np.ndarray

PRIOR = "prior"
"""The stage that is shown as a picture."""
TITLES = {
    "interpolated": "Interpolation",
    "closed_form": "Closed form (LMMSE)",
    PRIOR: "Prior, drawn by diffusion",
    "fused": "Result",
}
KEYS = ("PSNR", "SAM", "ERGAS")
MOST_PIXELS = 4_000_000
"""Pixels of a stage's picture that are kept in memory; a larger image's is of means of square blocks."""


@dataclass
class StagePicture:
    """Three bands of a stage, collected while an image is fused.

    Attributes:
        bands: of the fused raster, from 0, that are shown.
        values: `[3, rows, cols]` float32 in the HS image's units; NaN where nothing is.
        factor: fine pixels along the side of a block that a value is the mean of; 1 for all of them.
    """

    bands: list[int]
    values: Array
    factor: int

    def on(self, rows: tuple[int, int], cols: tuple[int, int], shape: tuple[int, int]) -> Array | None:
        """Return a window of fine pixels as a picture of `shape`; None where blocks are too coarse for it."""
        if self.factor > 1 and min(rows[1] - rows[0], cols[1] - cols[0]) <= max(shape):
            return None
        f = self.factor
        part = self.values[:, rows[0] // f : -(-rows[1] // f), cols[0] // f : -(-cols[1] // f)]
        if part.shape[1:] == shape:
            return part
        return functional.adaptive_avg_pool2d(torch.from_numpy(part)[None], shape)[0].numpy()


class StageCollector:
    """Collects the picture of one stage; a `FusionMethod.watch`.

    Args:
        name: of the stage.
        bands: of the fused raster that are shown.
        positions: the same among the bands that are fused.
        rows, cols: range of fine pixels of the result, in the scene's coordinates.
    """

    def __init__(
        self,
        name: str,
        bands: Sequence[int],
        positions: Sequence[int],
        rows: tuple[int, int],
        cols: tuple[int, int],
    ) -> None:
        self._name, self._bands, self._positions = name, list(bands), list(positions)
        self._top, self._left = rows[0], cols[0]
        height, width = rows[1] - rows[0], cols[1] - cols[0]
        self._factor = f = max(1, math.ceil(math.sqrt(height * width / MOST_PIXELS)))
        self._sum = torch.zeros(len(self._bands), -(-height // f), -(-width // f))
        self._count = torch.zeros(self._sum.shape[1:])

    def __call__(self, tile: Tile, name: str, image: Tensor) -> None:
        """Take what a stage made of a tile, `[bands, rows, cols]`; a tile that comes again changes nothing."""
        if name != self._name:
            return
        mask = tile.mask.cpu()
        values = torch.where(mask, image[self._positions].float().cpu(), torch.zeros(()))
        rows = (torch.arange(*tile.rows) - self._top) // self._factor
        cols = (torch.arange(*tile.cols) - self._left) // self._factor
        for total, part in ((self._sum, values), (self._count[None], mask[None].float())):
            lines = torch.zeros(len(part), total.shape[1], part.shape[2]).index_add_(1, rows, part)
            total.index_add_(2, cols, lines)

    def picture(self) -> StagePicture | None:
        """Return the picture; None where no tile has told of the stage."""
        if not bool(self._count.any()):
            return None
        values = torch.where(self._count > 0, self._sum / self._count.clamp_min(1), math.nan)
        return StagePicture(self._bands, values.numpy(), self._factor)


def stage_rows(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the table of what each stage is worth at reduced resolution, a line a stage."""
    found = (metrics.get("stages") or {}).get("reduced_resolution") or {}
    rows, before = [], None
    for name, values in found.items():
        psnr = number(values.get("PSNR"))
        gain = "" if psnr is None or before is None else f"{psnr - before:+.2f}"
        rows.append(
            {
                "title": TITLES.get(name, name.replace("_", " ")),
                "gain": gain.replace("-", "−"),
                **{key: show(key, number(values.get(key))) for key in KEYS},
            }
        )
        before = psnr if psnr is not None else before
    return rows


def curves_of(metrics: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return the prior's data terms by name, step by step; empty where no prior was drawn."""
    prior = (metrics.get("method_details") or {}).get(PRIOR)
    curves = prior.get("curves") if isinstance(prior, Mapping) else None
    return {k: list(v) for k, v in (curves or {}).items() if len(v) > 1}


def prior_facts(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a person wants to know of the prior, by the names that are shown."""
    prior = (metrics.get("method_details") or {}).get(PRIOR)
    if not isinstance(prior, Mapping):
        return {}
    where = [f"{w:.0f} nm" for w in prior.get("wavelength_nm") or [] if number(w) is not None]
    # Bands are numbered as in the file, of which the method has seen the usable ones.
    usable = (metrics.get("per_band") or {}).get("band") or []
    bands = [str(usable[b]) if b < len(usable) else "?" for b in prior.get("bands") or []]
    terms = prior.get("data_terms") or {}
    names = {"hs": "HS image", "guide": "guide"}
    fell = [
        f"{names.get(k, k)} {v['start']:.3g} → {v['end']:.3g}"
        for k, v in terms.items()
        if isinstance(v, Mapping)
    ]
    facts = {
        "Diffusion steps": prior.get("steps"),
        "Base bands": ", ".join(bands) + (f" ({', '.join(where)})" if len(where) == len(bands) else ""),
        "What the base does not explain": _percent(prior.get("unexplained_by_bands")),
        "Seed": prior.get("seed"),
        "Drawn in blocks": _blocks(prior),
        "Misfit, first and last step": ", ".join(fell),
        "From an earlier run": prior.get("from_cache"),
    }
    return {k: v for k, v in facts.items() if v not in (None, "")}


def _blocks(prior: Mapping[str, Any]) -> str:
    """Return how many overlapping blocks a large scene was drawn in, and their size; "" for one."""
    count, size = prior.get("blocks"), prior.get("block_pixels")
    if not isinstance(count, int) or count < 2 or not isinstance(size, list) or len(size) != 2:
        return ""
    return f"{count}, of up to {size[0]} x {size[1]} pixels"


def _percent(value: Any) -> str:
    share = number(value)
    return "" if share is None else f"{100 * share:.2g} %"
