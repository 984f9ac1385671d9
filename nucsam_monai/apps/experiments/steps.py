"""The folder and the command of a step of an experiment.

A folder is named after everything that its content depends on. A step whose folder is complete is therefore done,
whichever experiment asked for it, and a step with other settings has another folder.
"""

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nucsam_monai.apps.experiments.description import BundleOptions, DatasetUse
from nucsam_monai.apps.experiments.grid import Evaluation, Measurement, Training
from nucsam_monai.apps.experiments.places import (
    Places,
    config_paths,
    domain_and_name,
    file_digest,
    weights_files,
)
from nucsam_monai.io import write_json
from nucsam_monai.utils.errors import ConfigurationError

Step = Training | Evaluation | Measurement

DONE_FILE = "done.json"
SETTINGS_FILE = "settings.json"
LABEL_MAPS = "label_maps"
_HASH_LENGTH = 10


@dataclass(frozen=True)
class Tracking:
    """How a training is tracked.

    Attributes:
        experiment: name of the MLflow experiment.
        parent_run_id: the run that trainings are nested under.
    """

    experiment: str
    parent_run_id: str


def folder_of(step: Step, places: Places) -> Path:
    """Return the folder of a step, which need not exist.

    Raises:
        DatasetError: a dataset of the step is missing.
    """
    kinds = ((Training, "trainings"), (Evaluation, "evaluations"), (Measurement, "costs"))
    kind = next(folder for kind_of_step, folder in kinds if isinstance(step, kind_of_step))
    text = json.dumps(_identity(step, places), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:_HASH_LENGTH]
    slug = re.sub(r"[^A-Za-z0-9.]+", "_", str(step)).strip("_").removeprefix("training_")
    return places.output_dir / kind / f"{slug[:80]}-{digest}"


def is_done(step: Step, places: Places) -> bool:
    """Return whether a step has nothing left to do."""
    return (folder_of(step, places) / DONE_FILE).is_file()


def prepare(step: Step, places: Places, tracking: Tracking | None = None) -> list[str]:
    """Write the settings of a step into its folder and return its command.

    Raises:
        ConfigurationError: there is no such bundle, or the training that the step needs is not done.
    """
    folder = folder_of(step, places)
    if isinstance(step, Training):
        run, names, document = "training", step.options.overlays, _training_settings(step, places, tracking)
        names, bundle = ("train", *names), step.bundle
    else:
        pair = step.evaluation if isinstance(step, Measurement) else step
        run, bundle = ("cost" if isinstance(step, Measurement) else "evaluating"), pair.bundle
        names = ("train", *pair.options.overlays[: _count_before_test(pair)], "evaluate")
        names += pair.options.overlays[_count_before_test(pair) :]
        document = _evaluation_settings(pair, places, folder)
        document |= _cost_settings(pair, places) if isinstance(step, Measurement) else _outputs(pair, folder)
    settings = folder / SETTINGS_FILE
    write_json(settings, document)
    files = json.dumps([*config_paths(bundle, names), str(settings)])
    return [sys.executable, "-m", "monai.bundle", "run", run, "--config_file", files]


def weights_of(training: Training, places: Places) -> dict[str, Path]:
    """Return the weights files of a finished training by name."""
    return weights_files(folder_of(training, places))


def handlers_key(bundle: str) -> str:
    """Return the key of the handlers that the evaluation of a bundle sets.

    Raises:
        ConfigurationError: there is no such bundle, or it sets none.
    """
    (file,) = config_paths(bundle, ("evaluate",))
    keys = [key for key in json.loads(Path(file).read_text()) if key.endswith("#handlers")]
    if len(keys) != 1:
        raise ConfigurationError(
            f"{file}: expected one key '...#handlers', found {', '.join(keys) or 'none'}."
        )
    return keys[0]


def _identity(step: Step, places: Places) -> dict[str, Any]:
    """Return everything that the result of a step depends on, in plain types."""
    if isinstance(step, Measurement):
        return {"cost": _identity(step.evaluation, places)}
    document: dict[str, Any] = {
        "bundle": step.bundle,
        "overlays": step.options.overlays,
        "settings": _settings_identity(step.options, places),
        "split_protocol": step.split_protocol,
        "seed": step.seed,
    }
    if isinstance(step, Training):
        before = step.pretraining
        data = [(_data_identity(dataset, places), dataset.split_protocols[0]) for dataset in step.datasets]
        return document | {
            "data": [digest for digest, _ in data] if len(data) == 1 else data,
            "pretraining": before and _identity(before, places),
        }
    checkpoint = places.checkpoint(step.method, step.dataset)
    files = {} if checkpoint is None else weights_files(checkpoint)
    return document | {
        "data": _data_identity(step.dataset, places),
        "splits": step.dataset.splits,
        "training": step.training and _identity(step.training, places),
        "checkpoint": {name: file_digest(file) for name, file in files.items()},
    }


