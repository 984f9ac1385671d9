"""Reading the file of an experiment; everything that is wrong with it is said at once."""

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from nucsam_monai.apps.experiments.description import (
    PROTOCOLS,
    BundleOptions,
    DatasetUse,
    Experiment,
    Method,
    Pretraining,
    PrintedTable,
)
from nucsam_monai.data.splits import SPLITS
from nucsam_monai.utils.errors import ConfigurationError

_TOP = [
    "name",
    "title",
    "protocol",
    "metrics",
    "methods",
    "forms",
    "reference",
    "percent",
    "transpose",
    "sweep",
    "printed",
    "seeds",
]
_FORM = ("datasets", "train_datasets", "seeds", "bundles", "pretraining", "methods", "protocol")
_OPTIONS = ("overlays", "settings")
_METHOD = [
    "name",
    "bundle",
    "overlays",
    "settings",
    "test_overlays",
    "test_settings",
    "train",
    "checkpoint",
    "protocol",
    "printed",
    "x",
]
_DATASET = ("name", "folder", "split_protocols", "splits", "bundles", "train_datasets")


def read_document(path: Path | str) -> dict[str, Any]:
    """Read a YAML or JSON file that holds an object.

    Raises:
        ConfigurationError: there is no such file, it is not valid, or holds something else.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        document = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise ConfigurationError(
            f"{path}: cannot be read ({error.strerror}). Name a file of scripts/experiments, or your own."
        ) from error
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path}: not valid {path.suffix or 'YAML'} ({error}).") from error
    if not isinstance(document, dict):
        raise ConfigurationError(f"{path}: expected an object, found {type(document).__name__}.")
    return document


def read_experiment(
    path: Path | str, form: str, datasets: Sequence[str] = (), train_datasets: Sequence[str] = ()
) -> Experiment:
    """Read one form of an experiment.

    Args:
        path: a YAML or JSON file, see ``docs/experiments.md``.
        form: name of the form.
        datasets: dataset folders to test instead of those of the form, which is then named after them.
        train_datasets: the same for what is trained on before zero-shot tests.

    Raises:
        ConfigurationError: something is wrong with the file; the message lists everything that is.
    """
    path = Path(path)
    document = read_document(path)
    reader = _Reader(str(path))
    reader.check_keys(document, _TOP, "the experiment", required=("name", "title", "metrics", "methods"))
    forms = reader.mapping(document.get("forms"), "forms")
    if form not in forms:
        reader.complain(f"form '{form}': the file has {', '.join(forms) or 'none'}")
    chosen = reader.mapping(forms.get(form, {}), f"form '{form}'")
    reader.check_keys(chosen, _FORM, f"form '{form}'", required=("datasets",))
    methods = _methods(reader, document, chosen)
    names = [method.name for method in methods]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        reader.complain(f"methods: {', '.join(repeated)} named twice")
    reference = document.get("reference")
    if reference is not None and reference not in names:
        reader.complain(f"reference '{reference}': no such method in form '{form}'")
    protocol = chosen.get("protocol") or document.get("protocol")
    experiment = Experiment(
        name=str(document.get("name")),
        form=form,
        title=str(document.get("title")),
        protocol=reader.protocol(protocol, "the experiment"),
        metrics=reader.texts(document.get("metrics"), "metrics"),
        methods=methods,
        datasets=tuple(_dataset(reader, entry) for entry in reader.entries(chosen, "datasets")),
        train_datasets=tuple(_dataset(reader, entry) for entry in reader.entries(chosen, "train_datasets")),
        seeds=reader.numbers(chosen.get("seeds", document.get("seeds", [0])), "seeds"),
        bundles=_bundles(reader, chosen.get("bundles"), f"form '{form}'"),
        pretraining=_pretraining(reader, chosen.get("pretraining")),
        reference=reference,
        percent=reader.flag(document, "percent"),
        transpose=reader.flag(document, "transpose"),
        sweep=document.get("sweep"),
        printed=_printed(reader, document.get("printed"), path.parent),
    )
    experiment = _on_other_data(experiment, datasets, train_datasets)
    _check_protocol(reader, experiment)
    reader.finish()
    return experiment


def _on_other_data(
    experiment: Experiment, datasets: Sequence[str], train_datasets: Sequence[str]
) -> Experiment:
    names = [Path(folder).name for folder in (*datasets, *train_datasets)]
    tested = tuple(DatasetUse(Path(folder).name, folder) for folder in datasets) or experiment.datasets
    sources = tuple(DatasetUse(Path(folder).name, folder) for folder in train_datasets)
    if sources:
        tested = tuple(replace(dataset, train_datasets=()) for dataset in tested)
    return replace(
        experiment,
        form="-".join([experiment.form, *names]),
        datasets=tested,
        train_datasets=sources or experiment.train_datasets,
    )


class _Reader:
    """Collects what is wrong with a file instead of stopping at the first mistake."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.problems: list[str] = []

    def complain(self, problem: str) -> None:
        self.problems.append(problem)

    def finish(self) -> None:
        if self.problems:
            lines = "\n".join(f"- {problem}" for problem in self.problems)
            raise ConfigurationError(f"{self.where}: {len(self.problems)} mistakes:\n{lines}")

    def check_keys(
        self, document: Mapping[str, Any], allowed: Iterable[str], where: str, required: Iterable[str] = ()
    ) -> None:
        allowed = list(allowed)
        for key in document:
            if key not in allowed:
                nearest = difflib.get_close_matches(str(key), allowed, n=1)
                hint = f" Did you mean '{nearest[0]}'?" if nearest else f" Permitted: {', '.join(allowed)}."
                self.complain(f"{where}: unknown key '{key}'.{hint}")
        for key in required:
            if document.get(key) in (None, "", [], {}):
                self.complain(f"{where}: without '{key}'")

    def mapping(self, value: Any, where: str) -> dict[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.complain(f"{where}: expected an object, found {value!r}")
            return {}
        return {str(key): entry for key, entry in value.items()}

    def texts(self, value: Any, where: str) -> tuple[str, ...]:
        values = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(entry, str) for entry in values):
            self.complain(f"{where}: expected a list of texts, found {value!r}")
            return ()
        return tuple(values)

    def numbers(self, value: Any, where: str) -> tuple[int, ...]:
        if not isinstance(value, list) or not value or not all(type(entry) is int for entry in value):
            self.complain(f"{where}: expected a list of whole numbers, found {value!r}")
            return (0,)
        return tuple(value)

    def entries(self, document: Mapping[str, Any], key: str) -> list[Any]:
        value = document.get(key, [])
        if not isinstance(value, list):
            self.complain(f"{key}: expected a list, found {value!r}")
            return []
        return value

    def flag(self, document: Mapping[str, Any], key: str, default: bool = False) -> bool:
        value = document.get(key, default)
        if not isinstance(value, bool):
            self.complain(f"{key}: expected true or false, found {value!r}")
        return bool(value)

    def protocol(self, value: Any, where: str) -> str:
        if value not in PROTOCOLS:
            self.complain(f"{where}: protocol '{value}': expected one of {', '.join(PROTOCOLS)}")
        return str(value)

    def options(self, document: Mapping[str, Any], where: str, prefix: str = "") -> BundleOptions:
        return BundleOptions(
            self.texts(document.get(f"{prefix}overlays"), f"{where}: {prefix}overlays"),
            self.mapping(document.get(f"{prefix}settings"), f"{where}: {prefix}settings"),
        )


