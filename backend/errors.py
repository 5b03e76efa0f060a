# SPDX-License-Identifier: GPL-2.0-or-later
"""Errors that people see: a code for programs, one line that says what is wrong, one that says what to do.

Contract module: standard library only, Python 3.9 syntax. QGIS and the backend both import it.
"""

from __future__ import annotations

from enum import Enum
from typing import Optional

EXIT_DONE = 0
EXIT_BUG = 1
EXIT_BAD_INPUT = 2
EXIT_CANCELLED = 3
EXIT_OUT_OF_MEMORY = 4


class ErrorCode(str, Enum):
    """What went wrong, as a stable word that crosses the process boundary."""

    BAD_INPUT = "bad_input"
    USAGE = "usage"
    UNKNOWN_METHOD = "unknown_method"
    NO_OVERLAP = "no_overlap"
    OUTPUT = "output"
    DISK_FULL = "disk_full"
    NO_WEIGHTS = "no_weights"
    NO_CUDA = "no_cuda"
    NO_ENVIRONMENT = "no_environment"
    CANCELLED = "cancelled"
    OUT_OF_MEMORY = "oom"
    CRASHED = "crashed"
    INTERNAL = "internal"

    @property
    def exit_code(self) -> int:
        """The command line's exit code for this error."""
        if self is ErrorCode.CANCELLED:
            return EXIT_CANCELLED
        if self is ErrorCode.OUT_OF_MEMORY:
            return EXIT_OUT_OF_MEMORY
        if self in (ErrorCode.INTERNAL, ErrorCode.CRASHED):
            return EXIT_BUG
        return EXIT_BAD_INPUT


class HyperSharpError(Exception):
    """An error with a way out.

    Args:
        message: one line, what is wrong (lower case, no full stop).
        hint: one line, what to do about it.
        code: stable word for programs.
        retry: the same job may succeed when tried again (memory freed, disk cleared).
    """

    def __init__(
        self, message: str, hint: str = "", code: ErrorCode = ErrorCode.BAD_INPUT, retry: bool = False
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code
        self.retry = retry

    @property
    def exit_code(self) -> int:
        """The command line's exit code for this error."""
        return self.code.exit_code


class Cancelled(HyperSharpError):  # noqa: N818 - a state, as in concurrent.futures
    """The user stopped the job; nothing was written."""

    def __init__(self, message: str = "cancelled") -> None:
        super().__init__(message, "nothing was written", ErrorCode.CANCELLED, retry=True)


PIP_NAMES = {"pywt": "PyWavelets"}
"""What packages are called where they come from, where that is not how they are imported."""


def package_error(error: ImportError) -> Optional[HyperSharpError]:
    """Return what to tell of a package that the environment lacks or cannot load; None when it is our own fault."""
    package = (error.name or "").partition(".")[0]
    if package in ("", "hypersharp"):
        return None
    name = PIP_NAMES.get(package, package)
    gone = isinstance(error, ModuleNotFoundError)
    return HyperSharpError(
        f"the environment lacks {name}" if gone else f"the environment's {name} cannot be loaded: {error}",
        f"install it {'there' if gone else 'anew'}: pip install {name} (in a checkout, make env installs everything)",
        ErrorCode.NO_ENVIRONMENT,
    )
