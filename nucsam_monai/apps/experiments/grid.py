"""From an experiment to its steps: what is trained, what is tested with it, what is measured."""

from dataclasses import dataclass, replace

from nucsam_monai.apps.experiments.description import BundleOptions, DatasetUse, Experiment, Method


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
        protocol: one of :data:`~nucsam_monai.apps.experiments.description.PROTOCOLS`.
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
class Grid:
    """All steps of an experiment, each once."""

    pretrainings: tuple[Training, ...]
    trainings: tuple[Training, ...]
    evaluations: tuple[Evaluation, ...]
    measurements: tuple[Measurement, ...]

    def describe(self, step: Training | Evaluation | Measurement) -> str:
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
    """Return the trainings without repetitions; settings are no keys of a dictionary, so they are compared."""
    found: list[Training] = []
    for training in trainings:
        if training not in found:
            found.append(training)
    return found


def _each_once_by_method(pairs: list[Evaluation]) -> list[Evaluation]:
    return list({pair.method.name: pair for pair in reversed(pairs)}.values())[::-1]


def _suffix(split_protocol: str | None) -> str:
    return f" ({split_protocol})" if split_protocol else ""
