"""Everything that an experiment lacks, found before it starts."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.description import BundleOptions, DatasetUse, Experiment, read_printed
from experiments.steps import (
    Evaluation,
    Grid,
    Measurement,
    Places,
    SlideRun,
    config_paths,
    evaluation_configurations,
    slide_configurations,
)
from nucsam_monai.data import read_dataset
from nucsam_monai.data.converters import CONVERTERS
from nucsam_monai.utils.errors import ConfigurationError, NucSAMError

if TYPE_CHECKING:
    from monai.bundle import ConfigParser

DEMO = "demo"
"""The folder of the demo data below that of all data; it is drawn when it is needed."""

_SAM_SERVER = "https://dl.fbaipublicfiles.com/segment_anything"
_TORCH_SERVER = "https://download.pytorch.org/models"
WEIGHT_SOURCES: Mapping[str, str] = {
    "sam_vit_b_01ec64.pth": f"{_SAM_SERVER}/sam_vit_b_01ec64.pth",
    "sam_vit_l_0b3195.pth": f"{_SAM_SERVER}/sam_vit_l_0b3195.pth",
    "sam_vit_h_4b8939.pth": f"{_SAM_SERVER}/sam_vit_h_4b8939.pth",
    "convnext_small-0c510722.pth": f"{_TORCH_SERVER}/convnext_small-0c510722.pth",
    "vgg19-dcbb9e9d.pth": f"{_TORCH_SERVER}/vgg19-dcbb9e9d.pth",
    "vit_base_r50_s16_224.orig_in21k.safetensors": "model.safetensors of https://huggingface.co/timm/"
    "vit_base_r50_s16_224.orig_in21k, renamed",
}
"""Where the weights that the papers start from are published."""


def draw_demo(experiment: Experiment, places: Places) -> None:
    """Draw the demo data if the experiment uses it and it is not there.

    Raises:
        DatasetError: its place holds something else.
    """
    used = [use for dataset in experiment.datasets for use in (dataset, *experiment.trained_before(dataset))]
    if any(dataset.folder.partition("/")[0] == DEMO for dataset in used):
        from nucsam_monai.data.demo import demo_dataset_dir  # takes a third of a second, for --help too

        demo_dataset_dir(places.data_dir / DEMO)


def check(experiment: Experiment, grid: Grid, places: Places) -> None:
    """Make sure that everything an experiment needs is there.

    Raises:
        ConfigurationError: something is missing or unknown; the message lists all of it and where to get it.
    """
    problems = list(
        dict.fromkeys(
            [
                *_dataset_problems(grid, places),
                *_weights_problems(grid, places),
                *_bundle_problems(grid),
                *_slide_problems(grid, places),
                *_printed_problems(experiment),
            ]
        )
    )
    if problems:
        lines = "\n".join(f"- {problem}" for problem in problems)
        raise ConfigurationError(
            f"experiment '{experiment.name}', form '{experiment.form}': {len(problems)} things are missing or "
            f"unknown:\n{lines}"
        )


def _dataset_problems(grid: Grid, places: Places) -> Iterator[str]:
    for training in (*grid.pretrainings, *grid.trainings):
        parents = {places.dataset_folder(dataset).parent for dataset in training.datasets}
        if len(parents) > 1:
            yield (
                f"{training}: datasets that are trained together lie in one folder, found "
                f"{', '.join(sorted(map(str, parents)))}"
            )
        for dataset in training.datasets:
            alone = len(training.datasets) == 1
            protocol = training.split_protocol if alone else dataset.split_protocols[0]
            yield from _split_problems(dataset, places, protocol, ("training",))
    for pair in (*grid.evaluations, *(measurement.evaluation for measurement in grid.measurements)):
        yield from _split_problems(pair.dataset, places, pair.split_protocol, pair.dataset.splits)


def _split_problems(
    dataset: DatasetUse, places: Places, split_protocol: str | None, splits: Sequence[str]
) -> Iterator[str]:
    """Yield what is wrong with a dataset folder, or with a split of it."""
    folder = places.dataset_folder(dataset)
    if not (folder / "dataset.json").is_file():
        yield f"dataset '{dataset.name}': no {folder}. {_how_to_get(dataset)}"
        return
    try:
        found = read_dataset(folder)
        if split_protocol is not None:
            found = found.with_protocol(split_protocol)
    except NucSAMError as error:
        yield f"dataset '{dataset.name}': {error}"
        return
    if not any(found.splits[split] for split in splits):
        named = f" of '{split_protocol}'" if split_protocol else ""
        yield f"dataset '{dataset.name}': no image in {' and '.join(splits)}{named}. Choose another split."


def _how_to_get(dataset: DatasetUse) -> str:
    name = dataset.folder.rpartition("/")[2]
    if name in CONVERTERS:
        return (
            f"Get it: {CONVERTERS[name].info.obtain}. Then: nucsam datasets {name} "
            f"--source <archive> --output_dir <data_dir>/{dataset.folder}"
        )
    if dataset.folder.partition("/")[0] == DEMO:
        from nucsam_monai.data.demo import DEMO_DOMAINS

        return f"The demo data has {', '.join(DEMO_DOMAINS)}."
    return "Prepare it with: nucsam datasets folder --help"


def _weights_problems(grid: Grid, places: Places) -> Iterator[str]:
    options = [training.options for training in (*grid.pretrainings, *grid.trainings)]
    options += [pair.options for pair in _tested(grid)]
    files = [path for changes in options for path in places.weights(changes).values()]
    checkpoints = [places.checkpoint(pair.method, pair.dataset) for pair in _tested(grid)]
    files += [path for path in checkpoints if path is not None]
    for path in files:
        if not path.exists():
            source = WEIGHT_SOURCES.get(path.name)
            advice = f"Get it: {source}" if source else "Put it there, or name another --weights_dir"
            yield f"weights: no {path}. {advice}"
        elif path.is_dir() and not any(path.glob("*.safetensors")):
            yield f"weights: no *.safetensors in {path}. Put them there, or name another --weights_dir"


def _bundle_problems(grid: Grid) -> Iterator[str]:
    for training in (*grid.pretrainings, *grid.trainings):
        yield from option_problems(training.bundle, training.options, ("train", *training.options.overlays))
    for pair in _tested(grid):
        yield from option_problems(pair.bundle, pair.options, evaluation_configurations(pair))


def _slide_problems(grid: Grid, places: Places) -> Iterator[str]:
    for step in grid.slides:
        for name in (step.slide.file, step.slide.truth):
            if name is not None and not (places.data_dir / name).exists():
                yield f"slide '{step.slide.name}': no {places.data_dir / name}. Put it there, or pass --data_dir"
        overlay = slide_configurations(step.evaluation.bundle)[-1]
        known = _parser((overlay,)).get()
        for key in step.slide.settings:
            if key not in known:
                yield f"slide '{step.slide.name}': unknown key '{key}'{_nearest(key, known)}"


def option_problems(bundle: str, options: BundleOptions, names: tuple[str, ...]) -> Iterator[str]:
    """Yield which configurations or keys a bundle does not have.

    Args:
        bundle: name of the bundle.
        options: the keys are those of its settings.
        names: the configurations, in the order in which they are read.
    """
    try:
        files = config_paths(bundle, names)
        missing = [file for file in files if not Path(file).is_file()]
        if missing:
            yield f"bundle '{bundle}': no configuration {', '.join(missing)}"
            return
        # evaluate.json may name another network, which takes the keys of train.json in place of what its weights say.
        parser, of_training = _parser(tuple(files)), _parser((files[0],))
    except ConfigurationError as error:
        yield str(error)
        return
    except LookupError:  # of MONAI: a configuration changes an entry of a list that is not there
        yield f"bundle '{bundle}': {', '.join(names)} do not fit together. Is one missing, such as shared_encoder?"
        return
    for key in options.settings:
        if key not in parser and key not in of_training:
            yield f"bundle '{bundle}': unknown key '{key}'{_nearest(key, parser.get())}"


@lru_cache(maxsize=64)
def _parser(files: tuple[str, ...]) -> "ConfigParser":
    from monai.bundle import ConfigParser

    return ConfigParser(ConfigParser.load_config_files(list(files)))


def _nearest(key: str, config: Mapping[str, Any]) -> str:
    nearest = difflib.get_close_matches(key.partition("#")[0], config, n=1)
    return f". Did you mean '{nearest[0]}'?" if nearest and nearest[0] != key else ""


def _printed_problems(experiment: Experiment) -> Iterator[str]:
    if experiment.printed is None:
        return
    try:
        printed = read_printed(experiment.printed)
    except ConfigurationError as error:
        yield str(error)
        return
    for method in experiment.methods:
        if method.printed is not None and method.printed not in printed.values:
            yield (
                f"method '{method.name}': table {printed.number} has no row '{method.printed}'; "
                f"it has {', '.join(printed.values)}"
            )


def _tested(grid: Grid) -> list[Evaluation]:
    others: tuple[Measurement | SlideRun, ...] = (*grid.measurements, *grid.slides)
    return [*grid.evaluations, *(one.evaluation for one in others)]
