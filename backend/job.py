# SPDX-License-Identifier: GPL-2.0-or-later
"""Jobs: what a run is asked to do, as plain data that crosses the process boundary as JSON.

Contract module: standard library only, Python 3.9 syntax. QGIS and the backend both import it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Optional, Union

from .errors import ErrorCode, HyperSharpError

DEFAULT_METHOD = "lmmse"
DEFAULT_MTF_HS = 0.3
"""Gain of the HS sensor's MTF at its Nyquist frequency (usual value for HS sensors, Loncan et al. 2015)."""
DEFAULT_MTF_GUIDE = 0.2
"""Gain of the guide sensor's MTF at its Nyquist frequency (usual value for PAN sensors)."""
DEFAULT_MEMORY_GB = 2.0

DTYPES = ("same", "float32")
TRAINABLE = ("s3rnet", "csakd", "hyfusion", "mpsrnet-diff")
"""What can be trained (`training.presets` has how)."""
SUBSPACE, FULL_BAND = FORMS = ("subspace", "full-band")
"""Forms of networks: one that corrects `lmmse` for any sensor, and the papers' own, tied to its sensors."""
DEFAULT_TRAIN_STEPS = 2000
DEFAULT_TRAIN_SEED = 1029
TRAIN_STATE = "state.safetensors"
"""File in the weights folder with all that an interrupted training needs to go on."""
MAP_NAMES = ("sam", "rmse", "d_rho", "sam_reference", "rmse_reference")
"""Error maps in a job's `maps` folder: NAME.tif, and NAME.qml, the style that QGIS shows it with."""
COMPRESSIONS = ("deflate", "zstd", "lzw", "none")


@dataclass
class FuseJob:
    """Fuse `hs` with `guide` into `output`.

    Attributes:
        hs: path of the hyperspectral raster.
        guide: path of the panchromatic (one band) or multispectral raster.
        output: path of the GeoTIFF to write.
        method: method id (see `registry.METHODS`).
        weights: name or folder of a learned method's weights; None for the method's own default.
        adapt_steps: training steps on the pair itself before fusing (learned methods).
        extent: (xmin, ymin, xmax, ymax) in `extent_crs`, snapped to the guide's grid; None for all.
        extent_crs: any CRS text that PROJ reads; None means the guide's CRS.
        device: "auto", "cpu", "cuda" or "cuda:N".
        dtype: "same" as the HS input (rounded, clipped to its range) or "float32".
        memory_gb: upper bound of working memory, in GiB.
        tile: side of an output tile in pixels; None chooses one from `memory_gb`.
        seed: seed of every random number of the run.
        mtf_hs: gain of the HS sensor's MTF at Nyquist, 0 < gain < 1.
        mtf_guide: the same of the guide's sensor.
        coregister: find out whether the HS image lies off the guide's ground by more than its own pixel, and move it
            there; else both georeferences are believed.
        compress: compression of the output, one of `COMPRESSIONS`.
        overviews: build overviews into the output.
        parameters: the method's own options.
        assess: compute quality indices.
        report: path of the HTML report; None for none.
        metrics: path of the JSON with the indices; the same as a table goes beside it, as CSV. None for none.
        maps: folder for error maps (GeoTIFFs of SAM, RMSE and D_rho), made when it is missing; None for none.
    """

    kind: ClassVar[str] = "fuse"

    hs: str
    guide: str
    output: str
    method: str = DEFAULT_METHOD
    weights: Optional[str] = None
    adapt_steps: int = 0
    extent: Optional[tuple[float, float, float, float]] = None
    extent_crs: Optional[str] = None
    device: str = "auto"
    dtype: str = "same"
    memory_gb: float = DEFAULT_MEMORY_GB
    tile: Optional[int] = None
    seed: int = 0
    mtf_hs: float = DEFAULT_MTF_HS
    mtf_guide: float = DEFAULT_MTF_GUIDE
    coregister: bool = True
    compress: str = "deflate"
    overviews: bool = False
    parameters: dict[str, Any] = field(default_factory=dict)
    assess: bool = True
    report: Optional[str] = None
    metrics: Optional[str] = None
    maps: Optional[str] = None


