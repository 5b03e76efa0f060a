# SPDX-License-Identifier: GPL-2.0-or-later
"""Do the indices rank right? On simulated scenes the truth is known: ask every index to rank the methods.

    python .ci/ranking_table.py [--data FOLDER] [--print]

Writes the section "Do the indices rank right?" of docs/metrics.md (between its two markers). Values are kept in the
user's cache folder (HYPERSHARP_CACHE), so that only methods whose code has changed are run again; from nothing it
takes about a quarter of an hour on one core. The data are those of ../shared/data or HYPERSHARP_DATA; cubes that
are not there are left out and the section says how many were used.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from hypersharp.backend import ranking
from hypersharp.backend.metrics import FULL_REFERENCE, NO_REFERENCE
from hypersharp.backend.ranking import error_of
from ranking_scenes import (
    ASSUMED_MTF,
    CASES,
    CONSISTENT,
    FINDING,
    INTERPOLATED,
    SHOWING,
    TRUTH,
    candidates,
    read_cube,
    values_of,
)

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "metrics.md"
BEGIN, END = "<!-- ranking: begin (made by .ci/ranking_table.py) -->", "<!-- ranking: end -->"
TRUE_PARTS = ("PSNR", "SAM", "Q2n")
LEAST = 1e-6
TOLD_APART = math.log(1.02)
"""Two images whose true errors differ by less than 2 % have no order that an index could get wrong."""
GROUPS = {
    "PAN": lambda case: case.guide == "pan" and _plain(case),
    "MSI": lambda case: case.guide != "pan" and _plain(case),
    "noise": lambda case: case.snr_db is not None,
    "shift": lambda case: case.shift > 0,
    "MTF": lambda case: case.mtf != ASSUMED_MTF,
}

Values = Mapping[str, Mapping[str, Any]]
Judge = Callable[[str, Values], "float | None"]
"""Returns an index of a candidate as an error (smaller is better), None where it has none."""


class Trial:
    """One scene with the values of all candidates."""

    def __init__(self, cube: str, case: Any, values: Values) -> None:
        self.cube, self.case, self.values = cube, case, values
        self.true = {name: _true_error(own) for name, own in values.items()}


def _plain(case: Any) -> bool:
    return case.snr_db is None and not case.shift and case.mtf == ASSUMED_MTF


def _log_error(key: str, value: Any) -> float:
    error = error_of(key, value)
    return math.log(LEAST if error is None else max(error, LEAST))


def _true_error(values: Mapping[str, Any]) -> float:
    """Return the ln of the true error: the geometric mean of PSNR's amplitude, SAM and 1 - Q2n against the truth."""
    return fmean(_log_error(key, values["true"][key]) for key in TRUE_PARTS)


def tau(true: Mapping[str, float], judged: Mapping[str, float | None]) -> float | None:
    """Return Kendall's tau over the pairs whose true errors can be told apart; equal judgements count as neither."""
    names = [n for n in true if judged.get(n) is not None]
    total = agreeing = 0
    for i, one in enumerate(names):
        for two in names[:i]:
            difference = true[one] - true[two]
            if abs(difference) < TOLD_APART:
                continue
            said = judged[one] - judged[two]
            total += 1
            agreeing += (said * difference > 0) - (said * difference < 0)
    return agreeing / total if total else None


