"""The prompter's augmentation, in the paper's order, from MONAI's transforms and ours."""

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import set_track_meta
from monai.utils import set_determinism

SIDE = 64
BOTH = ["image", "instances"]
RECIPE = [
    {"_target_": "nucsam_monai.transforms.RandGridShuffled", "keys": BOTH, "prob": 0.5, "grid": 4},
    {
        "_target_": "TorchVisiond",
        "keys": "image",
        "name": "RandomApply",
        "p": 0.2,
        "transforms": [
            {
                "_target_": "torchvision.transforms.ColorJitter",
                "brightness": 0.25,
                "contrast": 0.25,
                "saturation": 0.1,
                "hue": 0.05,
            }
        ],
    },
    {"_target_": "RandRotate90d", "keys": BOTH, "prob": 0.5},
    {
        "_target_": "RandSimulateLowResolutiond",
        "keys": "image",
        "prob": 0.15,
        "zoom_range": [0.5, 0.5],
        "downsample_mode": "nearest",
        "upsample_mode": "nearest",
    },
    # sigma of box blurs of 3 to 9 pixels
    {
        "_target_": "RandGaussianSmoothd",
        "keys": "image",
        "prob": 0.2,
        "sigma_x": [0.8, 2.6],
        "sigma_y": [0.8, 2.6],
    },
    {"_target_": "RandGaussianNoised", "keys": "image", "prob": 0.25, "std": 7.07, "sample_std": True},
    {"_target_": "nucsam_monai.transforms.RandZoomBlurd", "keys": "image", "prob": 0.1, "max_factor": 1.05},
    {"_target_": "RandFlipd", "keys": BOTH, "prob": 0.5, "spatial_axis": 0},
    {"_target_": "RandFlipd", "keys": BOTH, "prob": 0.5, "spatial_axis": 1},
    {
        "_target_": "RandAffined",
        "keys": BOTH,
        "prob": 0.5,
        "translate_range": [0.3 * SIDE, 0.3 * SIDE],
        "scale_range": [0.1, 0.1],
        "mode": ["bilinear", "nearest"],
        "padding_mode": "zeros",
    },
    {
        "_target_": "ScaleIntensityRanged",
        "keys": "image",
        "a_min": 0,
        "a_max": 255,
        "b_min": 0,
        "b_max": 255,
        "clip": True,
    },
    {"_target_": "nucsam_monai.transforms.NormalizeSAMd", "keys": "image"},
    {"_target_": "nucsam_monai.transforms.NucleusCentroidsd", "keys": "instances"},
]


@pytest.fixture
def without_meta():
    set_track_meta(False)
    yield
    set_track_meta(True)
    set_determinism(None)


def sample():
    """Bright discs of two classes on black; ids above what half precision could hold."""
    rows, columns = np.indices((SIDE, SIDE))
    instances = np.zeros((1, SIDE, SIDE), dtype=np.int32)
    for number, (y, x) in enumerate([(12, 12), (14, 40), (40, 20), (46, 46)]):
        instances[0, (rows - y) ** 2 + (columns - x) ** 2 <= 49] = 70_001 + number
    image = torch.from_numpy(200 * (instances > 0).astype(np.uint8)).repeat(3, 1, 1)
    classes = {70_001: 0, 70_002: 1, 70_003: 0, 70_004: 1}
    return {"image": image, "instances": torch.from_numpy(instances), "classes": classes}


def test_image_points_and_mask_follow_each_other(without_meta):
    set_determinism(0)
    parser = ConfigParser({"recipe": {"_target_": "Compose", "transforms": RECIPE}})
    recipe = parser.get_parsed_content("recipe")
    for _ in range(25):
        item = recipe(sample())
        image, mask, points = item["image"], item["mask"][0], item["points"]
        assert image.shape == (3, SIDE, SIDE)
        assert image.dtype == torch.float32
        assert len(points) == len(item["point_classes"]) == len(item["instances"].unique()) - 1
        assert set(item["point_classes"].tolist()) <= {0, 1}
        bright = image.mean(dim=0) > image.mean(dim=0).amax() / 2 + image.mean(dim=0).amin() / 2
        assert (bright == (mask > 0)).float().mean() > 0.9
        columns, rows = points.round().long().T
        assert mask[rows, columns].all()
