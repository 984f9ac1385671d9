"""Export a dataset for nnU-Net (Isensee et al., Nature Methods 18, 2021), and import its predictions.

nnU-Net is a separate program (``nnunetv2``, Apache-2.0) that reads folders, so it does not have to be installed here.
"""

import re
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image

from nucsam_monai.data.dataset import Dataset, read_dataset
from nucsam_monai.data.label_files import read_instances
from nucsam_monai.io import read_image, read_label_map, write_json, write_label_image, write_png
from nucsam_monai.utils.errors import ConfigurationError, DatasetError
from nucsam_monai.utils.files import atomic_path
from nucsam_monai.utils.instances import instances_of_foreground

CHANNELS = {"0": "R", "1": "G", "2": "B"}
LABELS = {"background": 0, "nucleus": 1}
BinaryRule = Literal["components", "watershed"]
_MAX_NUMBER = 999
_DIVISION = {"train": "training", "val": "validation"}


def export_nnunet(
    dataset: str, output_dir: str = "nnUNet_raw", number: int = 1, split_protocol: str | None = None
) -> str:
    """Write a dataset in nnU-Net's raw format: RGB images, and masks of all nuclei as PNG.

    Training and validation images go to ``imagesTr``, as nnU-Net divides them itself; ``splits_final.json`` holds the
    dataset's own division. Test images go to ``imagesTs``, and their masks, which nnU-Net does not read, to
    ``labelsTs``.

    Args:
        dataset: a dataset folder.
        output_dir: the folder that nnU-Net knows as ``nnUNet_raw``.
        number: nnU-Net's number of the dataset, 1 to 999.
        split_protocol: a named split instead of the one that ``dataset.json`` is split by.

    Returns:
        What was written and the commands that come next.

    Raises:
        ConfigurationError: the number or the split is invalid, or the folder is not empty.
        DatasetError: there is no dataset, or nothing to train with.
    """
    found = _read(dataset, split_protocol)
    if not 1 <= number <= _MAX_NUMBER:
        raise ConfigurationError(
            f"number {number}: expected 1 to {_MAX_NUMBER}, as nnU-Net numbers its datasets."
        )
    name = f"Dataset{number:03d}_{re.sub('[^A-Za-z0-9]', '', found.metadata.name) or 'nuclei'}"
    folder = Path(output_dir) / name
    if (folder / "dataset.json").exists():
        raise ConfigurationError(f"{folder}: is there already. Remove it, or pass another --number.")
    trained = {split: found.splits[split] for split in ("training", "validation")}
    cases = [*trained["training"], *trained["validation"]]
    if not cases:
        raise DatasetError(f"{found.folder}: no image in training and validation. Choose another split.")
    for item in cases:
        _write_case(item, folder, "Tr")
    for item in found.splits["test"]:
        _write_case(item, folder, "Ts")
    content = {"channel_names": CHANNELS, "labels": LABELS, "numTraining": len(cases), "file_ending": ".png"}
    write_json(folder / "dataset.json", content)
    lines = [f"{folder}: {len(cases)} training images, {len(found.splits['test'])} test images"]
    if all(trained.values()):
        division = {key: [item["id"] for item in trained[split]] for key, split in _DIVISION.items()}
        write_json(folder / "splits_final.json", [division])
        lines.append(f"nnUNetv2_plan_and_preprocess -d {number} --verify_dataset_integrity")
        lines.append(f"cp {folder}/splits_final.json $nnUNet_preprocessed/{name}/")
        lines.append(f"nnUNetv2_train {number} 2d 0")
        lines.append(f"nnUNetv2_predict -d {number} -c 2d -f 0 -i {folder}/imagesTs -o nnunet")
    return "\n".join(lines)


def _write_case(item: dict[str, str], folder: Path, kind: str) -> None:
    image = read_image(item["image"])
    mask = read_instances(Path(item["instances"])) > 0
    for part in ("images", "labels"):
        (folder / f"{part}{kind}").mkdir(parents=True, exist_ok=True)
    write_png(folder / f"images{kind}" / f"{item['id']}_0000.png", image)
    with atomic_path(folder / f"labels{kind}" / f"{item['id']}.png") as temporary:
        Image.fromarray(mask.astype(np.uint8)).save(temporary, "PNG")


def import_nnunet(
    predictions: str,
    dataset: str,
    output_dir: str,
    split: str = "test",
    split_protocol: str | None = None,
    instances: BinaryRule = "components",
) -> str:
    """Convert the masks that nnU-Net predicted into label maps with one id per nucleus.

    Args:
        predictions: nnU-Net's folder of ``<id>.png``, 0 background and 1 nucleus.
        dataset: the dataset folder that was exported.
        output_dir: folder for the label maps ``<id>.tif``.
        split: the split that was predicted.
        split_protocol: named split of the export.
        instances: how a mask is split into nuclei: ``components``, or ``watershed`` on its distance transform.

    Returns:
        What was written and the command that evaluates it.

    Raises:
        ConfigurationError: an unknown split or rule.
        DatasetError: a mask is missing, of another size than its image, or holds other values.
    """
    if instances not in get_args(BinaryRule):
        raise ConfigurationError(
            f"instances '{instances}': expected one of {', '.join(get_args(BinaryRule))}."
        )
    found = _read(dataset, split_protocol)
    if split not in found.splits:
        raise ConfigurationError(f"split '{split}': expected one of {', '.join(found.splits)}.")
    items = found.splits[split]
    masks = [_mask(item, Path(predictions)) for item in items]
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    for item, mask in zip(items, masks, strict=True):
        write_label_image(Path(output_dir) / f"{item['id']}.tif", instances_of_foreground(mask, instances))
    protocol = f" --split_protocol {split_protocol}" if split_protocol else ""
    evaluate = f"nucsam evaluate --dataset {dataset} --predictions {output_dir} --split {split}{protocol}"
    return f"{output_dir}: {len(items)} label maps\nevaluate them with: {evaluate}"


def _read(dataset: str, split_protocol: str | None) -> Dataset:
    found = read_dataset(dataset)
    return found if split_protocol is None else found.with_protocol(split_protocol)


def _mask(item: dict[str, str], predictions: Path) -> np.ndarray:
    """Return ``(H, W)`` bool of one prediction."""
    path = predictions / f"{item['id']}.png"
    if not path.is_file():
        raise DatasetError(
            f"{path}: missing. Predict all images of the split, for example those in imagesTs."
        )
    labels = read_label_map(path)
    expected = read_instances(Path(item["instances"])).shape
    if labels.shape != expected or labels.max(initial=0) > 1:
        raise DatasetError(
            f"{path}: found {labels.shape} with values up to {labels.max(initial=0)}, expected {expected} with "
            "0 and 1. Give nnU-Net's predictions of this dataset."
        )
    return labels > 0
