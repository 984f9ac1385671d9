"""An experiment in MLflow: one parent run, a child for every pair, and a model version of every bundle."""

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from experiments.description import Experiment
from experiments.slides import PICTURES, slide_folder, slide_summary
from experiments.steps import (
    CURVES_FILE,
    SETTINGS_FILE,
    Evaluation,
    Places,
    SlideRun,
    Tracking,
    Training,
    folder_of,
    read_done,
    weights_files,
    weights_of,
)
from experiments.tables import Results, read_summary
from nucsam_monai.io import write_json, write_table
from nucsam_monai.utils.paths import bundle_root, project_root

if TYPE_CHECKING:
    from nucsam_monai.handlers import TrackedRun

logger = logging.getLogger(__name__)

MLFLOW_EXPERIMENT = "nucsam/experiments"
_PARENT_FILE = "tracking.json"
_PAIR_TAG = "pair"
_ARTIFACTS = (
    "per_image.csv summary.csv summary.json per_class.csv per_tissue.csv overlays confusion.csv confusion.png "
    "settings.json log.txt"
)
_MOST_METRICS = 500  # of one request to MLflow, which takes 1000


class ExperimentTracking:
    """Writes an experiment to MLflow; every call may be repeated, so that a resumed experiment has no doubles.

    A store that fails later on costs a warning, never the experiment.

    Args:
        experiment: what is tracked.
        places: the folders, and the store; without a store all calls do nothing.
        folder: of the experiment; the id of its run is kept there.

    Raises:
        ConfigurationError: the store can't be opened.
    """

    def __init__(self, experiment: Experiment, places: Places, folder: Path) -> None:
        self.experiment = experiment
        self.places = places
        self.folder = folder
        self.client: Any = None
        self.parent_id = ""
        if places.tracking_uri is not None:
            from nucsam_monai.handlers.tracking_store import connect, experiment_id

            self.client = connect(places.tracking_uri)
            self.experiment_id = experiment_id(self.client, MLFLOW_EXPERIMENT, places.tracking_uri)

    def open(self) -> Tracking | None:
        """Begin or continue the parent run; return what trainings need to know of it."""
        if self.client is None:
            return None
        self.parent_id = self._earlier_parent() or self._new_parent()
        with self._writing("status"):
            self.client.update_run(self.parent_id, status="RUNNING")
        return Tracking(MLFLOW_EXPERIMENT, self.parent_id)

    def close(self, status: str, results: Results, report: Path) -> None:
        """Record the values of all pairs and the report in the parent run, and end it.

        Args:
            status: ``FINISHED``, ``FAILED`` or ``KILLED``.
            results: the values.
            report: folder of the report.
        """
        if self.client is None:
            return
        values = {
            f"{metric}/{dataset}/{method}": cell.value
            for (method, dataset, metric), cell in results.cells.items()
            if metric in self.experiment.metrics
        }
        with self._writing("report"):
            self._log_metrics(self.parent_id, values)
            if report.is_dir():
                self.client.log_artifacts(self.parent_id, str(report), artifact_path="report")
                self._describe(report)
            self.client.set_terminated(self.parent_id, status)
        from nucsam_monai.handlers.run_page import where_to_look

        logger.info("MLflow: %s", where_to_look(str(self.places.tracking_uri), self.experiment_id))

    def _describe(self, report: Path) -> None:
        """Show the report and the answers of all methods on the page of the parent run."""
        from nucsam_monai.handlers.run_page import described, picture, small_copy

        parts = [(report / "results.md").read_text(encoding="utf-8").partition("\n![")[0]]
        for sheet in sorted(report.glob("sheet_*.png"))[:1]:
            with TemporaryDirectory() as temporary:
                small = small_copy(sheet, Path(temporary))
                self.client.log_artifact(self.parent_id, str(small), artifact_path="report")
            parts.append(picture(self.parent_id, f"report/{small.name}"))
        for name, value in described("\n\n".join(parts)).items():
            self.client.set_tag(self.parent_id, name, value)

    def log_pair(self, pair: Evaluation) -> None:
        """Record a finished pair as a child run, unless it is one already."""
        folder = folder_of(pair, self.places)
        if self.client is None or self._child(folder.name) is not None:
            return
        training = pair.training
        with self._run(str(pair), pair, self._tags(pair)) as run:
            summary = {name: value for name, value in read_summary(folder).items() if not math.isnan(value)}
            run.log_metrics(summary)
            data = self.places.dataset_folder(pair.dataset)
            splits = "+".join(pair.dataset.splits)
            run.log_dataset(data, split=splits, context="evaluation", protocol=pair.split_protocol)
            if training is not None:
                self._log_training_data(run, training)
            run.log_artifacts([folder / name for name in _ARTIFACTS.split()])
            if training is not None:
                run.log_artifacts([folder_of(training, self.places) / CURVES_FILE])
            run.describe(str(read_done(pair, self.places)["command"]), folder)
            # The tag comes last: a child that was cut off has none, and is written again.
            run.log_tags({_PAIR_TAG: folder.name})

    def log_slide(self, step: SlideRun) -> None:
        """Record a segmented slide as a child run, unless it is one already."""
        name = folder_of(step, self.places).name
        if self.client is None or self._child(name) is not None:
            return
        facts = {"slide": step.slide.name, "dataset": None, "split": None, "split_protocol": None}
        with self._run(str(step), step.evaluation, {**self._tags(step.evaluation), **facts}) as run:
            run.log_metrics(slide_summary(step, self.places))
            folder = slide_folder(step, self.places)
            run.log_artifacts([folder / name for name in PICTURES])
            run.log_tags({_PAIR_TAG: name})

    def _run(self, name: str, pair: Evaluation, tags: Mapping[str, Any]) -> "TrackedRun":
        """Return a run below the parent's with the settings and weights of a pair."""
        from nucsam_monai.handlers import TrackedRun

        training = pair.training
        weights: dict[str, Path] = {} if training is None else weights_of(training, self.places)
        if (checkpoint := self.places.checkpoint(pair.method, pair.dataset)) is not None:
            weights = weights_files(checkpoint)
        return TrackedRun(
            MLFLOW_EXPERIMENT,
            self.places.tracking_uri,
            workflow="evaluate",
            name=name,
            parent_run_id=self.parent_id,
            tags=dict(tags),
            params={"overlays": list(pair.options.overlays), **pair.options.settings},
            weights=weights | self.places.weights(pair.options),
        )

    def finish_training(self, training: Training) -> None:
        """End the runs that a finished training left open when it was killed, and write its curves.

        The curves are what its runs recorded by epoch, as a table in its folder; one that is there is kept.
        """
        folder = folder_of(training, self.places)
        if self.client is None:
            return
        with self._writing(f"runs and curves of {training}"):
            runs = self.client.search_runs(
                [self.experiment_id],
                filter_string=f"tags.training = '{folder.name}' and tags.workflow = 'train'",
                order_by=["start_time"],
            )
            for run in runs:
                if run.info.status == "RUNNING":
                    self.client.set_terminated(run.info.run_id, "KILLED")
            if (folder / CURVES_FILE).exists():
                return
            points = [
                {"metric": name, "epoch": point.step, "value": point.value}
                for run in runs
                for name in sorted(run.data.metrics)
                for point in self.client.get_metric_history(run.info.run_id, name)
            ]
            if points:
                write_table(folder / CURVES_FILE, points)

    def register(self, pair: Evaluation) -> None:
        """Make the weights of a pair a version of its bundle's model, with the experiment as alias.

        The version is the bundle as it was trained: its configurations, its weights and the settings.
        """
        if self.client is None or pair.training is None:
            return
        from mlflow.exceptions import MlflowException

        child = self._child(folder_of(pair, self.places).name)
        name = f"nucsam-{pair.bundle}"
        if child is None or self._is_registered(name, child.info.run_id):
            return
        training = folder_of(pair.training, self.places)
        with self._writing(f"model version of {name}"):
            configs = str(Path(bundle_root(pair.bundle)) / "configs")
            self.client.log_artifacts(child.info.run_id, configs, artifact_path="bundle/configs")
            for path in weights_of(pair.training, self.places).values():
                self.client.log_artifact(child.info.run_id, str(path), artifact_path="bundle/models")
            self.client.log_artifact(child.info.run_id, str(training / SETTINGS_FILE), artifact_path="bundle")
            try:
                self.client.create_registered_model(name)
            except MlflowException:
                logger.debug("%s: registered before", name)
            source = f"{child.info.artifact_uri}/bundle"
            version = self.client.create_model_version(name, source=source, run_id=child.info.run_id)
            self.client.set_registered_model_alias(name, self.experiment.full_name, version.version)

    def _log_training_data(self, run: "TrackedRun", training: Training) -> None:
        for dataset in training.datasets:
            path = self.places.dataset_folder(dataset)
            alone = len(training.datasets) == 1
            protocol = training.split_protocol if alone else dataset.split_protocols[0]
            run.log_dataset(path, split="training", context="training", protocol=protocol)

    def _tags(self, pair: Evaluation) -> dict[str, Any]:
        training = pair.training
        return {
            "experiment": self.experiment.full_name,
            "method": pair.method.name,
            "bundle": pair.bundle,
            "dataset": pair.dataset.name,
            "split": "+".join(pair.dataset.splits),
            "split_protocol": pair.split_protocol,
            "protocol": pair.protocol,
            "seed": pair.seed,
            "trained_on": training and "+".join(dataset.name for dataset in training.datasets),
            "training": training and folder_of(training, self.places).name,
        }

    def _child(self, pair: str) -> Any:
        runs = self.client.search_runs(
            [self.experiment_id],
            filter_string=f"tags.{_PAIR_TAG} = '{pair}' and tags.`mlflow.parentRunId` = '{self.parent_id}'",
            max_results=1,
        )
        return runs[0] if runs else None

    def _earlier_parent(self) -> str | None:
        from mlflow.exceptions import MlflowException

        path = self.folder / _PARENT_FILE
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            run = self.client.get_run(known["run_id"])
        except (FileNotFoundError, MlflowException):  # never begun, or in another store
            return None
        return str(run.info.run_id) if run.info.lifecycle_stage == "active" else None

    def _new_parent(self) -> str:
        from nucsam_monai.handlers.run_facts import environment_facts

        tags = environment_facts(project_root()) | {
            "workflow": "benchmark",
            "experiment": self.experiment.full_name,
            "protocol": self.experiment.protocol,
            "form": self.experiment.form,
            "mlflow.note.content": self.experiment.title,
        }
        run = self.client.create_run(self.experiment_id, run_name=self.experiment.full_name, tags=tags)
        write_json(self.folder / _PARENT_FILE, {"run_id": run.info.run_id, "experiment": MLFLOW_EXPERIMENT})
        return str(run.info.run_id)

    def _is_registered(self, name: str, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            version = self.client.get_model_version_by_alias(name, self.experiment.full_name)
        except MlflowException:
            return False
        return bool(version.run_id == run_id)

    def _log_metrics(self, run_id: str, metrics: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        from nucsam_monai.handlers.run_facts import scalar_metrics

        known = {name: value for name, value in scalar_metrics(metrics).items() if not math.isnan(value)}
        points: Sequence[Metric] = [Metric(name, value, 0, 0) for name, value in known.items()]
        for start in range(0, len(points), _MOST_METRICS):
            self.client.log_batch(run_id, metrics=points[start : start + _MOST_METRICS])

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        from mlflow.exceptions import MlflowException

        try:
            yield
        except (MlflowException, OSError) as error:
            logger.warning("MLflow, experiment %s: %s not written: %s", self.experiment.name, what, error)
