"""Describe an experiment (methods, data, protocol, seeds); read it and the papers' numbers from files."""

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from experiments.shared import compared_systems, with_shared
from nucsam_monai.data.splits import SPLITS
from nucsam_monai.utils.errors import ConfigurationError

Protocol = Literal["in_domain", "multi_domain", "zero_shot", "cost_only"]
"""How weights and test images belong together.

- ``in_domain``: trained and tested on each dataset.
- ``multi_domain``: trained on all datasets together, in their order, and tested on each.
- ``zero_shot``: trained on all training datasets together and tested on datasets that were never trained on.
- ``cost_only``: nothing is trained or tested; parameters, operations and speed are measured.
"""

PROTOCOLS: tuple[str, ...] = get_args(Protocol)

COST_METRICS = ("trainable_m", "frozen_m", "total_m", "gmacs", "images_per_second")
"""Trainable, frozen and all parameters in millions, 10^9 multiply-accumulate operations for an image, and speed."""

SECONDS_PER_EPOCH = "seconds_per_epoch"
"""Median time of an epoch's training steps in seconds, on the machine that trained; MLflow's record has it."""

CORE_MINUTES = "core_minutes"
"""Processor time of all training steps in minutes; MLflow's record has it."""

COST_IMAGE_PX, COST_NUCLEI = 256, 25
"""Side of the image that operations and speed are measured with, and its nuclei, which are the prompts of methods that
prompt each nucleus."""


@dataclass(frozen=True)
class BundleOptions:
    """What is changed in a bundle's configuration.

    Attributes:
        overlays: names of configurations of the bundle that are read after ``train.json``, for example ``paper``.
        settings: keys of the configuration and their values, nested ones joined by ``#``.
    """

    overlays: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def then(self, other: "BundleOptions") -> "BundleOptions":
        """Return these options, with the later ones of ``other`` over them."""
        return BundleOptions((*self.overlays, *other.overlays), {**self.settings, **other.settings})


@dataclass(frozen=True)
class DatasetUse:
    """Describe a dataset folder and which part of it is used.

    Attributes:
        name: its name in tables.
        folder: the dataset folder, relative to the folder of all datasets.
        split_protocols: named splits, each of which is trained and tested on its own and averaged in tables;
            None stands for that of the bundle's overlay, or the one that ``dataset.json`` is split by.
        splits: the splits that are tested.
        bundles: options of each bundle on this dataset.
        train_datasets: what is trained on before a zero-shot test on this dataset, instead of the experiment's.
    """

    name: str
    folder: str
    split_protocols: tuple[str | None, ...] = (None,)
    splits: tuple[str, ...] = ("test",)
    bundles: Mapping[str, BundleOptions] = field(default_factory=dict)
    train_datasets: tuple["DatasetUse", ...] = ()


@dataclass(frozen=True)
class SlideUse:
    """A whole slide that every method segments.

    Attributes:
        name: its name in tables.
        file: the slide, relative to the folder of all datasets.
        truth: GeoParquet with its annotated nuclei, relative to the same folder; None where there is none.
        settings: keys of ``inference_wsi.json`` and their values, for example ``mpp``.
    """

    name: str
    file: str
    truth: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """One row of a table.

    Attributes:
        name: of the row.
        bundle: the bundle that trains and evaluates it.
        options: for training and evaluation.
        test_options: for evaluation only, so that methods which differ only here share their training.
        train: whether it is trained here.
        checkpoint: weights to test instead, a file or a folder relative to the folder of weights; ``{dataset}`` in
            it is the name of the dataset.
        protocol: another protocol than the experiment's.
        printed: name of its row in the paper's table; its own name by default.
        x: its place on the axis of a sweep.
    """

    name: str
    bundle: str
    options: BundleOptions = BundleOptions()
    test_options: BundleOptions = BundleOptions()
    train: bool = True
    checkpoint: str | None = None
    protocol: str | None = None
    printed: str | None = None
    x: float | None = None


@dataclass(frozen=True)
class Pretraining:
    """A training that comes before each training, on the same images, and whose weights the methods start from.

    Settings of the methods name its files with ``{pretraining}``, for example
    ``sam_checkpoint: "{pretraining}/sam.safetensors"``.
    """

    bundle: str
    options: BundleOptions = BundleOptions()


@dataclass(frozen=True)
class PrintedTable:
    """Where the paper's numbers stand: a file and the number of the table in the paper."""

    file: Path
    table: str


