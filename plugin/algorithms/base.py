# SPDX-License-Identifier: GPL-2.0-or-later
"""What HyperSharp's algorithms have in common: help, parameters, and the way to the worker."""

from __future__ import annotations

import os
import time
from html import escape
from typing import Any, ClassVar, Optional

from qgis.core import (
    QgsProcessingAlgorithm,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingLayerPostProcessorInterface,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterEnum,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterFolderDestination,
    QgsProcessingParameterNumber,
    QgsRasterLayer,
    QgsReferencedRectangle,
)
from qgis.PyQt.QtCore import QUrl
from qgis.PyQt.QtGui import QIcon

from ...backend import protocol
from ...backend.errors import Cancelled, HyperSharpError
from ...backend.job import DEFAULT_MTF_GUIDE, DEFAULT_MTF_HS, Job
from ...backend.registry import METHODS
from .. import api, environment, log, settings, worker_process
from ..compat import FLAG_ADVANCED
from ..log import tr

TAGS = (
    "hyperspectral",
    "pansharpening",
    "pan-sharpening",
    "sharpening",
    "fusion",
    "super-resolution",
    "panchromatic",
    "multispectral",
)
PAIR_HELP = {
    "MTF_HS": (
        "Gain of the hyperspectral sensor's modulation transfer function at its Nyquist frequency, "
        "between 0 and 1; 0.3 is usual."
    ),
    "MTF_GUIDE": "The same gain of the guide's sensor; 0.2 is usual.",
    "COREGISTER": (
        "Find out whether the hyperspectral image lies off the guide's ground by more than its own pixel, up to twelve "
        "of them, and fuse it where it belongs; a warning says how far it was moved. Smaller offsets are left to the "
        "methods that find them. Switched off, both georeferences are believed."
    ),
}
"""Help of the parameters of `HyperSharpAlgorithm.add_pair_options`."""
MAPS_HELP = (
    "A folder for maps of the errors, as GeoTIFFs that QGIS shows in colours: sam.tif and rmse.tif on the "
    "hyperspectral grid (reduced resolution, where the method is known), d_rho.tif on the fine grid, and with a "
    "reference sam_reference.tif and rmse_reference.tif. Empty: none; the report shows them anyway."
)
TELL_TIME_EVERY_S = 30.0
"""In a long stage the time left is said again after this many seconds."""
HELP_PAGE = environment.PACKAGE_FOLDER / "resources" / "help" / "index.html"


