# SPDX-License-Identifier: GPL-2.0-or-later
"""`hypersharp:assess`: how good a fused raster is, whoever made it."""

from __future__ import annotations

from typing import Any, Optional

from qgis.core import (
    QgsProcessingContext,
    QgsProcessingOutputNumber,
    QgsProcessingParameterRasterLayer,
)

from ...backend import protocol
from ...backend.errors import HyperSharpError
from ...backend.job import AssessJob
from ...backend.registry import method_ids
from .. import log, pair
from ..log import tr
from ..rasters import read_facts, source_path
from .base import MAPS_HELP, PAIR_HELP, HyperSharpAlgorithm, enum_parameter, index_values

UNKNOWN_METHOD = "unknown"


class AssessAlgorithm(HyperSharpAlgorithm):
    """Score a fused raster against its sources, and against a true reference where there is one."""

    NAME = "assess"
    TITLE = "Assess a fused raster"
    SUMMARY = (
        "Scores a fused raster, made by HyperSharp or by any other program, against the two rasters that it was "
        "made from, and against a true fine reference where there is one."
    )
    HELP = {
        "FUSED": "The fused raster to score.",
        "SPECTRAL": "The coarse hyperspectral raster that it was made from.",
        "GUIDE": "The finer panchromatic or multispectral raster that it was made from.",
        "REFERENCE": "The true fine hyperspectral raster, where one exists (simulated pairs).",
        "METHOD": (
            "HyperSharp's method that made the raster, when known: the reduced-resolution protocol, which needs "
            "to fuse again, is then run as well."
        ),
        "DEVICE": "Where to compute: auto takes a CUDA device when there is one that works, else the CPU.",
        "MEMORY": "Upper bound of the working memory in GiB, whatever the size of the rasters.",
        "SEED": "Seed of every random number of the run.",
        **PAIR_HELP,
        "REPORT": "A self-contained HTML page: indices, quick-looks, spectra, parameters, warnings.",
        "METRICS": (
            "The indices and everything else that is known of the run, as JSON; the indices as a table, band by "
            "band too, go into a CSV file of the same name beside it."
        ),
        "MAPS": MAPS_HELP,
    }

    def initAlgorithm(self, _configuration: Optional[dict[str, Any]] = None) -> None:
        """Declare parameters and outputs."""
        self.add(QgsProcessingParameterRasterLayer("FUSED", tr("Fused layer")))
        self.add(QgsProcessingParameterRasterLayer("SPECTRAL", tr("Hyperspectral layer")))
        self.add(QgsProcessingParameterRasterLayer("GUIDE", tr("Guide layer (PAN or multispectral)")))
        self.add(QgsProcessingParameterRasterLayer("REFERENCE", tr("Reference layer"), optional=True))
        self.add(enum_parameter("METHOD", tr("Method"), [UNKNOWN_METHOD, *method_ids()], UNKNOWN_METHOD))
        self.add_device()
        self.add_run_options()
        self.add_findings()
        for name, title in (
            ("HQNR", tr("HQNR at full resolution")),
            ("SAM", tr("Spectral angle against the reference, else at reduced resolution [degrees]")),
            ("ERGAS", tr("ERGAS against the reference, else at reduced resolution")),
            ("PSNR", tr("PSNR against the reference, else at reduced resolution [dB]")),
            ("SECONDS", tr("Duration [s]")),
        ):
            self.addOutput(QgsProcessingOutputNumber(name, title))

    def checkParameterValues(self, parameters: dict[str, Any], context: QgsProcessingContext) -> Any:
        """Refuse early and cheaply what cannot be scored."""
        valid, message = super().checkParameterValues(parameters, context)
        if not valid:
            return valid, message
        try:
            hs = read_facts(self.raster(parameters, "SPECTRAL", context))
            guide = read_facts(self.raster(parameters, "GUIDE", context))
            fused = read_facts(self.raster(parameters, "FUSED", context))
        except HyperSharpError as error:
            return False, log.sentence(error)
        facts = pair.read_pair(hs, guide)
        if facts.problems:
            return False, facts.problems[0]
        if fused.bands != hs.bands:
            return False, tr(
                "The fused layer has {fused} bands, the hyperspectral layer {hs}: they do not belong together."
            ).format(fused=fused.bands, hs=hs.bands)
        return True, ""

    def build_job(self, parameters: dict[str, Any], context: QgsProcessingContext) -> AssessJob:
        """Return the job."""
        reference = self.parameterAsRasterLayer(parameters, "REFERENCE", context)
        method = self.parameterAsEnumString(parameters, "METHOD", context)
        return AssessJob(
            fused=source_path(self.raster(parameters, "FUSED", context)),
            hs=source_path(self.raster(parameters, "SPECTRAL", context)),
            guide=source_path(self.raster(parameters, "GUIDE", context)),
            reference=source_path(reference) if reference is not None else None,
            method=None if method == UNKNOWN_METHOD else method,
            device=self.parameterAsEnumString(parameters, "DEVICE", context),
            memory_gb=self.parameterAsDouble(parameters, "MEMORY", context),
            seed=self.parameterAsInt(parameters, "SEED", context),
            mtf_hs=self.parameterAsDouble(parameters, "MTF_HS", context),
            mtf_guide=self.parameterAsDouble(parameters, "MTF_GUIDE", context),
            coregister=self.parameterAsBoolean(parameters, "COREGISTER", context),
            report=self.parameterAsFileOutput(parameters, "REPORT", context) or None,
            metrics=self.parameterAsFileOutput(parameters, "METRICS", context) or None,
            maps=self.maps_folder(parameters, context),
        )

    def results_of(
        self, result: protocol.Result, parameters: dict[str, Any], context: QgsProcessingContext
    ) -> dict[str, Any]:
        """Return the paths and the headline indices."""
        with_reference = index_values(result.metrics, "reference") or index_values(
            result.metrics, "reduced_resolution"
        )
        results: dict[str, Any] = {k: v for k, v in result.outputs.items() if k in ("REPORT", "METRICS")}
        results.update({"MAPS": self._job.maps} if self._job.maps else {})
        results["HQNR"] = index_values(result.metrics, "full_resolution").get("HQNR")
        results.update({name: with_reference.get(name) for name in ("SAM", "ERGAS", "PSNR")})
        results["SECONDS"] = result.metrics.get("seconds")
        return results
