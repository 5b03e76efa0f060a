# SPDX-License-Identifier: GPL-2.0-or-later
"""Wald's protocol on a cube of any size: the cube becomes the truth, its degraded versions the pair.

Source: Wald, Ranchin and Mangolini, PE&RS 63(6), 1997; the PSF and the sampling are `degradation.py`'s.
"""

from __future__ import annotations

import math
import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from rasterio.errors import RasterioError
from rasterio.windows import Window

from ..control import Control
from ..degradation import (
    MIN_COVERAGE,
    Range,
    decimation_matrix,
    fine_support,
    masked_separable,
    psf_reach,
)
from ..errors import ErrorCode, HyperSharpError
from ..io.raster import MIN_HS_BANDS, RasterInfo, check_readable, georeference_optional, open_input
from ..io.source import RasterSource
from ..io.writer import make_folder
from ..job import SimulateJob
from ..protocol import Result
from .response import GuideResponse, guide_response

Tensor = torch.Tensor

MIN_COARSE_PIXELS = 4
STRIP_ROWS = 256
"""About as many fine rows are worked on at a time; the outputs' blocks are as high, so that none is written twice."""
CHUNK_BYTES = 32 * 2**20
"""Float32 bytes of the bands of a strip that are held at a time."""
GDAL_CACHE_BYTES = 128 * 2**20
NAMES = {"HS": "hs.tif", "GUIDE": "guide.tif", "REFERENCE": "reference.tif"}


@dataclass
class _Plan:
    """Sizes of a simulation.

    Attributes:
        rows, cols: fine pixels kept.
        coarse_rows, coarse_cols: coarse pixels.
        strip: coarse rows of a strip.
        chunk: bands that are held at a time.
    """

    rows: int
    cols: int
    coarse_rows: int
    coarse_cols: int
    strip: int
    chunk: int

    def strips(self) -> list[Range]:
        """Return the coarse rows of each strip."""
        return [(r, min(self.coarse_rows, r + self.strip)) for r in range(0, self.coarse_rows, self.strip)]

    def chunks(self, bands: int) -> list[list[int]]:
        """Return the bands (from 0) of each chunk."""
        return [list(range(b, min(bands, b + self.chunk))) for b in range(0, bands, self.chunk)]


@dataclass
class _Survey:
    """What a look at the whole reference tells: valid samples and mean square of each band."""

    valid: Tensor
    power: Tensor
    masked: bool

    @property
    def empty(self) -> Tensor:
        """Bands without a single valid sample."""
        return self.valid == 0


def run_simulate(job: SimulateJob, control: Control | None = None) -> Result:
    """Write hs.tif, guide.tif and reference.tif into the job's folder.

    The HS image is the reference filtered with a Gaussian MTF and sampled at the centres of the coarse pixels; the
    guide is the reference weighted by a spectral response; the reference is cut to a multiple of the ratio. CRS,
    wavelengths, nodata, scale and dtype are kept. Noise, if any, is white and Gaussian in every HS band, with a
    power `snr_db` below the mean square of the reference's band, and comes from `seed`.

    Raises:
        HyperSharpError: bad reference, ratio, guide or folder. Nothing is left half written.
    """
    control = control or Control()
    _check(job)
    with ExitStack() as stack:
        stack.enter_context(georeference_optional())
        stack.enter_context(rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE_BYTES))
        dataset, info = open_input(job.reference, "reference cube")
        stack.enter_context(dataset)
        plan = _plan(job, info)
        check_readable(dataset, info)
        folder = make_folder(job.folder)
        targets = {key: folder / name for key, name in NAMES.items()}
        _check_targets(targets, info)
        control.plan({"look at the reference": 1.0, "simulate": 3.0})
        source = RasterSource(dataset, info, 0, 0, (plan.rows, plan.cols))
        survey = _survey(source, plan, job.ratio, control)
        response = guide_response(
            job.guide,
            info.bands.wavelength_nm,
            info.bands.fwhm_nm,
            [good and not empty for good, empty in zip(info.bands.good, survey.empty.tolist())],
        )
        for text in response.warnings:
            control.warn(text)
        if plan.rows < info.height or plan.cols < info.width:
            control.info(f"cut to {plan.rows} x {plan.cols} pixels, a multiple of the ratio")
        parts = {key: path.with_suffix(".part.tif") for key, path in targets.items()}
        stack.callback(_remove, list(parts.values()))
        _write_all(job, control, source, plan, survey, response, parts)
        for key, part in parts.items():
            os.replace(part, targets[key])
    return Result(
        {key: str(path) for key, path in targets.items()},
        {
            "simulation": {
                "reference": info.describe(),
                "ratio": job.ratio,
                "guide": job.guide,
                "guide_bands": response.names,
                "mtf_hs": job.mtf_hs,
                "snr_db": job.snr_db,
                "seed": job.seed,
            },
            "warnings": control.warnings,
        },
        control.warnings,
    )


