"""Random weights of the bundles at their smallest, and images to segment with them."""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monai
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN, resnet_fpn_backbone

from nucsam_monai.networks import mask_rcnn
from nucsam_monai.networks.sam import SAM_VARIANTS, save_trained
from nucsam_monai.segmenter import Scalar, Segmenter
from tests.apps.monailabel.analytic import discs
from tests.bundles.runs import BUNDLES
from tests.networks.conftest import MICRO, MICRO_TRUNK

SEGMENTING = sorted(file.parents[1].name for file in BUNDLES.glob("*/configs/inference.json"))
"""The bundles that can infer."""

TINY: dict[str, Scalar] = {
    "sam_variant": "micro",
    "image_size": 32,
    "precision": "fp32",
    "generator_input_size": None,
    "levels": 2,
    "overlap_px": 8,
    "point_radius_px": 4.0,
    "tune": "full",
    "baseline_size": "small",
    "encoder": "micro",
}
"""What makes a bundle small, where it has such a key."""


@dataclass(frozen=True)
class Weights:
    """A bundle and random weights of it."""

    bundle: str
    path: Path
    settings: dict[str, Scalar]

    def segmenter(self) -> Segmenter:
        return Segmenter(BUNDLES / self.bundle, self.path, "cpu", self.settings)


def tiny_settings(bundle: str) -> dict[str, Scalar]:
    """Return those of the settings that a bundle knows."""
    return {key: value for key, value in TINY.items() if key in Segmenter(BUNDLES / bundle).config}


def random_weights(bundle: str, settings: dict[str, Scalar], folder: Path) -> Weights:
    """Write random weights of a bundle."""
    torch.manual_seed(3)
    # Not the classes or domains of weights that somebody has trained at the bundle's default place.
    network = Segmenter(BUNDLES / bundle, folder / "none", "cpu", settings).value("network_def")
    if hasattr(network, "prompter"):
        save_trained(folder / "prompter.safetensors", network.prompter, network.prompter_header)
        save_trained(folder / "segmentor.safetensors", network.segmentor, network.segmentor.header)
        return Weights(bundle, folder, settings)
    save_trained(folder / "model.safetensors", network, network.header)
    return Weights(bundle, folder / "model.safetensors", settings)


def micro_pyramid(backbone_name: str, **options: Any) -> nn.Module:
    """Build torchvision's encoder, or one of 8 channels named ``micro``, whose heads are a tenth as large too."""
    if backbone_name != "micro":
        return resnet_fpn_backbone(backbone_name=backbone_name, **options)
    layers = OrderedDict(
        (f"layer{number}", nn.Sequential(nn.Conv2d(channels, 8, 3, stride, 1), nn.BatchNorm2d(8), nn.ReLU()))
        for number, (channels, stride) in enumerate(((3, 4), (8, 2), (8, 2), (8, 2)))
    )
    places = {name: str(number) for number, name in enumerate(layers)}
    return BackboneWithFPN(nn.Sequential(layers), places, [8] * 4, 8)


@pytest.fixture(scope="session")
def micro() -> Iterator[None]:
    """Let ``micro`` name the smallest SAM and the smallest encoder of Mask R-CNN."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SAM_VARIANTS, MICRO.name, MICRO)
        patch.setitem(SAM_VARIANTS, MICRO_TRUNK.name, MICRO_TRUNK)
        patch.setattr(mask_rcnn, "_ENCODERS", (*mask_rcnn._ENCODERS, "micro"))
        patch.setattr(mask_rcnn, "resnet_fpn_backbone", micro_pyramid)
        yield


@pytest.fixture(scope="session")
def weights(micro: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Weights]:
    return {
        name: random_weights(name, tiny_settings(name), tmp_path_factory.mktemp(name)) for name in SEGMENTING
    }


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images that are not square."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(5)
    for number, (height, width) in enumerate([(40, 70), (67, 33)]):
        image = discs(height, width, [tuple(xy) for xy in rng.integers(5, 33, (4, 2)).tolist()], 5)
        noise = rng.integers(-15, 16, image.shape)
        Image.fromarray(np.clip(image + noise, 0, 255).astype(np.uint8)).save(folder / f"image {number}.png")
    return folder


@pytest.fixture(autouse=True)
def no_traces() -> Iterator[None]:
    """Undo what a workflow sets for the whole process."""
    yield
    monai.utils.set_determinism(None)
    monai.data.set_track_meta(True)