class HyperSharpAlgorithm(QgsProcessingAlgorithm):
    """Base of the algorithms: a thin adapter from parameters to a job.

    A subclass gives NAME, TITLE, SUMMARY and HELP (parameter name to text; a missing one fails a test), adds its
    parameters through `add`, and implements `build_job` and `results_of`.
    """

    NAME: ClassVar[str]
    TITLE: ClassVar[str]
    SUMMARY: ClassVar[str]
    HELP: ClassVar[dict[str, str]]
    CANCELLED: ClassVar[str] = "Cancelled: nothing was written."
    CANCEL_GRACE_S: ClassVar[float] = worker_process.CANCEL_GRACE_S

    def __init__(self) -> None:
        super().__init__()
        self._job: Optional[Job] = None
        self._to_load: dict[str, QgsProcessingContext.LayerDetails] = {}

    def name(self) -> str:
        """Return the fixed id."""
        return self.NAME

    def displayName(self) -> str:
        """Return the name shown to people."""
        return tr(self.TITLE)

    def group(self) -> str:
        """Return the group shown to people: none, the provider has few algorithms."""
        return ""

    def groupId(self) -> str:
        """Return the fixed id of the group."""
        return ""

    def icon(self) -> QIcon:
        """Return the icon."""
        return QIcon(str(environment.PACKAGE_FOLDER / "resources" / "icons" / "hypersharp.svg"))

    def tags(self) -> list[str]:
        """Return words to find the algorithm by."""
        return list(TAGS)

    def shortDescription(self) -> str:
        """Return the tooltip."""
        return tr(self.SUMMARY)

    def shortHelpString(self) -> str:
        """Return the help: a paragraph for each parameter."""
        parts = [f"<p>{escape(tr(self.SUMMARY))}</p>"]
        for definition in self.parameterDefinitions():
            text = self.HELP.get(definition.name(), "")
            parts.append(f"<p><b>{escape(definition.description())}</b><br>{escape(tr(text))}</p>")
            if definition.name() in ("METHOD", "METHODS"):
                parts.append(_method_list(definition.options()))
        return "".join(parts)

    def helpUrl(self) -> str:
        """Return the address of the help that ships with the plugin."""
        return QUrl.fromLocalFile(str(HELP_PAGE)).toString() + f"#{self.NAME}"

    def createInstance(self) -> QgsProcessingAlgorithm:
        """Return a new instance."""
        return type(self)()

    def canExecute(self) -> Any:
        """Say whether an interpreter for the worker is named; what it holds is looked at when it runs."""
        try:
            environment.locate()
        except HyperSharpError as error:
            return False, log.sentence(error)
        return True, ""

    def add(self, definition: QgsProcessingParameterDefinition, advanced: bool = False) -> None:
        """Add a parameter with its help."""
        definition.setHelp(tr(self.HELP[definition.name()]))
        if advanced:
            definition.setFlags(definition.flags() | FLAG_ADVANCED)
        self.addParameter(definition)

    def add_device(self) -> None:
        """Add DEVICE."""
        self.add(
            enum_parameter("DEVICE", tr("Device"), list(settings.DEVICES), "auto"),
        )

    def add_findings(self) -> None:
        """Add where to write what was found out of the quality: REPORT, METRICS and MAPS."""
        self.add(
            QgsProcessingParameterFileDestination(
                "REPORT", tr("Report"), tr("HTML files (*.html)"), optional=True, createByDefault=True
            )
        )
        self.add(
            QgsProcessingParameterFileDestination(
                "METRICS", tr("Metrics"), tr("JSON files (*.json)"), optional=True, createByDefault=False
            )
        )
        self.add(
            QgsProcessingParameterFolderDestination(
                "MAPS", tr("Error maps"), optional=True, createByDefault=False
            ),
            advanced=True,
        )

    def add_run_options(self) -> None:
        """Add the advanced parameters that every scoring run takes: MEMORY, SEED, and `add_pair_options`."""
        real = QgsProcessingParameterNumber.Type.Double
        whole = QgsProcessingParameterNumber.Type.Integer
        memory = QgsProcessingParameterNumber(
            "MEMORY", tr("Memory bound [GB]"), real, settings.memory_gb(), False, 0.5, 1024
        )
        self.add(memory, advanced=True)
        self.add(
            QgsProcessingParameterNumber("SEED", tr("Seed"), whole, 0, False, 0, 2**31 - 1), advanced=True
        )
        self.add_pair_options()

    def add_pair_options(self) -> None:
        """Add the advanced parameters that say how a pair is to be seen: MTF_HS, MTF_GUIDE, COREGISTER."""
        real = QgsProcessingParameterNumber.Type.Double
        for name, text, default in (
            ("MTF_HS", tr("MTF of the hyperspectral sensor at Nyquist"), DEFAULT_MTF_HS),
            ("MTF_GUIDE", tr("MTF of the guide's sensor at Nyquist"), DEFAULT_MTF_GUIDE),
        ):
            self.add(
                QgsProcessingParameterNumber(name, text, real, default, False, 0.01, 0.99), advanced=True
            )
        self.add(
            QgsProcessingParameterBoolean("COREGISTER", tr("Co-register the layers first"), True),
            advanced=True,
        )

    def raster(self, parameters: dict[str, Any], name: str, context: QgsProcessingContext) -> QgsRasterLayer:
        """Return a raster parameter's layer.

        Raises:
            QgsProcessingException: there is none.
        """
        layer = self.parameterAsRasterLayer(parameters, name, context)
        if layer is None:
            raise QgsProcessingException(self.invalidRasterError(parameters, name))
        return layer

    def extent(
        self, parameters: dict[str, Any], context: QgsProcessingContext
    ) -> Optional[QgsReferencedRectangle]:
        """Return EXTENT; None for all."""
        box = self.parameterAsExtent(parameters, "EXTENT", context)
        if box.isNull() or box.isEmpty():
            return None
        return QgsReferencedRectangle(box, self.parameterAsExtentCrs(parameters, "EXTENT", context))

    def extent_of_job(
        self, parameters: dict[str, Any], context: QgsProcessingContext
    ) -> tuple[Optional[tuple[float, float, float, float]], Optional[str]]:
        """Return EXTENT and its CRS as a job names them."""
        box = self.extent(parameters, context)
        if box is None:
            return None, None
        return (box.xMinimum(), box.yMinimum(), box.xMaximum(), box.yMaximum()), api.crs_text(box.crs())

    def maps_folder(self, parameters: dict[str, Any], context: QgsProcessingContext) -> Optional[str]:
        """Return MAPS as a job names it; None for no maps."""
        folder = self.parameterAsFileOutput(parameters, "MAPS", context)
        return os.path.abspath(folder) if folder else None

    def prepareAlgorithm(
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> bool:
        """Turn the parameters into a job, on the main thread: layers must not be touched later."""
        before = set(context.layersToLoadOnCompletion())
        try:
            self._job = self.build_job(parameters, context)
        except HyperSharpError as error:
            raise QgsProcessingException(log.sentence(error)) from error
        wanted = context.layersToLoadOnCompletion()
        self._to_load = {path: details for path, details in wanted.items() if path not in before}
        return True

    def processAlgorithm(
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> dict[str, Any]:
        """Run the job in the worker."""
        talk = FeedbackTalk(feedback)
        try:
            result = worker_process.run_job(
                self._job, talk, feedback.isCanceled, cancel_grace_s=self.CANCEL_GRACE_S
            )
        except Cancelled as error:
            raise QgsProcessingException(tr(self.CANCELLED)) from error
        except HyperSharpError as error:
            raise QgsProcessingException(log.sentence(error)) from error
        # In a thread this is another context than the one that was prepared, and the only one that is asked in the end.
        for path, details in self._to_load.items():
            if not context.willLoadLayerOnCompletion(path):
                context.addLayerToLoadOnCompletion(path, details)
        return self.results_of(result, parameters, context)

    def has_own_name(self, details: QgsProcessingContext.LayerDetails, output: str) -> bool:
        """Say whether a layer that will be loaded has another name than its output's: a model's, which is to stay."""
        return details.name != self.outputDefinition(output).description()

    def build_job(self, parameters: dict[str, Any], context: QgsProcessingContext) -> Job:
        """Return the job for the parameters (main thread)."""
        raise NotImplementedError

    def results_of(
        self, result: protocol.Result, parameters: dict[str, Any], context: QgsProcessingContext
    ) -> dict[str, Any]:
        """Return Processing's results for the worker's (worker thread)."""
        raise NotImplementedError


class PostProcessor(QgsProcessingLayerPostProcessorInterface):
    """What is done to a layer that Processing has loaded."""

    _kept: ClassVar[list[QgsProcessingLayerPostProcessorInterface]] = []
    """QGIS holds no Python reference: one that is collected early does nothing (QGIS issues 47533, 48087)."""

    def kept(self) -> PostProcessor:
        """Return this one, which now lives until it has been used, or long enough."""
        PostProcessor._kept = [*PostProcessor._kept[-99:], self]
        return self


class FeedbackTalk:
    """Passes what the worker says on to Processing's feedback."""

    def __init__(self, feedback: QgsProcessingFeedback) -> None:
        self._feedback = feedback
        self._stage, self._told = "", 0.0

    def __call__(self, message: Any) -> None:
        """Take one message."""
        if isinstance(message, protocol.Progress):
            self._feedback.setProgress(100.0 * message.fraction)
            # Early in a run the time left is a guess that only confuses.
            known = message.eta_s is not None and message.fraction >= 0.1
            left = f" ({duration(message.eta_s)} left)" if known else ""
            again = bool(left) and time.monotonic() - self._told >= TELL_TIME_EVERY_S
            if message.stage != self._stage or again:
                self._stage, self._told = message.stage, time.monotonic()
                self._feedback.setProgressText(message.stage[:1].upper() + message.stage[1:] + left)
        elif isinstance(message, protocol.Log):
            if message.level == "warning":
                self._warn(message.text)
            elif message.level == "debug":
                self._feedback.pushDebugInfo(message.text)
            else:
                self._feedback.pushInfo(message.text)
        elif isinstance(message, protocol.Hello):
            versions = ", ".join(f"{name} {version}" for name, version in message.versions.items())
            self._feedback.pushDebugInfo(f"worker: {versions}; device {message.device}")

    def _warn(self, text: str) -> None:
        self._feedback.pushWarning(text)


def _method_list(ids: list[str]) -> str:
    """Return the methods among some choices with their summaries, as HTML."""
    entries = (
        f"<li><i>{escape(info.id)}</i>: {escape(info.title)}. {escape(tr(info.summary))}</li>"
        for info in METHODS.values()
        if info.id in ids
    )
    return f"<ul>{''.join(entries)}</ul>"


def enum_parameter(
    name: str, description: str, options: list[str], default: str
) -> QgsProcessingParameterEnum:
    """Return a choice whose values are words, so that scripts read well and new choices shift nothing."""
    return QgsProcessingParameterEnum(
        name,
        description,
        options,
        allowMultiple=False,
        defaultValue=default,
        optional=False,
        usesStaticStrings=True,
    )


def duration(seconds: float) -> str:
    """Return a time span as people say it, e.g. "about 2 min"."""
    if seconds < 1.5:
        return "about 1 s"
    if seconds < 90:
        return f"about {seconds:.0f} s"
    if seconds < 5400:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.1f} h"


def index_values(metrics: dict[str, Any], protocol_name: str) -> dict[str, Any]:
    """Return the fused image's indices under a protocol; empty where it was not run."""
    return (metrics.get(protocol_name) or {}).get("fused") or {}
