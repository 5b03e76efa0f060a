# SPDX-License-Identifier: GPL-2.0-or-later
"""Opening a pair: both inputs checked, brought to one frame, their bands surveyed, ready as a `Scene`."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType

import rasterio
import torch
from torch import Tensor

from .control import Control
from .coregistration import Coregistration, find_coregistration
from .errors import HyperSharpError
from .grid import PairGrid, pair_grid
from .io.raster import RasterInfo, check_readable, check_roles, georeference_optional, open_input, source_path
from .io.source import RasterSource, guide_source, hs_source
from .io.wavelengths import BandTable
from .job import CompareJob, FuseJob
from .scene import COARSE_TILE, Scene, tile_windows

MIN_VALID_SHARE = 0.5
"""A band that is valid in less than this share of the pixels that have any data counts as empty."""
MAX_CLIPPED_SHARE = 0.5
"""A band with at least this share of its pixels exactly at its minimum or maximum is clipped, not measured."""
DISAGREEING = 0.6
"""Share of the guide's variance left unexplained by the HS image from which on a person is told."""
FEW_PIXELS = 100
"""Fewer valid coarse pixels than this make every statistic doubtful."""


@dataclass
class BandSurvey:
    """Which HS bands can be used.

    Attributes:
        usable: indices (from 0) of the bands that the method gets.
        empty: without (enough) data: they come out as nodata where they are.
        constant: one value everywhere: interpolated.
        bad: marked as bad by the producer: interpolated.
        clipped: mostly at their minimum or maximum (water-vapour bands capped by a processor): interpolated.
        valid_pixels: coarse pixels with data in every usable band.
        partly_masked: some coarse pixel of the frame has no data.
    """

    usable: list[int]
    empty: list[int] = field(default_factory=list)
    constant: list[int] = field(default_factory=list)
    bad: list[int] = field(default_factory=list)
    clipped: list[int] = field(default_factory=list)
    valid_pixels: int = 0
    partly_masked: bool = False

    @property
    def passed_through(self) -> list[int]:
        """The bands that the method does not get, in order."""
        return sorted({*self.empty, *self.constant, *self.bad, *self.clipped})


class _Extremum:
    """The lowest value of each band so far, and how many pixels hold it."""

    def __init__(self, bands: int) -> None:
        self.value = torch.full((bands,), torch.inf)
        self.count = torch.zeros(bands, dtype=torch.int64)

    def update(self, values: Tensor, samples: Tensor) -> None:
        """Add `[bands, rows, cols]` and its validity."""
        values = torch.where(samples, values, torch.inf).flatten(1)
        lowest = values.amin(dim=1)
        count = (values == lowest[:, None]).sum(dim=1)
        self.count = torch.where(
            lowest < self.value, count, self.count + torch.where(lowest == self.value, count, 0)
        )
        self.value = torch.minimum(self.value, lowest)


def survey_bands(source: RasterSource, table: BandTable, control: Control) -> BandSurvey:
    """Look at every band once, at its own resolution.

    Raises:
        HyperSharpError: not a single valid value, or fewer than two usable bands.
    """
    count = source.bands
    valid = torch.zeros(count, dtype=torch.int64)
    low, high = _Extremum(count), _Extremum(count)
    any_valid = 0
    for rows, cols in tile_windows((0, source.rows), (0, source.cols), COARSE_TILE):
        control.check()
        values, samples = source.read_samples(rows, cols)
        valid += samples.sum(dim=(1, 2))
        any_valid += int(samples.any(dim=0).sum())
        low.update(values, samples)
        high.update(-values, samples)
    if any_valid == 0:
        raise HyperSharpError(
            "the HS image has no valid pixel in the common area (all nodata)",
            "check its nodata value, or choose another extent",
        )
    survey = BandSurvey([])
    extreme_share = (low.count + high.count) / valid.clamp_min(1)
    for band in range(count):
        if int(valid[band]) < MIN_VALID_SHARE * any_valid:
            survey.empty.append(band)
        elif not table.good[band]:
            survey.bad.append(band)
        elif low.value[band] == -high.value[band]:
            survey.constant.append(band)
        elif extreme_share[band] >= MAX_CLIPPED_SHARE:
            survey.clipped.append(band)
        else:
            survey.usable.append(band)
    if len(survey.clipped) > len(survey.usable):
        # Not a few absorption bands but the whole cube: most likely a background that nobody declared.
        control.warn(
            f"most pixels hold {low.value[survey.clipped[0]]:g} in {len(survey.clipped)} bands: "
            "if that is a background, set it as the HS image's nodata value"
        )
        survey.usable = sorted(survey.usable + survey.clipped)
        survey.clipped = []
    if len(survey.usable) < 2:
        raise HyperSharpError(
            f"only {len(survey.usable)} of {count} HS bands hold usable data",
            "check the nodata value and the bad-band flags of the HS image",
        )
    total = source.rows * source.cols
    survey.partly_masked = bool(any_valid < total or (valid[survey.usable] < total).any())
    survey.valid_pixels = int(valid[survey.usable].min())
    for bands, why in (
        (survey.empty, "without data"),
        (survey.constant, "with one value everywhere"),
        (survey.bad, "marked as bad"),
        (survey.clipped, "mostly at their minimum or maximum"),
    ):
        if bands:
            control.warn(
                f"{band_names(bands, table)}, {why}: not sharpened (interpolated only), left out of the indices"
            )
    return survey