def evaluate(trials: list[Trial], judge: Judge) -> dict[str, Any]:
    """Return how well a judge ranks: means over the trials."""
    rows = []
    for trial in trials:
        real = [n for n in trial.values if n not in CONSISTENT]
        judged = {n: judge(n, trial.values) for n in trial.values}
        own = [n for n in real if n != TRUTH and judged[n] is not None]
        value = tau({n: trial.true[n] for n in own}, judged)
        if value is None:
            continue
        first = min(own, key=lambda n: judged[n])
        row = {
            "case": trial.case,
            "tau": value,
            "loss": math.exp(trial.true[first] - min(trial.true[n] for n in own)) - 1,
            "hard": tau(
                {n: trial.true[n] for n in (*own, *CONSISTENT)},
                {n: judged.get(n) for n in (*own, *CONSISTENT)},
            ),
        }
        if judged.get(TRUTH) is not None:
            row["tau_truth"] = tau({n: trial.true[n] for n in real}, judged)
            row["truth_first"] = all(judged[TRUTH] < judged[n] for n in own)
            row["control_above"] = judged[INTERPOLATED] <= judged[TRUTH]
        rows.append(row)
    taus = sorted(r["tau"] for r in rows)
    result: dict[str, Any] = {
        "n": len(rows),
        "tau": fmean(taus),
        "worst": taus[len(taus) // 10],
        "loss": fmean(r["loss"] for r in rows),
        "hard": fmean(r["hard"] for r in rows),
    }
    for key in ("tau_truth", "truth_first", "control_above"):
        found = [float(r[key]) for r in rows if r.get(key) is not None]
        result[key] = fmean(found) if found else None
    for group, holds in GROUPS.items():
        found = [r["tau"] for r in rows if holds(r["case"])]
        result[group] = fmean(found) if found else None
    return result


def single(part: str, key: str) -> Judge:
    """Return the judge of one index."""

    def judge(name: str, values: Values) -> float | None:
        section = values[name].get(part)
        # The truth has perfect indices of some kinds (PSNR infinite): a missing value there is a perfect one.
        if section is None or (section.get(key) is None and name != TRUTH):
            return None
        return _log_error(key, section.get(key))

    return judge


def as_metrics(name: str, values: Values) -> dict[str, Any]:
    """Return a candidate's values in the form of metrics.json."""
    own, control = values[name], values[INTERPOLATED]
    sections = {"full_resolution": "full", "reduced_resolution": "reduced"}
    return {long: {"fused": own.get(s), "interpolated": control.get(s)} for long, s in sections.items()}


def combined(parts: Mapping[tuple[str, str], tuple[float, float]]) -> Judge:
    """Return the judge of a weighted mean of logarithms; parts: (section, index) -> (weight, floor)."""

    def judge(name: str, values: Values) -> float | None:
        total = 0.0
        for (part, key), (weight, floor) in parts.items():
            section = values[name].get(part)
            if section is None:
                return None
            total += weight * max(_log_error(key, section.get(key)), math.log(floor))
        return total

    return judge


def chosen(basis: str) -> Judge:
    """Return the judge that `compare` uses."""
    sections = {"full_resolution": "full", "reduced_resolution": "reduced"}
    return combined({(sections[p.section], p.key): (p.weight, p.floor) for p in ranking.BASES[basis]})


def collect(data: Path) -> list[Trial]:
    """Return every trial; cubes that are not there are left out with a word."""
    names, trials = candidates(), []
    for cube_name in (*FINDING, *SHOWING):
        kept: dict[str, Any] = {}

        def cube(cube_name: str = cube_name, kept: dict[str, Any] = kept) -> Any:
            if not kept:
                kept["cube"] = read_cube(cube_name, data)
            return kept["cube"]

        if not cube_name.startswith("sample-") and not any(
            (data / f / f"{cube_name}.tif").is_file() for f in ("cubes", "pairs")
        ):
            print(f"{cube_name}: not in {data}, left out", file=sys.stderr)
            continue
        for case in CASES:
            trials.append(Trial(cube_name, case, values_of(cube_name, case, cube, names)))
            print(f"{cube_name}: {case.name}", file=sys.stderr)
    return trials


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}".replace("-", "−")


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def index_table(trials: list[Trial]) -> list[str]:
    """Return the table of every published index, best first within its kind."""
    lines = [
        "| index | tau | worst tenth | PAN | MSI | noise | shift | MTF | loss | tau with the truth | truth first "
        "| interpolation above the truth |",
        "| --- |" + " ---: |" * 11,
    ]
    for part, title, keys in (("full", "", NO_REFERENCE), ("reduced", "Wald ", FULL_REFERENCE)):
        rows = [(f"{title}{key}", evaluate(trials, single(part, key))) for key in keys]
        for name, r in sorted(rows, key=lambda row: -row[1]["tau"]):
            lines.append(_index_line(name, r))
    return lines


