# SPDX-License-Identifier: GPL-2.0-or-later
"""`hypersharp:simulate`: a pair with a known truth, from a hyperspectral raster, by Wald's protocol."""

from __future__ import annotations

import os
from typing import Any, Optional

from qgis.core import (
    QgsProcessingContext,
    QgsProcessingOutputFile,
    QgsProcessingParameterFolderDestination,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterString,
)

from ...backend import protocol
from ...backend.errors import HyperSharpError
from ...backend.job import DEFAULT_MTF_HS, SimulateJob
from .. import log
from ..log import tr
from ..pair import MIN_HS_BANDS
from ..rasters import read_facts, source_path
from .base import HyperSharpAlgorithm

FILES = {"HS": "hs.tif", "GUIDE_FILE": "guide.tif", "REFERENCE_FILE": "reference.tif"}


class SimulateAlgorithm(HyperSharpAlgorithm):
    """Make a coarse hyperspectral raster, a guide and the truth from one hyperspectral raster."""

    NAME = "simulate"
    TITLE = "Simulate a pair with a known truth"
    SUMMARY = (
        "Degrades a hyperspectral raster by Wald's protocol into a coarse one and a fine guide. Fusing these two "
        "can be scored against the raster that they came from."
    )
    HELP = {
        "REFERENCE": "The hyperspectral raster that becomes the truth.",
        "RATIO": "How many times coarser the simulated hyperspectral raster is.",
        "GUIDE": "The guide: pan, a number of Gaussian multispectral bands (e.g. 4), or a CSV of response functions.",
        "SNR": "Signal-to-noise ratio of the simulated hyperspectral raster in dB. Empty: no noise.",
        "MTF_HS": (
            "Gain of the hyperspectral sensor's modulation transfer function at its Nyquist frequency, "
            "between 0 and 1; 0.3 is usual."
        ),
        "SEED": "Seed of the noise.",
        "FOLDER": "Where hs.tif, guide.tif and reference.tif go.",
    }

    def initAlgorithm(self, _configuration: Optional[dict[str, Any]] = None) -> None:
        """Declare parameters and outputs."""
        whole, real = QgsProcessingParameterNumber.Type.Integer, QgsProcessingParameterNumber.Type.Double
        self.add(QgsProcessingParameterRasterLayer("REFERENCE", tr("Hyperspectral layer")))
        self.add(QgsProcessingParameterNumber("RATIO", tr("Ratio"), whole, 4, False, 2, 32))
        self.add(QgsProcessingParameterString("GUIDE", tr("Guide"), "pan"))
        self.add(
            QgsProcessingParameterNumber("SNR", tr("Signal-to-noise ratio [dB]"), real, None, True, 0, 100)
        )
        self.add(
            QgsProcessingParameterNumber(
                "MTF_HS",
                tr("MTF of the hyperspectral sensor at Nyquist"),
                real,
                DEFAULT_MTF_HS,
                False,
                0.01,
                0.99,
            ),
            advanced=True,
        )
        self.add(
            QgsProcessingParameterNumber("SEED", tr("Seed"), whole, 0, False, 0, 2**31 - 1), advanced=True
        )
        self.add(QgsProcessingParameterFolderDestination("FOLDER", tr("Folder")))
        self.addOutput(QgsProcessingOutputFile("HS", tr("Coarse hyperspectral raster")))
        self.addOutput(QgsProcessingOutputFile("GUIDE_FILE", tr("Guide")))
        self.addOutput(QgsProcessingOutputFile("REFERENCE_FILE", tr("Reference")))

    def checkParameterValues(self, parameters: dict[str, Any], context: QgsProcessingContext) -> Any:
        """Refuse early and cheaply what cannot be degraded."""
        valid, message = super().checkParameterValues(parameters, context)
        if not valid:
            return valid, message
        try:
            facts = read_facts(self.raster(parameters, "REFERENCE", context))
        except HyperSharpError as error:
            return False, log.sentence(error)
        if facts.bands < MIN_HS_BANDS:
            return False, tr("The layer has {count} bands, at least {least} are needed.").format(
                count=facts.bands, least=MIN_HS_BANDS
            )
        return True, ""

    def build_job(self, parameters: dict[str, Any], context: QgsProcessingContext) -> SimulateJob:
        """Return the job."""
        return SimulateJob(
            reference=source_path(self.raster(parameters, "REFERENCE", context)),
            folder=os.path.abspath(self.parameterAsString(parameters, "FOLDER", context)),
            ratio=self.parameterAsInt(parameters, "RATIO", context),
            guide=self.parameterAsString(parameters, "GUIDE", context).strip() or "pan",
            snr_db=None
            if parameters.get("SNR") is None
            else self.parameterAsDouble(parameters, "SNR", context),
            mtf_hs=self.parameterAsDouble(parameters, "MTF_HS", context),
            seed=self.parameterAsInt(parameters, "SEED", context),
        )

    def results_of(
        self, result: protocol.Result, parameters: dict[str, Any], context: QgsProcessingContext
    ) -> dict[str, Any]:
        """Return where the three rasters are."""
        folder = self._job.folder
        return {"FOLDER": folder, **{name: os.path.join(folder, file) for name, file in FILES.items()}}
