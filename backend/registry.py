# SPDX-License-Identifier: GPL-2.0-or-later
"""The fusion methods by id: what they are, what they need, and where their code stands.

Adding a method is one entry here and one file in `methods/` (docs/contributing.md).

Contract module: standard library only, Python 3.9 syntax. QGIS and the backend both import it.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

from .errors import ErrorCode, HyperSharpError

PRESETS = ("quick", "standard", "fine")
"""Words for speed against quality, for the methods that have an option `preset`."""
KINDS = ("interpolation", "component substitution", "multiresolution analysis", "subspace", "learned")


@dataclass(frozen=True)
class MethodOption:
    """An option of a method that people are asked for; a method's other options are for those who read its code.

    Attributes:
        name: as in `FuseJob.parameters`.
        title: name as shown to people.
        help: one sentence: what it does.
        default: the method's own.
        choices: the words that it may be; empty for an integer.
        least, most: range of an integer.
        network_times: how many times longer the network takes (`MethodInfo.network_seconds`), choice by choice; for
            an integer, for every three of it begun.
    """

    name: str
    title: str
    help: str
    default: Any
    choices: tuple[str, ...] = ()
    least: int = 0
    most: int = 0
    network_times: tuple[float, ...] = ()


@dataclass(frozen=True)
class MethodInfo:
    """What a person or a program needs to know of a method before running it.

    Attributes:
        id: stable lower-case id.
        title: name as shown to people.
        kind: one of `KINDS`.
        summary: one sentence: what it does and when to choose it.
        citation: the paper.
        implementation: "module:Class" below `backend/methods`.
        guide_kinds: "pan" and/or "msi".
        needs: importable packages beyond the backend's own.
        needs_weights: a learned method with weights.
        relative_cost: time per output value relative to `gsa`, for estimates.
        network_seconds: what a network takes beyond that for each megapixel of the result, whatever its bands, on
            two CPU cores (.ci/learned_bench.py).
        network_reach: coarse pixels around a tile on which its planes are made, and those on which it runs, at
            usual ratios.
        adapt_seconds: a step of adaptation on two CPU cores.
        options: what people may choose.
    """

    id: str
    title: str
    kind: str
    summary: str
    citation: str
    implementation: str
    guide_kinds: tuple[str, ...] = ("pan", "msi")
    needs: tuple[str, ...] = ()
    needs_weights: bool = False
    relative_cost: float = 1.0
    network_seconds: float = 0.0
    network_reach: tuple[int, int] = (0, 0)
    adapt_seconds: float = 0.0
    options: tuple[MethodOption, ...] = ()


METHODS: dict[str, MethodInfo] = {
    m.id: m
    for m in (
        MethodInfo(
            "bicubic",
            "Bicubic interpolation",
            "interpolation",
            "Only interpolates the HS image; the control that every other method must beat.",
            "Keys, IEEE TASSP 29(6), 1981",
            "bicubic:Bicubic",
            relative_cost=0.8,
        ),
        MethodInfo(
            "brovey",
            "Weighted Brovey",
            "component substitution",
            "Scales every band by guide over intensity; fast, keeps the spectral angle where bands follow the guide.",
            "Gillespie et al., Remote Sens. Environ. 22(3), 1987; Vivone et al., IEEE TGRS 53(5), 2015",
            "brovey:Brovey",
        ),
        MethodInfo(
            "pca",
            "PCA (principal component substitution)",
            "component substitution",
            "Replaces the principal component that follows the guide best; simple, prone to spectral distortion.",
            "Chavez, Sides and Anderson, PE&RS 57(3), 1991",
            "pca:PCA",
        ),
        MethodInfo(
            "gs",
            "GS (Gram-Schmidt)",
            "component substitution",
            "Replaces the mean of the HS bands that the guide overlaps; the classic of image processing packages.",
            "Laben and Brower, US patent 6011875, 2000",
            "gs:GS",
        ),
        MethodInfo(
            "gsa",
            "GSA (adaptive Gram-Schmidt)",
            "component substitution",
            "Injects what the guide has beyond the intensity that the HS bands explain; sharp and robust.",
            "Aiazzi, Baronti and Selva, IEEE TGRS 45(10), 2007",
            "gsa:GSA",
        ),
        MethodInfo(
            "bt-h",
            "BT-H (Brovey transform with haze correction)",
            "component substitution",
            "Brovey's modulation above each band's path radiance; for images without atmospheric correction.",
            "Lolli, Alparone, Garzelli and Vivone, IEEE GRSL 14(12), 2017",
            "bt_h:BtH",
            relative_cost=1.8,
        ),
        MethodInfo(
            "bdsd-pc",
            "BDSD-PC (band-dependent spatial detail, physical constraints)",
            "component substitution",
            "Gives each band an intensity of its own, fitted one scale down with non-negative coefficients.",
            "Vivone, IEEE TGRS 57(9), 2019; Garzelli, Nencini and Capobianco, IEEE TGRS 46(1), 2008",
            "bdsd_pc:BdsdPc",
            relative_cost=1.7,
        ),
        MethodInfo(
            "sfim",
            "SFIM (smoothing filter-based intensity modulation)",
            "multiresolution analysis",
            "Modulates the HS bands by guide over smoothed guide; keeps spectra, tolerates other sensors.",
            "Liu, Int. J. Remote Sens. 21(18), 2000",
            "sfim:SFIM",
        ),
        MethodInfo(
            "mtf-glp",
            "MTF-GLP (Laplacian pyramid matched to the MTF)",
            "multiresolution analysis",
            "Adds the guide's detail beyond the HS sensor's MTF, by each band's regression on the guide.",
            "Aiazzi, Alparone, Baronti, Garzelli and Selva, PE&RS 72(5), 2006",
            "mtf_glp:MtfGlp",
        ),
        MethodInfo(
            "mtf-glp-hpm",
            "MTF-GLP-HPM (high-pass modulation)",
            "multiresolution analysis",
            "Modulates the HS bands by the guide's detail beyond the HS sensor's MTF.",
            "Aiazzi, Alparone, Baronti, Garzelli and Selva, PE&RS 72(5), 2006; Vivone et al., IEEE GRSL 11(5), 2014",
            "mtf_glp_hpm:MtfGlpHpm",
        ),
        MethodInfo(
            "mtf-glp-hpm-r",
            "MTF-GLP-HPM-R (regression-based high-pass modulation)",
            "multiresolution analysis",
            "High-pass modulation with the guide equalised by regression on the fine grid.",
            "Vivone, Restaino and Chanussot, IEEE TGRS 56(2), 2018",
            "mtf_glp_hpm_r:MtfGlpHpmR",
            relative_cost=1.6,
        ),
        MethodInfo(
            "mtf-glp-fs",
            "MTF-GLP-FS (full-scale injection gains)",
            "multiresolution analysis",
            "MTF-GLP with gains estimated on the fine grid itself.",
            "Vivone, Restaino and Chanussot, IEEE TIP 27(7), 2018",
            "mtf_glp_fs:MtfGlpFs",
            relative_cost=1.3,
        ),
        MethodInfo(
            "awlp",
            "AWLP (additive wavelet luminance proportional)",
            "multiresolution analysis",
            "Adds the guide's wavelet planes in proportion to each band's share of the luminance.",
            "Otazu, Gonzalez-Audicana, Fors and Nunez, IEEE TGRS 43(10), 2005",
            "awlp:Awlp",
        ),
        MethodInfo(
            "glp-hs",
            "GLP-HS (hypersharpening, additive)",
            "multiresolution analysis",
            "Makes each HS band a guide of its own, fitted on detail, and adds that guide's detail; best with MSI.",
            "Selva et al., IEEE JSTARS 8(6), 2015; Yokoya et al., IEEE GRSM 5(2), 2017",
            "glp_hs:GlpHs",
            relative_cost=1.2,
        ),
        MethodInfo(
            "sfim-hs",
            "SFIM-HS (hypersharpening, multiplicative)",
            "multiresolution analysis",
            "Makes each HS band a guide of its own, fitted on detail, and modulates the band by it; best with MSI.",
            "Selva et al., IEEE JSTARS 8(6), 2015; Yokoya et al., IEEE GRSM 5(2), 2017",
            "sfim_hs:SfimHs",
            relative_cost=1.5,
        ),
        MethodInfo(
            "lmmse",
            "LMMSE (subspace detail estimate, this project's own)",
            "subspace",
            "Estimates the missing detail in the image's own denoised subspace by local statistics; best all-round.",
            "this project; after Hardie, Eismann and Wilson, IEEE TIP 13(9), 2004",
            "lmmse:LMMSE",
            relative_cost=1.5,
        ),
        MethodInfo(
            "sylvester",
            "FUSE (Sylvester equation)",
            "subspace",
            "Exact Gaussian posterior mean in the subspace, in closed form; needs no response function.",
            "Wei, Dobigeon and Tourneret, IEEE TIP 24(11), 2015",
            "sylvester:Sylvester",
            relative_cost=1.3,
        ),
        MethodInfo(
            "bayes",
            "Bayesian (naive Gaussian)",
            "subspace",
            "Maximum a posteriori from the joint Gaussian statistics of image and guide, pixels independent.",
            "Hardie, Eismann and Wilson, IEEE TIP 13(9), 2004",
            "bayes:Bayes",
            relative_cost=1.3,
        ),
        MethodInfo(
            "hysure",
            "HySure (vector total variation)",
            "subspace",
            "Convex fusion whose edges fall together in all bands; quiet results, slower.",
            "Simoes, Bioucas-Dias, Almeida and Chanussot, IEEE TGRS 53(6), 2015",
            "hysure:HySure",
            relative_cost=12.0,
        ),
        MethodInfo(
            "cnmf",
            "CNMF (coupled unmixing)",
            "subspace",
            "Unmixes both images with the same endmembers; non-negative, good at brightness, slower.",
            "Yokoya, Yairi and Iwasaki, IEEE TGRS 50(2), 2012",
            "cnmf:CNMF",
            relative_cost=22.0,
        ),
        MethodInfo(
            "s3rnet",
            "S3RNet (multi-branch network)",
            "learned",
            "Regresses your own scene on learned features, then a network corrects: better than lmmse, slower.",
            "Lee et al., IGARSS 2025, arXiv 2501.07953",
            "learned:S3RNet",
            needs_weights=True,
            relative_cost=2.5,
            network_seconds=110.0,
            network_reach=(24, 16),
            adapt_seconds=0.3,
        ),
        MethodInfo(
            "csakd",
            "CSAKD (distilled student network)",
            "learned",
            "As s3rnet, with a small network that a larger one taught: quicker and no worse.",
            "Hsu et al., arXiv 2406.19666",
            "learned:CSAKD",
            needs_weights=True,
            relative_cost=2.5,
            network_seconds=105.0,
            network_reach=(24, 16),
            adapt_seconds=0.15,
        ),
        MethodInfo(
            "csakd-teacher",
            "CSAKD's teacher network",
            "learned",
            "The network that taught csakd; it is S3RNet's, with the same weights.",
            "Hsu et al., arXiv 2406.19666",
            "learned:CSAKDTeacher",
            needs_weights=True,
            relative_cost=2.5,
            network_seconds=110.0,
            network_reach=(24, 16),
            adapt_seconds=0.3,
        ),
        MethodInfo(
            "hyfusion",
            "HyFusion (shifted-window attention)",
            "learned",
            "As s3rnet, with two coupled streams of window attention; slow on a CPU.",
            "Lee et al., IGARSS 2025, arXiv 2501.04665",
            "learned:HyFusionMethod",
            needs_weights=True,
            relative_cost=2.5,
            network_seconds=127.0,
            network_reach=(40, 32),
            adapt_seconds=0.5,
        ),
        MethodInfo(
            "mpsrnet-diff",
            "MPSRNet-Diff (diffusion prior, mutual-guided Mamba network)",
            "learned",
            "As s3rnet, with a prior image drawn by diffusion and a Mamba network; slow.",
            "Wu et al., IEEE JSTARS 19, 2026, doi 10.1109/JSTARS.2026.3655787",
            "mpsrnet_diff:MPSRNetDiff",
            needs=("diffusers",),
            needs_weights=True,
            relative_cost=2.5,
            network_seconds=170.0,
            network_reach=(62, 20),
            adapt_seconds=1.0,
            options=(
                MethodOption(
                    "preset",
                    "Quality of the prior",
                    "Steps of the diffusion: quick takes 10, standard 20, fine 50; more take longer.",
                    "quick",
                    choices=PRESETS,
                    network_times=(1.0, 1.3, 2.3),
                ),
                MethodOption(
                    "prior_rank",
                    "Rank of the prior",
                    "Bands that the diffusion draws and all others follow; every three take as long again.",
                    3,
                    least=1,
                    most=12,
                    network_times=(1.0, 1.3, 1.6, 1.9),
                ),
            ),
        ),
    )
}


def method_ids() -> list[str]:
    """Return every method id, in the order in which people should see them."""
    return list(METHODS)


def method_info(method: str) -> MethodInfo:
    """Return what is known of a method.

    Raises:
        HyperSharpError: code `unknown_method`, with the nearest ids in the hint.
    """
    info = METHODS.get(method)
    if info is None:
        near = difflib.get_close_matches(method, METHODS, n=1)
        did_you_mean = f"did you mean {near[0]}? " if near else ""
        raise HyperSharpError(
            f"unknown method {method!r}",
            f"{did_you_mean}the methods are {', '.join(METHODS)}",
            ErrorCode.UNKNOWN_METHOD,
        )
    return info


def check_options(method: str, values: Mapping[str, Any]) -> None:
    """Refuse what is no value of an option that a method has; names that are not listed here are the method's to judge.

    Raises:
        HyperSharpError: code `usage`, with what is possible in the hint.
    """
    info = method_info(method)
    for option in info.options:
        value = values.get(option.name, option.default)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if option.choices and value not in option.choices:
            possible = f"use {', '.join(option.choices)}"
        elif not option.choices and not (whole and option.least <= value <= option.most):
            possible = f"use a whole number from {option.least} to {option.most}"
        else:
            continue
        raise HyperSharpError(f"{option.name} of {method} cannot be {value!r}", possible, ErrorCode.USAGE)
    if "preset" in values and not any(option.name == "preset" for option in info.options):
        having = [m.id for m in METHODS.values() if any(o.name == "preset" for o in m.options)]
        raise HyperSharpError(
            f"{method} has no presets", f"leave the preset out, or use {', '.join(having)}", ErrorCode.USAGE
        )


def network_times(info: MethodInfo, values: Mapping[str, Any]) -> float:
    """Return how many times longer than with its defaults a method's network takes with these options."""
    times = 1.0
    for option in info.options:
        value = values.get(option.name, option.default)
        if option.choices and value in option.choices:
            place = option.choices.index(value)
        else:
            place = (value - 1) // 3 if isinstance(value, int) else 0
        if 0 <= place < len(option.network_times):
            times *= option.network_times[place]
    return times


def why_unavailable(info: MethodInfo) -> Optional[str]:
    """Return why a method cannot run in this interpreter, or None when it can."""
    missing = [name for name in info.needs if importlib.util.find_spec(name) is None]
    return f"needs {', '.join(missing)}" if missing else None


def load_method(method: str) -> Any:
    """Return the class of a method (backend only: imports torch).

    Raises:
        HyperSharpError: unknown method, or a package that it needs is missing.
    """
    info = method_info(method)
    reason = why_unavailable(info)
    if reason:
        raise HyperSharpError(
            f"{method} {reason}", "install it into the backend's environment", ErrorCode.NO_ENVIRONMENT
        )
    module, _, name = info.implementation.partition(":")
    return getattr(importlib.import_module(f".methods.{module}", __package__), name)