def _check(job: SimulateJob) -> None:
    if int(job.ratio) != job.ratio or job.ratio < 2:
        raise HyperSharpError(f"the ratio {job.ratio} is no integer of at least 2", "use 2, 3, 4, ...")
    if not 0 < job.mtf_hs < 1:
        raise HyperSharpError(f"the MTF gain {job.mtf_hs} does not lie between 0 and 1", "use about 0.3")
    if job.snr_db is not None and not math.isfinite(job.snr_db):
        raise HyperSharpError("the signal-to-noise ratio is not a number", "give it in dB, e.g. 35")


def _plan(job: SimulateJob, info: RasterInfo) -> _Plan:
    if info.count < MIN_HS_BANDS:
        raise HyperSharpError(
            f"the reference has only {info.count} bands", f"choose a cube with at least {MIN_HS_BANDS}"
        )
    coarse = info.height // job.ratio, info.width // job.ratio
    if min(coarse) < MIN_COARSE_PIXELS:
        raise HyperSharpError(
            f"the reference is too small for ratio {job.ratio}: {info.width} x {info.height} pixels",
            f"each side needs at least {MIN_COARSE_PIXELS} coarse pixels",
        )
    rows, cols = coarse[0] * job.ratio, coarse[1] * job.ratio
    strip = block_rows(job.ratio) // job.ratio
    held = min(rows, strip * job.ratio + 2 * psf_reach(job.ratio, job.mtf_hs))
    return _Plan(rows, cols, *coarse, strip, max(1, CHUNK_BYTES // (4 * held * cols)))


def block_rows(ratio: int) -> int:
    """Return the multiple of the ratio and of 16 (a TIFF tile's unit) that is nearest to `STRIP_ROWS`."""
    unit = math.lcm(16, ratio)
    return unit * max(1, round(STRIP_ROWS / unit))


def _check_targets(targets: dict[str, Path], info: RasterInfo) -> None:
    for target in targets.values():
        if target.exists() and os.path.exists(info.path) and os.path.samefile(target, info.path):
            raise HyperSharpError(
                f"the reference cube would be overwritten: {target}",
                "choose another folder",
                ErrorCode.OUTPUT,
            )


def _remove(paths: list[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _survey(source: RasterSource, plan: _Plan, ratio: int, control: Control) -> _Survey:
    """Look at every valid sample of the reference once."""
    valid = torch.zeros(source.bands, dtype=torch.long)
    power = torch.zeros(source.bands, dtype=torch.float64)
    strips = plan.strips()
    for first, last in control.steps(strips, "look at the reference", len(strips)):
        for bands in plan.chunks(source.bands):
            values, mask = source.take(bands).read_samples((first * ratio, last * ratio), (0, plan.cols))
            valid[bands] += mask.sum(dim=(1, 2))
            power[bands] += values.double().square().sum(dim=(1, 2))  # invalid samples are read as 0
    if int(valid.sum()) == 0:
        raise HyperSharpError("the reference holds nodata only", "choose another cube")
    masked = bool((valid < plan.rows * plan.cols).any())
    return _Survey(valid, power / valid.clamp_min(1), masked)


def _write_all(
    job: SimulateJob,
    control: Control,
    source: RasterSource,
    plan: _Plan,
    survey: _Survey,
    response: GuideResponse,
    parts: dict[str, Path],
) -> None:
    """Write the three rasters strip by strip."""
    info, dataset, r = source.info, source.dataset, job.ratio
    nodata = _nodata(info, survey)
    generator = torch.Generator().manual_seed(job.seed)
    sigma = None if job.snr_db is None else survey.power.sqrt() * 10 ** (-job.snr_db / 20)
    with ExitStack() as stack:
        try:
            coarse_size, size = (plan.coarse_rows, plan.coarse_cols), (plan.rows, plan.cols)
            block = block_rows(r)
            files = {
                "HS": _create(parts["HS"], info, source.bands, coarse_size, r, nodata, STRIP_ROWS),
                "GUIDE": _create(parts["GUIDE"], info, len(response.names), size, 1, nodata, block),
                "REFERENCE": _create(parts["REFERENCE"], info, source.bands, size, 1, nodata, block),
            }
        except (RasterioError, OSError) as error:
            raise HyperSharpError(
                f"cannot write the simulated pair: {error}", "choose another folder", ErrorCode.OUTPUT
            ) from error
        for file in files.values():
            stack.enter_context(file)
        for key in ("HS", "REFERENCE"):
            _tag_like(files[key], dataset, info)
        _tag_guide(files["GUIDE"], response)
        strips = plan.strips()
        for strip in control.steps(strips, "simulate", len(strips)):
            rows = (strip[0] * r, strip[1] * r)
            guide = torch.zeros(len(response.names), rows[1] - rows[0], plan.cols)
            guide_valid = torch.ones(guide.shape[1:], dtype=torch.bool)
            for bands in plan.chunks(source.bands):
                coarse, seen, values, valid = _chunk(source.take(bands), strip, plan, r, job.mtf_hs)
                if sigma is not None:
                    noise = torch.randn(coarse.shape, generator=generator)
                    coarse = coarse + noise * sigma[bands].float()[:, None, None]
                numbers = [b + 1 for b in bands]
                window = _window(strip, plan.coarse_cols)
                files["HS"].write(_encode(coarse, seen, info.dtype, nodata), numbers, window=window)
                weights = response.weights[:, bands]
                guide += torch.einsum("gb,byx->gyx", weights, values)
                guide_valid &= valid[(weights > 0).any(dim=0)].all(dim=0)
                # The truth is copied as it is, not through float32.
                window = _window(rows, plan.cols)
                raw = dataset.read(numbers, window=window)
                if nodata is not None:
                    raw = np.where(valid.numpy(), raw, np.asarray(nodata, dtype=raw.dtype))
                files["REFERENCE"].write(raw, numbers, window=window)
            encoded = _encode(guide, guide_valid.expand_as(guide), info.dtype, nodata)
            files["GUIDE"].write(encoded, window=_window(rows, plan.cols))


def _chunk(
    source: RasterSource, strip: Range, plan: _Plan, ratio: int, gain: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the coarse pixels of a strip and their validity, its fine pixels and theirs."""
    fine = fine_support(strip, ratio, plan.rows, gain)
    values, valid = source.read_samples(fine, (0, plan.cols))
    coarse, seen = _decimate(
        decimation_matrix(strip, fine, ratio, plan.rows, gain),
        decimation_matrix((0, plan.coarse_cols), (0, plan.cols), ratio, plan.cols, gain),
        values,
        valid,
    )
    own = slice(strip[0] * ratio - fine[0], strip[1] * ratio - fine[0])
    return coarse, seen, values[:, own], valid[:, own]


def _window(rows: Range, cols: int) -> Window:
    return Window(0, rows[0], cols, rows[1] - rows[0])


def _decimate(rows: Tensor, cols: Tensor, values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Filter and sample bands that may have masks of their own; returns values and validity, same shape."""
    common = valid.all(dim=0)
    out, coverage = masked_separable(rows, cols, values, common)
    seen = (coverage >= MIN_COVERAGE).expand_as(out).clone()
    for band in torch.nonzero((valid != common).any(dim=2).any(dim=1)).flatten().tolist():
        one, coverage = masked_separable(rows, cols, values[band : band + 1], valid[band])
        out[band], seen[band] = one[0], coverage >= MIN_COVERAGE
    return out, seen


def _nodata(info: RasterInfo, survey: _Survey) -> float | None:
    """Return the nodata value of the outputs: the reference's own, or a new one where its mask has no value."""
    kind = np.dtype(info.dtype).kind
    if info.nodata is not None:
        limits = None if kind == "f" else np.iinfo(info.dtype)
        if limits is None or (limits.min <= info.nodata <= limits.max and info.nodata == int(info.nodata)):
            return info.nodata
    if not survey.masked:
        return None
    return math.nan if kind == "f" else float(np.iinfo(info.dtype).min)


def _encode(values: Tensor, valid: Tensor, dtype: str, nodata: float | None) -> np.ndarray:
    """Return values in the file's dtype: rounded, clipped, never equal to nodata where they are valid."""
    kind = np.dtype(dtype).kind
    array = values.numpy().astype(np.float64)
    if kind != "f":
        limits = np.iinfo(dtype)
        array = np.clip(np.rint(array), limits.min, limits.max)
    if nodata is not None and not math.isnan(nodata):
        step = 1.0 if nodata < 1e6 else -1.0
        array = np.where(array == nodata, nodata + step, array)
    if nodata is not None:
        array = np.where(valid.numpy(), array, nodata)
    return array.astype(dtype)


def _create(
    path: Path,
    info: RasterInfo,
    bands: int,
    size: tuple[int, int],
    ratio: int,
    nodata: float | None,
    block: int,
) -> rasterio.io.DatasetWriter:
    """Create one output of `size` (rows, cols) on the reference's grid, or on the grid `ratio` times coarser."""
    blocks = {"tiled": True, "blockysize": block, "blockxsize": 256} if min(size) >= block else {}
    place: dict[str, Any] = {}
    if info.georeferenced:
        place["transform"] = info.transform * info.transform.scale(ratio)
    if info.crs is not None:
        place["crs"] = info.crs
    return rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=size[1],
        height=size[0],
        count=bands,
        dtype=info.dtype,
        nodata=nodata,
        compress="deflate",
        predictor=3 if np.dtype(info.dtype).kind == "f" else 2,
        interleave="band",
        BIGTIFF="IF_SAFER",
        **blocks,
        **place,
    )


def _tag_like(file: rasterio.io.DatasetWriter, dataset: rasterio.DatasetReader, info: RasterInfo) -> None:
    """Copy names, wavelengths, scales and the reference's own tags."""
    own = {k: v for k, v in dataset.tags().items() if k not in ("AREA_OR_POINT", "wavelength", "fwhm", "bbl")}
    file.update_tags(**own)
    if any(s != 1 for s in info.scales) or any(o != 0 for o in info.offsets):
        file.scales, file.offsets = info.scales, info.offsets
    for index in range(info.count):
        tag_band(
            file,
            index + 1,
            info.bands.wavelength_nm[index],
            info.bands.fwhm_nm[index],
            info.bands.descriptions[index],
        )
        if not info.bands.good[index]:
            file.update_tags(index + 1, bbl="0")


def _tag_guide(file: rasterio.io.DatasetWriter, response: GuideResponse) -> None:
    for index, name in enumerate(response.names):
        tag_band(file, index + 1, response.centre_nm[index], response.fwhm_nm[index], name)


def tag_band(
    file: rasterio.io.DatasetWriter, band: int, wavelength: float | None, fwhm: float | None, name: str | None
) -> None:
    """Write a band's wavelength both as band tags and in GDAL's IMAGERY domain."""
    if name:
        file.set_band_description(band, name)
    if wavelength is None:
        return
    tags = {"wavelength": f"{wavelength:.4f}", "wavelength_units": "nm"}
    imagery = {"CENTRAL_WAVELENGTH_UM": f"{wavelength / 1000:.7f}"}
    if fwhm is not None:
        tags["fwhm"] = f"{fwhm:.4f}"
        imagery["FWHM_UM"] = f"{fwhm / 1000:.7f}"
    file.update_tags(band, **tags)
    file.update_tags(band, ns="IMAGERY", **imagery)
    if not name:
        file.set_band_description(band, f"band {band} ({wavelength:.1f} nm)")
