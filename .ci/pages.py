# SPDX-License-Identifier: GPL-2.0-or-later
"""Puts what a script has measured into a page, between two lines that mark the place."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def page_parser(doc: str, begin: str, end: str) -> argparse.ArgumentParser:
    """Return the parser of a script that measures: the first line of its docstring, and where the figures go."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--into", type=Path, help=f"page to renew between {begin} and {end}")
    return parser


def publish(into: Path | None, begin: str, end: str, text: str) -> None:
    """Print figures, and put them into a page where one is named; see `renew`."""
    if into:
        renew(into, begin, end, text)
    print(text)


def check_data(folder: Path) -> None:
    """Exit with 2 where the real cubes are not there."""
    if not (folder / "cubes").is_dir():
        print(
            f"error: there are no cubes in {folder}\n"
            "hint: put them into ../shared/data or name the folder in HYPERSHARP_DATA",
            file=sys.stderr,
        )
        sys.exit(2)


def renew(page: Path, begin: str, end: str, text: str) -> None:
    """Replace what stands between two marks; exit with 2 where the page lacks them.

    Args:
        page: a Markdown file.
        begin, end: the marks, each once in the page.
        text: with a line end.
    """
    content = page.read_text(encoding="utf-8")
    if begin not in content or end not in content:
        print(
            f"error: {page} has no {begin} and {end}\nhint: put both lines where the figures go",
            file=sys.stderr,
        )
        sys.exit(2)
    before, after = content.split(begin)[0], content.split(end)[1]
    page.write_text(f"{before}{begin}\n{text}{end}{after}", encoding="utf-8")
