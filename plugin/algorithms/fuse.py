# SPDX-License-Identifier: GPL-2.0-or-later
"""`hypersharp:fuse`: a hyperspectral raster and a finer guide in, a fine hyperspectral raster out."""

from __future__ import annotations

from typing import Any, Optional

from qgis.core import (
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingFeedback,
    QgsProcessingOutputNumber,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterExtent,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterDestination,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterString,
    QgsRasterLayer,
)

from ...backend import protocol
from ...backend.errors import HyperSharpError
from ...backend.job import COMPRESSIONS, DEFAULT_METHOD, DTYPES, FuseJob, parse_options
from ...backend.registry import METHODS, PRESETS, check_options, method_ids
from ...backend.weights import weights_problem
from .. import api, layers, log, pair
from ..log import tr
from ..rasters import read_facts
from .base import MAPS_HELP, PAIR_HELP, HyperSharpAlgorithm, PostProcessor, enum_parameter, index_values

MIN_TILE = 64
OWN_PRESET = "default"
"""Choice of PRESET that leaves it to the method."""


class FuseAlgorithm(HyperSharpAlgorithm):
    """Fuse a hyperspectral raster with a finer panchromatic or multispectral one."""

    NAME = "fuse"
    TITLE = "Fuse hyperspectral with PAN or multispectral"
    SUMMARY = (
        "Fuses a coarse hyperspectral raster with a finer panchromatic or multispectral one into a fine "
        "hyperspectral raster on the finer one's grid, and says how good the result is."
    )
    HELP = {
        "SPECTRAL": "The coarse raster with many bands, at least 4.",
        "GUIDE": "The finer raster: panchromatic (one band) or multispectral. Its grid becomes the result's.",
        "METHOD": "How to fuse. Learned methods need weights; the others work on any pair.",
        "EXTENT": "Only fuse this area, snapped to the guide's pixels. Empty: the area that both layers cover.",
        "DEVICE": "Where to compute: auto takes a CUDA device when there is one that works, else the CPU.",
        "WEIGHTS": "Learned methods: name of shipped weights, or a folder as Train makes it. Empty: the method's own.",
        "PRESET": (
            "Speed against quality, for methods that draw a prior by diffusion (mpsrnet-diff): quick takes 10 steps, "
            "standard 20, fine 50. default: the method's own."
        ),
        "OPTIONS": (
            "The method's own options, as NAME=VALUE with spaces between, for instance prior_rank=6 for "
            "mpsrnet-diff. 'hypersharp methods' lists them. Empty: the method's defaults."
        ),
        "ADAPT_STEPS": "Learned methods: training steps on this pair before fusing. 0: none.",
        "DTYPE": (
            "Pixel type of the result: same as the hyperspectral raster's (rounded and clipped to its range), "
            "or float32."
        ),
        "MEMORY": "Upper bound of the working memory in GiB, whatever the size of the rasters.",
        "TILE_SIZE": "Side of the tiles that are worked on, in pixels of the guide. 0: chosen from the memory bound.",
        "SEED": "Seed of every random number of the run: the same seed gives the same result.",
        **PAIR_HELP,
        "COMPRESS": "Compression of the GeoTIFF; all are lossless.",
        "OVERVIEWS": "Build overviews into the GeoTIFF, for fast display of large results.",
        "ASSESS": (
            "Compute quality indices at reduced resolution (Wald's protocol: PSNR, SAM, ERGAS) and at full "
            "resolution (HQNR), beside plain interpolation as control. It about doubles the time."
        ),
        "OUTPUT": "The fused GeoTIFF.",
        "REPORT": "A self-contained HTML page: indices, quick-looks, spectra, parameters, warnings.",
        "METRICS": (
            "The indices and everything else that is known of the run, as JSON; the indices as a table, band by "
            "band too, go into a CSV file of the same name beside it."
        ),
        "MAPS": MAPS_HELP,
    }

    def __init__(self) -> None:
        super().__init__()
        self._source: Optional[layers.FusedSource] = None

    def initAlgorithm(self, _configuration: Optional[dict[str, Any]] = None) -> None:
        """Declare parameters and outputs."""
        whole = QgsProcessingParameterNumber.Type.Integer
        self.add(QgsProcessingParameterRasterLayer("SPECTRAL", tr("Hyperspectral layer")))
        self.add(QgsProcessingParameterRasterLayer("GUIDE", tr("Guide layer (PAN or multispectral)")))
        self.add(enum_parameter("METHOD", tr("Method"), method_ids(), DEFAULT_METHOD))
        self.add(QgsProcessingParameterExtent("EXTENT", tr("Extent"), optional=True))
        self.add_device()
        self.add(QgsProcessingParameterString("WEIGHTS", tr("Weights"), optional=True), advanced=True)
        self.add(
            QgsProcessingParameterNumber("ADAPT_STEPS", tr("Adaptation steps"), whole, 0, False, 0, 100_000),
            advanced=True,
        )
        self.add(enum_parameter("PRESET", tr("Preset"), [OWN_PRESET, *PRESETS], OWN_PRESET), advanced=True)
        self.add(QgsProcessingParameterString("OPTIONS", tr("Method options"), optional=True), advanced=True)
        self.add(enum_parameter("DTYPE", tr("Pixel type"), list(DTYPES), "same"), advanced=True)
        self.add(
            QgsProcessingParameterNumber("TILE_SIZE", tr("Tile size"), whole, 0, False, 0, 16_384),
            advanced=True,
        )
        self.add_run_options()
        self.add(enum_parameter("COMPRESS", tr("Compression"), list(COMPRESSIONS), "deflate"), advanced=True)
        self.add(QgsProcessingParameterBoolean("OVERVIEWS", tr("Build overviews"), False), advanced=True)
        self.add(QgsProcessingParameterBoolean("ASSESS", tr("Assess the quality"), True))
        self.add(QgsProcessingParameterRasterDestination("OUTPUT", tr("Fused")))
        self.add_findings()
        for name, title in (
            ("SAM", tr("Spectral angle at reduced resolution [degrees]")),
            ("ERGAS", tr("ERGAS at reduced resolution")),
            ("PSNR", tr("PSNR at reduced resolution [dB]")),
            ("HQNR", tr("HQNR at full resolution")),
            ("SECONDS", tr("Duration [s]")),
        ):
            self.addOutput(QgsProcessingOutputNumber(name, title))

    def checkParameterValues(self, parameters: dict[str, Any], context: QgsProcessingContext) -> Any:
        """Refuse early and cheaply what cannot be fused."""
        valid, message = super().checkParameterValues(parameters, context)
        if not valid:
            return valid, message
        try:
            facts = self._pair(parameters, context)
        except HyperSharpError as error:
            return False, log.sentence(error)
        if facts.problems:
            return False, facts.problems[0]
        problem = self._option_problem(parameters, context, facts) or self._output_problem(
            parameters, context, facts
        )
        return (False, problem) if problem else (True, "")

    def _pair(self, parameters: dict[str, Any], context: QgsProcessingContext) -> pair.PairFacts:
        hs = self.raster(parameters, "SPECTRAL", context)
        guide = self.raster(parameters, "GUIDE", context)
        return pair.read_pair(read_facts(hs), read_facts(guide), self.extent(parameters, context))

    def _option_problem(
        self, parameters: dict[str, Any], context: QgsProcessingContext, facts: pair.PairFacts
    ) -> Optional[str]:
        """Return what is wrong with options that do not fit together."""
        if 0 < self.parameterAsInt(parameters, "TILE_SIZE", context) < MIN_TILE:
            return tr("Tile size: use 0 (automatic) or at least {least} pixels.").format(least=MIN_TILE)
        info = METHODS[self.parameterAsEnumString(parameters, "METHOD", context)]
        try:
            check_options(info.id, self._method_options(parameters, context))
        except HyperSharpError as error:
            return log.sentence(error)
        learned = self.parameterAsString(parameters, "WEIGHTS", context) or self.parameterAsInt(
            parameters, "ADAPT_STEPS", context
        )
        if self.maps_folder(parameters, context) and not self.parameterAsBoolean(
            parameters, "ASSESS", context
        ):
            return tr("Error maps come from the assessment: switch it on, or leave the maps out.")
        if learned and not info.needs_weights:
            return tr("{method} has no weights: leave weights and adaptation steps out.").format(
                method=info.id
            )
        weights = self.parameterAsString(parameters, "WEIGHTS", context).strip()
        problem = weights_problem(weights) if weights else None
        return f"{problem[:1].upper()}{problem[1:]}." if problem else None

    def _method_options(self, parameters: dict[str, Any], context: QgsProcessingContext) -> dict[str, Any]:
        """Return OPTIONS and PRESET as a job's parameters.

        Raises:
            HyperSharpError: OPTIONS is not NAME=VALUE.
        """
        found = parse_options(self.parameterAsString(parameters, "OPTIONS", context).split())
        preset = self.parameterAsEnumString(parameters, "PRESET", context)
        return found if preset in ("", OWN_PRESET) else {**found, "preset": preset}

    def _output_problem(
        self, parameters: dict[str, Any], context: QgsProcessingContext, facts: pair.PairFacts
    ) -> Optional[str]:
        """Return what is wrong with a file that the user names; temporary ones are QGIS's to choose."""
        output = parameters.get("OUTPUT")
        if isinstance(output, str) and output != QgsProcessing.TEMPORARY_OUTPUT:
            dtype = self.parameterAsEnumString(parameters, "DTYPE", context)
            memory = self.parameterAsDouble(parameters, "MEMORY", context)
            method = self.parameterAsEnumString(parameters, "METHOD", context)
            return pair.output_problem(output, facts, facts.estimate(method, dtype, memory, False).disk_bytes)
        return None

    def build_job(self, parameters: dict[str, Any], context: QgsProcessingContext) -> FuseJob:
        """Return the job, and remember the source layer's colours for the result."""
        hs = self.raster(parameters, "SPECTRAL", context)
        guide = self.raster(parameters, "GUIDE", context)
        job = api.make_job(
            hs,
            guide,
            self.parameterAsOutputLayer(parameters, "OUTPUT", context),
            self.parameterAsEnumString(parameters, "METHOD", context),
            extent=self.extent(parameters, context),
            device=self.parameterAsEnumString(parameters, "DEVICE", context),
            weights=self.parameterAsString(parameters, "WEIGHTS", context) or None,
            adapt_steps=self.parameterAsInt(parameters, "ADAPT_STEPS", context),
            parameters=self._method_options(parameters, context),
            dtype=self.parameterAsEnumString(parameters, "DTYPE", context),
            memory_gb=self.parameterAsDouble(parameters, "MEMORY", context),
            tile=self.parameterAsInt(parameters, "TILE_SIZE", context) or None,
            seed=self.parameterAsInt(parameters, "SEED", context),
            mtf_hs=self.parameterAsDouble(parameters, "MTF_HS", context),
            mtf_guide=self.parameterAsDouble(parameters, "MTF_GUIDE", context),
            coregister=self.parameterAsBoolean(parameters, "COREGISTER", context),
            compress=self.parameterAsEnumString(parameters, "COMPRESS", context),
            overviews=self.parameterAsBoolean(parameters, "OVERVIEWS", context),
            assess=self.parameterAsBoolean(parameters, "ASSESS", context),
            report=self.parameterAsFileOutput(parameters, "REPORT", context) or None,
            metrics=self.parameterAsFileOutput(parameters, "METRICS", context) or None,
            maps=self.maps_folder(parameters, context),
        )
        self._source = layers.capture(job, hs, guide)
        return job

    def results_of(
        self, result: protocol.Result, parameters: dict[str, Any], context: QgsProcessingContext
    ) -> dict[str, Any]:
        """Return the paths and the headline indices; have the layer styled when Processing loads it."""
        output = result.outputs.get("OUTPUT", self._source.job.output)
        if context.willLoadLayerOnCompletion(output):
            details = context.layerToLoadOnCompletionDetails(output)
            named = self.has_own_name(details, "OUTPUT")
            details.setPostProcessor(StyleResult(self._source, result.metrics, named).kept())
            if hasattr(details, "groupName") and not details.groupName and not named:  # QGIS 3.32 and newer
                details.groupName = self._source.group_name
        reduced = index_values(result.metrics, "reduced_resolution")
        results: dict[str, Any] = {"OUTPUT": output}
        results.update({k: v for k, v in result.outputs.items() if k in ("REPORT", "METRICS")})
        results.update({"MAPS": self._job.maps} if self._job.maps else {})
        results.update({name: reduced.get(name) for name in ("SAM", "ERGAS", "PSNR")})
        results["HQNR"] = index_values(result.metrics, "full_resolution").get("HQNR")
        results["SECONDS"] = result.metrics.get("seconds")
        return results


class StyleResult(PostProcessor):
    """Dresses the result when Processing has loaded it (main thread); `named`: it has a name that is to stay."""

    def __init__(self, source: layers.FusedSource, metrics: dict[str, Any], named: bool) -> None:
        super().__init__()
        self._source = source
        self._metrics = metrics
        self._named = named

    def postProcessLayer(
        self, layer: Any, _context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> None:
        """Style and describe the layer."""
        if not isinstance(layer, QgsRasterLayer):
            return
        layers.dress(layer, self._source, self._metrics)
        if not self._named:
            layer.setName(self._source.layer_name)
        feedback.pushDebugInfo(f"styled {layer.name()}")