def _methods(reader: _Reader, document: Mapping[str, Any], form: Mapping[str, Any]) -> tuple[Method, ...]:
    """Read the methods with the changes of the form; a change to null leaves a method out."""
    changes = reader.mapping(form.get("methods"), "methods of the form")
    methods = []
    for entry in reader.entries(document, "methods"):
        entry = reader.mapping(entry, "a method")
        name = str(entry.get("name"))
        where = f"method '{name}'"
        reader.check_keys(entry, _METHOD, where, required=("name", "bundle"))
        if name in changes and changes[name] is None:
            changes.pop(name)
            continue
        change = reader.mapping(changes.pop(name, {}), f"{where} in the form")
        reader.check_keys(change, [key for key in _METHOD if key != "name"], f"{where} in the form")
        options = reader.options(entry, where).then(reader.options(change, where))
        test_options = reader.options(entry, where, "test_").then(reader.options(change, where, "test_"))
        merged = {**entry, **change}
        protocol, x = merged.get("protocol"), merged.get("x")
        methods.append(
            Method(
                name=name,
                bundle=str(merged.get("bundle")),
                options=options,
                test_options=test_options,
                train=reader.flag(merged, "train", default=merged.get("checkpoint") is None),
                checkpoint=merged.get("checkpoint"),
                protocol=None if protocol is None else reader.protocol(protocol, where),
                printed=merged.get("printed"),
                x=None if x is None else float(x),
            )
        )
    for name in changes:
        reader.complain(f"methods of the form: '{name}' is none of the methods")
    return tuple(methods)