def _index_line(name: str, r: Mapping[str, Any]) -> str:
    cells = [
        name,
        _number(r["tau"]),
        _number(r["worst"]),
        *(_number(r[g]) for g in GROUPS),
        _percent(r["loss"]),
        _number(r["tau_truth"]),
        _percent(r["truth_first"]),
        _percent(r["control_above"]),
    ]
    return "| " + " | ".join(cells) + " |"


def combinations() -> dict[str, Judge]:
    """Return the combinations that were tried, by name."""
    psnr, sam, q2n = (("reduced", key) for key in TRUE_PARTS)
    khan, rho, regression, rqnr = (("full", key) for key in ("D_lambda_K", "D_rho", "D_s_R", "RQNR"))
    tried: dict[str, dict[tuple[str, str], tuple[float, float]]] = {
        "Wald PSNR": {psnr: (1, LEAST)},
        "Wald PSNR, SAM, Q2n": {psnr: (1, LEAST), sam: (1, LEAST), q2n: (1, LEAST)},
        "Wald SAM, Q2n + D_λ,K + D_ρ": {sam: (1, LEAST), q2n: (1, LEAST), khan: (1, LEAST), rho: (1, LEAST)},
    }
    equal = tried["Wald PSNR, SAM, Q2n"]
    for floor, said in ((LEAST, ""), (0.005, ", not below 0.005"), (0.01, ", not below 0.01")):
        tried[f"Wald PSNR, SAM, Q2n + D_λ,K{said}"] = {**equal, khan: (1, floor)}
        tried[f"Wald 2 PSNR, SAM, Q2n + 0.5 D_λ,K{said}"] = {**equal, psnr: (2, LEAST), khan: (0.5, floor)}
    best = {**equal, psnr: (2, LEAST), khan: (0.5, 0.01)}
    tried["Wald 2 PSNR, SAM, Q2n + 0.5 D_λ,K, not below 0.01, + 0.3 D_ρ"] = {**best, rho: (0.3, LEAST)}
    for floor, said in ((LEAST, ""), (0.002, ", not below 0.002")):
        tried[f"D_λ,K{said}"] = {khan: (1, floor)}
        tried[f"D_λ,K{said}, + 0.25 D_ρ"] = {khan: (1, floor), rho: (0.25, LEAST)}
        tried[f"D_λ,K{said}, + 0.25 D_s,R"] = {khan: (1, floor), regression: (0.25, 0.001)}
        tried[f"D_λ,K{said}, + 0.5 RQNR"] = {khan: (1, floor), rqnr: (0.5, 0.001)}
    found = {name: combined(parts) for name, parts in tried.items()}
    found["**used by `compare`**"] = chosen(ranking.REDUCED)
    found["**used without the protocol**"] = chosen(ranking.FULL)
    return found


def combination_table(trials: list[Trial]) -> list[str]:
    """Return the table of combinations on the two halves."""
    halves = {
        "found on": [t for t in trials if t.cube in FINDING],
        "shown on": [t for t in trials if t.cube in SHOWING],
    }
    lines = [
        "| combination | "
        + " | ".join(f"tau, {h} | worst tenth | loss" for h in halves)
        + " | tau with traps |",
        "| --- |" + " ---: |" * 7,
    ]
    for name, judge in combinations().items():
        results = [evaluate(own, judge) for own in halves.values()]
        cells = [c for r in results for c in (_number(r["tau"]), _number(r["worst"]), _percent(r["loss"]))]
        lines.append("| " + " | ".join([name, *cells, _number(evaluate(trials, judge)["hard"])]) + " |")
    return lines