def _settings_identity(options: BundleOptions, places: Places) -> dict[str, Any]:
    """Return the settings with the content of weights files in the place of their paths."""
    return {**options.settings, **{key: file_digest(path) for key, path in places.weights(options).items()}}


def _data_identity(dataset: DatasetUse, places: Places) -> str:
    return file_digest(places.dataset_folder(dataset) / "dataset.json")


def _training_settings(training: Training, places: Places, tracking: Tracking | None) -> dict[str, Any]:
    before = None if training.pretraining is None else folder_of(training.pretraining, places)
    folders = [places.dataset_folder(dataset) for dataset in training.datasets]
    known = [domain_and_name(folder) for folder in folders]
    chosen = {
        name: dataset.split_protocols[0]
        for dataset, (_, name) in zip(training.datasets, known, strict=True)
        if dataset.split_protocols[0] is not None
    }
    alone = len(folders) == 1
    document = places.settings(training.options, before) | {
        "dataset_dir": str(folders[0] if alone else folders[0].parent),
        "domains": [domain for domain, _ in known],
        **_split_protocol(training.split_protocol if alone else chosen),
    }
    document |= {
        "output_dir": str(folder_of(training, places)),
        "seed": training.seed,
        "resume": True,
        "hide_progress": True,
        "tracking_uri": "off",
    }
    if tracking is not None and places.tracking_uri is not None:
        document |= {"tracking_uri": places.tracking_uri, "experiment_name": tracking.experiment}
        for run in _tracked_runs(training.bundle):
            document[f"{run}#parent_run_id"] = tracking.parent_run_id
            document[f"{run}#more_tags"] = {"training": folder_of(training, places).name}
    return document


def _split_protocol(chosen: str | Mapping[str, str] | None) -> dict[str, Any]:
    """Return the key of the split, or nothing, so that an overlay's own holds."""
    return {"split_protocol": chosen} if chosen else {}


def _tracked_runs(bundle: str) -> list[str]:
    (file,) = config_paths(bundle, ("train",))
    config = json.loads(Path(file).read_text())
    return [
        key
        for key, value in config.items()
        if isinstance(value, Mapping) and str(value.get("_target_")).endswith("TrackedRun")
    ]


def _evaluation_settings(pair: Evaluation, places: Places, folder: Path) -> dict[str, Any]:
    before = pair.training and pair.training.pretraining
    document = places.settings(pair.options, folder_of(before, places) if before else None)
    document |= {
        "dataset_dir": str(places.dataset_folder(pair.dataset)),
        **_split_protocol(pair.split_protocol),
        "splits": list(pair.dataset.splits),
        "output_dir": str(folder),
        "seed": pair.seed,
        "protocol": pair.protocol,
        "tracking_uri": "off",
        "hide_progress": True,
    }
    checkpoint = _checkpoint(pair, places)
    return document if checkpoint is None else {**document, "checkpoint": str(checkpoint)}


def _checkpoint(pair: Evaluation, places: Places) -> Path | None:
    """Return the weights of a pair: a file, or the folder of several."""
    if pair.training is None:
        return places.checkpoint(pair.method, pair.dataset)
    weights = weights_of(pair.training, places)
    if not weights:
        raise ConfigurationError(f"{folder_of(pair.training, places)}: holds no weights. Train it again.")
    return weights.get("model", folder_of(pair.training, places))


def _outputs(pair: Evaluation, folder: Path) -> dict[str, Any]:
    writer = {
        "_target_": "nucsam_monai.handlers.evaluation.LabelMapWriter",
        "output_dir": str(folder / LABEL_MAPS),
    }
    return {f"+{handlers_key(pair.bundle)}": [writer]}


def _cost_settings(pair: Evaluation, places: Places) -> dict[str, Any]:
    """Replace the evaluation by a measurement of the same network, with random weights where none are given."""
    document: dict[str, Any] = {
        "+imports": ["$import nucsam_monai.apps.experiments.cost"],
        handlers_key(pair.bundle): [],
        "cost": [
            "$nucsam_monai.apps.experiments.cost.write_cost(@validate#evaluator, @network_def, @output_dir)"
        ],
    }
    if pair.training is None and pair.method.checkpoint is None:
        domain, _ = domain_and_name(places.dataset_folder(pair.dataset))
        document |= {
            "checkpoint": None,
            "prompter_checkpoint": None,
            "segmentor_checkpoint": None,
            "domains": [domain],
            "initialize": ["$monai.utils.set_determinism(seed=@seed)", "$monai.data.set_track_meta(False)"],
        }
    return document


def _count_before_test(pair: Evaluation) -> int:
    """Return how many overlays are those of the training; the others come after ``evaluate.json``."""
    return len(pair.options.overlays) - len(pair.method.test_options.overlays)
