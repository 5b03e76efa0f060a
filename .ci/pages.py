# SPDX-License-Identifier: GPL-2.0-or-later
"""Puts what a script has measured into a page, between two lines that mark the place."""

from __future__ import annotations

import sys
from pathlib import Path


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
