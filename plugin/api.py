# SPDX-License-Identifier: GPL-2.0-or-later
"""Fusion from Python inside QGIS: `fuse` starts a task and returns at once, `fuse_blocking` waits.

from hypersharp.plugin.api import fuse
task = fuse(hs_layer, pan_layer, method="gsa", on_finished=lambda layer, metrics: print(layer.name()))
"""

from __future__ import annotations

import os
from dataclasses import fields
from typing import Any, Callable, Optional, Union

from qgis.core import (
    Qgis,
    QgsApplication,
    QgsCoordinateReferenceSystem,
    QgsProcessingUtils,
    QgsRectangle,
    QgsReferencedRectangle,
)

from ..backend import registry
from ..backend.errors import ErrorCode, HyperSharpError
from ..backend.job import DEFAULT_METHOD, FuseJob
from ..backend.weights import absolute_weights
from . import layers, log, pair, settings, worker_process
from .compat import WKT_PREFERRED
from .rasters import LayerOrPath, read_facts, source_path
from .task import FusionTask, OnError, OnFinished

PathLike = Union[str, "os.PathLike[str]"]
_OWN = {"hs", "guide", "output", "method"}


def make_job(
    hs: LayerOrPath,
    guide: LayerOrPath,
    output: Optional[PathLike] = None,
    method: str = DEFAULT_METHOD,
    **options: Any,
) -> FuseJob:
    """Return the job for a fusion.

    Args:
        hs: the hyperspectral raster: a layer, or a path.
        guide: the finer panchromatic or multispectral raster: a layer, or a path.
        output: the GeoTIFF to write; None for a temporary one.
        method: method id, as in `registry.METHODS`.
        options: any other field of `backend.job.FuseJob`. `extent` may also be a `QgsReferencedRectangle` or a
            `QgsRectangle` (in the guide's CRS); `memory_gb` and `device` default to the settings.

    Raises:
        HyperSharpError: an unknown method or option, or an input without a file behind it.
    """
    registry.method_info(method)
    known = {f.name for f in fields(FuseJob)} - _OWN
    unknown = sorted(set(options) - known)
    if unknown:
        raise HyperSharpError(
            f"unknown option {', '.join(unknown)}",
            f"the options are {', '.join(sorted(known))}",
            ErrorCode.USAGE,
        )
    extent = options.get("extent")
    if isinstance(extent, QgsReferencedRectangle):
        options["extent_crs"] = crs_text(extent.crs())
    if isinstance(extent, QgsRectangle):
        options["extent"] = (extent.xMinimum(), extent.yMinimum(), extent.xMaximum(), extent.yMaximum())
    for name in ("report", "metrics", "maps"):
        if options.get(name):
            options[name] = os.path.abspath(os.fspath(options[name]))
    if options.get("weights"):
        options["weights"] = absolute_weights(os.fspath(options["weights"]))
    if output is None:
        output = QgsProcessingUtils.generateTempFilename("fused.tif")
    return FuseJob(
        hs=source_path(hs),
        guide=source_path(guide),
        output=os.path.abspath(os.fspath(output)),
        method=method,
        **{"memory_gb": settings.memory_gb(), "device": settings.device(), **options},
    )


def crs_text(crs: QgsCoordinateReferenceSystem) -> Optional[str]:
    """Return a CRS as the backend reads it: its authority's code, else WKT; None when it is not known."""
    if not crs.isValid():
        return None
    return crs.authid() or crs.toWkt(WKT_PREFERRED)


def check_pair(hs: LayerOrPath, guide: LayerOrPath) -> None:
    """Refuse a pair that cannot be fused, from the headers alone.

    Raises:
        HyperSharpError: with the first problem.
    """
    problems = pair.read_pair(read_facts(hs), read_facts(guide)).problems
    if problems:
        message, _, hint = problems[0].rstrip(".").partition(". ")
        raise HyperSharpError(message, hint)


def fuse(
    hs: LayerOrPath,
    guide: LayerOrPath,
    method: str = DEFAULT_METHOD,
    output: Optional[PathLike] = None,
    on_finished: Optional[OnFinished] = None,
    *,
    on_error: Optional[OnError] = None,
    add_to_project: bool = True,
    match_source: bool = False,
    prepare: Optional[Callable[[FusionTask], None]] = None,
    **options: Any,
) -> FusionTask:
    """Start a fusion in QGIS's task manager and return its task at once. Call it on the main thread.

    Args:
        hs: the hyperspectral raster: a layer, or a path.
        guide: the finer panchromatic or multispectral raster: a layer, or a path.
        method: method id, as in `registry.METHODS`.
        output: the GeoTIFF to write; None for a temporary one.
        on_finished: called on the main thread with the new layer and the metrics (`metrics.json`'s content).
        on_error: called on the main thread with a `HyperSharpError`; without it, the log and the message bar tell.
        add_to_project: put the styled layer on the map.
        match_source: show an unstyled source layer in the result's colours too.
        prepare: called with the task before it starts, to connect to its signals.
        options: any other field of `backend.job.FuseJob`, e.g. `report="report.html"`, `seed=1`.

    Raises:
        HyperSharpError: the pair, the method or an option is refused; nothing has been started.
    """
    job = make_job(hs, guide, output, method, **options)
    check_pair(hs, guide)
    task = FusionTask(
        layers.capture(job, hs, guide), add_to_project, match_source, on_finished, on_error or _show_error
    )
    if prepare is not None:
        prepare(task)
    QgsApplication.taskManager().addTask(task)
    return task


def fuse_blocking(
    hs: LayerOrPath,
    guide: LayerOrPath,
    method: str = DEFAULT_METHOD,
    output: Optional[PathLike] = None,
    **options: Any,
) -> tuple[str, dict[str, Any]]:
    """Fuse and wait; return the path of the result and the metrics. For scripts: it blocks the interface.

    The arguments are those of `fuse`.

    Raises:
        HyperSharpError: the fusion failed; nothing was written.
    """
    job = make_job(hs, guide, output, method, **options)
    check_pair(hs, guide)
    result = worker_process.run_job(job)
    return result.outputs.get("OUTPUT", job.output), result.metrics


def _show_error(error: HyperSharpError) -> None:
    """Show an error that nobody asked for in QGIS's message bar, where there is one."""
    from qgis.utils import iface  # filled in when the desktop has started

    if iface is not None and error.code is not ErrorCode.CANCELLED:
        iface.messageBar().pushMessage("HyperSharp", log.sentence(error), Qgis.MessageLevel.Critical)
