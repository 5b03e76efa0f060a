# SPDX-License-Identifier: GPL-2.0-or-later
"""The fused raster: a tiled, compressed GeoTIFF under a temporary name, renamed when it is whole."""

from __future__ import annotations

import errno
import math
import os
import queue
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np
import rasterio
import torch
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.windows import Window
from torch import Tensor

from ..errors import ErrorCode, HyperSharpError
from .wavelengths import BandTable

BLOCK = 256
"""Side of the GeoTIFF's blocks in pixels."""
COPIED_TAGS = ("bbl",)


def partial_path(output: str | os.PathLike[str]) -> Path:
    """Return the temporary name beside the target under which it is written."""
    path = Path(output)
    return path.with_name(path.stem + ".part.tif")


@contextmanager
def partial_output(output: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside the target; rename it at the end, or remove it when anything went wrong.

    An older file under the target's name stays as it is until then.
    """
    part = partial_path(output)
    part.unlink(missing_ok=True)
    try:
        yield part
        os.replace(part, output)
    finally:
        part.unlink(missing_ok=True)
        part.with_name(part.name + ".aux.xml").unlink(missing_ok=True)


def make_folder(folder: str | os.PathLike[str]) -> Path:
    """Return a folder for outputs, made when absent.

    Raises:
        HyperSharpError: it cannot be made or written to.
    """
    path, why = Path(folder), ""
    try:
        path.mkdir(parents=True, exist_ok=True)
        writable = os.access(path, os.W_OK)
    except OSError as error:
        writable, why = False, f": {error.strerror}"
    if not writable:
        raise HyperSharpError(
            f"cannot write into the folder {path}{why}", "choose another folder", ErrorCode.OUTPUT
        )
    return path


def default_nodata(dtype: str) -> float:
    """Return the nodata value for an output that needs one and whose input has none."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return math.nan
    limits = np.iinfo(kind)
    return float(limits.min if kind.kind == "i" else limits.max)


def check_output(output: str, inputs: list[str], needed_bytes: int) -> None:
    """Check that an output can be written, before anything is computed.

    Raises:
        HyperSharpError: not a GeoTIFF name, no such folder, not writable, one of the inputs, or the disk is
            too small for `needed_bytes`.
    """
    path = Path(output)
    if path.suffix.lower() not in (".tif", ".tiff"):
        raise HyperSharpError(
            f"the output must be a GeoTIFF: {output}", "give it a name that ends in .tif", ErrorCode.OUTPUT
        )
    for name in inputs:
        if os.path.exists(name) and path.exists() and os.path.samefile(name, path):
            raise HyperSharpError(
                f"the output is one of the inputs: {output}", "choose another file name", ErrorCode.OUTPUT
            )
    folder = path.parent
    if not folder.is_dir():
        raise HyperSharpError(
            f"the output's folder does not exist: {folder}", "create it or choose another", ErrorCode.OUTPUT
        )
    probe = partial_path(path)
    try:
        with open(probe, "wb"):
            pass
        probe.unlink()
        if path.exists():
            with open(path, "r+b"):
                pass
    except OSError as error:
        raise HyperSharpError(
            f"the output cannot be written: {output} ({error.strerror})",
            "choose a folder in which you may write, and close programs that use the file",
            ErrorCode.OUTPUT,
        ) from error
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise HyperSharpError(
            f"the disk is too small: about {needed_bytes / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free",
            "free some space, choose another disk, or fuse a smaller extent",
            ErrorCode.DISK_FULL,
            retry=True,
        )


class FusedWriter:
    """Writes `[bands, rows, cols]` tile by tile on a thread of its own, so that computing goes on meanwhile.

    Use as a context manager: leaving it closes the file. What it writes belongs below a temporary name
    (`partial_output`), which becomes the final one when the whole job is done.

    Args:
        path: of the file to write.
        shape: (bands, rows, cols).
        dtype: of the pixels.
        crs, transform: of the output.
        nodata: value of masked pixels, or None when there will be none.
        bands: wavelengths and names to write.
        tags: dataset tags.
        scales, offsets, units: as in the input.
        compress: "deflate", "zstd", "lzw" or "none".
        overviews: build overviews.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        shape: tuple[int, int, int],
        dtype: str,
        crs: CRS | None,
        transform: Affine,
        nodata: float | None,
        bands: BandTable,
        tags: Mapping[str, str],
        scales: tuple[float, ...] = (),
        offsets: tuple[float, ...] = (),
        units: tuple[str | None, ...] = (),
        compress: str = "deflate",
        overviews: bool = False,
    ) -> None:
        self._dtype, self._nodata, self._overviews = np.dtype(dtype), nodata, overviews
        self._queue: queue.Queue[tuple[Window, np.ndarray] | None] = queue.Queue(maxsize=1)
        self._error: BaseException | None = None
        self._dataset = rasterio.open(
            path,
            "w",
            driver="GTiff",
            count=shape[0],
            height=shape[1],
            width=shape[2],
            dtype=dtype,
            crs=crs,
            transform=transform,
            nodata=nodata,
            BIGTIFF="IF_SAFER",
            **creation_options(dtype, compress, shape[1:]),
        )
        self._describe(bands, tags, scales, offsets, units)
        self._thread = threading.Thread(target=self._run, name="hypersharp-writer", daemon=True)
        self._thread.start()

    def _describe(
        self,
        bands: BandTable,
        tags: Mapping[str, str],
        scales: tuple[float, ...],
        offsets: tuple[float, ...],
        units: tuple[str | None, ...],
    ) -> None:
        dataset = self._dataset
        dataset.update_tags(**tags)
        if any(s != 1.0 for s in scales) or any(o != 0.0 for o in offsets):
            dataset.scales, dataset.offsets = scales, offsets
        if any(units):
            dataset.units = units
        for index, (centre, width) in enumerate(zip(bands.wavelength_nm, bands.fwhm_nm), start=1):
            name = bands.descriptions[index - 1]
            if name is None and centre is not None:
                name = f"band {index} ({centre:g} nm)"
            if name:
                dataset.set_band_description(index, name)
            own: dict[str, str] = {} if bands.good[index - 1] else {"bbl": "0"}
            imagery: dict[str, str] = {}
            if centre is not None:
                own |= {"wavelength": f"{centre:g}", "wavelength_units": "Nanometers"}
                imagery["CENTRAL_WAVELENGTH_UM"] = f"{centre / 1000:.6g}"
            if width is not None:
                own["fwhm"] = f"{width:g}"
                imagery["FWHM_UM"] = f"{width / 1000:.6g}"
            if own:
                dataset.update_tags(index, **own)
            if imagery:
                dataset.update_tags(index, ns="IMAGERY", **imagery)

    def write(self, row: int, col: int, image: Tensor, mask: Tensor) -> None:
        """Write a tile whose upper left pixel is (row, col) of the output.

        Args:
            image: `[bands, rows, cols]`; overwritten.
            mask: `[rows, cols]` or `[bands, rows, cols]`, True where valid; the rest becomes nodata.

        Raises:
            HyperSharpError: the disk is full or the file cannot be written.
        """
        pixels = to_pixels(image, mask, self._dtype, self._nodata)
        window = Window(col, row, image.shape[-1], image.shape[-2])
        while True:
            self._raise_error()
            try:
                self._queue.put((window, pixels), timeout=0.5)
                return
            except queue.Full:
                continue

    def _run(self) -> None:
        while True:
            item = self._queue.get()
            if item is None:
                return
            if self._error is not None:
                continue
            try:
                self._dataset.write(item[1], window=item[0])
            except Exception as error:
                self._error = error

    def _raise_error(self) -> None:
        if self._error is None:
            return
        error = self._error
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        raise HyperSharpError(
            f"writing the output failed: {str(error).strip().splitlines()[0] if str(error) else error!r}",
            "free some disk space or choose another disk",
            ErrorCode.DISK_FULL if full else ErrorCode.OUTPUT,
            retry=True,
        ) from error

    def __enter__(self) -> FusedWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._queue.put(None)
        self._thread.join()
        try:
            if kind is None:
                self._raise_error()
                if self._overviews:
                    levels = [2**k for k in range(1, 8) if max(self._dataset.shape) // 2**k >= BLOCK]
                    self._dataset.build_overviews(levels, Resampling.average)
        finally:
            self._close()
        if kind is None:
            self._raise_error()

    def _close(self) -> None:
        """Close the dataset; what its last flush could not write becomes the error."""
        if self._dataset.closed:
            return
        try:
            self._dataset.close()
        except (RasterioError, OSError) as error:
            self._error = self._error or error


def creation_options(dtype: str, compress: str, shape: tuple[int, int]) -> dict[str, object]:
    """Return the GeoTIFF creation options of the fused raster."""
    options: dict[str, object] = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK}
    options |= {"interleave": "band", "num_threads": "all_cpus"}
    if compress == "none":
        return options
    options["compress"] = compress
    if compress in ("deflate", "zstd"):
        # Level 1: the compressor is the limit, and higher levels gain little on sensor noise.
        options["zlevel" if compress == "deflate" else "zstd_level"] = 1
    options["predictor"] = 3 if np.dtype(dtype).kind == "f" else 2
    return options


def to_pixels(image: Tensor, mask: Tensor, dtype: np.dtype, nodata: float | None) -> np.ndarray:
    """Return a float image as pixels: rounded and clipped for integers, nodata where masked.

    A valid pixel never takes the nodata value: it moves to the next one.

    Args:
        image: `[bands, rows, cols]` float32; overwritten.
        mask: `[rows, cols]` or `[bands, rows, cols]`.
        dtype: of the pixels.
        nodata: value of masked pixels, or None when nothing is masked.
    """
    if dtype.kind == "f":
        if nodata is not None and not bool(mask.all()):
            image = torch.where(mask, image, torch.tensor(nodata, dtype=image.dtype, device=image.device))
        return image.cpu().numpy().astype(dtype, copy=False)
    limits = np.iinfo(dtype)
    # float32 holds no integer between 2^31 - 128 and 2^31: clip below what would overflow.
    upper = limits.max if dtype.itemsize < 4 else float(np.nextafter(np.float32(limits.max), np.float32(0)))
    pixels = image.round_().clamp_(limits.min, upper).cpu().numpy().astype(dtype)
    if nodata is not None:
        taken = pixels == dtype.type(nodata)
        if taken.any():
            pixels[taken] = dtype.type(nodata + 1 if nodata < limits.max else nodata - 1)
        if not bool(mask.all()):
            pixels[~np.broadcast_to(mask.cpu().numpy(), pixels.shape)] = dtype.type(nodata)
    return pixels