@dataclass
class AssessJob:
    """Score an already fused raster against its sources, and a true reference where there is one.

    Attributes:
        fused: path of the raster to score (made by HyperSharp or by any other program).
        hs: path of the hyperspectral raster that it was made from.
        guide: path of the panchromatic or multispectral raster that it was made from.
        reference: path of the true fine hyperspectral raster, if known.
        method: method id when known: the reduced-resolution protocol is then run as well.
        device, memory_gb, seed, mtf_hs, mtf_guide, parameters, report, metrics, maps: as in `FuseJob`.
        coregister: as in `FuseJob`, but that where HyperSharp noted in the raster where it took the HS image to lie,
            this is not found out anew.
    """

    kind: ClassVar[str] = "assess"

    fused: str
    hs: str
    guide: str
    reference: Optional[str] = None
    method: Optional[str] = None
    device: str = "auto"
    memory_gb: float = DEFAULT_MEMORY_GB
    seed: int = 0
    mtf_hs: float = DEFAULT_MTF_HS
    mtf_guide: float = DEFAULT_MTF_GUIDE
    coregister: bool = True
    parameters: dict[str, Any] = field(default_factory=dict)
    report: Optional[str] = None
    metrics: Optional[str] = None
    maps: Optional[str] = None


@dataclass
class SimulateJob:
    """Make a pair with a known truth from a reference cube by Wald's protocol.

    Attributes:
        reference: path of the hyperspectral cube that becomes the truth.
        folder: where hs.tif, guide.tif and reference.tif go.
        ratio: integer ratio of the simulated pixel sizes.
        guide: "pan", a number of Gaussian MSI bands ("4"), or the path of a response-function CSV.
        snr_db: signal-to-noise ratio of the simulated HS in dB; None for no noise.
        mtf_hs, seed: as in `FuseJob`.
    """

    kind: ClassVar[str] = "simulate"

    reference: str
    folder: str
    ratio: int = 4
    guide: str = "pan"
    snr_db: Optional[float] = None
    mtf_hs: float = DEFAULT_MTF_HS
    seed: int = 0


@dataclass
class CompareJob:
    """Run several methods on one pair, or on pairs simulated from a folder of cubes, and rank them.

    Attributes:
        hs, guide: paths of the pair; empty when `cubes` is given.
        folder: where everything goes: a folder for each method, the table, the report. What a run before this one
            has finished there with the same inputs and settings is not run again.
        methods: method ids, or "all" for every method that can run here.
        cubes: folder of hyperspectral cubes: each becomes the truth of a simulated pair.
        ratio, simulated_guide, snr_db: of the simulated pairs, as in `SimulateJob`.
        extent, extent_crs, device, dtype, memory_gb, seed, mtf_hs, mtf_guide, coregister: as in `FuseJob`.
        parameters: each method's own options, by method id.
        weights: name or folder of a learned method's weights, by method id.
        report: write the HTML report.
    """

    kind: ClassVar[str] = "compare"

    hs: str = ""
    guide: str = ""
    folder: str = ""
    methods: list[str] = field(default_factory=lambda: ["all"])
    cubes: Optional[str] = None
    ratio: int = 4
    simulated_guide: str = "pan"
    snr_db: Optional[float] = None
    extent: Optional[tuple[float, float, float, float]] = None
    extent_crs: Optional[str] = None
    device: str = "auto"
    dtype: str = "same"
    memory_gb: float = DEFAULT_MEMORY_GB
    seed: int = 0
    mtf_hs: float = DEFAULT_MTF_HS
    mtf_guide: float = DEFAULT_MTF_GUIDE
    coregister: bool = True
    parameters: dict[str, dict[str, Any]] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    report: bool = True


