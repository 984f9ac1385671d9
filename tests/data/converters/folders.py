"""What the tests of converters look at in a dataset folder."""

from pathlib import Path

import numpy as np

from nucsam_monai.data.dataset import read_dataset
from nucsam_monai.data.label_files import read_classes, read_image, read_instances


def item_of(folder: Path, sample_id: str) -> dict[str, str]:
    return next(item for item in read_dataset(folder).items() if item["id"] == sample_id)


def image_of(folder: Path, sample_id: str) -> np.ndarray:
    return read_image(item_of(folder, sample_id)["image"])


def instances_of(folder: Path, sample_id: str) -> np.ndarray:
    return read_instances(item_of(folder, sample_id)["instances"])


def classes_of(folder: Path, sample_id: str) -> dict[int, int]:
    return read_classes(item_of(folder, sample_id)["classes"])


def protocol_sizes(folder: Path) -> dict[str, tuple[int, int, int]]:
    """``{protocol: (training, validation, test)}``."""
    protocols = read_dataset(folder).metadata.protocols
    return {
        name: (len(protocol.training), len(protocol.validation), len(protocol.test))
        for name, protocol in protocols.items()
    }
