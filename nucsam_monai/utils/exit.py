"""End a command with one sentence where its user gave a wrong value, instead of MONAI's and Ignite's tracebacks."""

import logging
import os
import sys
from types import TracebackType

from nucsam_monai.utils.errors import NucSAMError

TRACEBACK_VARIABLE = "NUCSAM_TRACEBACK"
"""Name of the environment variable that shows the whole chain of errors when it is ``1``."""


def own_error(error: BaseException | None) -> NucSAMError | None:
    """Return the first error of this package among an exception and those that it was raised from, if any."""
    # Not the contexts: a fault that occurs while one of our errors is handled must not hide behind it.
    while error is not None and not isinstance(error, NucSAMError):
        error = error.__cause__
    return error


def is_bundle_run() -> bool:
    """Return whether this process is ``python -m monai.bundle``."""
    started = getattr(sys.modules.get("__main__"), "__spec__", None)
    return started is not None and started.name == "monai.bundle.__main__"


def shorten_errors_of_bundle_runs() -> None:
    """Install the hook in processes of ``python -m monai.bundle``; other programs keep their tracebacks."""
    if not is_bundle_run() or sys.excepthook is _print_sentence:
        return
    if os.environ.get(TRACEBACK_VARIABLE) == "1":
        return
    sys.excepthook = _print_sentence
    for handler in (*logging.getLogger().handlers, logging.lastResort):
        if handler is not None:
            handler.addFilter(_is_news)


def _print_sentence(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    own = own_error(error)
    if own is None:
        sys.__excepthook__(kind, error, traceback)
    else:
        sys.stdout.flush()
        sys.stderr.write(f"{own}\n")


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether a record says more than that one of our errors is on its way to :func:`_print_sentence`."""
    if record.levelno < logging.ERROR or record.name.startswith("nucsam_monai"):
        return True
    # Ignite logs inside of its except block, without the exception in the record.
    return own_error(record.exc_info[1] if record.exc_info else sys.exc_info()[1]) is None
