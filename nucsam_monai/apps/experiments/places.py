"""Where an experiment finds its data and weights and puts its results."""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from nucsam_monai.apps.experiments.description import BundleOptions, DatasetUse, Method
from nucsam_monai.data import read_dataset
from nucsam_monai.utils.files import sha256_of_file
from nucsam_monai.utils.paths import bundle_root

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

        These are the texts under keys that end with ``checkpoint``, apart from expressions.
        """
        return {
            key: self.weights_dir / value
            for key, value in options.settings.items()
            if key.endswith("checkpoint") and isinstance(value, str) and not value.startswith(_EXPRESSIONS)
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
def digest_of(file: Path, size: int, modified_ns: int) -> str:
    """Return the SHA-256 of a file, computed once as long as size and time stay."""
    return sha256_of_file(file)


def file_digest(file: Path) -> str:
    """Return the SHA-256 of a file that may be large and asked for often."""
    status = file.stat()
    return digest_of(file, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def domain_and_name(folder: Path) -> tuple[str, str]:
    """Return the domain and the name of a dataset folder.

    Raises:
        DatasetError: there is no dataset.
    """
    metadata = read_dataset(folder).metadata
    return metadata.domain, metadata.name
