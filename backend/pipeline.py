# SPDX-License-Identifier: GPL-2.0-or-later
"""The one fusion pipeline: read, align, fit, fuse by tiles, write, assess, report."""

from __future__ import annotations

import os
import platform
import time
from contextlib import nullcontext
from importlib import metadata as package_metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rasterio
import torch
from torch import Tensor

from ._version import __version__
from .control import Control
from .degradation import Range, fill_invalid
from .device import choose_device, is_out_of_memory
from .errors import ErrorCode, HyperSharpError
from .estimate import BYTES, cache_bytes, choose_tile
from .io.raster import source_path
from .io.writer import FusedWriter, check_output, default_nodata, partial_output
from .job import COMPRESSIONS, DTYPES, AssessJob, FuseJob
from .maps import ErrorMaps, check_maps_folder
from .methods.base import FusionMethod
from .pair import Pair
from .protocol import Result
from .registry import check_options, load_method, method_info
from .scene import FILL_REACH, Tile, tile_windows
from .sensors import colour_bands

if TYPE_CHECKING:
    from .report.stages import StageCollector

MIN_TILE = 64
"""Below this side, in pixels, a tile is not split any further when memory runs out."""
COMPRESSED_SHARE = 0.5
"""Least share of the uncompressed size that a compressed output is expected to take."""


def fuse(
    hs: str | os.PathLike[str],
    guide: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    control: Control | None = None,
    **options: Any,
) -> Result:
    """Fuse a hyperspectral raster with a finer one.

    Args:
        hs: path of the hyperspectral raster.
        guide: path of the panchromatic or multispectral raster.
        output: path of the GeoTIFF to write.
        control: progress, cancel and warnings; None for none.
        options: any other field of `job.FuseJob` (method, extent, device, dtype, report, metrics, ...).

    Returns:
        The paths written, the quality indices (as in metrics.json) and the warnings.

    Raises:
        HyperSharpError: bad input, with a hint; nothing was written.
        Cancelled: `control` stopped the job; nothing was written.
    """
    job = FuseJob(os.fspath(hs), os.fspath(guide), os.fspath(output), **options)
    return run_fuse(job, control or Control())


def run_fuse(job: FuseJob, control: Control) -> Result:
    """Run a fusion job; see `fuse`."""
    started = time.monotonic()
    check_job(job)
    torch.manual_seed(job.seed)
    device, device_note = choose_device(job.device)
    control.info(f"running on {device_note}")
    method: FusionMethod = load_method(job.method)(method_parameters(job))
    plan = {"reading": 1, "learning": 1, "fusing": 6, "assessing": 6, "report": 2, **method.plan}
    control.plan({k: v for k, v in plan.items() if job.assess or k not in ("assessing", "report")})
    hs, guide = source_path(job.hs), source_path(job.guide)
    check_output(job.output, [hs, guide], 0)
    check_side_files(job.report, job.metrics)
    check_maps_folder(job.maps, [hs, guide, job.output, job.report, *metrics_files(job.metrics)])
    control.stage("reading", 1)
    with Pair.of_job(job, device, control) as pair:
        dtype = pair.hs.dtype if job.dtype == "same" else job.dtype
        check_output(job.output, [hs, guide], _disk_bytes(pair, dtype, job.compress))
        control.step()
        control.stage("learning", 1)
        method.fit(pair.scene, control)
        control.step()
        maps = make_maps(job, pair) if job.assess else None
        drawn = stage_collector(job, pair, method)
        with partial_output(job.output) as part, maps or nullcontext():
            method.watch = drawn
            write_fused(pair, method, job, part, dtype, control)
            method.watch = None
            seconds = time.monotonic() - started
            metrics = _metrics_head(job, pair, method, device, device_note, seconds)
            if job.assess:
                from .assessment import assess_pair

                metrics |= assess_pair(
                    pair,
                    str(part),
                    control,
                    method=job.method,
                    parameters=method_parameters(job),
                    maps=maps,
                )
            control.finish()
    outputs = {"OUTPUT": job.output}
    metrics["warnings"] = list(control.warnings)
    outputs |= write_side_files(metrics, job, job.output, hs, guide, control, maps, drawn)
    return Result(outputs, metrics, list(control.warnings))


