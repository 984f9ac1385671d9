"""Run an experiment: one command from its file to its report.

Each step runs once, several at a time, and only what is missing.
"""

import logging
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from experiments.description import Experiment, read_experiment
from experiments.preflight import check, draw_demo
from experiments.steps import (
    DONE_FILE,
    Evaluation,
    Grid,
    Places,
    Step,
    Tracking,
    Training,
    expand,
    folder_of,
    is_done,
    prepare,
    weights_of,
)
from experiments.tables import Results
from experiments.tracking import ExperimentTracking
from nucsam_monai.io import write_json
from nucsam_monai.utils.errors import ConfigurationError, NucSAMError
from nucsam_monai.utils.files import known_sha256_of_file
from nucsam_monai.utils.paths import project_root

if TYPE_CHECKING:
    from experiments.report import Report

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
    # A measurement of costs imports this package in the bundle's process.
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    with log.open("a", encoding="utf-8") as file:
        file.write(f"\n$ {shlex.join(arguments)}\n")
        file.flush()
        done = subprocess.run(  # noqa: S603
            list(arguments),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
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
    import joblib  # type: ignore[import-untyped]  # of the extra ``train``, which the help needs not

    missing = [step for step in steps if not is_done(step, places)]
    parallel = joblib.Parallel(n_jobs=jobs, prefer="threads", return_as="generator_unordered", batch_size=1)
    yield from parallel(joblib.delayed(run_step)(step, places, tracking, run) for step in missing)


def _mark_done(step: Step, places: Places, arguments: Sequence[str], seconds: float) -> None:
    """Write what is known of a finished step; its file says that the folder is complete."""
    from nucsam_monai.handlers.run_facts import git_facts

    folder = folder_of(step, places)
    facts = {"step": str(step), "command": shlex.join(arguments), "seconds": round(seconds, 1)}
    if isinstance(step, Training):
        weights = {name: known_sha256_of_file(path) for name, path in weights_of(step, places).items()}
        if not weights:
            raise ConfigurationError(f"{folder}: the training ended without weights, see {folder / LOG_FILE}")
        facts["weights_sha256"] = weights
    write_json(folder / DONE_FILE, facts | git_facts(project_root()))


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


def run_experiment(
    experiment: Experiment,
    places: Places,
    *,
    jobs: int = 1,
    command: str = "",
    run: CommandRunner = run_command,
) -> "Report":
    """Train what is missing, evaluate every pair, measure what is requested, and write the report.

    Finished steps are taken from ``places.output_dir``, whichever experiment made them. Stopped at any point, the
    next call continues: a training after its last epoch, an evaluation from its beginning.

    Args:
        experiment: what is to be done.
        places: the folders.
        jobs: steps at a time.
        command: how it was started, for the report.
        run: runs a command.

    Raises:
        ConfigurationError: something is missing before the start, or steps failed; the report of the others is
            written all the same.
    """
    from experiments.report import Report, write_report  # its figures take a second to load

    draw_demo(experiment, places)
    grid = expand(experiment)
    check(experiment, grid, places)
    folder = places.output_dir / experiment.full_name
    folder.mkdir(parents=True, exist_ok=True)
    tracker = ExperimentTracking(experiment, places, folder)
    tracking = tracker.open()
    status = "KILLED"
    report = Report(folder / "report", Results(), complete=False)
    try:
        failures = run_grid(grid, places, tracker=tracker, tracking=tracking, jobs=jobs, run=run)
        report = write_report(experiment, grid, places, folder / "report", command)
        for pair in grid.evaluations:  # those that another experiment made, or whose process was killed
            if is_done(pair, places):
                _finish(pair, places, tracker)
        for slide in grid.slides:
            if is_done(slide, places):
                tracker.log_slide(slide)
        for pair in best_pairs(experiment, grid, report.results):
            tracker.register(pair)
        status = "FAILED" if failures else "FINISHED"
    finally:
        tracker.close(status, report.results, report.folder)
    logger.info("report: %s", report.folder / "results.md")
    if failures:
        lines = "\n".join(f"- {failure}" for failure in failures)
        raise ConfigurationError(f"{len(failures)} steps are not done; start again to repeat them:\n{lines}")
    return report


def run_grid(
    grid: Grid,
    places: Places,
    *,
    tracker: ExperimentTracking | None = None,
    tracking: Tracking | None = None,
    jobs: int = 1,
    run: CommandRunner = run_command,
) -> list[str]:
    """Run the steps that are not done, in their order, with a bar over all of them.

    Args:
        grid: the steps.
        places: the folders.
        tracker: records what is finished.
        tracking: how trainings are tracked.
        jobs: steps at a time.
        run: runs a command.

    Returns:
        What failed and why, one text for each step.
    """
    failures: list[str] = []
    steps = list(_steps(grid))
    with (
        logging_redirect_tqdm(),
        tqdm(total=len(steps), desc="experiment", unit="step", disable=None) as bar,
    ):
        number = 0
        phases: tuple[tuple[Step, ...], ...] = (
            grid.pretrainings,
            grid.trainings,
            (*grid.evaluations, *grid.measurements, *grid.slides),
        )
        for phase in phases:
            ready, waiting = _divide(phase, places)
            failures += [f"{step}: its training is not done" for step in waiting]
            number += sum(is_done(step, places) for step in ready) + len(waiting)
            bar.update(number - bar.n)
            for outcome in run_steps(ready, places, tracking=tracking, jobs=jobs, run=run):
                number += 1
                bar.update()
                bar.set_postfix_str(str(outcome.step))
                logger.info(
                    "[%d/%d] %s: %s", number, len(steps), grid.describe(outcome.step), _ending(outcome)
                )
                if outcome.error is not None:
                    failures.append(f"{outcome.step}: {outcome.error}")
                elif isinstance(outcome.step, Evaluation):
                    _finish(outcome.step, places, tracker)
            for step in phase:
                if isinstance(step, Training) and tracker is not None and is_done(step, places):
                    tracker.finish_training(step)
    return failures


def best_pairs(experiment: Experiment, grid: Grid, results: Results) -> list[Evaluation]:
    """Return, for every bundle that was trained, the first pair of its best method by the first metric."""
    metric = experiment.metrics[0]
    best: dict[str, tuple[float, Evaluation]] = {}
    for pair in grid.evaluations:
        values = [results.value(pair.method.name, dataset.name, metric) for dataset in experiment.datasets]
        known = [value for value in values if value == value]
        if pair.training is None or not known:
            continue
        mean = sum(known) / len(known)
        if pair.bundle not in best or mean > best[pair.bundle][0]:
            best[pair.bundle] = (mean, pair)
    return [pair for _, pair in best.values()]


def plan(experiment: Experiment, places: Places) -> str:
    """Return the steps of an experiment and which are done, after checking that nothing is missing.

    Raises:
        ConfigurationError: something is missing.
    """
    draw_demo(experiment, places)
    grid = expand(experiment)
    check(experiment, grid, places)
    lines = [
        f"{'done' if is_done(step, places) else 'to do':<6} {grid.describe(step)}" for step in _steps(grid)
    ]
    return "\n".join([f"{experiment.full_name}: {experiment.title}", *lines])


def main(
    file: str,
    form: str = "small",
    data_dir: str = "data",
    weights_dir: str = "weights",
    output_dir: str = "output/experiments",
    store: str | None = None,
    datasets: str | Sequence[str] | None = None,
    train_datasets: str | Sequence[str] | None = None,
    jobs: int = 1,
    only_plan: bool = False,
    **unknown: object,
) -> str:
    """Run or continue an experiment, and write its report.

    Args:
        file: YAML or JSON file, see docs/experiments.md.
        form: ``small``, ``paper``, or another form of the file.
        data_dir: folder of the dataset folders.
        weights_dir: folder of pretrained weights.
        output_dir: folder of trainings, evaluations and reports; experiments share it.
        store: MLflow tracking URI; ``off`` disables tracking. Default: the project's ``mlflow.db``.
        datasets: dataset folders to use instead of those of the form, separated by commas.
        train_datasets: dataset folders that a zero-shot experiment trains on, separated by commas.
        jobs: number of steps that run at the same time.
        only_plan: check, list the steps and stop.
        unknown: other options are an error.

    Raises:
        ConfigurationError: an option is unknown, something is missing, or steps failed.
    """
    if unknown:
        raise ConfigurationError(f"unknown option --{next(iter(unknown))}; see --help.")
    from nucsam_monai.handlers import resolve_tracking_uri, tracking_uri

    experiment = read_experiment(file, form, _names(datasets), _names(train_datasets))
    places = Places(
        data_dir=_absolute(data_dir),
        weights_dir=_absolute(weights_dir),
        output_dir=_absolute(output_dir),
        tracking_uri=resolve_tracking_uri(tracking_uri() if store is None else store),
    )
    if only_plan:
        return plan(experiment, places)
    options = {"form": form, "datasets": datasets, "train_datasets": train_datasets}
    given = [f"--{key} {_text(value)}" for key, value in options.items() if value is not None]
    command = " ".join(["nucsam experiment", shlex.quote(str(file)), *given])
    return str(run_experiment(experiment, places, jobs=jobs, command=command).folder / "results.md")


def _finish(pair: Evaluation, places: Places, tracker: ExperimentTracking | None) -> None:
    """Add to a finished pair what its command did not make, and record it; nothing is done twice."""
    from experiments.report import write_confusion

    write_confusion(pair, places)
    if tracker is not None:
        tracker.log_pair(pair)


def _divide(phase: Iterable[Step], places: Places) -> tuple[list[Step], list[Step]]:
    """Return the steps whose trainings are done, and the others."""
    ready: list[Step] = []
    waiting: list[Step] = []
    for step in phase:
        if isinstance(step, Training):
            needed = step.pretraining
        else:
            needed = (step if isinstance(step, Evaluation) else step.evaluation).training
        (ready if needed is None or is_done(needed, places) else waiting).append(step)
    return ready, waiting


def _steps(grid: Grid) -> tuple[Step, ...]:
    return (*grid.pretrainings, *grid.trainings, *grid.evaluations, *grid.measurements, *grid.slides)


def _ending(outcome: Outcome) -> str:
    return f"done in {outcome.seconds:.0f} s" if outcome.error is None else f"FAILED, {outcome.error}"


def _absolute(folder: str) -> Path:
    return (project_root() / Path(str(folder)).expanduser()).absolute()


def _names(value: str | Sequence[str] | None) -> list[str]:
    if value is None:
        return []
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else [str(x) for x in value]


def _text(value: str | Sequence[str]) -> str:
    return shlex.quote(",".join(_names(value)))
