# SPDX-License-Identifier: GPL-2.0-or-later
"""The report's machine-readable twins: metrics.json and a table as CSV."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

from ..errors import ErrorCode, HyperSharpError
from .indices import INDICES, index_rows, number, per_band_protocol

COLUMNS = [
    "protocol",
    "index",
    "band",
    "wavelength_nm",
    "method",
    "interpolation",
    "better",
    "variant",
    "reason",
]


def write_text(text: str, path: str | os.PathLike[str]) -> None:
    """Write a text file whole or not at all (UTF-8).

    Raises:
        HyperSharpError: the place cannot be written to.
    """
    target = Path(path)
    try:
        handle, temporary = tempfile.mkstemp(
            prefix=f".{target.stem}-", suffix=f".part{target.suffix}", dir=target.parent
        )
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
            # mkstemp makes private files; the output is as public as any file the user makes.
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(temporary, 0o666 & ~mask)
            os.replace(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise HyperSharpError(
            f"cannot write {target}: {error.strerror or error}",
            "choose a folder that exists and that you may write to",
            ErrorCode.OUTPUT,
        ) from error


def json_ready(value: Any, where: str = "metrics") -> Any:
    """Return a value as plain JSON types: numpy and torch scalars as numbers, paths as text, tuples as lists.

    Raises:
        ValueError: a number is NaN or infinite, or a value has no JSON form; the message names its place.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, dict):
        return {str(k): json_ready(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # numpy and torch arrays and scalars
        return json_ready(value.tolist(), where)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}: what cannot be computed must be None with a reason")
        return float(value)
    raise ValueError(f"{where} is a {type(value).__name__}, which JSON cannot hold")


def write_metrics(metrics: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write metrics.json whole or not at all.

    Raises:
        ValueError: a number in it is NaN or infinite (nothing is written).
        HyperSharpError: the place cannot be written to.
    """
    write_text(json.dumps(json_ready(metrics), indent=1, ensure_ascii=False, allow_nan=False) + "\n", path)


def write_csv(metrics: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the indices as CSV, whole or not at all: a line an index, then a line an index and band.

    The columns: protocol, index, band (from 1; empty for the whole image), wavelength_nm, method, interpolation,
    better, variant, reason. What cannot be computed is empty.

    Raises:
        HyperSharpError: the place cannot be written to.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    rows = {(row.protocol, row.key): row for row in index_rows(metrics)}
    for row in rows.values():
        writer.writerow(
            [
                *(row.protocol, row.key, "", "", _plain(row.fused), _plain(row.control)),
                *(row.better, row.variant, row.reason),
            ]
        )
    per_band = metrics.get("per_band") or {}
    protocol = per_band_protocol(metrics)
    control = per_band.get("interpolated") or {}
    for key in (k for k in INDICES if per_band.get(k)):
        row = rows.get((protocol, key))
        values, beside = per_band[key], control.get(key) or []
        bands, wavelengths = per_band.get("band") or [], per_band.get("wavelength_nm") or []
        for i, value in enumerate(values):
            writer.writerow(
                [
                    *(protocol, key, bands[i] if i < len(bands) else i + 1),
                    _plain(number(wavelengths[i])) if i < len(wavelengths) else "",
                    *(_plain(number(value)), _plain(number(beside[i])) if i < len(beside) else ""),
                    *((row.better, row.variant) if row else ("", "")),
                    "",
                ]
            )
    write_text(text.getvalue(), path)


def _plain(value: float | None) -> str:
    return "" if value is None else repr(value)