def method_parameters(job: FuseJob) -> dict[str, Any]:
    """Return the options that a job gives its method: weights and adaptation are options of learned ones."""
    if not method_info(job.method).needs_weights:
        return dict(job.parameters)
    own = {"weights": job.weights, "adapt": job.adapt_steps, "memory_gb": job.memory_gb}
    return {**own, **job.parameters}


def check_job(job: FuseJob) -> None:
    """Check what can be checked without opening a file.

    Raises:
        HyperSharpError: unknown method, dtype or compression, or a number out of range.
    """
    info = method_info(job.method)
    check_options(job.method, job.parameters)
    if job.dtype not in DTYPES:
        raise HyperSharpError(f"unknown dtype {job.dtype!r}", f"use {' or '.join(DTYPES)}", ErrorCode.USAGE)
    if job.compress not in COMPRESSIONS:
        raise HyperSharpError(
            f"unknown compression {job.compress!r}", f"use one of {', '.join(COMPRESSIONS)}", ErrorCode.USAGE
        )
    if not job.memory_gb > 0:
        raise HyperSharpError(
            f"the memory bound is {job.memory_gb:g} GB", "give a positive number", ErrorCode.USAGE
        )
    if job.tile is not None and job.tile < MIN_TILE:
        raise HyperSharpError(
            f"a tile of {job.tile} pixels is too small", f"use {MIN_TILE} or more", ErrorCode.USAGE
        )
    if job.maps and not job.assess:
        raise HyperSharpError(
            "error maps come from the assessment, which is switched off",
            "leave --no-assess out, or --maps",
            ErrorCode.USAGE,
        )
    if (job.weights or job.adapt_steps) and not info.needs_weights:
        raise HyperSharpError(
            f"{job.method} has no weights",
            "leave weights and adaptation out, or choose a learned method",
            ErrorCode.USAGE,
        )


def metrics_files(path: str | None) -> list[str | None]:
    """Return the files that a job writes for its metrics file: JSON, and the same as a table beside it."""
    return [path, str(Path(path).with_suffix(".csv"))] if path else []


def check_side_files(report: str | None, metrics: str | None) -> None:
    """Check that a job's report and metrics files can be written.

    Raises:
        HyperSharpError: a folder does not exist or cannot be written to, or the metrics file is named as its own
            table.
    """
    if metrics and Path(metrics).suffix.lower() == ".csv":
        raise HyperSharpError(
            f"the metrics file holds JSON: {metrics}",
            f"name it {Path(metrics).with_suffix('.json').name}; the same as CSV is written beside it",
            ErrorCode.USAGE,
        )
    for path in (report, *metrics_files(metrics)):
        check_side_file(path)


def make_maps(job: FuseJob | AssessJob, pair: Pair) -> ErrorMaps | None:
    """Return the collector of the error maps that a job's files or its report need; None for neither."""
    return ErrorMaps(pair.grid, pair.hs, job.maps) if job.maps or job.report else None


def stage_collector(job: FuseJob, pair: Pair, method: FusionMethod) -> StageCollector | None:
    """Return what collects the picture of a method's prior for the report; None where there is none to show."""
    from .report.stages import PRIOR, StageCollector

    if not job.report or PRIOR not in method.stage_names:
        return None
    bands = colour_bands(pair.hs.bands.wavelength_nm, usable=pair.hs.bands.good)
    usable = pair.survey.usable
    if not set(bands) <= set(usable):
        return None
    return StageCollector(PRIOR, bands, [usable.index(b) for b in bands], pair.grid.rows, pair.grid.cols)


def check_side_file(path: str | None) -> None:
    """Check that a report or metrics file can be written.

    Raises:
        HyperSharpError: its folder does not exist or cannot be written to.
    """
    if path is None:
        return
    folder = Path(path).parent
    if not folder.is_dir() or not os.access(folder, os.W_OK) or Path(path).is_dir():
        raise HyperSharpError(
            f"cannot write {path}", "choose an existing folder in which you may write", ErrorCode.OUTPUT
        )


