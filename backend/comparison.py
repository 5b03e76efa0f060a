# SPDX-License-Identifier: GPL-2.0-or-later
"""Several methods on one pair, or on simulated pairs: each is fused and scored, then all are ranked.

A folder of the run holds one folder a method (`fused.tif`, `metrics.json`), `compare.json`, `compare.csv` and
`compare.html`. A method that was finished there before with the same inputs, settings and version is not run
again, and one that fails does not lose the others: its error stands in the table.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from . import comparison_table, ranking
from ._version import __version__
from .assessment import Controls, assess_pair
from .control import Control, PartControl
from .device import choose_device, is_out_of_memory
from .errors import Cancelled, ErrorCode, HyperSharpError
from .io.raster import source_path
from .io.writer import make_folder
from .job import DTYPES, CompareJob, FuseJob, SimulateJob
from .pair import Pair
from .pipeline import method_parameters, run_fuse, versions
from .protocol import Result
from .registry import METHODS, load_method, method_info, why_unavailable
from .simulation import run_simulate
from .weights import shipped_names

ALL = "all"
FUSED, METRICS = "fused.tif", "metrics.json"
TABLE_JSON, TABLE_CSV, REPORT = "compare.json", "compare.csv", "compare.html"
CUBE_SUFFIXES = (".tif", ".tiff", ".img", ".dat")
FUSING_SHARE = 0.4
"""Share of a method's time that fusing takes; the rest is scoring."""
SAMPLE_S = 0.05


class PeakMemory:
    """Watches this process's resident memory while a block runs; `peak_bytes` is the highest seen."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="hypersharp-memory", daemon=True)

    def _watch(self) -> None:
        process = psutil.Process()
        while True:
            self.peak_bytes = max(self.peak_bytes, process.memory_info().rss)
            if self._stop.wait(SAMPLE_S):
                return

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()


def compare(
    hs: str | os.PathLike[str],
    guide: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    methods: Iterable[str] = (ALL,),
    *,
    control: Control | None = None,
    **options: Any,
) -> Result:
    """Run several methods on a pair and rank them.

    Args:
        hs, guide: paths of the pair.
        folder: where the results go; made when absent.
        methods: method ids, or "all".
        control: progress, cancel and warnings; None for none.
        options: any other field of `job.CompareJob`.

    Returns:
        Paths by REPORT, TABLE (CSV), METRICS (JSON) and BEST (the recommended raster), the table, the warnings.

    Raises:
        HyperSharpError: bad input, or not a single method succeeded.
        Cancelled: `control` stopped the job; the methods that were finished stay and need not run again.
    """
    job = CompareJob(os.fspath(hs), os.fspath(guide), os.fspath(folder), list(methods), **options)
    return run_compare(job, control or Control())


def run_compare(job: CompareJob, control: Control) -> Result:
    """Run a comparison; see `compare`. With `job.cubes`, every cube of that folder becomes a simulated pair."""
    methods = check_job(job)
    folder = make_folder(job.folder)
    try:
        if job.cubes is not None:
            from .comparison_cubes import compare_cubes

            return compare_cubes(job, methods, folder, control)
        return finish(compare_pair(job, methods, folder, control), folder)
    except Cancelled as cancelled:
        cancelled.hint = "what was finished stays: run it again on the same folder to go on"
        raise


def finish(table: dict[str, Any], folder: Path) -> Result:
    """Return the result of a comparison whose files are written."""
    outputs = {"TABLE": str(folder / TABLE_CSV), "METRICS": str(folder / TABLE_JSON)}
    if (folder / REPORT).is_file() and table["report"]:
        outputs["REPORT"] = str(folder / REPORT)
    best = comparison_table.row_of(table, table["recommendation"]["method"])
    if best is not None and best.get("fused"):
        outputs["BEST"] = str(folder / best["fused"])
    return Result(outputs, table, table["warnings"])


def check_job(job: CompareJob) -> list[str]:
    """Check what can be checked without opening a file; return the methods to run, in the registry's order.

    Raises:
        HyperSharpError: an unknown method, no method, no inputs, or a number out of range.
    """
    wanted = [m.strip() for m in job.methods if m.strip()]
    for method in (*wanted, *job.parameters, *job.weights):
        if method != ALL:
            method_info(method)
    if not wanted:
        raise HyperSharpError("no method to compare", "name some, or all", ErrorCode.USAGE)
    if bool(job.cubes) == bool(job.hs or job.guide) or bool(job.hs) != bool(job.guide):
        raise HyperSharpError(
            "a comparison needs an HS raster and a guide, or else a folder of cubes",
            "name either the two rasters or the folder",
            ErrorCode.USAGE,
        )
    if job.cubes and job.extent is not None:
        raise HyperSharpError(
            "an extent belongs to a pair, not to a folder of cubes", "leave it out", ErrorCode.USAGE
        )
    if not job.folder:
        raise HyperSharpError("no folder for the results", "name one", ErrorCode.USAGE)
    if job.dtype not in DTYPES or not job.memory_gb > 0:
        raise HyperSharpError(
            f"dtype {job.dtype!r} or memory bound {job.memory_gb:g} GB is not possible",
            f"use {' or '.join(DTYPES)}, and a positive number",
            ErrorCode.USAGE,
        )
    if ALL not in wanted:
        return [m for m in METHODS if m in wanted]
    return [m for m, info in METHODS.items() if m in wanted or _runs_here(m, info.needs_weights, job)]


def _runs_here(method: str, needs_weights: bool, job: CompareJob) -> bool:
    """Return whether a method belongs to "all": learned ones only where their weights are there."""
    if why_unavailable(METHODS[method]) is not None:
        return False
    if not needs_weights or method in job.weights:
        return True
    return default_weights(method)


def default_weights(method: str) -> bool:
    """Return whether a learned method's own weights ship with this copy."""
    return getattr(load_method(method), "own_weights", method) in shipped_names()