@dataclass(frozen=True)
class Experiment:
    """One form of one experiment.

    Attributes:
        name: of the experiment.
        form: of this form of it, for example ``paper`` or ``small``.
        title: what it shows, in one line.
        protocol: one of :data:`PROTOCOLS`.
        metrics: columns of its tables; ``<metric>:<class or tissue>`` is that of a part of the images. With any of
            :data:`COST_METRICS` parameters, operations and speed are measured; :data:`SECONDS_PER_EPOCH` and
            :data:`CORE_MINUTES` are those of the trainings.
        methods: rows of its tables.
        datasets: what is tested.
        train_datasets: what is trained on, with the protocol ``zero_shot``, unless a dataset names its own.
        slides: whole slides that each method segments, with its weights of the first dataset and seed.
        seeds: each is trained and tested on its own and averaged in tables.
        bundles: options of each bundle in this form.
        pretraining: what the methods start from.
        reference: the method that the others are tested against.
        percent: whether tables show per cent.
        transpose: whether tables have a row for each metric and a column for each method.
        sweep: name of the axis that the methods' ``x`` stand on.
        printed: the paper's numbers.
    """

    name: str
    form: str
    title: str
    protocol: str
    metrics: tuple[str, ...]
    methods: tuple[Method, ...]
    datasets: tuple[DatasetUse, ...]
    train_datasets: tuple[DatasetUse, ...] = ()
    slides: tuple[SlideUse, ...] = ()
    seeds: tuple[int, ...] = (0,)
    bundles: Mapping[str, BundleOptions] = field(default_factory=dict)
    pretraining: Pretraining | None = None
    reference: str | None = None
    percent: bool = False
    transpose: bool = False
    sweep: str | None = None
    printed: PrintedTable | None = None

    @property
    def full_name(self) -> str:
        """Name and form, as its folder is called."""
        return f"{self.name}-{self.form}"

    def trained_before(self, dataset: DatasetUse) -> tuple[DatasetUse, ...]:
        """Return what is trained on before a zero-shot test on a dataset."""
        return dataset.train_datasets or self.train_datasets

    @property
    def cost_metrics(self) -> tuple[str, ...]:
        """Those of its metrics that are of the network and not of its answers."""
        return tuple(metric for metric in self.metrics if metric in COST_METRICS)

    @property
    def test_metrics(self) -> tuple[str, ...]:
        """Those of its metrics that are of the answers."""
        return tuple(metric for metric in self.metrics if metric not in COST_METRICS)


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
    "shared",
]
_FORM = (
    "datasets",
    "train_datasets",
    "slides",
    "seeds",
    "bundles",
    "pretraining",
    "methods",
    "only",
    "protocol",
)
_SHARED = ("methods", "datasets", "forms")
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
_SLIDE = ("name", "file", "truth", "settings")
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
    name = document.get("shared")
    shared = {} if name is None else read_document(path.parent / str(name))
    reader.check_keys(shared, _SHARED, f"shared file '{name}'")
    document = with_shared(document, shared)
    reader.check_keys(document, _TOP, "the experiment", required=("name", "title", "metrics", "methods"))
    forms = reader.mapping(document.get("forms"), "forms")
    if form not in forms:
        reader.complain(f"form '{form}': the file has {', '.join(forms) or 'none'}")
    chosen = reader.mapping(forms.get(form, {}), f"form '{form}'")
    reader.check_keys(chosen, _FORM, f"form '{form}'", required=("datasets",))
    printed = _printed(reader, document.get("printed"), path.parent)
    methods = _beside(_methods(reader, document, chosen), printed)
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
        metrics=_metrics(reader.texts(document.get("metrics"), "metrics"), printed),
        methods=methods,
        datasets=tuple(_dataset(reader, entry) for entry in reader.entries(chosen, "datasets")),
        train_datasets=tuple(_dataset(reader, entry) for entry in reader.entries(chosen, "train_datasets")),
        slides=tuple(_slide(reader, entry) for entry in reader.entries(chosen, "slides")),
        seeds=reader.numbers(chosen.get("seeds", document.get("seeds", [0])), "seeds"),
        bundles=_bundles(reader, chosen.get("bundles"), f"form '{form}'"),
        pretraining=_pretraining(reader, chosen.get("pretraining")),
        reference=reference,
        percent=reader.flag(document, "percent"),
        transpose=reader.flag(document, "transpose"),
        sweep=document.get("sweep"),
        printed=printed,
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
    """Read the methods with the changes of the form; null, or ``only`` others, leaves a method out."""
    changes = reader.mapping(form.get("methods"), "methods of the form")
    only = reader.texts(form.get("only"), "only of the form")
    names = [entry.get("name") for entry in document.get("methods", []) if isinstance(entry, Mapping)]
    for name in only:
        if name not in names:
            reader.complain(f"only of the form: '{name}' is none of the methods")
    methods = []
    for entry in reader.entries(document, "methods"):
        entry = reader.mapping(entry, "a method")
        name = str(entry.get("name"))
        where = f"method '{name}'"
        reader.check_keys(entry, _METHOD, where, required=("name", "bundle"))
        if (only and name not in only) or (name in changes and changes[name] is None):
            changes.pop(name, None)
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


