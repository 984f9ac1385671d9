"""Compared systems of every kind are loaded, exported, put on slides and served by what all bundles share."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from nucsam_monai import load
from nucsam_monai.apps.monailabel.images import ImageOpener
from nucsam_monai.apps.monailabel.model import ServedModel
from nucsam_monai.apps.monailabel.settings import AppSettings
from nucsam_monai.io import read_image
from nucsam_monai.networks.baselines import Size
from nucsam_monai.networks.sam import build_sam, save_trained, with_settings
from nucsam_monai.segmenter import Scalar
from nucsam_monai.systems import build_network
from nucsam_monai.utils.image_source import ArrayImage, Region
from nucsam_monai.wsi import SlideOptions
from tests.bundles.runs import BUNDLES, BundleRuns
from tests.tiny_bundles import Weights, images, micro, no_traces, random_weights
from tests.wsi.slides import write_tiff

__all__ = ["images", "micro", "no_traces"]

TYPES = ("epithelial", "other")
ONE_CLASS = ("nucleus",)


@dataclass(frozen=True)
class Kind:
    """A small network of a system in the bundle ``baselines``, and the classes that it tells apart."""

    baseline: str
    classes: tuple[str, ...] = ONE_CLASS
    size: Size = "small"
    side: int = 32

    @property
    def settings(self) -> dict[str, Scalar]:
        return {
            "baseline": self.baseline,
            "baseline_size": self.size,
            "image_size": self.side,
            "precision": "fp32",
        }


KINDS = {
    "StarDist": Kind("stardist"),
    "StarDist with types": Kind("stardist", TYPES),
    "Micro-Net with types": Kind("micronet", TYPES),
    "HoVer-Net with types": Kind("hovernet", TYPES, "compact"),
    "CellViT": Kind("cellvit-vit_b", TYPES, side=64),
    "encoder by name": Kind("fpn-tu-test_resnet", side=64),
}
SAMUS: dict[str, Scalar] = {
    "adapter": "samus",
    "sam_variant": "micro",
    "image_size": 32,
    "n_points": 0,
    "precision": "fp32",
}
every_kind = pytest.mark.parametrize("name", [*KINDS, "SAMUS"])


@pytest.fixture(scope="module")
def served(micro: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Weights]:
    """Random weights of every kind, in the form that a training leaves them."""
    found = {}
    for name, kind in KINDS.items():
        path = tmp_path_factory.mktemp("weights") / "model.safetensors"
        torch.manual_seed(3)
        network = build_network(kind.baseline, kind.size, class_names=kind.classes)
        save_trained(path, network, with_settings(network.header, {"baseline": kind.baseline}))
        found[name] = Weights("baselines", path, kind.settings)
    folder = tmp_path_factory.mktemp("samus")  # its weights belong to those of a frozen SAM
    torch.manual_seed(7)
    torch.save(build_sam("micro", 32).state_dict(), folder / "sam_micro.pth")
    settings = {**SAMUS, "sam_checkpoint": str(folder / "sam_micro.pth")}
    return {**found, "SAMUS": random_weights("sac", settings, folder)}


@every_kind
def test_an_image_a_slide_and_the_server_have_the_nuclei_of_the_loaded_weights(
    name: str, served: dict[str, Weights], images: Path, tmp_path: Path
) -> None:
    own, classes = served[name], KINDS[name].classes if name in KINDS else ONE_CLASS
    image = read_image(images / "image 0.png")
    segmenter = load(own.bundle, own.path, "cpu", **own.settings)
    nuclei = segmenter.segment(image)
    assert nuclei.instances.shape == image.shape[:2]
    assert nuclei.class_names == classes
    slide = write_tiff(tmp_path / "slide.tif", np.tile(image, (2, 1, 1)))
    options = SlideOptions(mask="all", shard_px=64, max_nucleus_um=8.0, outputs=("parquet",))
    result = segmenter.segment_slide(slide, tmp_path, slide=options)
    assert result.status in ("done", "done_empty")
    table = pq.read_table(tmp_path / "slide" / "nuclei.parquet")
    assert table.num_rows == result.nuclei
    assert set(table["class_name"].to_pylist()) <= set(classes)
    told = {own.bundle: {**own.settings, "checkpoint": str(own.path)}}
    settings = AppSettings({own.bundle: BUNDLES / own.bundle}, told, tmp_path, window_px=128, overlap_px=16)
    model = ServedModel(own.bundle, settings, ImageOpener(10**6))
    region = Region(0, 0, image.shape[1], image.shape[0])
    answer = list(model.nuclei(model.prepare({"device": "cpu"}), ArrayImage(image), region))
    assert len(answer) == len(nuclei)
    assert model.class_names == classes


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@every_kind
def test_the_network_is_exported_by_its_bundle(name: str, served: dict[str, Weights], tmp_path: Path) -> None:
    own, side = served[name], KINDS[name].side if name in KINDS else 32
    settings = {**own.settings, "checkpoint": str(own.path), "export_path": str(tmp_path / "model.ts")}
    workflow = BundleRuns(own.bundle).bundle(
        base="inference",
        run_id="exporting",
        device="$torch.device('cpu')",
        output_dir=str(tmp_path),
        **settings,
    )
    workflow.run()
    with torch.no_grad():
        exported = torch.jit.load(tmp_path / "model.ts")(torch.zeros(1, 3, side, side))
        expected = own.segmenter().network(torch.zeros(1, 3, side, side))
    torch.testing.assert_close(exported, expected, atol=1e-3, rtol=1e-3)
