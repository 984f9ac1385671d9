"""Turn an experiment into steps (trainings, evaluations, measurements), with the folder and command of each.

A folder is named after everything that its content depends on. A step whose folder is complete is therefore done,
whichever experiment asked for it, and a step with other settings has another folder.
"""

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from experiments.description import (
    COST_IMAGE_PX,
    COST_NUCLEI,
    BundleOptions,
    DatasetUse,
    Experiment,
    Method,
    SlideUse,
)
from nucsam_monai.data import read_dataset
from nucsam_monai.io import write_json
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.files import known_sha256_of_file
from nucsam_monai.utils.paths import bundle_root


@dataclass(frozen=True)
class Training:
    """One training; methods that train alike share it.

    Attributes:
        bundle: the bundle that trains.
        options: everything that is changed in its configuration, apart from data, seed and places.
        datasets: what is trained on together, in this order.
        split_protocol: the named split of a single dataset; of several each one's first counts.
        seed: of all randomness.
        pretraining: the training it starts from.
    """

    bundle: str
    options: BundleOptions
    datasets: tuple[DatasetUse, ...]
    split_protocol: str | None
    seed: int
    pretraining: "Training | None" = None

    def __str__(self) -> str:
        data = "+".join(dataset.name for dataset in self.datasets)
        return f"training {self.bundle} on {data}{_suffix(self.split_protocol)}, seed {self.seed}"


@dataclass(frozen=True)
class Evaluation:
    """A pair of a method and a dataset, for one seed and one split.

    Attributes:
        method: what is tested.
        dataset: what it is tested on.
        split_protocol: the named split.
        seed: of the training and of the test.
        protocol: one of :data:`~experiments.description.PROTOCOLS`.
        options: everything that is changed in the bundle's configuration.
        training: where the weights come from; None where the method is not trained here.
    """

    method: Method
    dataset: DatasetUse
    split_protocol: str | None
    seed: int
    protocol: str
    options: BundleOptions
    training: Training | None

    @property
    def bundle(self) -> str:
        """The bundle that evaluates."""
        return self.method.bundle

    def __str__(self) -> str:
        return f"{self.method.name} on {self.dataset.name}{_suffix(self.split_protocol)}, seed {self.seed}"


@dataclass(frozen=True)
class Measurement:
    """Parameters, operations and speed of a method.

    Attributes:
        evaluation: the pair whose network, weights and images are measured.
    """

    evaluation: Evaluation

    def __str__(self) -> str:
        return f"cost of {self.evaluation.method.name}"


@dataclass(frozen=True)
class SlideRun:
    """A whole slide, segmented by a method.

    Attributes:
        evaluation: the pair whose weights and settings it is segmented with.
        slide: the slide.
    """

    evaluation: Evaluation
    slide: SlideUse

    def __str__(self) -> str:
        return f"{self.evaluation.method.name} on slide {self.slide.name}"


@dataclass(frozen=True)
class Grid:
    """All steps of an experiment, each once."""

    pretrainings: tuple[Training, ...]
    trainings: tuple[Training, ...]
    evaluations: tuple[Evaluation, ...]
    measurements: tuple[Measurement, ...]
    slides: tuple[SlideRun, ...] = ()

    def describe(self, step: "Step") -> str:
        """Return the text of a step; that of a training says which methods it is for."""
        methods = dict.fromkeys(pair.method.name for pair in self.evaluations if pair.training == step)
        return f"{step}, for {', '.join(methods)}" if methods else str(step)


def expand(experiment: Experiment) -> Grid:
    """Return the steps of an experiment: every method on every dataset, split and seed.

    A training that several pairs need is one step.
    """
    pairs = [
        _pair(experiment, method, dataset, split_protocol, seed)
        for method in experiment.methods
        for dataset in experiment.datasets
        for split_protocol in dataset.split_protocols
        for seed in experiment.seeds
    ]
    trainings = _each_once([pair.training for pair in pairs if pair.training is not None])
    measured = _each_once_by_method(pairs) if experiment.cost_metrics else []
    return Grid(
        pretrainings=tuple(
            _each_once([training.pretraining for training in trainings if training.pretraining is not None])
        ),
        trainings=tuple(trainings),
        evaluations=tuple(pair for pair in pairs if pair.protocol != "cost_only"),
        measurements=tuple(Measurement(pair) for pair in measured),
        slides=tuple(
            SlideRun(pair, slide) for pair in _each_once_by_method(pairs) for slide in experiment.slides
        ),
    )


def _pair(
    experiment: Experiment, method: Method, dataset: DatasetUse, split_protocol: str | None, seed: int
) -> Evaluation:
    protocol = method.protocol or experiment.protocol
    form = experiment.bundles.get(method.bundle, BundleOptions())
    of_dataset = dataset.bundles.get(method.bundle, BundleOptions())
    training = None
    if method.train and protocol != "cost_only":
        training = _training(experiment, method, _trained_together(experiment, dataset, protocol), seed)
        if protocol == "in_domain":
            training = _on_split(training, split_protocol)
    return Evaluation(
        method=method,
        dataset=dataset,
        split_protocol=split_protocol,
        seed=seed,
        protocol=protocol,
        options=form.then(of_dataset).then(method.options).then(method.test_options),
        training=training,
    )


