"""End a command with one sentence instead of a traceback if its user gave a wrong value or stopped it."""

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from nucsam_monai.utils.errors import NucSAMError

logger = logging.getLogger(__name__)

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
    """Install hook and signals in processes of ``python -m monai.bundle``; other programs keep theirs."""
    if not is_bundle_run() or sys.excepthook is _print_sentence:
        return
    _stopping.process = os.getpid()
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) != signal.SIG_IGN:  # as of commands in the background of a script
            signal.signal(number, _stopping)
    if os.environ.get(TRACEBACK_VARIABLE) == "1":
        return
    sys.excepthook = _print_sentence
    for handler in (*logging.getLogger().handlers, logging.lastResort):
        if handler is not None:
            handler.addFilter(_is_news)


class _Stopping:
    """Handle the signals that ask a process to stop: its engines end their runs, and its exit code names the signal.

    Attributes:
        process: the one that receives the signal.
        protected: blocks under :func:`unstopped` that are being executed.
        waiting: the signal that waits for their end.
    """

    process = 0
    protected = 0
    waiting: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Stop now, or at the end of a protected block."""
        if os.getpid() != self.process:  # of a worker, whose parent decides
            signal.default_int_handler(number, frame)
        signal.signal(number, signal.SIG_DFL)  # a second signal ends the process at once
        self.waiting = number
        self.stop_if_asked()

    def stop_if_asked(self) -> None:
        """Raise ``SystemExit`` for the signal, unless a block is protected."""
        if self.protected or self.waiting is None:
            return
        number, self.waiting = self.waiting, None
        logger.warning("stopped by %s.", signal.Signals(number).name)
        raise SystemExit(128 + number)


_stopping = _Stopping()


@contextmanager
def unstopped() -> Iterator[None]:
    """Delay a signal that stops the process until the block has ended, for example until a file is written."""
    _stopping.protected += 1
    try:
        yield
    finally:
        _stopping.protected -= 1
    _stopping.stop_if_asked()


def _print_sentence(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    own = own_error(error)
    if own is None:
        sys.__excepthook__(kind, error, traceback)
        return
    sys.stdout.flush()
    sys.stderr.write(f"{own}\n")
    if own.exit_code != 1:
        sys.exit(own.exit_code)


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether a log record says more than our own error message or the end of the process."""
    if record.getMessage().startswith("Engine run resuming from iteration 0"):
        return False  # Ignite says so of MONAI's engines at every start
    if record.levelno < logging.ERROR or record.name.startswith("nucsam_monai"):
        return True
    # Ignite logs inside of its except block, without the exception in the record.
    error = record.exc_info[1] if record.exc_info else sys.exc_info()[1]
    return own_error(error) is None and not isinstance(error, SystemExit)