def _disk_bytes(pair: Pair, dtype: str, compress: str) -> int:
    rows, cols = pair.grid.output_shape
    size = pair.hs.count * rows * cols * BYTES.get(dtype, 4)
    return size if compress == "none" else int(size * COMPRESSED_SHARE)


def write_fused(
    pair: Pair, method: FusionMethod, job: FuseJob, path: Path, dtype: str, control: Control
) -> None:
    """Run the second pass: fuse tile by tile into the file `path`.

    Raises:
        HyperSharpError: memory ran out at the smallest tile (oom), the disk is full, the file is not writable.
    """
    grid, hs = pair.grid, pair.hs
    nodata = hs.nodata if hs.nodata is not None or not pair.may_be_masked else default_nodata(dtype)
    side = job.tile or choose_tile(
        hs.count, pair.scene.guide.bands, job.memory_gb, method.tile_needs(grid.ratio), grid.output_shape
    )
    windows = tile_windows(grid.rows, grid.cols, side)
    with (
        rasterio.Env(GDAL_CACHEMAX=cache_bytes(job.memory_gb)),
        FusedWriter(
            path,
            (hs.count, *grid.output_shape),
            dtype,
            grid.crs,
            grid.output_transform,
            nodata,
            hs.bands,
            provenance(job, pair),
            hs.scales,
            hs.offsets,
            hs.units,
            job.compress,
            job.overviews,
        ) as writer,
    ):
        control.stage("fusing", len(windows))
        for rows, cols in windows:
            for part_rows, part_cols, image, mask in _fuse_window(pair, method, rows, cols, control):
                writer.write(part_rows[0] - grid.rows[0], part_cols[0] - grid.cols[0], image, mask)
            control.step()