def _training(
    experiment: Experiment, method: Method, datasets: tuple[DatasetUse, ...], seed: int
) -> Training:
    """Return the training of a method on datasets; options of a dataset count where it is the only one."""
    options = experiment.bundles.get(method.bundle, BundleOptions())
    alone = len(datasets) == 1
    if alone:
        options = options.then(datasets[0].bundles.get(method.bundle, BundleOptions()))
    split_protocol = datasets[0].split_protocols[0] if alone else None
    before = experiment.pretraining
    # The pretraining sees the same images, so that no test image of another split or dataset is among them.
    pretraining = (
        None if before is None else Training(before.bundle, before.options, datasets, split_protocol, seed)
    )
    return Training(method.bundle, options.then(method.options), datasets, split_protocol, seed, pretraining)


def _on_split(training: Training, split_protocol: str | None) -> Training:
    before = training.pretraining and replace(training.pretraining, split_protocol=split_protocol)
    return replace(training, split_protocol=split_protocol, pretraining=before)


def _trained_together(experiment: Experiment, dataset: DatasetUse, protocol: str) -> tuple[DatasetUse, ...]:
    if protocol == "in_domain":
        return (dataset,)
    return experiment.trained_before(dataset) if protocol == "zero_shot" else experiment.datasets


def _each_once(trainings: list[Training]) -> list[Training]:
    """Return the trainings without repetitions; settings cannot be keys of a dictionary, so they are compared."""
    found: list[Training] = []
    for training in trainings:
        if training not in found:
            found.append(training)
    return found


def _each_once_by_method(pairs: list[Evaluation]) -> list[Evaluation]:
    return list({pair.method.name: pair for pair in reversed(pairs)}.values())[::-1]


def _suffix(split_protocol: str | None) -> str:
    return f" ({split_protocol})" if split_protocol else ""


PRETRAINING = "{pretraining}"
"""What settings call the folder of the pretraining."""

DATASET = "{dataset}"
"""What the checkpoint of a method calls the name of the dataset that is tested."""

_EXPRESSIONS = ("$", "@", "%", PRETRAINING)


@dataclass(frozen=True)
class Places:
    """The folders of an experiment; all absolute.

    Attributes:
        data_dir: holds the dataset folders.
        weights_dir: holds pretrained weights, such as those of SAM.
        output_dir: trainings and evaluations go here, so that experiments share them, and reports.
        tracking_uri: the MLflow store, resolved; None for no tracking.
    """

    data_dir: Path
    weights_dir: Path
    output_dir: Path
    tracking_uri: str | None = None

    def dataset_folder(self, dataset: DatasetUse) -> Path:
        """Return the folder of a dataset."""
        return self.data_dir / dataset.folder

    def weights(self, options: BundleOptions) -> dict[str, Path]:
        """Return the weights files that settings name, by key.

        These are the texts under keys that end with ``checkpoint`` or ``trunk_weights``, apart from expressions.
        """
        return {
            key: self.weights_dir / value
            for key, value in options.settings.items()
            if key.endswith(("checkpoint", "trunk_weights"))
            and isinstance(value, str)
            and not value.startswith(_EXPRESSIONS)
        }

    def checkpoint(self, method: Method, dataset: DatasetUse) -> Path | None:
        """Return the weights that a method is tested with on a dataset: a file, or the folder of several.

        None where the experiment trains the method, or where it needs no weights.
        """
        name = method.checkpoint
        return None if name is None else self.weights_dir / name.replace(DATASET, dataset.name)

    def settings(self, options: BundleOptions, pretraining: Path | None) -> dict[str, Any]:
        """Return settings in which weights are absolute paths and the pretraining is its folder."""
        settings = {
            key: value.replace(PRETRAINING, str(pretraining))
            if isinstance(value, str) and pretraining is not None
            else value
            for key, value in options.settings.items()
        }
        return {**settings, **{key: str(path) for key, path in self.weights(options).items()}}


def config_paths(bundle: str, names: tuple[str, ...]) -> list[str]:
    """Return the paths of configurations of a bundle.

    Raises:
        ConfigurationError: there is no such bundle.
    """
    folder = Path(bundle_root(bundle)) / "configs"
    return [str(folder / f"{name}.json") for name in names]


def weights_files(place: Path) -> dict[str, Path]:
    """Return the weights of a folder without those that a training resumes from, or the one file named, by name."""
    if place.is_file():
        return {place.stem: place}
    files = sorted(place.glob("*.safetensors"))
    return {file.stem: file for file in files if not re.search(r"state|previous", file.name)}


@lru_cache(maxsize=256)
def domain_and_name(folder: Path) -> tuple[str, str]:
    """Return the domain and the name of a dataset folder.

    Raises:
        DatasetError: there is no dataset.
    """
    metadata = read_dataset(folder).metadata
    return metadata.domain, metadata.name


