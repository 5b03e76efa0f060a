# SPDX-License-Identifier: GPL-2.0-or-later
"""Error maps: where the errors are, as GeoTIFFs for QGIS and as small pictures for the report.

The assessment hands over its tiles as it works on them (`ErrorMaps`): no raster is read twice, and memory holds one
small picture a map, whatever the raster's size.
"""

from __future__ import annotations

import html
import math
import os
import string
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from affine import Affine
from torch import Tensor

from ._version import __version__
from .errors import ErrorCode, HyperSharpError
from .grid import PairGrid
from .io.raster import RasterInfo
from .io.wavelengths import BandTable
from .io.writer import FusedWriter, partial_path
from .metrics.maps import rmse_map, sam_map

PICTURE_PIXELS = 560
"""Longest side of a map's picture."""
SCALE_PERCENT = 98.0
"""The colours end at this percentile of the picture, so that a few pixels do not darken the rest."""
COLOURS = (
    "#000004",
    "#180f3d",
    "#440f76",
    "#721f81",
    "#9e2f7f",
    "#cd4071",
    "#f1605d",
    "#fd9668",
    "#feca8d",
    "#fcfdbf",
)
"""Matplotlib's "magma": perceptually uniform, readable for the colour-blind and in grey; bright is bad."""
STYLE = Path(__file__).resolve().parents[1] / "resources" / "styles" / "error_map.qml"
DATA_UNITS = "data units"


@dataclass(frozen=True)
class MapKind:
    """A map that the assessment can make.

    Attributes:
        key: its name in this module.
        output: its name among a job's outputs.
        file: its file name.
        title: what is shown, as the report heads it.
        unit: of its values; "data" stands for the HS image's.
        coarse: it lies on the HS grid; otherwise on the fine one.
    """

    key: str
    output: str
    file: str
    title: str
    unit: str
    coarse: bool


KINDS: dict[str, MapKind] = {
    kind.key: kind
    for kind in (
        MapKind("SAM", "MAP_SAM", "sam.tif", "SAM, reduced resolution", "degrees", True),
        MapKind("RMSE", "MAP_RMSE", "rmse.tif", "RMSE, reduced resolution", "data", True),
        MapKind("D_rho", "MAP_D_RHO", "d_rho.tif", "D_ρ, full resolution", "", False),
        MapKind(
            "SAM_reference",
            "MAP_SAM_REFERENCE",
            "sam_reference.tif",
            "SAM, against the true image",
            "degrees",
            False,
        ),
        MapKind(
            "RMSE_reference",
            "MAP_RMSE_REFERENCE",
            "rmse_reference.tif",
            "RMSE, against the true image",
            "data",
            False,
        ),
    )
}
ERRORS = {"reduced_resolution": ("SAM", "RMSE"), "reference": ("SAM_reference", "RMSE_reference")}
"""The maps of a comparison with a truth, by section of metrics.json."""


@dataclass(frozen=True)
class MapPicture:
    """A map as the report shows it.

    Attributes:
        kind: which map.
        unit: of its values.
        values: `[rows, cols]` float32, NaN where there is none; each stands for `factor` x `factor` map pixels
            by their mean (RMSE: root of the mean square).
        factor: see `values`.
        mean: the same over all pixels of the map, which is the index; None when no pixel has a value.
        top: value at which the colours end (they begin at 0).
    """

    kind: MapKind
    unit: str
    values: np.ndarray
    factor: int
    mean: float | None
    top: float


class Thumbnail:
    """A raster shrunk by a whole factor while it passes by, tile by tile: means of the values that there are.

    Args:
        shape: (rows, cols) of the raster.
        longest: longest side of the result.
        squares: take the root of the mean square instead, as RMSE's own mean over pixels is.
    """

    def __init__(self, shape: tuple[int, int], longest: int = PICTURE_PIXELS, squares: bool = False) -> None:
        self._squares = squares
        self.factor = max(1, math.ceil(max(shape) / longest))
        size = [math.ceil(side / self.factor) for side in shape]
        self._sums = torch.zeros(*size, dtype=torch.float64)
        self._counts = torch.zeros(*size, dtype=torch.float64)

    def add(self, row: int, col: int, values: Tensor) -> None:
        """Add a tile whose upper left pixel is (row, col): `[rows, cols]`, NaN where there is no value."""
        good = torch.isfinite(values)
        values = values.to(torch.float64).nan_to_num(0.0, 0.0, 0.0)
        values = values.square() if self._squares else values
        rows = torch.arange(row, row + values.shape[0]) // self.factor
        cols = torch.arange(col, col + values.shape[1]) // self.factor
        part = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(cols[0]), int(cols[-1]) + 1)
        for total, image in ((self._sums, values), (self._counts, good.to(torch.float64))):
            target = total[part]
            narrow = torch.zeros(target.shape[0], image.shape[1], dtype=torch.float64)
            narrow.index_add_(0, rows - rows[0], image)
            target += torch.zeros_like(target).index_add_(1, cols - cols[0], narrow)

    @property
    def mean(self) -> float | None:
        """Mean of all values, or None without any."""
        count = float(self._counts.sum())
        if not count:
            return None
        mean = float(self._sums.sum()) / count
        return math.sqrt(mean) if self._squares else mean

    def values(self) -> np.ndarray:
        """Return `[rows, cols]` float32; NaN where there is no value."""
        found = torch.where(self._counts > 0, self._sums / self._counts, math.nan)
        return (found.sqrt() if self._squares else found).to(torch.float32).numpy()


