# SPDX-License-Identifier: GPL-2.0-or-later
"""HDF5 files (netCDF 4 is one of them), and errors for what they do not hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from rasterio.crs import CRS
from rasterio.errors import CRSError

from ..degradation import Range
from ..errors import HyperSharpError

AGAIN = "download the product again"


@contextmanager
def open_hdf(path: str) -> Iterator[Any]:
    """Open a file with h5py.

    Raises:
        HyperSharpError: it is no HDF5 file, or damaged.
    """
    import h5py  # only products need it

    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise HyperSharpError(
            f"{path} is no HDF5 file, or it is damaged",
            "name the .he5 or .nc file itself, unpacked if it came in a .zip, or download it again",
        ) from error
    with file:
        yield file


def missing(what: str) -> HyperSharpError:
    """Return the error for what a product should hold and does not."""
    return HyperSharpError(f"the product holds no {what}", AGAIN)


def group(parent: Any, name: str) -> Any:
    """Return a group of a file or a group.

    Raises:
        HyperSharpError: it is not there.
    """
    if name not in parent:
        raise missing(name)
    return parent[name]


def dataset(parent: Any, name: str, axes: int) -> Any:
    """Return a data set of a group or a file.

    Raises:
        HyperSharpError: it is not there, has other than so many axes, or is empty.
    """
    found = parent.get(name)
    if found is None or getattr(found, "ndim", None) != axes or min(found.shape) < 1:
        raise missing(f"{name} of {axes} axes")
    return found


def read_rows(cube: Any, rows: Range, *others: slice) -> np.ndarray:
    """Return rows of a data set, and of its further axes what is named.

    Raises:
        HyperSharpError: the file ends before them, or they are damaged.
    """
    try:
        return cube[(slice(*rows), *others)]
    except OSError as error:
        raise HyperSharpError(
            f"the product is damaged or truncated in rows {rows[0]} to {rows[1]}",
            "copy or download the file again",
        ) from error


def numbers(file: Any, name: str) -> np.ndarray:
    """Return an attribute's numbers, `[n]`, float64.

    Raises:
        HyperSharpError: it is not there, or holds other than finite numbers.
    """
    if name not in file.attrs:
        raise missing(f"attribute {name}")
    try:
        found = np.atleast_1d(np.asarray(file.attrs[name], dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise missing(f"numbers in its attribute {name}") from error
    if found.ndim != 1 or not np.isfinite(found).all():
        raise missing(f"numbers in its attribute {name}")
    return found


def tags(file: Any, names: Mapping[str, str]) -> dict[str, str]:
    """Return those attributes of a file that are there, as text, under new names (`names`: old to new)."""
    return {tag: text(file.attrs[name]) for name, tag in names.items() if name in file.attrs}


def crs(named: str) -> CRS:
    """Return a CRS by any name that PROJ knows.

    Raises:
        HyperSharpError: it knows none of this name.
    """
    try:
        return CRS.from_user_input(named)
    except CRSError as error:
        raise HyperSharpError(f"the product names no CRS: {named[:60]}", AGAIN) from error


def text(value: Any) -> str:
    """Return an attribute's value as text."""
    value = value.item() if isinstance(value, np.ndarray) and value.size == 1 else value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