def _slide(reader: _Reader, entry: Any) -> SlideUse:
    entry = reader.mapping(entry, "a slide")
    where = f"slide '{entry.get('name')}'"
    reader.check_keys(entry, _SLIDE, where, required=("name", "file"))
    settings = reader.mapping(entry.get("settings"), f"{where}: settings")
    return SlideUse(str(entry.get("name")), str(entry.get("file")), entry.get("truth"), settings)


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
        return None
    return PrintedTable(file, str(entry.get("table")))


PRINTED_METRICS = "printed"
"""Stands among the metrics of an experiment for those of its printed table."""


def _metrics(metrics: tuple[str, ...], printed: PrintedTable | None) -> tuple[str, ...]:
    if printed is None:
        return metrics
    columns = read_printed(printed).metrics
    return tuple(one for name in metrics for one in (columns if name == PRINTED_METRICS else [name]))


def _beside(methods: tuple[Method, ...], printed: PrintedTable | None) -> tuple[Method, ...]:
    """Let systems stand next to the rows that the paper prints under another of their names."""
    if printed is None:
        return methods
    rows, systems = read_printed(printed).values, compared_systems()
    found = []
    for method in methods:
        known = systems.get(method.name)
        names = known.printed_as if known is not None and method.name not in rows else ()
        row = method.printed or next((name for name in names if name in rows), None)
        found.append(replace(method, printed=row))
    return tuple(found)


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


@dataclass(frozen=True)
class Printed:
    """One table of a paper.

    Attributes:
        source: the paper.
        number: of the table in the paper.
        caption: what it shows.
        values: ``{row: {(dataset, metric): value}}`` as printed; cells that the paper leaves empty are missing.
        metrics: its columns for each dataset.
    """

    source: str
    number: str
    caption: str
    values: Mapping[str, Mapping[tuple[str, str], float]]
    metrics: tuple[str, ...] = ()

    def value(self, row: str, dataset: str, metric: str) -> float | None:
        """Return one cell; None where the paper has none."""
        return self.values.get(row, {}).get((dataset, metric))


def read_printed(table: PrintedTable) -> Printed:
    """Read a table of a file of printed numbers.

    The file holds ``source`` and ``tables``; a table has ``caption``, ``datasets``, ``metrics`` and ``rows``:
    ``{row: values}`` with the metrics of the first dataset, then those of the next. With ``percent: true`` the
    paper prints per cent.

    Raises:
        ConfigurationError: there is no such table, or a row has more or fewer cells than columns.

    Example:
        >>> read_printed(PrintedTable(Path("unsam/printed.yaml"), "I"))  # doctest: +SKIP
    """
    document = _document(table.file, table.file.stat().st_mtime_ns)
    tables: Mapping[str, Any] = {str(key): value for key, value in document.get("tables", {}).items()}
    if table.table not in tables:
        raise ConfigurationError(f"{table.file}: no table '{table.table}'; it has {', '.join(tables)}.")
    entry = tables[table.table]
    columns = [(dataset, metric) for dataset in entry["datasets"] for metric in entry["metrics"]]
    values = {}
    for row, cells in entry["rows"].items():
        if len(cells) != len(columns):
            raise ConfigurationError(
                f"{table.file}: table {table.table}, row '{row}': {len(cells)} cells, expected {len(columns)}."
            )
        values[str(row)] = {
            column: float(cell) for column, cell in zip(columns, cells, strict=True) if cell is not None
        }
    return Printed(
        str(document["source"]), table.table, str(entry["caption"]), values, tuple(entry["metrics"])
    )


@lru_cache(maxsize=16)
def _document(file: Path, modified_ns: int) -> Mapping[str, Any]:
    """Read a file once as long as it stays: every table of a paper is in it."""
    return read_document(file)
