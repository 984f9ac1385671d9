"""One MLflow run of one job, begun at the first use and shared by all that write to it."""

import atexit
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch.distributed

from nucsam_monai.engines.bundle import current_parser, executed_configuration, recorded_settings
from nucsam_monai.handlers.run_facts import (
    MAX_TEXT_LENGTH,
    dataset_facts,
    environment_facts,
    flatten_params,
    scalar_metrics,
    tracked_name,
    weights_facts,
)
from nucsam_monai.handlers.tracking_store import connect, experiment_id, resolve_tracking_uri
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.paths import project_root

logger = logging.getLogger(__name__)

WORKFLOWS = ("train", "evaluate", "benchmark")
FINISHED, FAILED, KILLED = "FINISHED", "FAILED", "KILLED"
_BATCH = 100  # MLflow's limit of parameters or tags per request


def status_after(error: BaseException) -> str:
    """Return the status of a run that ended with ``error``: failed by itself, or stopped from outside."""
    return FAILED if isinstance(error, Exception) else KILLED


class TrackedRun:
    """An MLflow run that exists from its first use to its end, and never takes up somebody else's.

    Building the object touches nothing, so that a configuration that fails while it is parsed leaves no run
    behind. :meth:`open` makes the experiment and the run, with parameters and tags; :meth:`close` uploads the
    artifacts and ends it. Opened again after that, it is a new run: two evaluations are two runs.

    All methods do nothing where tracking is off, where MLflow is not installed (one warning), and on all but
    the first process of distributed training. Once the run is open, a store that fails costs a warning and
    the points, never the training.

    It is also a context manager for Python drivers, and children name it as their parent.

    Args:
        experiment: name of the experiment, one per bundle, for example ``"nucsam/unsam"``.
        tracking_uri: where to write, see :func:`~nucsam_monai.handlers.resolve_tracking_uri`; ``None``,
            ``""`` or ``"off"`` for no tracking.
        workflow: ``"train"``, ``"evaluate"`` or ``"benchmark"``.
        tags: further tags, such as ``bundle``, ``bundle_version``, ``dataset``, ``split``, ``protocol``,
            ``seed``; a value of ``None`` is left out. They win over the tags that are found automatically:
            versions, git commit, and the seed of ``monai.utils.set_determinism``.
        params: settings to record; nested sections become ``section.key``. None records the settings of the
            configuration that builds this object, with everything that overrides it, and uploads that configuration
            as ``configuration.json``.
        weights: name to path of weights that the run starts from; their SHA-256 become tags.
        name: name of the run; by default ``<bundle>-<dataset>-<timestamp>``.
        parent_run_id: the run that this one is nested under.
        dataset_dir: the data, for the handlers of the run's engines; None takes that of the configuration.
        split_protocol: the named split in use, for them as well; None takes that of the configuration.

    Raises:
        ConfigurationError: the workflow or the tracking URI is not permitted.

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
        dataset_dir: str | Path | None = None,
        split_protocol: str | Mapping[str, str] | None = None,
    ) -> None:
        if workflow not in WORKFLOWS:
            raise ConfigurationError(f"workflow '{workflow}': expected one of {', '.join(WORKFLOWS)}.")
        self.experiment = experiment
        self.uri = resolve_tracking_uri(tracking_uri)
        self.workflow = workflow
        self.tags = {key: value for key, value in (tags or {}).items() if value is not None}
        self.params = dict(params or {})
        self._parser = current_parser() if params is None else None
        own = self._own_settings("dataset_dir", "split_protocol", "bundle_root")
        self.dataset_dir = dataset_dir or own.get("dataset_dir")
        self.split_protocol = split_protocol or own.get("split_protocol")
        self.configurations = [f"{own['bundle_root']}/configs"] if "bundle_root" in own else []
        self.weights = dict(weights or {})
        self.name = name
        self.parent_run_id = parent_run_id
        self.client: Any = None
        self.run_id: str | None = None
        self._is_open = False
        self._has_owner = False
        self._artifacts: list[Path] = []

    def _own_settings(self, *names: str) -> dict[str, Any]:
        """Return the values of those keys that the configuration has."""
        parser = self._parser
        return {name: parser.get_parsed_content(name) for name in names if name in parser} if parser else {}

    @property
    def is_open(self) -> bool:
        """Whether a run is under way that can be written to."""
        return self._is_open

    @property
    def has_owner(self) -> bool:
        """Whether somebody has claimed the end of the run that is open or comes next, see :meth:`claim`."""
        return self._has_owner

    def claim(self) -> None:
        """Declare that the caller closes the run, so that nobody else does at an earlier end."""
        self._has_owner = True

    def open(self) -> None:
        """Begin the run unless it is open already.

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
            run = self.client.create_run(identifier, run_name=self.name or self._default_name())
        except MlflowException as error:
            raise ConfigurationError(
                f"tracking_uri '{self.uri}': can't begin a run of '{self.experiment}': {error} "
                "Correct it, or pass --tracking_uri off to go on without tracking."
            ) from error
        self.run_id = run.info.run_id
        self._is_open = True
        self._artifacts = []
        atexit.register(self._abandon)
        self.log_tags(tags)
        self._log_params()
        logger.info("MLflow run '%s' of '%s' in %s", run.info.run_name, self.experiment, self.uri)

    def close(self, status: str = FINISHED) -> None:
        """Upload the artifacts that exist by now and end the run; nothing where it is not open.

        Args:
            status: ``"FINISHED"``, ``"FAILED"`` or ``"KILLED"``.
        """
        if not self._is_open:
            return
        self.log_artifacts(self._artifacts)
        self._end(status)

    def log_metrics(self, metrics: Mapping[str, Any], step: int = 0) -> None:
        """Record every scalar of ``metrics`` at ``step`` (an epoch, by convention of this package)."""
        scalars = scalar_metrics(metrics)
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
            context: what for: ``"training"``, ``"validation"`` or ``"evaluation"``.
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
        """Name files and folders to upload when the run ends; those that don't exist then are passed over."""
        if self._is_open:
            self._artifacts += [path for path in map(Path, paths) if path not in self._artifacts]

    def log_artifacts(self, paths: Sequence[str | Path]) -> None:
        """Upload files, and folders under their own names, now; those that don't exist are passed over."""
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
        bundle = str(self.tags.get("bundle") or self.experiment.rsplit("/", maxsplit=1)[-1])
        parts = [bundle, str(self.tags.get("dataset") or ""), time.strftime("%Y%m%d-%H%M%S")]
        return "-".join(part for part in parts if part)

    def _log_params(self) -> None:
        from mlflow.entities import Param

        if self._parser is not None:
            self.params = recorded_settings(self._parser)
        params = [Param(key, value) for key, value in flatten_params(self.params).items()]
        for start in range(0, len(params), _BATCH):
            with self._writing("parameters"):
                self.client.log_batch(self.run_id, params=params[start : start + _BATCH])
        if self._parser is not None:
            with self._writing("configuration.json"):
                executed = json.dumps(executed_configuration(self._parser), indent=2, default=str)
                self.client.log_text(self.run_id, executed, "configuration.json")

    def _end(self, status: str) -> None:
        atexit.unregister(self._abandon)
        self._is_open = self._has_owner = False
        with self._writing(f"status {status}"):
            self.client.set_terminated(self.run_id, status)

    def _abandon(self) -> None:
        """End a run that nobody closed; the interpreter is leaving, so nothing is uploaded any more."""
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
            logger.warning("No tracking: MLflow can't be imported (%s). Run: pip install mlflow", error)
            _missing_reported = True
        return False
    return True
