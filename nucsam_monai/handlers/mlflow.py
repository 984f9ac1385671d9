"""Track a job as an MLflow run, and write an engine's epochs to it."""

import atexit
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, NoReturn

import torch
import torch.distributed
from ignite.engine import Engine, Events
from monai.engines import Trainer
from monai.handlers import MLFlowHandler
from monai.utils import get_seed

from nucsam_monai.engines.configuration import current_parser, executed_configuration, recorded_settings
from nucsam_monai.handlers.run_facts import (
    MAX_TEXT_LENGTH,
    command,
    dataset_facts,
    device_name,
    environment_facts,
    flatten_params,
    scalar_metrics,
    tracked_name,
    weights_facts,
)
from nucsam_monai.handlers.run_page import (
    best_overlay,
    described,
    description,
    picture,
    run_name,
    small_copy,
    where_to_look,
)
from nucsam_monai.handlers.tracking_store import connect, experiment_id, resolve_tracking_uri
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.paths import project_root

logger = logging.getLogger(__name__)

WORKFLOWS = ("train", "evaluate", "benchmark")
FINISHED, FAILED, KILLED = "FINISHED", "FAILED", "KILLED"
_BATCH = 100  # MLflow's limit of parameters or tags per request


def status_after(error: BaseException) -> str:
    """Return the status of a run that ended with ``error``: failed, or stopped from outside."""
    return FAILED if isinstance(error, Exception) else KILLED