def _fuse_window(
    pair: Pair, method: FusionMethod, rows: Range, cols: Range, control: Control
) -> list[tuple[Range, Range, Tensor, Tensor]]:
    """Fuse a window, in smaller parts when memory runs out."""
    try:
        return [(rows, cols, *fuse_bands(pair, method, rows, cols))]
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        side = max(rows[1] - rows[0], cols[1] - cols[0])
        if side // 2 < MIN_TILE:
            raise HyperSharpError(
                "memory ran out even for the smallest tile",
                "close other programs, lower --memory, or use --device cpu",
                ErrorCode.OUT_OF_MEMORY,
                retry=True,
            ) from error
    if pair.scene.device.type == "cuda":
        torch.cuda.empty_cache()
    control.warn(f"memory ran out: the tile was halved to {-(-side // 2)} pixels")
    parts: list[tuple[Range, Range, Tensor, Tensor]] = []
    for part_rows, part_cols in tile_windows(rows, cols, -(-side // 2)):
        parts += _fuse_window(pair, method, part_rows, part_cols, control)
    return parts


def fuse_bands(pair: Pair, method: FusionMethod, rows: Range, cols: Range) -> tuple[Tensor, Tensor]:
    """Fuse a window of every band: usable ones by the method, the others by interpolation.

    Returns:
        `[bands, rows, cols]` float32 on the CPU, and the mask `[rows, cols]` or `[bands, rows, cols]`.
    """
    tile = pair.scene.tile(rows, cols, method.halo)
    fused = method.fuse(tile).to(torch.float32).cpu()
    mask = tile.mask.cpu()
    others = pair.survey.passed_through
    if not others:
        return fused, mask
    image = torch.empty(pair.hs.count, *fused.shape[1:])
    full_mask = mask.expand(image.shape).clone()
    image[pair.survey.usable] = fused
    values, valid = pair.hs_all.take(others).read_samples(tile.coarse_rows, tile.coarse_cols)
    for index, band in enumerate(others):
        filled = fill_invalid(values[index : index + 1], valid[index], FILL_REACH)
        image[band] = tile.upsample(filled.to(tile.hs.device))[0].cpu()
        full_mask[band] &= _nearest(valid[index], tile)
    return image, full_mask


def _nearest(coarse_mask: Tensor, tile: Tile) -> Tensor:
    """Return a coarse mask on the tile's own fine pixels."""
    y = torch.arange(*tile.rows) // tile.ratio - tile.coarse_rows[0]
    x = torch.arange(*tile.cols) // tile.ratio - tile.coarse_cols[0]
    return coarse_mask[y][:, x]


def provenance(job: FuseJob, pair: Pair) -> dict[str, str]:
    """Return the dataset tags that say how an output was made."""
    parameters = " ".join(f"{k}={v}" for k, v in sorted(job.parameters.items())) or "defaults"
    return {
        "TIFFTAG_SOFTWARE": f"HyperSharp {__version__}",
        "HYPERSHARP_VERSION": __version__,
        "HYPERSHARP_METHOD": job.method,
        "HYPERSHARP_PARAMETERS": parameters,
        "HYPERSHARP_HS": Path(job.hs).name,
        "HYPERSHARP_GUIDE": Path(job.guide).name,
        "HYPERSHARP_RATIO": str(pair.grid.ratio),
        "HYPERSHARP_MTF": f"hs={job.mtf_hs:g} guide={job.mtf_guide:g}",
        "HYPERSHARP_HS_MOVED": " ".join(map(str, pair.grid.hs_moved)),
        "HYPERSHARP_SEED": str(job.seed),
    }


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    found = {
        "hypersharp": __version__,
        "python": platform.python_version(),
        "gdal": rasterio.__gdal_version__,
    }
    for name in ("torch", "numpy", "rasterio"):
        found[name] = package_metadata.version(name)
    return found


def _metrics_head(
    job: FuseJob,
    pair: Pair,
    method: FusionMethod,
    device: torch.device,
    device_note: str,
    seconds: float,
) -> dict[str, Any]:
    """Return what metrics.json says before any index."""
    info = method_info(job.method)
    return {
        "method": job.method,
        "title": info.title,
        "citation": info.citation,
        "weights": job.weights,
        "ratio": pair.grid.ratio,
        "device": device.type,
        "device_note": device_note,
        "seconds": round(seconds, 3),
        "seed": job.seed,
        "versions": versions(),
        "parameters": dict(method.parameters),
        "mtf": {"hs": job.mtf_hs, "guide": job.mtf_guide},
        "method_details": method.describe(),
        "inputs": {"hs": pair.hs.describe(), "guide": pair.guide.describe(), "grid": pair.grid.describe()},
        "bands": {
            "usable": len(pair.survey.usable),
            "empty": [b + 1 for b in pair.survey.empty],
            "constant": [b + 1 for b in pair.survey.constant],
            "bad": [b + 1 for b in pair.survey.bad],
            "clipped": [b + 1 for b in pair.survey.clipped],
        },
    }


def write_side_files(
    metrics: dict[str, Any],
    job: FuseJob | AssessJob,
    fused: str,
    hs: str,
    guide: str,
    control: Control,
    maps: ErrorMaps | None = None,
    drawn: StageCollector | None = None,
) -> dict[str, str]:
    """Write the report and the metrics files that a job asks for; return what was written, maps included."""
    written: dict[str, str] = dict(maps.outputs) if maps is not None else {}
    if not (job.metrics or job.report):
        return written
    from .report import build_report, write_csv, write_metrics

    if job.metrics:
        _, table = metrics_files(job.metrics)
        write_metrics(metrics, job.metrics)
        write_csv(metrics, str(table))
        written |= {"METRICS": job.metrics, "METRICS_CSV": str(table)}
    if job.report:
        control.stage("report", 1)
        pictures = maps.pictures() if maps is not None else []
        prior = drawn.picture() if drawn is not None else None
        build_report(metrics, fused=fused, hs=hs, guide=guide, output=job.report, maps=pictures, prior=prior)
        written["REPORT"] = job.report
        control.step()
    return written
