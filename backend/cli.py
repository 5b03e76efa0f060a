# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: the same engine as QGIS, with exit codes and one-line errors for scripts."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Any, NoReturn

from . import errors, protocol
from .control import Control
from .errors import ErrorCode, HyperSharpError
from .job import (
    COMPRESSIONS,
    DEFAULT_METHOD,
    DEFAULT_TRAIN_SEED,
    DEFAULT_TRAIN_STEPS,
    DTYPES,
    FORMS,
    SUBSPACE,
    TRAINABLE,
    AssessJob,
    CompareJob,
    FuseJob,
    ImportJob,
    Job,
    SimulateJob,
    TrainJob,
    parse_options,
)
from .registry import METHODS, PRESETS, why_unavailable
from .threads import wait_politely


class _Parser(argparse.ArgumentParser):
    """argparse with this tool's error lines."""

    def error(self, message: str) -> NoReturn:
        raise HyperSharpError(message, f"see {self.prog} --help", ErrorCode.USAGE)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every command."""
    parser = _Parser(
        prog="hypersharp", description="Fuse a hyperspectral raster with a finer one, and say how good it is."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    fuse = commands.add_parser("fuse", help="fuse an HS raster with a PAN or MSI raster")
    fuse.add_argument("hs", metavar="HS", help="hyperspectral raster")
    fuse.add_argument("guide", metavar="GUIDE", help="finer panchromatic or multispectral raster")
    fuse.add_argument("-o", "--output", required=True, metavar="OUT.tif", help="fused GeoTIFF to write")
    fuse.add_argument("--method", default=DEFAULT_METHOD, help=f"method id (default {DEFAULT_METHOD})")
    fuse.add_argument("--weights", metavar="NAME|FOLDER", help="weights of a learned method")
    fuse.add_argument(
        "--adapt", type=int, default=0, metavar="STEPS", help="tune a learned method on the pair"
    )
    fuse.add_argument(
        "--extent", type=float, nargs=4, metavar=("XMIN", "YMIN", "XMAX", "YMAX"), help="area to fuse"
    )
    fuse.add_argument("--extent-crs", metavar="CRS", help="CRS of the extent (default: the guide's)")
    fuse.add_argument(
        "--preset",
        choices=PRESETS,
        help="speed against quality, where a method has it (default: the method's own)",
    )
    fuse.add_argument("--dtype", choices=DTYPES, default="same", help="pixel type of the output")
    fuse.add_argument(
        "--tile", type=int, metavar="N", help="side of a tile in pixels (default: from --memory)"
    )
    fuse.add_argument("--compress", choices=COMPRESSIONS, default="deflate", help="compression of the output")
    fuse.add_argument("--overviews", action="store_true", help="build overviews")
    fuse.add_argument("--no-assess", action="store_true", help="do not compute quality indices")
    _common(fuse)

    assess = commands.add_parser("assess", help="score a fused raster, made by any program")
    assess.add_argument("fused", metavar="FUSED")
    assess.add_argument("--hs", required=True, help="the HS raster that it was made from")
    assess.add_argument("--guide", required=True, help="the PAN or MSI raster that it was made from")
    assess.add_argument("--reference", metavar="REF", help="the true fine HS raster")
    assess.add_argument("--method", help="its method, where the file does not say")
    _common(assess)

    compare = commands.add_parser("compare", help="run several methods and rank them")
    compare.add_argument("hs", metavar="HS", nargs="?", default="", help="hyperspectral raster")
    compare.add_argument(
        "guide", metavar="GUIDE", nargs="?", default="", help="finer panchromatic or multispectral raster"
    )
    compare.add_argument(
        "--cubes", metavar="FOLDER", help="instead of HS and GUIDE: simulate a pair from every cube in it"
    )
    compare.add_argument("--methods", default="all", metavar="A,B,C|all", help="method ids (default all)")
    compare.add_argument("-o", "--output", required=True, metavar="FOLDER", help="where the results go")
    compare.add_argument("--ratio", type=int, default=4, metavar="R", help="of simulated pairs (default 4)")
    compare.add_argument(
        "--guide", dest="simulated_guide", default="pan", metavar="pan|4|SRF.csv", help="of simulated pairs"
    )
    compare.add_argument("--snr", type=float, metavar="DB", help="noise of simulated HS images")
    compare.add_argument(
        "--extent", type=float, nargs=4, metavar=("XMIN", "YMIN", "XMAX", "YMAX"), help="area to compare on"
    )
    compare.add_argument("--extent-crs", metavar="CRS", help="CRS of the extent (default: the guide's)")
    compare.add_argument("--dtype", choices=DTYPES, default="same", help="pixel type of the outputs")
    compare.add_argument("--no-report", action="store_true", help="write the tables only")
    compare.add_argument(
        "--weights", action="append", default=[], metavar="METHOD=FOLDER", help="weights of a learned method"
    )
    _common(compare, files=False, option="METHOD.NAME=VALUE")

    simulate = commands.add_parser("simulate", help="make a pair with a known truth (Wald's protocol)")
    simulate.add_argument("reference", metavar="REFERENCE", help="hyperspectral cube that becomes the truth")
    simulate.add_argument("--ratio", type=int, default=4, metavar="R")
    simulate.add_argument("--guide", default="pan", metavar="pan|4|SRF.csv")
    simulate.add_argument("--snr", type=float, metavar="DB", help="noise of the HS image")
    simulate.add_argument("--mtf", type=float, default=0.3, help="MTF gain at Nyquist (default 0.3)")
    simulate.add_argument("--seed", type=int, default=0)
    simulate.add_argument("-o", "--output", required=True, metavar="FOLDER")
    simulate.add_argument("--progress", choices=("bar", "json", "none"), default="none")

    product = commands.add_parser("import", help="make rasters of a product of PRISMA (.he5) or EMIT (.nc)")
    product.add_argument(
        "product", metavar="PRODUCT", help="its file, PRS_L2D_....he5 or EMIT_L2A_RFL_....nc"
    )
    product.add_argument(
        "-o", "--output", required=True, metavar="FOLDER", help="where hs.tif and pan.tif go"
    )
    product.add_argument("--progress", choices=("bar", "json", "none"), default=None)

    train = commands.add_parser("train", help="train a learned method on cubes or on a pair")
    train.add_argument("hs", metavar="HS", nargs="?", help="hyperspectral raster")
    train.add_argument("guide", metavar="GUIDE", nargs="?", help="finer panchromatic or multispectral raster")
    train.add_argument("--cubes", metavar="FOLDER", help="instead of a pair: train on the cubes in it")
    train.add_argument(
        "--photographs",
        metavar="FOLDER",
        help="aerial photographs that lend their structure to half of the scenes drawn from --cubes",
    )
    train.add_argument("--method", required=True, help=f"one of {', '.join(TRAINABLE)}")
    train.add_argument(
        "--form",
        choices=FORMS,
        default=SUBSPACE,
        help="subspace: weights for any sensor (default); full-band: the paper's own form, for this pair's sensors",
    )
    train.add_argument("-o", "--output", required=True, metavar="WEIGHTS", help="weights folder to write")
    train.add_argument(
        "--steps",
        type=int,
        default=DEFAULT_TRAIN_STEPS,
        metavar="N",
        help=f"training steps (default {DEFAULT_TRAIN_STEPS})",
    )
    train.add_argument("--batch", type=int, default=1, metavar="N", help="scenes per step (default 1)")
    train.add_argument("--resume", action="store_true", help="continue an interrupted run")
    train.add_argument("--weights", metavar="NAME|FOLDER", help="weights to start from")
    train.add_argument(
        "--leave-out", action="append", default=[], metavar="NAME", help="cubes not to use (name beginning)"
    )
    train.add_argument(
        "--validate-on", action="append", default=[], metavar="NAME", help="cubes for early stopping only"
    )
    train.add_argument("--validate-every", type=int, default=100, metavar="N", help="steps (default 100)")
    train.add_argument(
        "--patience",
        type=int,
        default=8,
        metavar="N",
        help="validations without gain before it ends; 0: never",
    )
    train.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    train.add_argument("--seed", type=int, default=DEFAULT_TRAIN_SEED)
    train.add_argument("--mtf-hs", type=float, default=0.3, help="HS sensor's MTF gain (a pair; default 0.3)")
    train.add_argument("--mtf-guide", type=float, default=0.2, help="guide's MTF gain (a pair; default 0.2)")
    _coregistration(train)
    train.add_argument("--progress", choices=("bar", "json", "none"), default=None)

    for name, text in (("methods", "list the methods"), ("doctor", "show versions, GPU and kernels")):
        sub = commands.add_parser(name, help=text)
        sub.add_argument("--json", action="store_true", help="as JSON")
    commands.add_parser("worker", help="used by QGIS: jobs on stdin, messages on stdout")
    return parser


def _coregistration(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-coregister",
        dest="coregister",
        action="store_false",
        help="believe both georeferences: do not look whether the HS image lies elsewhere",
    )


def _common(parser: argparse.ArgumentParser, files: bool = True, option: str = "NAME=VALUE") -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--memory", type=float, default=2.0, metavar="GB", help="memory bound (default 2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--mtf-hs", type=float, default=0.3, help="HS sensor's MTF gain at Nyquist (default 0.3)"
    )
    parser.add_argument(
        "--mtf-guide", type=float, default=0.2, help="guide's MTF gain at Nyquist (default 0.2)"
    )
    _coregistration(parser)
    parser.add_argument("--option", action="append", default=[], metavar=option, help="method's own option")
    if files:
        parser.add_argument("--report", metavar="R.html", help="write the quality report")
        parser.add_argument("--metrics", metavar="M.json", help="write the indices, and beside them M.csv")
        parser.add_argument(
            "--maps", metavar="FOLDER", help="write maps of the errors (SAM, RMSE, D_rho) as GeoTIFFs"
        )
    parser.add_argument("--progress", choices=("bar", "json", "none"), default=None)


def job_of(args: argparse.Namespace) -> Job:
    """Return the job that the arguments ask for."""
    if args.command == "simulate":
        return SimulateJob(args.reference, args.output, args.ratio, args.guide, args.snr, args.mtf, args.seed)
    if args.command == "import":
        return ImportJob(args.product, *(os.path.join(args.output, name) for name in ("hs.tif", "pan.tif")))
    if args.command == "train":
        return _train_job(args)
    shared: dict[str, Any] = {
        "device": args.device,
        "memory_gb": args.memory,
        "seed": args.seed,
        "mtf_hs": args.mtf_hs,
        "mtf_guide": args.mtf_guide,
        "coregister": args.coregister,
    }
    if args.command == "compare":
        return _compare_job(args, shared)
    shared |= {
        "parameters": parse_options(args.option),
        "report": args.report,
        "metrics": args.metrics,
        "maps": args.maps,
    }
    if args.command == "assess":
        return AssessJob(
            args.fused, args.hs, args.guide, reference=args.reference, method=args.method, **shared
        )
    if args.preset:
        shared["parameters"]["preset"] = args.preset
    return FuseJob(
        args.hs,
        args.guide,
        args.output,
        method=args.method,
        weights=args.weights,
        adapt_steps=args.adapt,
        extent=tuple(args.extent) if args.extent else None,
        extent_crs=args.extent_crs,
        dtype=args.dtype,
        tile=args.tile,
        compress=args.compress,
        overviews=args.overviews,
        assess=not args.no_assess,
        **shared,
    )


def _train_job(args: argparse.Namespace) -> TrainJob:
    return TrainJob(
        args.output,
        args.method,
        hs=args.hs,
        guide=args.guide,
        cubes=args.cubes,
        photographs=args.photographs,
        steps=args.steps,
        batch=args.batch,
        resume=args.resume,
        weights=args.weights,
        leave_out=args.leave_out,
        validate_on=args.validate_on,
        validate_every=args.validate_every,
        patience=args.patience,
        device=args.device,
        seed=args.seed,
        mtf_hs=args.mtf_hs,
        mtf_guide=args.mtf_guide,
        coregister=args.coregister,
        form=args.form,
    )


def _compare_job(args: argparse.Namespace, shared: dict[str, Any]) -> CompareJob:
    parameters: dict[str, dict[str, Any]] = {}
    for name, value in parse_options(args.option).items():
        method, dot, option = name.partition(".")
        if not dot:
            raise HyperSharpError(
                f"{name!r} names no method", "write --option method.name=value", ErrorCode.USAGE
            )
        parameters.setdefault(method, {})[option] = value
    return CompareJob(
        args.hs,
        args.guide,
        args.output,
        methods=args.methods.split(","),
        cubes=args.cubes,
        ratio=args.ratio,
        simulated_guide=args.simulated_guide,
        snr_db=args.snr,
        extent=tuple(args.extent) if args.extent else None,
        extent_crs=args.extent_crs,
        dtype=args.dtype,
        parameters=parameters,
        weights={name: str(value) for name, value in parse_options(args.weights).items()},
        report=not args.no_report,
        **shared,
    )


class _Show:
    """Shows messages as a bar on stderr, as JSON lines on stdout, or not at all."""

    def __init__(self, how: str | None) -> None:
        self.how = how or ("bar" if sys.stderr.isatty() else "none")
        self._bar: Any = None

    def __call__(self, message: Any) -> None:
        if self.how == "json":
            print(protocol.encode(message), flush=True)
        elif isinstance(message, protocol.Log) and message.level == "warning":
            self._write(f"warning: {message.text}")
        elif self.how == "bar" and isinstance(message, protocol.Progress):
            self._advance(message)

    def _advance(self, message: protocol.Progress) -> None:
        if self._bar is None:
            from tqdm import tqdm

            form = "{desc:<12}{percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
            self._bar = tqdm(total=1.0, bar_format=form, file=sys.stderr, leave=False)
        self._bar.set_description_str(message.stage, refresh=False)
        self._bar.n = message.fraction
        self._bar.refresh()

    def _write(self, text: str) -> None:
        if self._bar is not None:
            self._bar.clear()
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()


class _Interrupt:
    """Turns the first Ctrl-C into a clean cancel; the second one ends the program."""

    def __init__(self) -> None:
        self.wanted = False

    def __enter__(self) -> _Interrupt:
        try:
            self._before = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: the caller has its own way to stop
            self._before = {}
        return self

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.wanted:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.wanted = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def run(args: argparse.Namespace) -> int:
    """Run a parsed command; return the exit code."""
    wait_politely()
    if args.command == "worker":
        from .worker import main as worker_main

        return worker_main()
    if args.command == "methods":
        return list_methods(args.json)
    if args.command == "doctor":
        from .doctor import show

        return show(args.json)
    from .run import run_job

    job, show_message = job_of(args), _Show(args.progress)
    with _Interrupt() as interrupt:
        control = Control(show_message, lambda: interrupt.wanted)
        try:
            result = run_job(job, control)
        finally:
            show_message.close()
    if show_message.how == "json":
        print(protocol.encode(result), flush=True)
        return _exit_code(result)
    if isinstance(job, TrainJob):
        print(training_text(result.metrics["training"]["outcome"]))
    elif isinstance(job, CompareJob):
        from .comparison_table import terminal_text

        print(terminal_text(result.metrics))
    elif result.metrics.get("reduced_resolution") or result.metrics.get("full_resolution"):
        from .report import summary_table

        print(summary_table(result.metrics))
    for path in result.outputs.values():
        print(path)
    return _exit_code(result)


def training_text(outcome: dict[str, Any]) -> str:
    """Return one line on what a training run came to (`training.trainer.TrainOutcome` as JSON)."""
    how = {"early": ", then nothing more was gained", "cancelled": ", cancelled: --resume goes on"}
    gain = outcome["gain_db"]
    worth = "not validated" if gain is None else f"{gain:+.2f} dB over lmmse where not trained on"
    return f"{outcome['steps']} steps{how.get(outcome['stopped'], '')}; weights of step {outcome['best_step']}: {worth}"


def _exit_code(result: protocol.Result) -> int:
    """Return the exit code of a job that has a result: a training that was cancelled has one too."""
    outcome = result.metrics.get("training", {}).get("outcome", {})
    return errors.EXIT_CANCELLED if outcome.get("stopped") == "cancelled" else errors.EXIT_DONE


def list_methods(as_json: bool) -> int:
    """Print the methods: ids, titles, kinds, guides, and whether each can run here."""
    rows = [
        {
            "id": m.id,
            "title": m.title,
            "kind": m.kind,
            "guides": list(m.guide_kinds),
            "needs": list(m.needs),
            "needs_weights": m.needs_weights,
            "summary": m.summary,
            "citation": m.citation,
            "options": [
                {
                    "name": o.name,
                    "help": o.help,
                    "default": o.default,
                    "values": list(o.choices) or {"least": o.least, "most": o.most},
                }
                for o in m.options
            ],
            "available": why_unavailable(m) is None,
            "reason": why_unavailable(m),
        }
        for m in METHODS.values()
    ]
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return errors.EXIT_DONE
    width = max(len(str(r["id"])) for r in rows)
    for row in rows:
        state = "" if row["available"] else f"  [not available: {row['reason']}]"
        print(f"{row['id']:<{width}}  {row['title']} ({row['kind']}){state}")
        print(f"{'':<{width}}  {row['summary']}")
        for option in METHODS[str(row["id"])].options:
            possible = "|".join(option.choices) or f"{option.least}-{option.most}"
            print(
                f"{'':<{width}}  --option {option.name}={possible} (default {option.default}): {option.help}"
            )
    return errors.EXIT_DONE


def _ran_out_of_memory(error: Exception) -> bool:
    """Say whether torch raised it for want of memory; without torch nothing of the kind can be raised."""
    if "torch" not in sys.modules:
        return False
    from .device import is_out_of_memory

    return is_out_of_memory(error)


def _tell(error: HyperSharpError) -> int:
    """Print an error's two lines; return its exit code."""
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
    return error.exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code (0 done, 2 bad input, 3 cancelled, 4 out of memory, 1 a bug)."""
    try:
        return run(build_parser().parse_args(argv))
    except HyperSharpError as error:
        return _tell(error)
    except BrokenPipeError:
        return errors.EXIT_DONE
    except MemoryError:
        print("error: memory ran out\nhint: lower --memory or fuse a smaller extent", file=sys.stderr)
        return errors.EXIT_OUT_OF_MEMORY
    except Exception as error:
        told = errors.package_error(error) if isinstance(error, ImportError) else None
        if told is not None:
            return _tell(told)
        if _ran_out_of_memory(error):
            print("error: memory ran out\nhint: lower --memory, or use --device cpu", file=sys.stderr)
            return errors.EXIT_OUT_OF_MEMORY
        traceback.print_exc()
        print("error: this is a bug in HyperSharp\nhint: report it with the lines above", file=sys.stderr)
        return errors.EXIT_BUG