def band_names(bands: list[int], table: BandTable) -> str:
    """Return "bands 3, 17-19 (513-530 nm)" for band indices from 0, shortened when there are many runs."""
    runs: list[tuple[int, int]] = []
    for band in bands:
        if runs and runs[-1][1] == band - 1:
            runs[-1] = (runs[-1][0], band)
        else:
            runs.append((band, band))
    shown = []
    for first, last in runs[:6]:
        text = f"{first + 1}" if first == last else f"{first + 1}-{last + 1}"
        edges = [table.wavelength_nm[b] for b in {first, last}]
        known = sorted(w for w in edges if w is not None)
        if len(known) == len(edges):
            text += " (" + "-".join(f"{w:.0f}" for w in known) + " nm)"
        shown.append(text)
    more = f" and {sum(b - a + 1 for a, b in runs[6:])} more" if len(runs) > 6 else ""
    return f"band{'s' if len(bands) > 1 else ''} {', '.join(shown)}{more}"


class Pair:
    """Two open inputs in one frame. A context manager: leaving it closes both files.

    Args:
        hs, guide: paths.
        extent, extent_crs: see `job.FuseJob`.
        mtf_hs, mtf_guide, device, seed: see `scene.Scene`.
        move_hs: guide pixels (rows, cols) by which the HS image lies further down and right than its georeference
            says; (0, 0) to believe that; None to find out.
        control: takes warnings.

    Attributes:
        hs, guide: what is known of the inputs.
        grid: the common geometry.
        coregistration: how far the HS image lay off the guide's ground, which the grid has made good; None where that
            was not looked for or could not be told.
        hs_all: every HS band on the coarse grid.
        guide_fine: the guide on the fine grid.
        survey: which bands can be used.
        scene: the usable bands and the guide, as methods see them.
    """

    def __init__(
        self,
        hs: str,
        guide: str,
        *,
        extent: tuple[float, float, float, float] | None = None,
        extent_crs: str | None = None,
        mtf_hs: float,
        mtf_guide: float,
        device: torch.device | str = "cpu",
        seed: int = 0,
        move_hs: tuple[int, int] | None = None,
        control: Control,
    ) -> None:
        for name, gain in (("HS", mtf_hs), ("guide", mtf_guide)):
            if not 0.01 <= gain <= 0.99:
                raise HyperSharpError(
                    f"the {name} sensor's MTF gain at Nyquist is {gain:g}", "give a number from 0.01 to 0.99"
                )
        self._files = ExitStack()
        with self._files as stack, georeference_optional():
            hs_dataset, self.hs = open_input(hs, "HS image")
            stack.enter_context(hs_dataset)
            guide_dataset, self.guide = open_input(guide, "guide")
            stack.enter_context(guide_dataset)
            check_roles(self.hs, self.guide)
            whole = pair_grid(self.hs, self.guide)
            check_readable(hs_dataset, self.hs)
            check_readable(guide_dataset, self.guide)
            self.coregistration = None
            if move_hs is None and self.hs.georeferenced and self.guide.georeferenced:
                self.coregistration = self._coregistered(hs_dataset, guide_dataset, whole, mtf_hs, control)
            if self.coregistration is not None:
                move_hs = self.coregistration.rows, self.coregistration.cols
            # Only now: what the extent cuts out depends on where the HS image lies.
            self.grid: PairGrid = pair_grid(self.hs, self.guide, extent, extent_crs, move_hs or (0, 0))
            for text in (*self.hs.bands.warnings, *self.grid.warnings):
                control.warn(text)
            self.hs_all = hs_source(hs_dataset, self.hs, self.grid)
            if not self.grid.nested:
                stack.enter_context(self.hs_all.dataset)
            self.guide_fine = guide_source(guide_dataset, self.guide, self.grid)
            if self.guide_fine.bands == 0:
                raise HyperSharpError("the guide has no band but an alpha channel", "choose another guide")
            self.survey = survey_bands(self.hs_all, self.hs.bands, control)
            usable = self.survey.usable
            self.scene = Scene(
                self.hs_all.take(usable),
                self.guide_fine,
                self.grid.ratio,
                mtf_hs,
                mtf_guide,
                [self.hs.bands.wavelength_nm[i] for i in usable],
                [self.guide.bands.wavelength_nm[i] for i in self.guide_fine.indices],
                device,
                seed,
            )
            self._check_guide(control)
            self._files = stack.pop_all()

    def _coregistered(
        self,
        hs: rasterio.DatasetReader,
        guide: rasterio.DatasetReader,
        whole: PairGrid,
        mtf_hs: float,
        control: Control,
    ) -> Coregistration | None:
        """Find how far the HS image lies off the guide's ground, and tell of it.

        The whole area that both cover is looked at, whatever the extent: parts of a scene are then moved alike.
        """
        hs_all = hs_source(hs, self.hs, whole)
        try:
            fine = guide_source(guide, self.guide, whole)
            found = find_coregistration(hs_all, fine, whole.ratio, mtf_hs, control)
        finally:
            if not whole.nested:
                hs_all.dataset.close()
        if found is None:
            return None
        if found.moves:
            sides = (found.rows, ("down", "up")), (found.cols, ("to the right", "to the left"))
            way = " and ".join(f"{abs(n)} {words[n < 0]}" for n, words in sides if n)
            control.warn(
                f"the HS image lies off the guide's ground by more than its own pixel: it is moved by {way}, in pixels "
                f"of the guide, where it explains {1 - found.unexplained:.0%} of the guide's variance instead of "
                f"{1 - found.unmoved:.0%} (--no-coregister, or Co-register switched off, leaves it where it is)"
            )
        elif found.unmoved > DISAGREEING:
            control.warn(
                f"the HS image explains only {1 - found.unmoved:.0%} of the guide's variance: do both show the same "
                "ground, at about the same time? No other place that was tried fits clearly better"
            )
        return found

    def _check_guide(self, control: Control) -> None:
        """Look at the guide at coarse resolution.

        Raises:
            HyperSharpError: no pixel is valid in both inputs.
        """
        try:
            statistics = self.scene.statistics(self.scene.mtf_hs, control)
        except ValueError as error:
            raise HyperSharpError(
                "no pixel is valid in both the HS image and the guide",
                "check their nodata values and that they cover the same ground",
            ) from error
        if statistics.count < FEW_PIXELS:
            control.warn(
                f"only {statistics.count} coarse pixels are valid in both inputs: gains and indices are uncertain"
            )
        variance = statistics.guide_covariance.diagonal()
        flat = [i + 1 for i, v in enumerate(variance.tolist()) if v <= 0]
        if flat:
            control.warn(
                f"guide band {', '.join(map(str, flat))} holds one value everywhere: it has no detail to give"
            )

    @property
    def may_be_masked(self) -> bool:
        """Some output pixel may come out as nodata."""
        rows, cols = self.guide.height, self.guide.width
        outside = (
            self.grid.guide_row < 0
            or self.grid.guide_col < 0
            or self.grid.guide_row + self.grid.shape[0] > rows
            or self.grid.guide_col + self.grid.shape[1] > cols
        )
        float_guide = self.guide.dtype.startswith("float")
        return (
            self.survey.partly_masked
            or self.guide.has_mask
            or float_guide
            or outside
            or bool(self.survey.empty)
        )

    @classmethod
    def of_job(cls, job: FuseJob | CompareJob, device: torch.device, control: Control) -> Pair:
        """Open a job's pair.

        Raises:
            HyperSharpError: one of them cannot be opened, or they cannot be fused.
        """
        return cls(
            source_path(job.hs),
            source_path(job.guide),
            extent=job.extent,
            extent_crs=job.extent_crs,
            mtf_hs=job.mtf_hs,
            mtf_guide=job.mtf_guide,
            device=device,
            seed=job.seed,
            move_hs=None if job.coregister else (0, 0),
            control=control,
        )

    def __enter__(self) -> Pair:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()


def open_fused(path: str) -> tuple[rasterio.DatasetReader, RasterInfo]:
    """Open an already fused raster."""
    with georeference_optional():
        return open_input(path, "fused image")
