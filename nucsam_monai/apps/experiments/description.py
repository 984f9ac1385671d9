"""What an experiment is: methods, data, protocol and seeds; nothing here touches a file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

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
    """A dataset folder and what of it is used.

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
            :data:`COST_METRICS` parameters, operations and speed are measured.
        methods: rows of its tables.
        datasets: what is tested.
        train_datasets: what is trained on, with the protocol ``zero_shot``, unless a dataset names its own.
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