class TrackedRun:
    """Track an MLflow run from its first use to its end; a resumed training continues its own run.

    Building the object touches nothing, so that a configuration that fails while it is parsed leaves no run
    behind. :meth:`open` makes the experiment and the run, with parameters and tags; :meth:`close` uploads the
    artifacts and ends it. Opened again after that, it is a new run: two evaluations are two runs.

    All methods do nothing where tracking is off, where MLflow is not installed (one warning), and on all but
    the first process of distributed training. Once the run is open, a failing store costs a warning and
    the values, never the training.

    It is also a context manager for Python drivers, and children name it as their parent.

    Args:
        experiment: name of the experiment, one per bundle, for example ``"nucsam/unsam"``.
        tracking_uri: MLflow store, see :func:`~nucsam_monai.handlers.resolve_tracking_uri`; ``None``,
            ``""`` or ``"off"`` for no tracking.
        workflow: ``"train"``, ``"evaluate"`` or ``"benchmark"``.
        tags: further tags, such as ``bundle``, ``bundle_version``, ``dataset``, ``split``, ``protocol``,
            ``seed``; a value of ``None`` is left out. They win over the tags that are found automatically:
            versions, git commit, and the seed of ``monai.utils.set_determinism``.
        params: settings to record; nested sections become ``section.key``. None records the settings of the
            configuration that builds this object, with everything that overrides it, and uploads that configuration
            as ``configuration.json``.
        weights: name to path of weights that the run starts from; their SHA-256 become tags.
        name: name of the run; by default that of :func:`~nucsam_monai.handlers.run_page.run_name`.
        parent_run_id: the run that this one is nested under.
        more_tags: tags besides ``tags``, for those who start the workflow.
        dataset_dir: the data, for the handlers of the run's engines; None takes that of the configuration.
        split_protocol: the named split in use, for them as well; None takes that of the configuration.

    Raises:
        ConfigurationError: the workflow or the tracking URI is not allowed.

    Example:
        >>> with TrackedRun("nucsam/unsam", "off", workflow="benchmark") as benchmark:
        ...     child = TrackedRun("nucsam/unsam", "off", workflow="evaluate", parent_run_id=benchmark.run_id)
    """

    def __init__(
        self,
        experiment: str,
        tracking_uri: str | Path | None,
        *,
        workflow: str = "train",
        tags: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        weights: Mapping[str, str | Path | None] | None = None,
        name: str | None = None,
        parent_run_id: str | None = None,
        more_tags: Mapping[str, Any] | None = None,
        dataset_dir: str | Path | None = None,
        split_protocol: str | Mapping[str, str] | None = None,
    ) -> None:
        if workflow not in WORKFLOWS:
            raise ConfigurationError(f"workflow '{workflow}': expected one of {', '.join(WORKFLOWS)}.")
        self.experiment = experiment
        self.uri = resolve_tracking_uri(tracking_uri)
        self.workflow = workflow
        given = {**(tags or {}), **(more_tags or {})}
        self.tags = {key: value for key, value in given.items() if value is not None}
        self.params = dict(params or {})
        self._parser = current_parser() if params is None else None
        own = self._own_settings("dataset_dir", "split_protocol", "bundle_root")
        self.dataset_dir = dataset_dir or own.get("dataset_dir")
        self.split_protocol = split_protocol or own.get("split_protocol")
        self._bundle_root = own.get("bundle_root")
        self.configurations = [f"{self._bundle_root}/configs"] if self._bundle_root else []
        self.weights = dict(weights or {})
        self.name = name
        self.parent_run_id = parent_run_id
        self.client: Any = None
        self.run_id: str | None = None
        self._experiment_id = ""
        self._is_open = False
        self._is_described = False
        self._has_owner = False
        self._artifacts: list[Path] = []
        self._interrupted: tuple[str, int, dict[str, Any]] | None = None
        self._last_steps: dict[str, int] = {}

    def _own_settings(self, *names: str) -> dict[str, Any]:
        """Return the values of those keys that the configuration has."""
        parser = self._parser
        return {name: parser.get_parsed_content(name) for name in names if name in parser} if parser else {}

    @property
    def bundle(self) -> str | None:
        """Name of the bundle whose configuration built this object, if it can segment."""
        folder = None if self._bundle_root is None else Path(self._bundle_root)
        return folder.name if folder and (folder / "configs" / "inference.json").is_file() else None

    @property
    def is_open(self) -> bool:
        """Whether a run is under way that can be written to."""
        return self._is_open

    @property
    def has_owner(self) -> bool:
        """Whether the end of the current or next run is claimed, see :meth:`claim`."""
        return self._has_owner

    def claim(self) -> None:
        """Declare that the caller closes the run, so that no other handler ends it earlier."""
        self._has_owner = True

    def take_up(self, run_id: str, epoch: int, changed: Mapping[str, Any]) -> None:
        """Continue the run of an interrupted training when this one is next opened.

        Args:
            run_id: id of the run; a new run is started if it is not in this store.
            epoch: the last one that was completed.
            changed: settings that change from here on; they are recorded as ``after_epoch_<epoch>.<setting>``.
        """
        self._interrupted = (run_id, epoch, dict(changed))

    def open(self) -> None:
        """Begin the run, or continue an interrupted one, unless it is open already.

        Raises:
            ConfigurationError: the store or the experiment can't be used, or weights are missing.
        """
        if self._is_open or self.uri is None or _is_secondary_process() or not _mlflow_is_installed():
            return
        from mlflow.exceptions import MlflowException

        tags = environment_facts(project_root()) | weights_facts(self.weights)
        tags |= {key: str(value) for key, value in self.tags.items()} | {"workflow": self.workflow}
        if self.parent_run_id:
            tags["mlflow.parentRunId"] = self.parent_run_id
        self.client = connect(self.uri)
        try:
            identifier = experiment_id(self.client, self.experiment, self.uri)
            continued = self._continued(identifier)
            run = continued or self.client.create_run(identifier, run_name=self.name or self._default_name())
            self._experiment_id = identifier
        except MlflowException as error:
            raise ConfigurationError(
                f"tracking_uri '{self.uri}': can't begin a run of '{self.experiment}': {error} "
                "Correct it, or pass --tracking_uri off to continue without tracking."
            ) from error
        self.run_id = run.info.run_id
        self._is_open = True
        self._is_described = False
        self._artifacts = []
        atexit.register(self._abandon)
        self.log_tags(tags)
        self._log_params(continued=continued is not None)
        self._interrupted = None
        logger.info("MLflow run '%s' of '%s' in %s", run.info.run_name, self.experiment, self.uri)

    def close(self, status: str = FINISHED) -> None:
        """Upload the artifacts that exist, describe the run, end it, and log where to look at it.

        Nothing is uploaded for a killed run: a process that is stopped has only seconds, and it may be resumed.

        Args:
            status: ``"FINISHED"``, ``"FAILED"`` or ``"KILLED"``.
        """
        if not self._is_open:
            return
        if status != KILLED:
            self.log_artifacts(self._artifacts)
            if not self._is_described:
                uploaded = [path.parent for path in self._artifacts if path.name == "overlays"]
                self.describe(command(), uploaded[0] if uploaded else None)
        self._end(status)
        if self.parent_run_id is None:
            logger.info("MLflow: %s", where_to_look(str(self.uri), self._experiment_id))

    def describe(self, command: str, folder: str | Path | None = None) -> None:
        """Write what MLflow shows on the run's page; :meth:`close` does it with this process's command.

        Args:
            command: command that was run.
            folder: folder of an evaluation, whose best overlay is shown.
        """
        if not self._is_open:
            return
        overlay = None if folder is None else best_overlay(Path(folder))
        with self._writing("description"), TemporaryDirectory() as temporary:
            shown = ""
            if overlay is not None:
                small = small_copy(overlay, Path(temporary))
                self.client.log_artifact(self.run_id, str(small))
                shown = picture(str(self.run_id), small.name)
            metrics = self.client.get_run(self.run_id).data.metrics
            self.log_tags(described(description(metrics, command, shown)))
        self._is_described = True

    def log_metrics(self, metrics: Mapping[str, Any], step: int = 0) -> None:
        """Record every scalar of ``metrics`` at ``step`` (an epoch, by convention of this package)."""
        scalars = {
            name: value
            for name, value in scalar_metrics(metrics).items()
            if step > self._last_steps.get(name, -1)
        }
        if not self._is_open or not scalars:
            return
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        points = [Metric(name, value, now_ms, step) for name, value in scalars.items()]
        with self._writing(f"metrics of step {step}"):
            self.client.log_batch(self.run_id, metrics=points)

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags, replacing those of the same name."""
        if not self._is_open:
            return
        from mlflow.entities import RunTag

        with self._writing("tags"):
            self.client.log_batch(
                self.run_id,
                tags=[RunTag(tracked_name(key), value[:MAX_TEXT_LENGTH]) for key, value in tags.items()],
            )

    def log_dataset(
        self,
        directory: str | Path,
        *,
        split: str,
        context: str,
        protocol: str | Mapping[str, str] | None = None,
    ) -> None:
        """Record one split of a dataset folder as an input of the run, identified by a SHA-256 digest.

        Args:
            directory: the dataset folder, see :func:`~nucsam_monai.handlers.run_facts.dataset_facts`.
            split: the part that is used, for example ``"training"``.
            context: use of the dataset: ``"training"``, ``"validation"`` or ``"evaluation"``.
            protocol: the named split in use, where it is not the one of ``dataset.json``.

        Raises:
            DatasetError: the folder is missing or its ``dataset.json`` is damaged.
        """
        if not self._is_open:
            return
        from mlflow.entities import Dataset, DatasetInput, InputTag

        facts = dataset_facts(directory, split, protocol)
        dataset = Dataset(
            name=facts.name,
            digest=facts.digest,
            source_type="local",
            source=json.dumps({"uri": facts.directory.as_uri()}),
            profile=json.dumps(
                {
                    "split": facts.split,
                    "protocol": facts.protocol,
                    "items": facts.items,
                    "sha256": facts.sha256,
                }
            ),
        )
        tags = [InputTag("mlflow.data.context", context), InputTag("split", split)]
        with self._writing(f"dataset {facts.name}"):
            self.client.log_inputs(self.run_id, datasets=[DatasetInput(dataset, tags)])

    def add_artifacts(self, paths: Sequence[str | Path]) -> None:
        """Add files and folders to upload when the run ends; those that don't exist then are skipped."""
        if self._is_open:
            self._artifacts += [path for path in map(Path, paths) if path not in self._artifacts]

    def log_artifacts(self, paths: Sequence[str | Path]) -> None:
        """Upload files, and folders under their own names, now; those that don't exist are skipped."""
        if not self._is_open:
            return
        for path in map(Path, paths):
            with self._writing(f"artifact {path}"):
                if path.is_dir():
                    self.client.log_artifacts(self.run_id, str(path), artifact_path=path.resolve().name)
                elif path.is_file():
                    self.client.log_artifact(self.run_id, str(path))

    def __enter__(self) -> "TrackedRun":
        self.claim()
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(FINISHED if error is None else status_after(error))

    def _default_name(self) -> str:
        tags = {"bundle": self.experiment.rsplit("/", maxsplit=1)[-1], **self.tags}
        trained = [path for name, path in self.weights.items() if path and name != "sam"]
        weights = trained[0] if trained and "split" in tags else None  # of an evaluation
        return run_name(tags, self.tags.get("seed", get_seed()), self._bundle_root, weights)

    def _continued(self, experiment: str) -> Any:
        """Return the interrupted run, running again, if this store has it."""
        from mlflow.exceptions import MlflowException

        if self._interrupted is None:
            return None
        run_id = self._interrupted[0]
        try:
            run = self.client.get_run(run_id)
            if (run.info.experiment_id, run.info.lifecycle_stage) != (experiment, "active"):
                raise MlflowException("it was deleted, or is of another experiment.")
            # An epoch that was validated when the training was interrupted is validated again.
            history = {name: self.client.get_metric_history(run_id, name) for name in run.data.metrics}
            self._last_steps = {name: max(point.step for point in points) for name, points in history.items()}
            self.client.update_run(run_id, status="RUNNING")
            if "error" in run.data.tags:
                self.client.delete_tag(run_id, "error")
        except MlflowException as error:
            logger.warning("MLflow run %s can't be continued, so a new one begins: %s", run_id, error)
            self._interrupted = None
            return None
        return run

    def _log_params(self, *, continued: bool) -> None:
        from mlflow.entities import Param

        if self._parser is not None:
            self.params = recorded_settings(self._parser)
        recorded, document = self.params, "configuration.json"
        if continued and self._interrupted is not None:  # a parameter can't be given another value
            _, epoch, changed = self._interrupted
            recorded = {
                f"after_epoch_{epoch}": {name.replace("#", "."): new for name, new in changed.items()}
            }
            document = f"configuration_after_epoch_{epoch}.json"
        params = [Param(key, value) for key, value in flatten_params(recorded).items()]
        for start in range(0, len(params), _BATCH):
            with self._writing("parameters"):
                self.client.log_batch(self.run_id, params=params[start : start + _BATCH])
        if self._parser is not None:
            with self._writing(document):
                executed = json.dumps(executed_configuration(self._parser), indent=2, default=str)
                self.client.log_text(self.run_id, executed, document)

    def _end(self, status: str) -> None:
        atexit.unregister(self._abandon)
        self._is_open = self._has_owner = False
        self._last_steps = {}
        with self._writing(f"status {status}"):
            self.client.set_terminated(self.run_id, status)

    def _abandon(self) -> None:
        """End a run that was not closed; the interpreter is exiting, so nothing more is uploaded."""
        if self._is_open:
            self._end(KILLED)

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        """Turn a failure of the store into a warning: losing a point must not lose days of training."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except (MlflowException, OSError) as error:
            logger.warning("MLflow run %s: %s not written: %s", self.run_id, what, error)


def _is_secondary_process() -> bool:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return distributed and torch.distributed.get_rank() > 0


_missing_reported = False


def _mlflow_is_installed() -> bool:
    global _missing_reported
    try:
        import mlflow  # noqa: F401
    except ImportError as error:
        if not _missing_reported:
            logger.warning(
                "No tracking: MLflow can't be imported (%s). Run: pip install 'nucsam-monai[train]'.", error
            )
            _missing_reported = True
        return False
    return True


_SPLIT_OF_CONTEXT = {"training": "training", "validation": "validation", "evaluation": "test"}


class MLflowTracker:
    """Write one engine's epochs to a :class:`TrackedRun` and end the run with the engine.

    At a trainer it records, with the epoch as the step, ``train_loss`` (mean over the iterations of the
    epoch, of this process), every part of the loss (see :func:`losses_of`), and ``lr_group_<i>``, the
    learning rate that the epoch began with. At every engine it records each scalar of
    ``engine.state.metrics``; a validator that ``ValidationHandler`` runs has the trainer's epoch as its own.

    **Who ends the run.** The engine with ``owner=True``, else the engine that began it: an evaluator alone
    ends its own run and a validator inside training doesn't. An exception in any tracked engine ends it as
    FAILED, an interrupt from the keyboard as KILLED.

    **Order of handlers.** Ignite calls the handlers of an exception in order and stops at the first that
    raises, as ``StatsHandler`` does. The tracker therefore moves to the front when the engine starts. It ends
    the run behind all other handlers, when savers have written their files. So its place in a list of
    handlers doesn't matter; it must not be attached to an engine that is already running.

    **MONAI's own** ``--tracking mlflow``. A stock ``MLFlowHandler`` of the same engine, store and experiment
    gets this run to write to, and the tracker leaves losses, learning rates and metrics to it; with another
    experiment each writes to its own.

    Args:
        run: the run, the same object for all engines of a job.
        owner: whether the end of this engine is the end of the run.
        artifacts: files and folders to upload when the run ends: executed configurations, ``metadata.json``,
            tables per image, overlays. What doesn't exist by then is skipped.
        dataset_dir: dataset folder that is recorded as an input of the run, or a folder of several.
        split: the part of it that the engine uses; by default ``training`` for a trainer, ``validation`` for
            a validator, ``test`` for an evaluator that runs alone.
        split_protocol: the named split in use, as in :func:`nucsam_monai.data.load_items`.

    Example:
        In a bundle configuration::

            {"_target_": "nucsam_monai.handlers.MLflowTracker", "run": "@tracked_run", "owner": true}
    """

    def __init__(
        self,
        run: TrackedRun,
        *,
        owner: bool = False,
        artifacts: Sequence[str | Path] = (),
        dataset_dir: str | Path | None = None,
        split: str | None = None,
        split_protocol: str | Mapping[str, str] | None = None,
    ) -> None:
        self.run = run
        self.owner = owner
        self.artifacts = list(artifacts)
        self.dataset_dir = dataset_dir
        self.split = split
        self.split_protocol = split_protocol
        self._ends_run = False
        self._points_are_stock = False
        self._recorded_run_id: str | None = None
        self._loss_sums: dict[str, torch.Tensor] = {}
        self._loss_counts: dict[str, int] = {}
        self._rates: dict[str, float] = {}
        self._core_seconds = (0.0, 0.0)  # at the start of the epoch, and after its last step

    def attach(self, engine: Engine) -> None:
        """Register the tracker at a trainer, validator or evaluator; nothing is written before it starts."""
        if self.owner:
            self.run.claim()
        _add_once(engine, Events.STARTED, self.start)
        _add_once(engine, Events.EXCEPTION_RAISED, self.fail)

    def start(self, engine: Engine) -> None:
        """Begin or join the run and record what is known before the first epoch."""
        self._ends_run = self.owner or not (self.run.is_open or self.run.has_owner)
        self._loss_sums, self._loss_counts = {}, {}
        self.run.open()
        if not self.run.is_open:
            return
        handed_over = [self._hand_over(stock) for stock in _stock_handlers(engine)]
        self._points_are_stock = any(handed_over)
        move_to_front(engine, Events.EXCEPTION_RAISED, self.fail)
        _add_once(engine, Events.EPOCH_COMPLETED, self.finish_epoch)
        _add_once(engine, Events.COMPLETED, self.finish)
        if isinstance(engine, Trainer):
            _add_once(engine, Events.EPOCH_STARTED, self.note_learning_rates)
            _add_once(engine, Events.ITERATION_COMPLETED, self.add_losses)
        if self._recorded_run_id != self.run.run_id:
            self._recorded_run_id = self.run.run_id
            self._record_facts(engine)

    def note_learning_rates(self, engine: Engine) -> None:
        """Note every parameter group's learning rate at the start of the epoch.

        They are recorded at its end: an interrupted epoch is repeated when the training is resumed.
        """
        self._core_seconds = (time.process_time(), time.process_time())
        optimizer = getattr(engine, "optimizer", None)
        if isinstance(optimizer, torch.optim.Optimizer):
            self._rates = {f"lr_group_{i}": group["lr"] for i, group in enumerate(optimizer.param_groups)}

    def add_losses(self, engine: Engine) -> None:
        """Add the losses of one iteration to the epoch's sums on their device, without synchronisation."""
        for name, value in losses_of(engine.state.output).items():
            self._loss_sums[name] = self._loss_sums[name] + value if name in self._loss_sums else value
            self._loss_counts[name] = self._loss_counts.get(name, 0) + 1
        self._core_seconds = (self._core_seconds[0], time.process_time())

    def finish_epoch(self, engine: Engine) -> None:
        """Record the epoch's mean losses and all scalar metrics of the engine at its epoch.

        ``epoch_seconds`` is what the steps of a training took, without its validation, and ``epoch_core_seconds`` the
        processor time of all threads in it, without that of processes that load images.
        """
        means = {name: float(total) / self._loss_counts[name] for name, total in self._loss_sums.items()}
        self._loss_sums, self._loss_counts = {}, {}
        if isinstance(engine, Trainer) and (seconds := engine.state.times[Events.EPOCH_COMPLETED.name]):
            means["epoch_seconds"] = seconds
            means["epoch_core_seconds"] = self._core_seconds[1] - self._core_seconds[0]
        if not self._points_are_stock:
            self.run.log_metrics({**self._rates, **means, **engine.state.metrics}, step=engine.state.epoch)

    def finish(self, _engine: Engine) -> None:
        """End the run as FINISHED if this engine owns it."""
        if self._ends_run:
            self.run.close()

    def fail(self, _engine: Engine, error: BaseException) -> NoReturn:
        """End the run as FAILED or KILLED and pass the exception on."""
        self.run.log_tags({"error": f"{type(error).__name__}: {error}"})
        self.run.close(status_after(error))
        raise error

    def _record_facts(self, engine: Engine) -> None:
        """Record device, dataset and artifacts once per run."""
        self.run.add_artifacts(self.artifacts)
        device = getattr(engine.state, "device", None)
        if device is not None:
            self.run.log_tags({"device": device_name(device)})
        if self.dataset_dir is not None:
            alone = "evaluation" if self._ends_run else "validation"
            context = "training" if isinstance(engine, Trainer) else alone
            split = self.split or _SPLIT_OF_CONTEXT[context]
            directory = Path(self.dataset_dir)
            several = sorted(file.parent for file in directory.glob("*/dataset.json"))
            for folder in several or [directory]:
                self.run.log_dataset(folder, split=split, context=context, protocol=self.split_protocol)

    def _hand_over(self, stock: MLFlowHandler) -> bool:
        """Make a stock handler of the same experiment write to our run; return whether it does."""
        same_store = resolve_tracking_uri(stock.client.tracking_uri) == self.run.uri
        if not same_store or stock.experiment_name != self.run.experiment:
            return False
        if stock.cur_run is None or stock.cur_run.info.run_id == self._recorded_run_id:
            # Otherwise it would continue any unfinished run of the experiment.
            stock.cur_run = self.run.client.get_run(self.run.run_id)
        return stock.cur_run.info.run_id == self.run.run_id


