"""Read a folder of label maps that any tool predicted for the images of a dataset."""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from nucsam_monai.data import DatasetMetadata
from nucsam_monai.data.label_files import read_classes, read_instances
from nucsam_monai.io import LABEL_MAP_SUFFIXES, read_class_map, read_label_map
from nucsam_monai.metrics import EvaluationSample, majority_classes
from nucsam_monai.utils.errors import DatasetError, ImageReadError

logger = logging.getLogger(__name__)

_SUFFIXES = re.compile("_(instances|cp_masks)$")  # of the bundles and of Cellpose
_NOT_PREDICTIONS = ("_overlay",)
_NAMED = 5


def find_predictions(
    folder: Path, ids: Sequence[str], other_ids: Sequence[str], split: str
) -> dict[str, Path]:
    """Return the label map of every image.

    Args:
        folder: folder with the predictions.
        ids: images that need one.
        other_ids: images of the other splits, whose predictions are ignored.
        split: name of the split for error messages.

    Raises:
        DatasetError: an image has no prediction or several, or a file belongs to no image of the dataset.
    """
    found = _files_by_stem(folder, LABEL_MAP_SUFFIXES)
    known, others = set(ids), set(other_ids)
    by_id: dict[str, list[Path]] = {}
    unknown = []
    for stem, paths in found.items():
        name = stem if stem in known | others else _SUFFIXES.sub("", stem)
        if name in known | others:
            by_id.setdefault(name, []).extend(paths)
        elif not stem.endswith(_NOT_PREDICTIONS):
            unknown += paths
    missing = [name for name in ids if name not in by_id]
    if missing:
        raise DatasetError(
            f"{folder}: no prediction for {len(missing)} of {len(ids)} images of split '{split}': "
            f"{_some(missing)}. Expected <id>{{{','.join(LABEL_MAP_SUFFIXES)}}}; an image without nuclei needs an "
            "empty label map."
        )
    if unknown:
        raise DatasetError(
            f"{folder}: {len(unknown)} files belong to no image of the dataset: "
            f"{_some([path.name for path in unknown])}. Name predictions like the images, and move other files away."
        )
    several = [paths for name, paths in by_id.items() if len(paths) > 1 and name in known]
    if several:
        raise DatasetError(
            f"{folder}: several predictions for one image: {_some([path.name for path in several[0]])}. Keep one."
        )
    if ignored := others & by_id.keys() - known:
        logger.info("%d predictions of images outside split '%s' are ignored", len(ignored), split)
    return {name: by_id[name][0] for name in ids}


def read_prediction(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Read a label map and check its size.

    Raises:
        ImageReadError: the file is not a label map, or its size differs from the image's.
    """
    return _of_shape(read_label_map(path), path, shape)


def _of_shape(predicted: np.ndarray, path: Path, shape: tuple[int, ...]) -> np.ndarray:
    if predicted.shape != shape:
        raise ImageReadError(
            f"{path}: {predicted.shape[1]} x {predicted.shape[0]} px, the image has {shape[1]} x {shape[0]} px. "
            "Export predictions at the size of the image; enlarge label maps with nearest neighbour only."
        )
    return predicted


def read_predicted_classes(path: Path, predicted: np.ndarray) -> dict[int, int]:
    """Read ``{id: class id}`` from JSON, or derive it from a map of classes by the majority of pixels."""
    if path.suffix.lower() == ".json":
        return read_classes(path)
    return majority_classes(predicted, _of_shape(read_class_map(path), path, predicted.shape))


def read_samples(
    items: Iterable[Mapping[str, str]], predictions: Mapping[str, Path], classes: Mapping[str, Path]
) -> Iterator[EvaluationSample]:
    """Read ground truth and prediction of one image after the other.

    Args:
        items: images of the dataset.
        predictions: label map of every image, from :func:`find_predictions`.
        classes: classes of the predicted nuclei of every image, from :func:`find_classes`; empty where classes are
            not evaluated.

    Raises:
        DatasetError: a file of the dataset is missing or damaged.
        ImageReadError: a prediction is not a label map, or its size differs from its image's.
    """
    for item in items:
        true = read_instances(item["instances"])
        predicted = read_prediction(predictions[item["id"]], true.shape)
        yield EvaluationSample(
            id=item["id"],
            y=true,
            y_pred=predicted,
            y_classes=read_classes(item["classes"]) if classes else None,
            y_pred_classes=read_predicted_classes(classes[item["id"]], predicted) if classes else None,
            tissue=item.get("tissue"),
            group=item.get("group"),
            domain=item["domain"],
            fold=item.get("fold"),
        )


def find_classes(folder: Path, ids: Sequence[str], metadata: DatasetMetadata) -> dict[str, Path]:
    """Return the file with the classes of every image.

    Raises:
        DatasetError: the dataset has no classes, or an image has no such file or several.
    """
    if len(metadata.class_names) < 2:
        raise DatasetError(
            f"the dataset '{metadata.name}' has no classes, so those in {folder} cannot be measured. Leave them out."
        )
    found = _files_by_stem(folder, (".json", *LABEL_MAP_SUFFIXES))
    wrong = [name for name in ids if len(found.get(name, [])) != 1]
    if wrong:
        raise DatasetError(
            f"{folder}: expected one file with classes for each image, found none or several for {len(wrong)} of "
            f"{len(ids)}: {_some(wrong)}. Expected <id>.json or <id>{{{','.join(LABEL_MAP_SUFFIXES)}}}."
        )
    return {name: found[name][0] for name in ids}


def _files_by_stem(folder: Path, suffixes: Sequence[str]) -> dict[str, list[Path]]:
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder.")
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file():
            files.setdefault(path.stem, []).append(path)
    return files


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