def compare_pair(
    job: CompareJob,
    methods: list[str],
    folder: Path,
    control: Control,
    *,
    reference: str | None = None,
    span: tuple[float, float] = (0.0, 1.0),
    title: str = "",
) -> dict[str, Any]:
    """Run the methods on one pair and write its table and report.

    Args:
        job: the settings; `job.hs` and `job.guide` are the pair.
        methods: ids.
        folder: where the results go.
        control: of the whole job.
        reference: path of the true fine image, where there is one; the ranking then rests on it.
        span: share of the whole job that this pair takes.
        title: name of the pair in stages of progress.

    Returns:
        The content of compare.json.

    Raises:
        HyperSharpError: the pair itself cannot be opened, or not one method succeeded.
    """
    started = time.monotonic()
    hs, guide = source_path(job.hs), source_path(job.guide)
    device, _ = choose_device(job.device)
    first, last = span[0], span[1] - 0.06 * (span[1] - span[0])
    step = (last - first) / max(1, len(methods))
    own = PartControl(control, title, first, first)
    rows: dict[str, dict[str, Any]] = {}
    controls: Controls = {}
    with Pair.of_job(job, device, own) as pair:
        scene = pair.scene
        reduced_pixels = scene.hs.rows // scene.ratio, scene.hs.cols // scene.ratio
        methods = [m for m in methods if _fits(m, pair, job, own)]
        for index, method in enumerate(methods):
            control.check()
            name = f"{title} {method}".strip()
            part = PartControl(control, name, first + index * step, first + (index + 1) * step)
            rows[method] = _finished_or_run(job, method, folder, pair, reference, controls, part)
    if not _scored(rows):
        first_error = next(row["error"] for row in rows.values())
        raise HyperSharpError(
            f"no method succeeded: {first_error['message']}",
            first_error["hint"],
            ErrorCode(first_error["code"]),
        )
    table = comparison_table.build(rows, ranking.rank(_scored(rows)), reduced_pixels)
    table["pair"] = {"hs": str(hs), "guide": str(guide), "reference": reference, "extent": job.extent}
    table["settings"] = {
        "device": device.type,
        "dtype": job.dtype,
        "memory_gb": job.memory_gb,
        "seed": job.seed,
        "mtf": {"hs": job.mtf_hs, "guide": job.mtf_guide},
        "coregister": job.coregister,
    }
    table["versions"] = versions()
    table["warnings"] = list(dict.fromkeys([*own.warnings, *_warnings(rows)]))
    table["seconds"] = round(time.monotonic() - started, 3)
    _write(table, job, folder, hs, guide, reference, PartControl(control, title, last, span[1]))
    return table