Step = Training | Evaluation | Measurement | SlideRun

DONE_FILE = "done.json"
SETTINGS_FILE = "settings.json"
CURVES_FILE = "curves.csv"
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
    kinds = (
        (Training, "trainings"),
        (Evaluation, "evaluations"),
        (Measurement, "costs"),
        (SlideRun, "slides"),
    )
    kind = next(folder for kind_of_step, folder in kinds if isinstance(step, kind_of_step))
    text = json.dumps(_identity(step, places), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:_HASH_LENGTH]
    slug = re.sub(r"[^A-Za-z0-9.]+", "_", str(step)).strip("_").removeprefix("training_")
    return places.output_dir / kind / f"{slug[:80]}-{digest}"


def is_done(step: Step, places: Places) -> bool:
    """Return whether a step has nothing left to do."""
    return (folder_of(step, places) / DONE_FILE).is_file()


def read_done(step: Step, places: Places) -> dict[str, object]:
    """Return what was noted of a finished step."""
    return dict(json.loads((folder_of(step, places) / DONE_FILE).read_text(encoding="utf-8")))


def prepare(step: Step, places: Places, tracking: Tracking | None = None) -> list[str]:
    """Write the settings of a step into its folder and return its command.

    Raises:
        ConfigurationError: there is no such bundle, or the training that the step needs is not done.
    """
    folder = folder_of(step, places)
    if isinstance(step, SlideRun):
        return _slide_command(step, places, folder)
    if isinstance(step, Training):
        run, names, document = "training", step.options.overlays, _training_settings(step, places, tracking)
        names, bundle = ("train", *names), step.bundle
    else:
        pair = step.evaluation if isinstance(step, Measurement) else step
        run, bundle = ("cost" if isinstance(step, Measurement) else "evaluating"), pair.bundle
        names = evaluation_configurations(pair)
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
        image = {"image_px": COST_IMAGE_PX, "nuclei": COST_NUCLEI}
        return {"cost": _identity(step.evaluation, places), **image}
    if isinstance(step, SlideRun):
        return _slide_identity(step, places)
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
        "checkpoint": {name: known_sha256_of_file(file) for name, file in files.items()},
    }


def _slide_identity(step: SlideRun, places: Places) -> dict[str, Any]:
    from nucsam_monai.wsi.readers import fingerprint  # needs the extra ``slides``

    slide = step.slide
    return {
        "slide": fingerprint(places.data_dir / slide.file),
        "truth": slide.truth and known_sha256_of_file(places.data_dir / slide.truth),
        "settings": dict(slide.settings),
        "method": _identity(step.evaluation, places),
    }


def _settings_identity(options: BundleOptions, places: Places) -> dict[str, Any]:
    """Return the settings with the content of weights files in the place of their paths."""
    return {
        **options.settings,
        **{key: known_sha256_of_file(path) for key, path in places.weights(options).items()},
    }


def _data_identity(dataset: DatasetUse, places: Places) -> str:
    return known_sha256_of_file(places.dataset_folder(dataset) / "dataset.json")


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


def slide_configurations(bundle: str) -> list[str]:
    """Return the configurations that segment whole slides with a bundle.

    Raises:
        ConfigurationError: there is no such bundle.
    """
    return [
        *config_paths(bundle, ("inference",)),
        str(Path(bundle_root(bundle)).parent / "inference_wsi.json"),
    ]


def _slide_command(step: SlideRun, places: Places, folder: Path) -> list[str]:
    """Write the settings of a slide and return the command: of the method's those that inference knows."""
    pair = step.evaluation
    files = slide_configurations(pair.bundle)
    known = json.loads(Path(files[0]).read_text(encoding="utf-8"))
    before = pair.training and pair.training.pretraining
    settings = places.settings(pair.options, folder_of(before, places) if before else None)
    document = {key: value for key, value in settings.items() if key.partition("#")[0] in known}
    document |= {
        **step.slide.settings,
        "input": str(places.data_dir / step.slide.file),
        "output_dir": str(folder),
    }
    if (checkpoint := _checkpoint(pair, places)) is not None:
        document["checkpoint"] = str(checkpoint)
    write_json(folder / SETTINGS_FILE, document)
    configurations = json.dumps([*files, str(folder / SETTINGS_FILE)])
    return [sys.executable, "-m", "monai.bundle", "run", "run", "--config_file", configurations]


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
        handlers_key(pair.bundle): [],
        "cost": {
            "_target_": "experiments.cost.write_cost",
            "evaluator": "@validate#evaluator",
            "network": "@network_def",
            "output_dir": "@output_dir",
        },
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


def evaluation_configurations(pair: Evaluation) -> tuple[str, ...]:
    """Return the names of a test's configurations: overlays of the training come before ``evaluate``, others after."""
    overlays = pair.options.overlays
    of_training = len(overlays) - len(pair.method.test_options.overlays)
    return ("train", *overlays[:of_training], "evaluate", *overlays[of_training:])