def _dataset(reader: _Reader, entry: Any) -> DatasetUse:
    if isinstance(entry, str):
        return DatasetUse(Path(entry).name, entry)
    entry = reader.mapping(entry, "a dataset")
    where = f"dataset '{entry.get('name')}'"
    reader.check_keys(entry, _DATASET, where, required=("name",))
    splits = reader.texts(entry.get("splits", ["test"]), f"{where}: splits")
    for split in splits:
        if split not in SPLITS:
            reader.complain(f"{where}: split '{split}': expected one of {', '.join(SPLITS)}")
    return DatasetUse(
        name=str(entry.get("name")),
        folder=str(entry.get("folder", entry.get("name"))),
        split_protocols=reader.texts(entry.get("split_protocols"), f"{where}: split_protocols") or (None,),
        splits=splits,
        bundles=_bundles(reader, entry.get("bundles"), where),
        train_datasets=tuple(_dataset(reader, source) for source in reader.entries(entry, "train_datasets")),
    )


def _bundles(reader: _Reader, document: Any, where: str) -> dict[str, BundleOptions]:
    options = {}
    for name, entry in reader.mapping(document, f"{where}: bundles").items():
        place = f"{where}: bundle '{name}'"
        entry = reader.mapping(entry, place)
        reader.check_keys(entry, _OPTIONS, place)
        options[name] = reader.options(entry, place)
    return options


def _pretraining(reader: _Reader, document: Any) -> Pretraining | None:
    if document is None:
        return None
    entry = reader.mapping(document, "pretraining")
    reader.check_keys(entry, ("bundle", *_OPTIONS), "pretraining", required=("bundle",))
    return Pretraining(str(entry.get("bundle")), reader.options(entry, "pretraining"))


def _printed(reader: _Reader, document: Any, folder: Path) -> PrintedTable | None:
    if document is None:
        return None
    entry = reader.mapping(document, "printed")
    reader.check_keys(entry, ("file", "table"), "printed", required=("file", "table"))
    file = folder / str(entry.get("file"))
    if not file.is_file():
        reader.complain(f"printed: no file {file}")
    return PrintedTable(file, str(entry.get("table")))


def _check_protocol(reader: _Reader, experiment: Experiment) -> None:
    zero_shot = "zero_shot" in (experiment.protocol, *(method.protocol for method in experiment.methods))
    trains = any(method.train for method in experiment.methods)
    for dataset in experiment.datasets:
        sources = experiment.trained_before(dataset)
        if zero_shot and trains and not sources:
            reader.complain(f"protocol 'zero_shot': dataset '{dataset.name}' without 'train_datasets'")
        if not zero_shot and sources:
            reader.complain(f"dataset '{dataset.name}': 'train_datasets' belongs to protocol 'zero_shot'")
        if any(source.folder == dataset.folder for source in sources):
            reader.complain(f"dataset '{dataset.name}' is trained on, so its test is not zero-shot")
        if any(source.train_datasets for source in sources):
            reader.complain(f"dataset '{dataset.name}': its 'train_datasets' cannot have any themselves")
    names = [dataset.name for dataset in experiment.datasets]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        reader.complain(f"datasets: {', '.join(repeated)} named twice")
