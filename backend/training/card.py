# SPDX-License-Identifier: GPL-2.0-or-later
"""The card of a weights folder: what the weights are, what they were trained on and how well they did."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from .._version import __version__

SUBSPACE_INPUT = (
    "coefficients in the HS image's own subspace (docs/models.md): any sensor, number of bands, guide, ratio"
)

SUBSPACE_BASE = "`lmmse` with kernel regression beyond the components that the network corrects"

if TYPE_CHECKING:
    from ..models.pretrained import PretrainedModel
    from .trainer import TrainOutcome


def weights_card(
    method: str,
    model: PretrainedModel,
    facts: dict[str, Any],
    outcome: TrainOutcome,
    takes: str = SUBSPACE_INPUT,
    over: str = "`lmmse`",
) -> str:
    """Return the card as Markdown.

    Args:
        method: method id.
        model: the network.
        facts: data, settings, seconds and device, as in config.json.
        outcome: of the training run.
        takes: the weights' input in words.
        over: what the gain is measured against.
    """
    data, settings = facts["data"], facts["settings"]
    gain = "not measured" if outcome.gain_db is None else f"{outcome.gain_db:+.2f} dB"
    if "pair" in data:
        source = f"One pair, {' + '.join(data['pair'])}, one scale down; validated on {data['validated_on']}."
    else:
        source = (
            f"Simulated pairs (Wald's protocol) from {len(data['cubes'])} cubes: {', '.join(data['cubes'])}.\n"
            f"Validated, for early stopping, on {', '.join(data['validated_on'])}. "
            f"Kept out of both: {', '.join(data['left_out']) or 'none'}."
        )
        if data.get("photographs"):
            source += (
                f"\n{data['photographed']:.0%} of the pairs take their structure from {data['photographs']:,} aerial "
                "photographs (docs/models.md)."
            )
    start = ""
    if data.get("start_examples") and model.start is not None and outcome.history[0][0] == 0:
        start = (
            f"\n* Start: {model.start.numel()} weights of the input planes, fitted by least squares to the first "
            f"{data['start_examples']} pairs;\n  alone {outcome.history[0][1]:+.2f} dB on the validation pairs."
        )
    return f"""# Weights for `{method}`

* Network: class `{model.model_name}`, {model.parameter_count():,} parameters, stored in half precision.{start}
* Input: {takes}.
* Data: {source}
* Protocol: {outcome.steps} of {settings["steps"]} steps ({outcome.stopped}), weights of step {outcome.best_step};
  {facts["seconds"] / 3600:.1f} hours on {facts["device"]}; seed {settings["seed"]}; HyperSharp {__version__}.
* Mean rise of PSNR on the validation pairs over {over}:
  {gain}. Figures on scenes and sensors that had no part in training: docs/models.md.
* Date: {time.strftime("%Y-%m-%d", time.gmtime())}. Licence: as HyperSharp, GPL-2.0-or-later; the training data's own
  terms are named in docs/models.md.
"""