def _fits(method: str, pair: Pair, job: CompareJob, control: Control) -> bool:
    """Return whether a method takes this kind of guide; of "all" only those that do are run."""
    kind = "pan" if pair.scene.guide.bands == 1 else "msi"
    if ALL not in job.methods or kind in method_info(method).guide_kinds:
        return True
    control.info(f"{method} takes no {kind.upper()} guide: left out")
    return False


def _scored(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the metrics of the methods that succeeded."""
    return {method: row["metrics"] for method, row in rows.items() if row.get("metrics") is not None}


def _warnings(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Return what the methods warned of, and which of them failed."""
    said = [text for row in rows.values() for text in (row["metrics"] or {}).get("warnings", [])]
    return said + [
        f"{method} failed: {row['error']['message']}" for method, row in rows.items() if row["error"]
    ]


def _write(
    table: dict[str, Any],
    job: CompareJob,
    folder: Path,
    hs: str,
    guide: str,
    reference: str | None,
    control: Control,
) -> None:
    """Write table and report; a page that cannot be drawn costs the page, not the numbers."""
    from .report.comparison import build_comparison_report
    from .report.files import write_metrics, write_text

    table["report"] = job.report
    write_metrics(table, folder / TABLE_JSON)
    write_text(comparison_table.csv_text(table), folder / TABLE_CSV)
    if job.report:
        control.stage("report", 1, 1.0)
        build_comparison_report(
            table, folder=folder, hs=hs, guide=guide, reference=reference, output=folder / REPORT
        )
        control.step()


def _finished_or_run(
    job: CompareJob,
    method: str,
    folder: Path,
    pair: Pair,
    reference: str | None,
    controls: Controls,
    control: PartControl,
) -> dict[str, Any]:
    """Return {"metrics": ..., "error": None} or {"metrics": None, "error": {...}} for one method."""
    own = folder / method
    key = job_key(job, method, reference)
    finished = load_finished(own, key)
    if finished is not None:
        control.info(f"{method}: finished before, not run again")
        return {"metrics": finished, "error": None, "reused": True, "fused": f"{method}/{FUSED}"}
    try:
        own.mkdir(exist_ok=True)
        (own / METRICS).unlink(missing_ok=True)  # older results must not pass for this run's if it fails
        metrics = _run(job, method, own, pair, reference, controls, control) | {"compare_key": key}
        from .report.files import write_metrics

        write_metrics(metrics, own / METRICS)
        return {"metrics": metrics, "error": None, "reused": False, "fused": f"{method}/{FUSED}"}
    except Cancelled:
        raise
    except Exception as error:
        told = _told(error)
        control.info(
            "".join(traceback.format_exception(error)) if told.code is ErrorCode.INTERNAL else told.message
        )
        control.warn(f"{method} failed: {told.message}")
        entry = {"message": told.message, "hint": told.hint, "code": told.code.value}
        return {"metrics": None, "error": entry, "reused": False, "fused": None}


def _run(
    job: CompareJob,
    method: str,
    own: Path,
    pair: Pair,
    reference: str | None,
    controls: Controls,
    control: PartControl,
) -> dict[str, Any]:
    """Fuse and score one method; return the content of its metrics.json."""
    fuse_job = FuseJob(
        job.hs,
        job.guide,
        str(own / FUSED),
        method=method,
        weights=job.weights.get(method),
        extent=job.extent,
        extent_crs=job.extent_crs,
        device=job.device,
        dtype=job.dtype,
        memory_gb=job.memory_gb,
        seed=job.seed,
        mtf_hs=job.mtf_hs,
        mtf_guide=job.mtf_guide,
        coregister=job.coregister,
        parameters=dict(job.parameters.get(method, {})),
        assess=False,
    )
    fusing, scoring = control.split(FUSING_SHARE)
    with PeakMemory() as memory:
        result = run_fuse(fuse_job, fusing)
        metrics = dict(result.metrics)
        begun = time.monotonic()
        scoring.plan({"assessing": 1})
        metrics |= assess_pair(
            pair,
            str(own / FUSED),
            scoring,
            method=method,
            parameters=method_parameters(fuse_job),
            reference=reference,
            controls=controls,
        )
    metrics["assess_seconds"] = round(time.monotonic() - begun, 3)
    metrics["peak_memory_bytes"] = memory.peak_bytes
    metrics["warnings"] = list(dict.fromkeys([*fusing.warnings, *scoring.warnings]))
    return metrics


def _told(error: Exception) -> HyperSharpError:
    """Return any exception as an error that can stand in the table."""
    if isinstance(error, HyperSharpError):
        return error
    if is_out_of_memory(error):
        return HyperSharpError(
            "memory ran out", "lower --memory or compare on a smaller extent", ErrorCode.OUT_OF_MEMORY
        )
    return HyperSharpError(
        f"internal error: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}",
        "please report it with the log's lines",
        ErrorCode.INTERNAL,
    )


def job_key(job: CompareJob, method: str, reference: str | None = None) -> str:
    """Return a fingerprint of all that a method's result depends on: inputs, settings, version."""
    parts = {
        "version": __version__,
        "method": method,
        "inputs": [_stamp(path) for path in (job.hs, job.guide, reference) if path],
        "extent": [job.extent, job.extent_crs],
        "parameters": job.parameters.get(method, {}),
        "weights": job.weights.get(method),
        "dtype": job.dtype,
        "seed": job.seed,
        "mtf": [job.mtf_hs, job.mtf_guide],
        "coregister": job.coregister,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _stamp(path: str) -> list[Any]:
    """Return a raster's absolute path, size and time of change; the path alone for what is no file."""
    source = source_path(path)
    try:
        found = os.stat(source)
    except OSError:
        return [str(source)]
    return [os.path.abspath(source), found.st_size, found.st_mtime_ns]


def load_finished(own: Path, key: str) -> dict[str, Any] | None:
    """Return the metrics of a method that was finished with the same key, or None."""
    if not (own / FUSED).is_file():
        return None
    try:
        metrics = json.loads((own / METRICS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return metrics if isinstance(metrics, dict) and metrics.get("compare_key") == key else None


def simulated_pair(job: CompareJob, cube: Path, folder: Path, control: Control) -> dict[str, str]:
    """Return the paths of a cube's simulated pair by HS, GUIDE and REFERENCE, made unless it is there already."""
    own = folder / "pair"
    key = hashlib.sha256(
        json.dumps(
            [
                __version__,
                _stamp(str(cube)),
                job.ratio,
                job.simulated_guide,
                job.snr_db,
                job.mtf_hs,
                job.seed,
            ],
            default=str,
        ).encode()
    ).hexdigest()[:32]
    paths = {"HS": own / "hs.tif", "GUIDE": own / "guide.tif", "REFERENCE": own / "reference.tif"}
    marker = own / "pair.json"
    try:
        known = json.loads(marker.read_text(encoding="utf-8")).get("key")
    except (OSError, ValueError, AttributeError):
        known = None
    if known != key or not all(p.is_file() for p in paths.values()):
        simulate = SimulateJob(
            str(cube), str(own), job.ratio, job.simulated_guide, job.snr_db, job.mtf_hs, job.seed
        )
        run_simulate(simulate, control)
        marker.write_text(json.dumps({"key": key}), encoding="utf-8")
    return {name: str(path) for name, path in paths.items()}