class _Map:
    """One map on its way into a picture and, where a folder is given, into a file."""

    def __init__(
        self,
        kind: MapKind,
        unit: str,
        shape: tuple[int, int],
        offset: tuple[int, int],
        path: Path | None,
        crs: object,
        transform: Affine,
    ) -> None:
        self.kind, self.unit, self.path = kind, unit, path
        self._shape, self._offset = shape, offset
        self._thumbnail = Thumbnail(shape, PICTURE_PIXELS, squares=kind.unit == "data")
        self.part: Path | None = None
        self._writer: FusedWriter | None = None
        if path is None:
            return
        self.part = partial_path(path)
        title = kind.title.replace("D_ρ", "D_rho")
        self._writer = FusedWriter(
            self.part,
            (1, *shape),
            "float32",
            crs,
            transform,
            math.nan,
            BandTable([None], [None], [True], [f"{title} ({unit})" if unit else title]),
            {"TIFFTAG_SOFTWARE": f"HyperSharp {__version__}", "HYPERSHARP_MAP": kind.key},
            units=(unit or None,),
        )

    def add(self, row: int, col: int, values: Tensor) -> None:
        """Add a tile whose upper left pixel is (row, col) of the frame; what lies beyond the map is left out."""
        top, left = row - self._offset[0], col - self._offset[1]
        rows = slice(max(0, -top), max(0, min(values.shape[0], self._shape[0] - top)))
        cols = slice(max(0, -left), max(0, min(values.shape[1], self._shape[1] - left)))
        values = values[rows, cols].cpu()
        if values.numel() == 0:
            return
        top, left = max(0, top), max(0, left)
        self._thumbnail.add(top, left, values)
        if self._writer is not None:
            self._writer.write(top, left, values[None], torch.isfinite(values))

    def close(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file; an exception says that it is not to be finished."""
        if self._writer is not None:
            self._writer.__exit__(kind, value, trace)

    def picture(self) -> MapPicture:
        """Return what the report shows."""
        values = self._thumbnail.values()
        good = values[np.isfinite(values)]
        top = float(np.percentile(good, SCALE_PERCENT)) if good.size else 0.0
        top = top if top > 0 else float(good.max()) if good.size and good.max() > 0 else 1.0
        return MapPicture(self.kind, self.unit, values, self._thumbnail.factor, self._thumbnail.mean, top)


class ErrorMaps:
    """Collects the maps of an assessment. A context manager: leaving it gives the files their final names.

    An exception within leaves no file behind, and files of an earlier run as they were.

    Args:
        grid: geometry of the pair.
        hs: the HS image, for the unit of RMSE.
        folder: where the GeoTIFFs go, made when it is missing; None for pictures only.
    """

    def __init__(self, grid: PairGrid, hs: RasterInfo, folder: str | None = None) -> None:
        self._grid = grid
        units = {unit for unit in hs.units if unit}
        self._unit = units.pop() if len(units) == 1 else DATA_UNITS
        self._folder = Path(folder) if folder is not None else None
        self._maps: dict[str, _Map] = {}
        self._made_folder = False
        self._closers = ExitStack()
        self.outputs: dict[str, str] = {}
        """Path of each map written, by its name among a job's outputs; filled at the end."""

    def add_errors(
        self, section: str, row: int, col: int, fused: Tensor, reference: Tensor, mask: Tensor
    ) -> None:
        """Add a tile of a comparison with a truth.

        Args:
            section: "reduced_resolution" or "reference".
            row, col: upper left pixel of the tile in the frame (of HS pixels, or of fine ones).
            fused, reference: `[bands, rows, cols]`, without context.
            mask: `[rows, cols]`.
        """
        sam, rmse = ERRORS[section]
        self.add(sam, row, col, sam_map(fused, reference, mask))
        self.add(rmse, row, col, rmse_map(fused, reference, mask))

    def add(self, key: str, row: int, col: int, values: Tensor) -> None:
        """Add a tile of a map, `[rows, cols]` float32, NaN where there is no value; `row` and `col` as above."""
        if key not in self._maps:
            self._maps[key] = self._begin(KINDS[key])
            self._closers.push(self._maps[key].close)
        self._maps[key].add(row, col, values)

    def _begin(self, kind: MapKind) -> _Map:
        grid = self._grid
        if kind.coarse:
            # Wald's protocol runs on whole groups of ratio x ratio HS pixels.
            shape = tuple(n // grid.ratio * grid.ratio for n in (grid.coarse_rows, grid.coarse_cols))
            offset, transform = (0, 0), grid.coarse_transform
        else:
            shape, offset = grid.output_shape, (grid.rows[0], grid.cols[0])
            transform = grid.output_transform
        path = None if self._folder is None else self._folder / kind.file
        unit = self._unit if kind.unit == "data" else kind.unit
        return _Map(kind, unit, (shape[0], shape[1]), offset, path, grid.crs, transform)

    def pictures(self) -> list[MapPicture]:
        """Return the maps as the report shows them, in the order of `KINDS`."""
        return [self._maps[key].picture() for key in KINDS if key in self._maps]

    def __enter__(self) -> ErrorMaps:
        if self._folder is not None and not self._folder.is_dir():
            try:
                self._folder.mkdir()
            except OSError as error:
                raise _no_folder(self._folder) from error
            self._made_folder = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._closers.__exit__(kind, value, trace)
            if kind is None:
                self._name_files()
        finally:
            for one in self._maps.values():
                if one.part is not None:
                    one.part.unlink(missing_ok=True)
            if self._made_folder and not self.outputs and self._folder is not None:
                with suppress(OSError):
                    self._folder.rmdir()

    def _name_files(self) -> None:
        for one in self._maps.values():
            if one.part is None or one.path is None:
                continue
            try:
                os.replace(one.part, one.path)
                one.path.with_suffix(".qml").write_text(style(one.picture()), encoding="utf-8")
            except OSError as error:
                raise HyperSharpError(
                    f"cannot write {one.path}: {error.strerror or error}",
                    "close programs that use the file, or choose another folder for the maps",
                    ErrorCode.OUTPUT,
                ) from error
            self.outputs[one.kind.output] = str(one.path)


def style(picture: MapPicture) -> str:
    """Return QGIS's layer style for a map: the report's colours and range. QGIS applies it when it loads the map."""
    stops = len(COLOURS) - 1
    items = "\n".join(
        f'          <item value="{picture.top * i / stops:.9g}" alpha="255" color="{colour}" '
        f'label="{html.escape(f"{picture.top * i / stops:.4g} {picture.unit}".strip())}"/>'
        for i, colour in enumerate(COLOURS)
    )
    ramp = ":".join(f"{i / stops:.6g};{_rgba(colour)}" for i, colour in enumerate(COLOURS[1:-1], start=1))
    return string.Template(STYLE.read_text(encoding="utf-8")).substitute(
        top=f"{picture.top:.9g}", items=items, first=_rgba(COLOURS[0]), last=_rgba(COLOURS[-1]), stops=ramp
    )


def _rgba(colour: str) -> str:
    return ",".join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5)) + ",255"


def check_maps_folder(folder: str | None, others: list[str | None]) -> None:
    """Check, before anything is computed, that maps can be written.

    Args:
        folder: of the maps; None for none.
        others: paths of a job's inputs and other outputs, which no map may overwrite.

    Raises:
        HyperSharpError: the folder cannot be made or written to, or a map would take another file's place.
    """
    if folder is None:
        return
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise _no_folder(path)
    home = path if path.is_dir() else path.absolute().parent
    if not home.is_dir() or not os.access(home, os.W_OK):
        raise _no_folder(path)
    taken = {Path(other).resolve() for other in others if other}
    for kind in KINDS.values():
        for name in (kind.file, Path(kind.file).with_suffix(".qml").name):
            if (path / name).resolve() in taken:
                raise HyperSharpError(
                    f"the map {path / name} would take the place of another file of this job",
                    "choose another folder for the maps",
                    ErrorCode.OUTPUT,
                )


def _no_folder(path: Path) -> HyperSharpError:
    return HyperSharpError(
        f"the maps cannot be written to {path}",
        "choose a folder in which you may write, or a new one in such a folder",
        ErrorCode.OUTPUT,
    )
