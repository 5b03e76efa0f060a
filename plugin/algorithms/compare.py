# SPDX-License-Identifier: GPL-2.0-or-later
"""`hypersharp:compare`: several methods on one pair, scored alike and ranked."""

from __future__ import annotations

import os
from typing import Any, Optional

from qgis.core import (
    QgsProcessingContext,
    QgsProcessingOutputFile,
    QgsProcessingOutputHtml,
    QgsProcessingOutputString,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterEnum,
    QgsProcessingParameterExtent,
    QgsProcessingParameterFolderDestination,
    QgsProcessingParameterRasterLayer,
)

from ...backend import protocol
from ...backend.errors import HyperSharpError
from ...backend.job import DTYPES, CompareJob
from ...backend.registry import METHODS, method_ids
from .. import log, pair
from ..log import tr
from ..rasters import read_facts, source_path
from .base import PAIR_HELP, HyperSharpAlgorithm, enum_parameter


class CompareAlgorithm(HyperSharpAlgorithm):
    """Run several methods on a pair and rank them."""

    NAME = "compare"
    TITLE = "Compare fusion methods"
    SUMMARY = (
        "Fuses one pair with several methods, scores each in the same way beside plain interpolation, and ranks "
        "them in a table and a report. Run again on the same folder, it only runs what is missing."
    )
    CANCELLED = "Cancelled: what was finished stays in the folder. Run it again on the same folder to go on."
    HELP = {
        "SPECTRAL": "The coarse raster with many bands, at least 4.",
        "GUIDE": "The finer raster: panchromatic (one band) or multispectral.",
        "METHODS": "The methods to compare. None: all that take this guide and need no weights that are not here.",
        "EXTENT": "Only fuse this area, snapped to the guide's pixels. Empty: the area that both layers cover.",
        "DEVICE": "Where to compute: auto takes a CUDA device when there is one that works, else the CPU.",
        "DTYPE": (
            "Pixel type of the results: same as the hyperspectral raster's (rounded and clipped to its range), "
            "or float32."
        ),
        "MEMORY": "Upper bound of the working memory in GiB, whatever the size of the rasters.",
        "SEED": "Seed of every random number of the run: the same seed gives the same results.",
        **PAIR_HELP,
        "WRITE_REPORT": "Write the HTML report with the table, pictures and spectra of all methods.",
        "FOLDER": "Where the results go: a folder for each method, the table (CSV and JSON) and the report.",
    }

    def initAlgorithm(self, _configuration: Optional[dict[str, Any]] = None) -> None:
        """Declare parameters and outputs."""
        self.add(QgsProcessingParameterRasterLayer("SPECTRAL", tr("Hyperspectral layer")))
        self.add(QgsProcessingParameterRasterLayer("GUIDE", tr("Guide layer (PAN or multispectral)")))
        self.add(
            QgsProcessingParameterEnum(
                "METHODS",
                tr("Methods"),
                method_ids(),
                allowMultiple=True,
                optional=True,
                usesStaticStrings=True,
            )
        )
        self.add(QgsProcessingParameterExtent("EXTENT", tr("Extent"), optional=True))
        self.add_device()
        self.add(enum_parameter("DTYPE", tr("Pixel type"), list(DTYPES), "same"), advanced=True)
        self.add_run_options()
        self.add(QgsProcessingParameterBoolean("WRITE_REPORT", tr("Write a report"), True))
        self.add(QgsProcessingParameterFolderDestination("FOLDER", tr("Folder")))
        self.addOutput(QgsProcessingOutputFile("TABLE", tr("Table")))
        self.addOutput(QgsProcessingOutputFile("METRICS", tr("Metrics")))
        self.addOutput(QgsProcessingOutputHtml("REPORT", tr("Report")))
        self.addOutput(QgsProcessingOutputFile("BEST", tr("Best fused raster")))
        self.addOutput(QgsProcessingOutputString("BEST_METHOD", tr("Best method")))

    def checkParameterValues(self, parameters: dict[str, Any], context: QgsProcessingContext) -> Any:
        """Refuse early and cheaply what cannot be fused."""
        valid, message = super().checkParameterValues(parameters, context)
        if not valid:
            return valid, message
        try:
            hs = read_facts(self.raster(parameters, "SPECTRAL", context))
            guide = read_facts(self.raster(parameters, "GUIDE", context))
        except HyperSharpError as error:
            return False, log.sentence(error)
        problems = pair.read_pair(hs, guide, self.extent(parameters, context)).problems
        problems += [
            problem
            for method in self.parameterAsEnumStrings(parameters, "METHODS", context)
            for problem in [pair.method_problem(METHODS[method], guide)]
            if problem
        ]
        return (False, problems[0]) if problems else (True, "")

    def build_job(self, parameters: dict[str, Any], context: QgsProcessingContext) -> CompareJob:
        """Return the job."""
        extent, extent_crs = self.extent_of_job(parameters, context)
        return CompareJob(
            hs=source_path(self.raster(parameters, "SPECTRAL", context)),
            guide=source_path(self.raster(parameters, "GUIDE", context)),
            folder=os.path.abspath(self.parameterAsString(parameters, "FOLDER", context)),
            methods=self.parameterAsEnumStrings(parameters, "METHODS", context) or ["all"],
            extent=extent,
            extent_crs=extent_crs,
            device=self.parameterAsEnumString(parameters, "DEVICE", context),
            dtype=self.parameterAsEnumString(parameters, "DTYPE", context),
            memory_gb=self.parameterAsDouble(parameters, "MEMORY", context),
            seed=self.parameterAsInt(parameters, "SEED", context),
            mtf_hs=self.parameterAsDouble(parameters, "MTF_HS", context),
            mtf_guide=self.parameterAsDouble(parameters, "MTF_GUIDE", context),
            coregister=self.parameterAsBoolean(parameters, "COREGISTER", context),
            report=self.parameterAsBoolean(parameters, "WRITE_REPORT", context),
        )

    def results_of(
        self, result: protocol.Result, parameters: dict[str, Any], context: QgsProcessingContext
    ) -> dict[str, Any]:
        """Return the paths and the recommended method."""
        best = (result.metrics.get("recommendation") or {}).get("method")
        return {"FOLDER": self._job.folder, **result.outputs, "BEST_METHOD": best}