@dataclass
class TrainJob:
    """Train a learned method on a folder of cubes, or on one pair, into a weights folder.

    Attributes:
        output: the weights folder.
        method: one of `TRAINABLE` ("csakd" trains a student beside its teacher).
        hs, guide: paths of a pair (scene-adaptive training by Wald's protocol); or
        cubes: path of a folder with hyperspectral cubes.
        photographs: path of a folder with aerial photographs that lend their structure to half of the scenes drawn
            from cubes; None for none.
        steps: training steps.
        batch: scenes whose gradients a step adds up.
        resume: continue an interrupted run whose state lies in `output`.
        weights: name or folder of weights to start from; None for new ones.
        start_from: name or folder of weights of any network, trained on the same cubes with the same seed, of which
            only the start (docs/models.md) is taken; None to fit it.
        leave_out: beginnings of the names of cubes that are not used at all.
        validate_on: beginnings of the names of cubes for early stopping; empty to draw some.
        validate_every: steps between validations.
        patience: validations without improvement after which the run ends; 0 for never.
        device, seed, mtf_hs, mtf_guide, coregister: as in `FuseJob`.
        form: one of `FORMS`; the full-band one is trained on a pair.
    """

    kind: ClassVar[str] = "train"

    output: str
    method: str
    hs: Optional[str] = None
    guide: Optional[str] = None
    cubes: Optional[str] = None
    photographs: Optional[str] = None
    steps: int = DEFAULT_TRAIN_STEPS
    batch: int = 1
    resume: bool = False
    weights: Optional[str] = None
    leave_out: list[str] = field(default_factory=list)
    validate_on: list[str] = field(default_factory=list)
    validate_every: int = 100
    patience: int = 8
    device: str = "auto"
    seed: int = DEFAULT_TRAIN_SEED
    mtf_hs: float = DEFAULT_MTF_HS
    mtf_guide: float = DEFAULT_MTF_GUIDE
    coregister: bool = True
    form: str = SUBSPACE
    start_from: Optional[str] = None


@dataclass
class ImportJob:
    """Make rasters of a sensor's product (PRISMA of level 2C or 2D, EMIT's reflectance).

    Attributes:
        product: path of the product's file (.he5, .nc).
        hs: path of the GeoTIFF to write with its hyperspectral image.
        pan: path of the GeoTIFF to write with its panchromatic image, if it has one; None to leave that out.

    Folders of the two are made when they are missing.
    """

    kind: ClassVar[str] = "import"

    product: str
    hs: str
    pan: Optional[str] = None


Job = Union[FuseJob, AssessJob, SimulateJob, CompareJob, TrainJob, ImportJob]
JOB_KINDS: dict[str, type[Any]] = {
    cls.kind: cls for cls in (FuseJob, AssessJob, SimulateJob, CompareJob, TrainJob, ImportJob)
}


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """Return NAME=VALUE pairs as a dictionary; values are read as JSON where they are JSON.

    Raises:
        HyperSharpError: a pair without "=".
    """
    parsed: dict[str, Any] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals:
            raise HyperSharpError(
                f"{option!r} is not NAME=VALUE", "write --option name=value", ErrorCode.USAGE
            )
        try:
            parsed[name] = json.loads(value)
        except ValueError:
            parsed[name] = value
    return parsed


def job_to_dict(job: Job) -> dict[str, Any]:
    """Return the job as JSON-ready values, with its kind."""
    return {"kind": job.kind, **asdict(job)}


def job_from_dict(values: dict[str, Any]) -> Job:
    """Return the job that `job_to_dict` wrote.

    Raises:
        HyperSharpError: unknown kind, unknown or missing key.
    """
    values = dict(values)
    kind = values.pop("kind", None)
    cls = JOB_KINDS.get(str(kind))
    if cls is None:
        raise HyperSharpError(
            f"unknown job kind {kind!r}", f"use one of {', '.join(JOB_KINDS)}", ErrorCode.USAGE
        )
    unknown = sorted(set(values) - {f.name for f in fields(cls)})
    if unknown:
        raise HyperSharpError(
            f"unknown option {', '.join(unknown)} for {kind}",
            "the plugin and the backend may be of different versions",
            ErrorCode.USAGE,
        )
    if values.get("extent") is not None:
        values["extent"] = tuple(float(v) for v in values["extent"])
    try:
        return cls(**values)
    except TypeError as error:
        raise HyperSharpError(
            f"incomplete {kind} job: {error}", "name every input", ErrorCode.USAGE
        ) from error


def save_job(job: Job, path: Union[str, Path]) -> None:
    """Write the job as JSON."""
    Path(path).write_text(json.dumps(job_to_dict(job), indent=1), encoding="utf-8")


def load_job(path: Union[str, Path]) -> Job:
    """Read a job that `save_job` wrote.

    Raises:
        HyperSharpError: the file is missing or is no job.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HyperSharpError(
            f"cannot read the job file: {error}", "write it again", ErrorCode.USAGE
        ) from error
    return job_from_dict(values)
