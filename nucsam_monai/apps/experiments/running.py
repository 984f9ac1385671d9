"""Running the steps of an experiment: each once, several at a time, and only what is missing."""

import json
import logging
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import joblib  # type: ignore[import-untyped]

from nucsam_monai.apps.experiments.grid import Training
from nucsam_monai.apps.experiments.places import Places, file_digest
from nucsam_monai.apps.experiments.steps import (
    DONE_FILE,
    Step,
    Tracking,
    folder_of,
    is_done,
    prepare,
    weights_of,
)
from nucsam_monai.handlers.run_facts import git_facts
from nucsam_monai.io import write_json
from nucsam_monai.utils.errors import ConfigurationError, NucSAMError
from nucsam_monai.utils.paths import project_root

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

LOG_FILE = "log.txt"
LOCK_FILE = ".lock"

CommandRunner = Callable[[Sequence[str], Path, int | None], int]
"""Runs a command, appends what it prints to a file, keeps a lock's file descriptor open, returns the exit code."""


@dataclass(frozen=True)
class Outcome:
    """How a step ended.

    Attributes:
        step: the step.
        error: why it failed; None where it is done.
        seconds: how long it took.
    """

    step: Step
    error: str | None
    seconds: float


def run_command(arguments: Sequence[str], log: Path, lock: int | None) -> int:
    """Run a command in the project's folder.

    The lock's descriptor stays open in the process, so that the lock holds as long as the process lives, even if
    this one is killed.
    """
    with log.open("a", encoding="utf-8") as file:
        file.write(f"\n$ {shlex.join(arguments)}\n")
        file.flush()
        done = subprocess.run(  # noqa: S603
            list(arguments),
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=project_root(),
            pass_fds=() if lock is None else (lock,),
            check=False,
        )
    return done.returncode


def run_step(
    step: Step, places: Places, tracking: Tracking | None = None, run: CommandRunner = run_command
) -> Outcome:
    """Run one step and mark its folder as done.

    Args:
        step: what is to be done.
        places: the folders.
        tracking: how trainings are tracked.
        run: runs the command.
    """
    start = time.monotonic()
    error = None
    try:
        folder = folder_of(step, places)
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder) as lock:
            arguments = prepare(step, places, tracking)
            code = run(arguments, folder / LOG_FILE, lock)
            if code == 0:
                _mark_done(step, places, arguments, time.monotonic() - start)
            else:
                error = f"exit code {code}, see {folder / LOG_FILE}"
    except (NucSAMError, OSError) as failure:
        error = str(failure)
    return Outcome(step, error, time.monotonic() - start)


def run_steps(
    steps: Sequence[Step],
    places: Places,
    *,
    tracking: Tracking | None = None,
    jobs: int = 1,
    run: CommandRunner = run_command,
) -> Iterator[Outcome]:
    """Run steps that do not need each other and yield how each ended, in the order in which they end.

    Each step is a process of its own. They run on this machine, or where ``joblib.parallel_config`` says: with
    Dask's backend on several machines that share the folders.

    Args:
        steps: those that are done are passed over.
        places: the folders.
        tracking: how trainings are tracked.
        jobs: how many run at a time.
        run: runs a command.
    """
    missing = [step for step in steps if not is_done(step, places)]
    parallel = joblib.Parallel(n_jobs=jobs, prefer="threads", return_as="generator_unordered", batch_size=1)
    yield from parallel(joblib.delayed(run_step)(step, places, tracking, run) for step in missing)


def _mark_done(step: Step, places: Places, arguments: Sequence[str], seconds: float) -> None:
    """Write what is known of a finished step; its file says that the folder is complete."""
    folder = folder_of(step, places)
    facts = {"step": str(step), "command": shlex.join(arguments), "seconds": round(seconds, 1)}
    if isinstance(step, Training):
        weights = {name: file_digest(path) for name, path in weights_of(step, places).items()}
        if not weights:
            raise ConfigurationError(f"{folder}: the training ended without weights, see {folder / LOG_FILE}")
        facts["weights_sha256"] = weights
    write_json(folder / DONE_FILE, facts | git_facts(project_root()))


def read_done(step: Step, places: Places) -> dict[str, object]:
    """Return what :func:`run_step` noted of a finished step."""
    return dict(json.loads((folder_of(step, places) / DONE_FILE).read_text(encoding="utf-8")))


@contextmanager
def _locked(folder: Path) -> Iterator[int | None]:
    """Keep other processes out of a step's folder.

    Raises:
        ConfigurationError: another process is in it.
    """
    if fcntl is None:
        yield None
        return
    with (folder / LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigurationError(
                f"{folder}: another process is at work in it. Wait for it, or end it, and start again."
            ) from error
        yield file.fileno()