def section(trials: list[Trial]) -> str:
    """Return the section as Markdown."""
    cubes = sorted({t.cube for t in trials})
    methods = [n for n in candidates() if not n.startswith("(")]
    shown = [t for t in trials if t.cube in SHOWING]
    used = evaluate(shown, chosen(ranking.REDUCED))
    weak = evaluate(shown, chosen(ranking.FULL))
    alone = evaluate(shown, single("reduced", "PSNR"))
    cases = "; ".join(c.name for c in CASES)
    return "\n".join(
        [
            BEGIN,
            "## Do the indices rank right?",
            "",
            f"`make ranking` simulates {len(trials)} pairs with a known truth from {len(cubes)} cubes (AVIRIS, ROSIS, "
            f"EnMAP, Hyperion and the sample scene), fuses each with {len(methods)} methods ({', '.join(methods)}) "
            "and asks every index to rank the results and plain interpolation. "
            f"The pairs: {cases}. In the noisy ones the guide has noise too (40 dB); where the MTF is named, the true "
            f"one differs from the assumed {ASSUMED_MTF:g}.",
            "",
            "The true order is by the geometric mean of three errors against the truth (PSNR as an amplitude, SAM, "
            "1 − Q2n). *tau* is Kendall's: 1 is the right order, 0 chance, −1 the reverse; pairs of images whose "
            "true errors differ by less than 2 % are not counted. *Worst tenth*: nine of ten scenes have at least "
            "this tau. *PAN, MSI, noise, shift, MTF*: tau on these scenes alone. *Loss*: how much larger the true "
            "errors of the index's first choice are than the best method's. *Truth first*: scenes in which the "
            "index puts the truth before all methods; the truth has no Wald indices, since no method made it.",
            "",
            *index_table(trials),
            "",
            "What this says: no published no-reference index can be trusted alone. D_λ is no better than chance and "
            "calls interpolation perfect; D_s, QNR, D_ρ and D_s,R are little better. Where HS image and guide do not "
            "lie on each other D_ρ and D_s,R reverse the order, because they reward what follows the guide wherever "
            "it lies; RQNR, the best of these on clean pairs, inherits that. D_λ,K is the best of them over all, and "
            "weak where the HS image is noisy (to be consistent with noise is no virtue) or the MTF is not the assumed "
            "one. Wald's indices rank well on clean and on noisy pairs, and less well on shifted ones, because at "
            "reduced resolution a shift is smaller by the ratio.",
            "",
            "The two kinds of fault do not coincide, so a combination does better. It was found on one half of the "
            "cubes and is shown on the other; places of one site stand in one half. A combination is the weighted "
            "mean of logarithms of errors (so it has no unit and no scale). *Tau with traps* adds two images "
            "that are made to be consistent with the HS image (interpolation and GSA after back-projection): an "
            "index that rewards nothing but consistency falls for them, hence the bound below which D_λ,K counts as "
            "equal.",
            "",
            *combination_table(trials),
            "",
            "`compare`, its recommendation and the report's verdict rest on Wald's PSNR (with double weight), SAM and "
            "Q2n and, with half the weight, on D_λ,K (equal below 0.01), relative to interpolation "
            "(`backend/ranking.py`). On the "
            f"cubes not used to find it: tau {_number(used['tau'])}, at least {_number(used['worst'])} on nine "
            f"scenes of ten, and a first choice with errors {_percent(used['loss'])} larger than the best method's; "
            f"Wald's PSNR, the best single index, has tau {_number(alone['tau'])}, {_number(alone['worst'])} and "
            f"{_percent(alone['loss'])} there. Without Wald's protocol (an image of an unknown method) only "
            f"full-resolution indices are left (D_λ,K and a quarter of D_s,R): tau {_number(weak['tau'])}, loss "
            f"{_percent(weak['loss'])}. With a true image the ranking is by PSNR, SAM and Q2n against it.",
            END,
        ]
    )


def main() -> None:
    """Collect, and write or print the section."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = os.environ.get("HYPERSHARP_DATA") or ROOT.parent / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(default))
    parser.add_argument("--print", action="store_true", help="print instead of writing docs/metrics.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    trials = collect(args.data)
    text = section(trials)
    if args.print:
        print(text)
        return
    page = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    if BEGIN in page and END in page:
        page = page[: page.index(BEGIN)] + text + page[page.index(END) + len(END) :]
    else:
        page = f"{page.rstrip()}\n\n{text}\n" if page.strip() else f"{text}\n"
    PAGE.write_text(page, encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
