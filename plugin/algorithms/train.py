# SPDX-License-Identifier: GPL-2.0-or-later
"""`hypersharp:train`: weights of one's own for a learned method, from one pair or from a folder of cubes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Optional

from qgis.core import (
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingOutputNumber,
    QgsProcessingOutputString,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterFile,
    QgsProcessingParameterFolderDestination,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterString,
)

from ...backend import protocol
from ...backend.errors import HyperSharpError
from ...backend.job import (
    DEFAULT_TRAIN_SEED,
    DEFAULT_TRAIN_STEPS,
    FORMS,
    FULL_BAND,
    SUBSPACE,
    TRAIN_STATE,
    TRAINABLE,
    TrainJob,
)
from ...backend.weights import absolute_weights, weights_problem
from .. import log, pair
from ..log import tr
from ..rasters import read_facts, source_path
from .base import PAIR_HELP, HyperSharpAlgorithm, enum_parameter


class TrainAlgorithm(HyperSharpAlgorithm):
    """Train a learned method into a weights folder that `fuse` can use."""

    NAME = "train"
    TITLE = "Train a learned method"
    SUMMARY = (
        "Trains a learned method's network on one pair of layers (one scale down, by Wald's protocol) or on pairs "
        "simulated from a folder of hyperspectral cubes, into a weights folder for the fusion. Minutes to hours."
    )
    CANCELLED = "Cancelled: no new weights were written."
    CANCEL_GRACE_S = 60.0  # to validate, and to write the best weights so far
    HELP = {
        "SPECTRAL": "The coarse hyperspectral raster of a pair to train on. Leave it empty to train on cubes.",
        "GUIDE": "The finer panchromatic or multispectral raster of that pair.",
        "CUBES": (
            "A folder of hyperspectral rasters (GeoTIFF, ENVI), instead of a pair. Pairs are simulated from them with "
            "many ratios, guides, blurs and noises, so that the weights serve any pair of such sensors."
        ),
        "METHOD": (
            "What to train. csakd trains its small network beside a larger one; mpsrnet-diff draws a prior of every "
            "training pair first, which takes long."
        ),
        "FORM": (
            "subspace: the network corrects LMMSE in the image's own subspace, and its weights serve any sensor, guide "
            "and ratio. full-band: the paper's own form, which makes every band itself from all bands of both images; "
            "trained on a pair only, and its weights serve these sensors' bands and this ratio only."
        ),
        "WEIGHTS": (
            "Name or folder of weights to start from: training on a pair needs far fewer steps then. Empty: new ones."
        ),
        "STEPS": "Training steps. 200 to 1000 tune weights to a pair; new weights from cubes take 2000 and more.",
        "DEVICE": "Where to compute: auto takes a CUDA device when there is one that works, else the CPU.",
        "PHOTOGRAPHS": (
            "Folder of aerial photographs (WebP, PNG, JPEG, TIFF, or tar archives of them), with a folder of cubes "
            "only: half of the scenes then take their structure from a photograph and their spectra from a cube, "
            "which helps where there are few cubes. May be empty."
        ),
        "LEAVE_OUT": (
            "Cubes that are not used at all, by the beginnings of their names, separated by commas: what you want to "
            "test the weights on."
        ),
        "SEED": "Seed of every random number of the run: the same seed gives the same weights.",
        "RESUME": (
            "Go on with an interrupted run whose state lies in the weights folder, with the same settings, as if it "
            "had not been interrupted."
        ),
        **PAIR_HELP,
        "WEIGHTS_FOLDER": (
            "Where config.json, model.safetensors and card.md go. Name it under Weights when you fuse. A run that is "
            "cancelled leaves its best weights so far there, and its state."
        ),
    }

    def initAlgorithm(self, _configuration: Optional[dict[str, Any]] = None) -> None:
        """Declare parameters and outputs."""
        whole = QgsProcessingParameterNumber.Type.Integer
        self.add(QgsProcessingParameterRasterLayer("SPECTRAL", tr("Hyperspectral layer"), optional=True))
        self.add(
            QgsProcessingParameterRasterLayer(
                "GUIDE", tr("Guide layer (PAN or multispectral)"), optional=True
            )
        )
        self.add(
            QgsProcessingParameterFile(
                "CUBES",
                tr("Folder of cubes, instead of a pair"),
                QgsProcessingParameterFile.Behavior.Folder,
                optional=True,
            )
        )
        self.add(enum_parameter("METHOD", tr("Method"), list(TRAINABLE), TRAINABLE[0]))
        self.add(enum_parameter("FORM", tr("Form"), list(FORMS), SUBSPACE), advanced=True)
        self.add(QgsProcessingParameterString("WEIGHTS", tr("Weights to start from"), optional=True))
        self.add(
            QgsProcessingParameterNumber(
                "STEPS", tr("Steps"), whole, DEFAULT_TRAIN_STEPS, False, 1, 10_000_000
            )
        )
        self.add_device()
        self.add(QgsProcessingParameterBoolean("RESUME", tr("Resume an interrupted run"), False))
        self.add(
            QgsProcessingParameterFile(
                "PHOTOGRAPHS",
                tr("Folder of aerial photographs"),
                QgsProcessingParameterFile.Behavior.Folder,
                optional=True,
            ),
            advanced=True,
        )
        self.add(
            QgsProcessingParameterString("LEAVE_OUT", tr("Cubes to leave out"), optional=True), advanced=True
        )
        self.add(
            QgsProcessingParameterNumber("SEED", tr("Seed"), whole, DEFAULT_TRAIN_SEED, False, 0, 2**31 - 1),
            advanced=True,
        )
        self.add_pair_options()
        self.add(QgsProcessingParameterFolderDestination("WEIGHTS_FOLDER", tr("Weights folder")))
        self.addOutput(QgsProcessingOutputNumber("GAIN", tr("PSNR over LMMSE where not trained on [dB]")))
        self.addOutput(QgsProcessingOutputNumber("STEPS_DONE", tr("Steps done")))
        self.addOutput(QgsProcessingOutputString("STOPPED", tr("How it ended: done, early or cancelled")))
        self.addOutput(QgsProcessingOutputNumber("SECONDS", tr("Duration [s]")))

    def checkParameterValues(self, parameters: dict[str, Any], context: QgsProcessingContext) -> Any:
        """Refuse early and cheaply what cannot be trained on."""
        valid, message = super().checkParameterValues(parameters, context)
        if not valid:
            return valid, message
        problem = (
            self._input_problem(parameters, context)
            or self._weights_problem(parameters, context)
            or self._folder_problem(parameters, context)
        )
        return (False, problem) if problem else (True, "")

    def _input_problem(self, parameters: dict[str, Any], context: QgsProcessingContext) -> Optional[str]:
        given = [bool(parameters.get(name)) for name in ("SPECTRAL", "GUIDE")]
        cubes = self.parameterAsFile(parameters, "CUBES", context)
        if any(given) == bool(cubes):
            return tr("Training needs one pair of layers, or a folder of cubes, and not both.")
        if cubes and self.parameterAsEnumString(parameters, "FORM", context) == FULL_BAND:
            return tr(
                "The full-band form is trained on a pair of layers: cubes settle neither the guide nor the bands."
            )
        photographs = self.parameterAsFile(parameters, "PHOTOGRAPHS", context)
        if photographs and not cubes:
            return tr(
                "Photographs lend their structure to the spectra of cubes: choose a folder of cubes too."
            )
        if photographs and not os.path.isdir(photographs):
            return tr("There is no folder {folder}.").format(folder=photographs)
        if cubes:
            return None if os.path.isdir(cubes) else tr("There is no folder {folder}.").format(folder=cubes)
        if not all(given):
            return tr("A pair has two layers: choose the hyperspectral layer and the guide.")
        try:
            hs = read_facts(self.raster(parameters, "SPECTRAL", context))
            guide = read_facts(self.raster(parameters, "GUIDE", context))
        except HyperSharpError as error:
            return log.sentence(error)
        problems = pair.read_pair(hs, guide).problems
        return problems[0] if problems else None

    def _weights_problem(self, parameters: dict[str, Any], context: QgsProcessingContext) -> Optional[str]:
        weights = self.parameterAsString(parameters, "WEIGHTS", context).strip()
        problem = weights_problem(weights) if weights else None
        return f"{problem[:1].upper()}{problem[1:]}." if problem else None

    def _folder_problem(self, parameters: dict[str, Any], context: QgsProcessingContext) -> Optional[str]:
        """Return what is wrong with a folder that the user names; temporary ones are QGIS's to choose."""
        named = parameters.get("WEIGHTS_FOLDER")
        temporary = named is None or named == QgsProcessing.TEMPORARY_OUTPUT
        folder = Path("" if temporary else self.parameterAsString(parameters, "WEIGHTS_FOLDER", context))
        if self.parameterAsBoolean(parameters, "RESUME", context) and (
            temporary or not (folder / TRAIN_STATE).is_file()
        ):
            return tr("There is no interrupted run in the weights folder to resume.")
        if not temporary and folder.exists() and not (folder.is_dir() and os.access(folder, os.W_OK)):
            return tr("The weights folder cannot be written to: {folder}.").format(folder=folder)
        return None

    def build_job(self, parameters: dict[str, Any], context: QgsProcessingContext) -> TrainJob:
        """Return the job."""
        cubes = self.parameterAsFile(parameters, "CUBES", context)
        photographs = self.parameterAsFile(parameters, "PHOTOGRAPHS", context)
        leave_out = self.parameterAsString(parameters, "LEAVE_OUT", context)
        weights = self.parameterAsString(parameters, "WEIGHTS", context).strip()
        return TrainJob(
            output=os.path.abspath(self.parameterAsString(parameters, "WEIGHTS_FOLDER", context)),
            method=self.parameterAsEnumString(parameters, "METHOD", context),
            hs=None if cubes else source_path(self.raster(parameters, "SPECTRAL", context)),
            guide=None if cubes else source_path(self.raster(parameters, "GUIDE", context)),
            cubes=os.path.abspath(cubes) if cubes else None,
            photographs=os.path.abspath(photographs) if photographs else None,
            steps=self.parameterAsInt(parameters, "STEPS", context),
            resume=self.parameterAsBoolean(parameters, "RESUME", context),
            weights=absolute_weights(weights) if weights else None,
            leave_out=[name.strip() for name in leave_out.split(",") if name.strip()],
            device=self.parameterAsEnumString(parameters, "DEVICE", context),
            seed=self.parameterAsInt(parameters, "SEED", context),
            mtf_hs=self.parameterAsDouble(parameters, "MTF_HS", context),
            mtf_guide=self.parameterAsDouble(parameters, "MTF_GUIDE", context),
            coregister=self.parameterAsBoolean(parameters, "COREGISTER", context),
            form=self.parameterAsEnumString(parameters, "FORM", context),
        )

    def results_of(
        self, result: protocol.Result, parameters: dict[str, Any], context: QgsProcessingContext
    ) -> dict[str, Any]:
        """Return the folder and what training came to."""
        training = result.metrics.get("training") or {}
        outcome = training.get("outcome") or {}
        return {
            "WEIGHTS_FOLDER": result.outputs.get("WEIGHTS", self._job.output),
            "GAIN": outcome.get("gain_db"),
            "STEPS_DONE": outcome.get("steps"),
            "STOPPED": outcome.get("stopped"),
            "SECONDS": training.get("seconds"),
        }