def losses_of(output: Any) -> dict[str, torch.Tensor]:
    """Return the losses in a trainer's output by the names they are recorded under.

    ``loss`` becomes ``train_loss``, and an entry ``loss_<part>`` becomes ``train_loss_<part>``. Without
    decollation the parts may also be a dictionary under ``loss`` or ``losses``; decollation keeps only
    entries of one level.

    Args:
        output: a dictionary, or the list of dictionaries that MONAI's decollation makes of it, where every
            item repeats the losses of the batch.

    Example:
        >>> losses_of([{"loss": torch.tensor(2.0), "loss_dice": torch.tensor(0.5)}])
        {'train_loss': tensor(2.), 'train_loss_dice': tensor(0.5000)}
    """
    first = output[0] if isinstance(output, Sequence) and output else output
    if not isinstance(first, Mapping):
        return {}
    named: dict[str, Any] = {}
    for key, value in first.items():
        name = str(key)
        if name in ("loss", "losses") and isinstance(value, Mapping):
            named |= {f"train_loss_{part}": number for part, number in value.items()}
        elif name == "loss" or name.startswith("loss_"):
            named[f"train_{name}"] = value
    losses = {name: _detached(value) for name, value in named.items()}
    return {name: loss for name, loss in losses.items() if loss is not None}


def _detached(value: Any) -> torch.Tensor | None:
    """Return a scalar as a tensor outside the graph, ``None`` for anything else."""
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return value.detach().reshape(()).to(torch.float32)
    if isinstance(value, (int, float)):
        return torch.tensor(float(value))
    return None


def _add_once(engine: Engine, event: Any, handler: Callable[..., None]) -> None:
    if not engine.has_event_handler(handler, event):
        engine.add_event_handler(event, handler)


# Ignite has no public way to list or to order an engine's handlers: only these two functions read its table.


def _stock_handlers(engine: Engine) -> Iterator[MLFlowHandler]:
    """Yield MONAI's own MLflow handlers that are attached to the engine."""
    for handler, *_ in engine._event_handlers[Events.STARTED]:
        attached = getattr(handler, "__self__", None)
        if isinstance(attached, MLFlowHandler):
            yield attached


def move_to_front(engine: Engine, event: Any, handler: Callable[..., Any]) -> None:
    """Make ``handler`` the first that the engine calls at ``event``."""
    engine._event_handlers[event].sort(key=lambda entry: entry[0] != handler)
