"""Copies of bundles, taken through the steps of MONAI Label's own app."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import LoadImaged

from nucsam_monai.apps.monailabel.stock_app import export_for_stock_app
from nucsam_monai.io import read_image, read_label_map
from tests.tiny_bundles import SEGMENTING, Weights

SERVED = [name for name in SEGMENTING if name != "cfrsam"]


@pytest.mark.parametrize("name", SERVED)
def test_the_steps_of_the_app_give_the_bundles_instances(
    name: str, weights: dict[str, Weights], images: Path, tmp_path: Path
) -> None:
    served = weights[name].segmenter()
    export_for_stock_app(served, tmp_path / name)
    parser = ConfigParser(json.loads((tmp_path / name / "configs" / "inference.json").read_text()))
    parser.update({"bundle_root": str(tmp_path / name), "device": "cpu"})
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(tmp_path / name / "models" / "model.pt", weights_only=True))
    network.eval()
    for file in sorted(images.glob("*.png")):
        item = {"image": str(file)}
        for step in parser.get_parsed_content("preprocessing").transforms:
            if isinstance(step, LoadImaged):
                step._loader.image_only = False
            item = step(item)
        with torch.no_grad():
            item["pred"] = parser.get_parsed_content("inferer")(item["image"][None], network)[0]
        item = parser.get_parsed_content("postprocessing")(item)
        assert item["pred"].dtype == np.uint16
        assert (served.segment(read_image(file)).instances == item["pred"].T).all()
        assert tuple(item["image"].meta["spatial_shape"]) == item["pred"].shape


@pytest.mark.parametrize("name", SERVED)
def test_the_app_itself_writes_the_bundles_instances(
    name: str, weights: dict[str, Weights], images: Path, tmp_path: Path
) -> None:
    bundle = pytest.importorskip("monailabel.tasks.infer.bundle")
    served = weights[name].segmenter()
    export_for_stock_app(served, tmp_path / name)
    task = bundle.BundleInferTask(str(tmp_path / name), {})
    for file in sorted(images.glob("*.png")):
        written, _ = task({"model": name, "image": str(file), "device": "cpu"})
        assert (read_label_map(written) == served.segment(read_image(file)).instances).all()
        Path(written).unlink()


def test_a_copy_replaces_nothing(weights: dict[str, Weights], tmp_path: Path) -> None:
    (tmp_path / "unsam").mkdir()
    (tmp_path / "unsam" / "mine.txt").write_text("x")
    with pytest.raises(FileExistsError):
        export_for_stock_app(weights["unsam"].segmenter(), tmp_path / "unsam")
    assert [file.name for file in (tmp_path / "unsam").iterdir()] == ["mine.txt"]
