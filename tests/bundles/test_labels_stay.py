"""In no bundle and overlay may a label move against its image when both are resized."""

import json
import re
from collections.abc import Iterator
from typing import Any

import monai
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import MapTransform, Randomizable, RandZoomd, Resized

from nucsam_monai.transforms import RandGridShuffled, RandZoomCropd
from tests.bundles.runs import BUNDLES, REPOSITORY

SIZES = ((125, 160), (128, 128), (192, 130))
RESIZING = (Resized, RandZoomd, RandZoomCropd)
WORKFLOWS = ("inference", "evaluate", "automatic", "metadata", "multi_gpu_train")
BELOW = {("promptnucseg", "compact"): ["shared_encoder"], ("sac", "unsam_protocol"): ["paper"]}
RECIPE_OF_DATASET = re.compile("paper_[a-z0-9]+")


def recipes() -> Iterator[tuple[str, str, str | None]]:
    """Yield bundle, overlay and, where there is a choice, how images are fitted to the working size."""
    for folder in sorted(BUNDLES.glob("*/configs")):
        train = json.loads((folder / "train.json").read_text())
        overlays = [file.stem for file in sorted(folder.glob("*.json")) if file.stem not in WORKFLOWS]
        for overlay in overlays:
            if overlay == "paper" and any(map(RECIPE_OF_DATASET.fullmatch, overlays)):
                continue  # incomplete without the file of a dataset
            for fit in ("tile", "resize") if "fit" in train else (None,):
                yield folder.parent.name, overlay, fit


@pytest.fixture(autouse=True)
def without_meta() -> Iterator[None]:
    monai.data.set_track_meta(False)
    yield
    monai.data.set_track_meta(True)


def spatial_transforms(transform: Any) -> Iterator[MapTransform]:
    """Yield the transforms that change image and label map together, however deep they lie."""
    for part in getattr(transform, "transforms", None) or [getattr(transform, "augmentation", None)]:
        if part is not None:
            yield from spatial_transforms(part)
    if isinstance(transform, MapTransform) and {"image", "instances"} <= set(transform.keys):
        yield transform


def training_transforms(bundle: str, overlay: str, fit: str | None) -> Iterator[MapTransform]:
    below = ["paper"] if RECIPE_OF_DATASET.fullmatch(overlay) else BELOW.get((bundle, overlay), [])
    names = dict.fromkeys(["train", *below, overlay])
    parser = ConfigParser()
    parser.read_config([BUNDLES / bundle / "configs" / f"{name}.json" for name in names])
    parser.update({"image_size": 64, "dataset_dir": str(REPOSITORY / "tests" / "data" / "samples")})
    known = {"fit": fit, "classes": {}}  # classes are read off the network, which need not be built here
    parser.update({key: value for key, value in known.items() if key in parser.get()})
    for stage in [key for key in parser.get() if key == "train" or key.endswith("_stage")]:
        yield from spatial_transforms(parser.get_parsed_content(f"{stage}::preprocessing"))


def shift_px(transform: MapTransform, height: int, width: int) -> np.ndarray:
    """Return how far labels are moved against the image, in pixels of the result, as mean over all its pixels.

    The image holds the coordinates of its pixels, the label map their numbers.
    """
    rows, columns = np.indices((height, width))
    image = torch.from_numpy(np.stack([rows, columns, np.full_like(rows, 255)]).astype(np.float32))
    numbers = torch.from_numpy((1 + rows * width + columns)[None].astype(np.int32))
    item = {"image": image, "instances": numbers, "distance": torch.zeros(1, height, width)}
    item = transform(item)
    found = item["instances"][0].double().round().numpy().astype(np.int64)
    seen = np.asarray(item["image"], dtype=np.float64)
    inner = (found > 0) & (seen[2] > 254.9)
    inner[[0, -1]] = inner[:, [0, -1]] = False
    if inner.sum() < 1000:  # moved out of the image
        return np.zeros(2)
    scale = np.divide(found.shape, (height, width)) if isinstance(transform, Resized) else np.ones(2)
    return scale * (np.stack(np.divmod(found - 1, width)) - seen[:2])[:, inner].mean(axis=1)


@pytest.mark.parametrize(("bundle", "overlay", "fit"), recipes())
def test_labels_stay_on_their_image(bundle: str, overlay: str, fit: str | None) -> None:
    for transform in training_transforms(bundle, overlay, fit):
        if isinstance(transform, RandGridShuffled):  # moves whole cells and gives new numbers
            continue
        if isinstance(transform, Randomizable):
            transform.set_random_state(0)
            transform.prob = 1.0
        if isinstance(transform, RandZoomCropd) and fit == "resize":
            transform.zoom = (
                1.0,
                1.6,
            )  # below, the image is continued by its mirror image, and averaged at the fold
        shifts = np.array([shift_px(transform, *size) for size in SIZES for _ in range(2)])
        if not isinstance(transform, RESIZING):  # a turn or a warp rounds each pixel's place, to either side
            shifts = shifts.mean(axis=0)
        limit = 0.01 if isinstance(transform, RESIZING) else 0.03
        assert np.abs(shifts).max() < limit, (type(transform).__name__, shifts)
