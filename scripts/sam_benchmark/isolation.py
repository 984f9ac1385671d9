"""Run a measurement in a process of its own, so that neither its memory nor its end touches the others."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

# Without them every process would spend seconds on imports.
_PRELOADED = [
    "torch._dynamo",
    "torch.utils.flop_counter",
    "nucsam_monai.inferers",
    "nucsam_monai.networks.sam",
]


class NoResultError(Exception):
    """A measurement gave no result: it took too long, was killed, or raised."""


def run_isolated(function: Callable[..., Any], *arguments: Any, timeout_seconds: float) -> Any:
    """Return ``function(*arguments)``, computed in a new process.

    The processes are forked from a server that has imported everything but never computed anything: the start is
    quick, and no threads or caches are inherited.

    Raises:
        NoResultError: with the reason in words.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_result, args=(sender, function, arguments), daemon=False)
    process.start()
    sender.close()
    try:
        if not receiver.poll(timeout_seconds):
            raise NoResultError(f"not finished in {timeout_seconds:.0f} s")
        succeeded, result = receiver.recv()
        process.join(timeout=10)  # a failed one prints where it failed
    except EOFError:
        process.join()
        raise NoResultError(f"the process ended with exit code {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
    if not succeeded:
        raise NoResultError(f"failed: {result}")
    return result


def _send_result(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        answer = (True, function(*arguments))
    except Exception as error:
        sender.send((False, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"))
        raise
    sender.send(answer)
