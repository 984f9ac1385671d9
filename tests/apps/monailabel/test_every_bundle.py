"""The application with every bundle that can infer, at its smallest."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
from safetensors.torch import load_file, save_file

from nucsam_monai.apps.monailabel.images import ImageOpener
from nucsam_monai.apps.monailabel.refusals import RequestRefusedError
from nucsam_monai.apps.monailabel.settings import AppSettings
from nucsam_monai.inferers import ResizeInferer
from nucsam_monai.io import read_image, read_label_map
from nucsam_monai.networks import PromptNucSeg
from nucsam_monai.networks.nucleus_prompts import PromptableNetwork
from nucsam_monai.networks.sam import read_header, with_settings
from nucsam_monai.segmenter import takes_prompts
from nucsam_monai.utils.image_source import ArrayImage, Region
from nucsam_monai.wsi import SlideOptions
from tests.apps.monailabel.analytic import discs
from tests.bundles.runs import BUNDLES, REPOSITORY
from tests.tiny_bundles import SEGMENTING, Weights
from tests.wsi.slides import write_tiff

pytest.importorskip("monailabel.interfaces.app")

IMAGES = ["image 0", "image 1"]


@pytest.fixture(scope="module")
def app(weights: dict[str, Weights], images: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from nucsam_monai.apps.monailabel.application import NucleiLabelApp

    folder = tmp_path_factory.mktemp("label")
    settings = {name: {**one.settings, "checkpoint": str(one.path)} for name, one in weights.items()}
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "studies").mkdir()
    for name in IMAGES:
        (folder / "studies" / f"{name}.png").write_bytes((images / f"{name}.png").read_bytes())
    conf = {
        "models": ",".join(SEGMENTING),
        "settings": str(folder / "settings.json"),
        "runs_dir": str(folder / "runs"),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("monailabel.config.settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD", False)
        yield NucleiLabelApp(
            str(REPOSITORY / "nucsam_monai" / "apps" / "monailabel"), str(folder / "studies"), conf
        )


def network_takes_prompts(weights: Weights) -> bool:
    return isinstance(weights.segmenter().network, PromptableNetwork)


def test_clicks_are_offered_where_the_network_takes_prompts(app: Any, weights: dict[str, Weights]) -> None:
    clicked = {f"{name}_click" for name in SEGMENTING if network_takes_prompts(weights[name])}
    assert {"cfrsam_click", "promptnucseg_click", "sac_click"} <= clicked
    assert set(app.info()["models"]) == {*SEGMENTING, *clicked}


def build_for_clicks() -> PromptNucSeg:
    raise AssertionError("only its annotation is read")


def test_a_function_that_builds_the_network_tells_whether_that_takes_prompts() -> None:
    assert takes_prompts({"network_def": {"_target_": f"{__name__}.build_for_clicks"}})
    assert not takes_prompts({"network_def": {"_target_": "nucsam_monai.networks.trained_unsam"}})
    assert not takes_prompts({"network_def": {"_target_": "no.such.network"}})


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("name", SEGMENTING)
def test_the_label_image_is_that_of_the_bundle(
    name: str, image: str, app: Any, weights: dict[str, Weights], images: Path
) -> None:
    answer = app.infer({"model": name, "image": image, "device": "cpu"})
    expected = weights[name].segmenter().segment(read_image(images / f"{image}.png")).instances
    found = read_label_map(Path(answer["file"]))
    Path(answer["file"]).unlink()
    assert (found == expected).all()
    assert answer["params"]["nuclei"] == expected.max()


def test_weights_that_see_images_stretched_are_not_shown_parts_of_them(
    weights: dict[str, Weights], tmp_path: Path
) -> None:
    from nucsam_monai.apps.monailabel.model import ServedModel

    own = weights["baselines"]
    header = with_settings(read_header(own.path), {"fit": "resize", "image_size": 32})
    save_file(load_file(own.path), tmp_path / "model.safetensors", metadata=header)
    told = {key: value for key, value in own.settings.items() if key != "image_size"}
    told["checkpoint"] = str(tmp_path / "model.safetensors")
    settings = AppSettings(
        {"baselines": BUNDLES / "baselines"}, {"baselines": told}, tmp_path, window_px=64, overlap_px=8
    )
    model = ServedModel("baselines", settings, ImageOpener(10**6))
    prepared = model.prepare({"device": "cpu"})
    assert isinstance(prepared.bundle.value("spatial_inferer"), ResizeInferer)
    source = ArrayImage(np.zeros((65, 40, 3), dtype=np.uint8))
    assert isinstance(list(model.nuclei(prepared, source, Region(0, 0, 40, 64))), list)
    with pytest.raises(
        RequestRefusedError, match=r"stretched to one size\. Choose a region of at most 64 px"
    ):
        model.nuclei(prepared, source, Region(0, 0, 40, 65))


@pytest.mark.parametrize("name", SEGMENTING)
def test_clicks_and_boxes_give_one_nucleus_each(
    name: str, app: Any, weights: dict[str, Weights], images: Path
) -> None:
    if not network_takes_prompts(weights[name]):
        assert f"{name}_click" not in app.info()["models"]
        return
    shape = read_image(images / "image 0.png").shape[:2]
    answer = app.infer(
        {
            "model": f"{name}_click",
            "image": "image 0",
            "device": "cpu",
            "foreground": [[12, 14], [50, 20]],
            "background": [[30, 30]],
            "boxes": [[8, 8, 24, 24]],
        }
    )
    found = read_label_map(Path(answer["file"]))
    Path(answer["file"]).unlink()
    assert found.shape == shape
    assert found.max() == answer["params"]["nuclei"] <= 3


@pytest.mark.parametrize("name", ["promptnucseg", "unsam"])
def test_large_regions_have_the_nuclei_of_the_slide(
    name: str, app: Any, weights: dict[str, Weights], tmp_path: Path
) -> None:
    image = discs(90, 110, [(20, 20), (50, 60), (70, 30), (96, 70)], 6)
    slide = write_tiff(tmp_path / "slide.tif", image)
    model = app.models[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "settings", replace(model.settings, window_px=64, overlap_px=32))
        source = app.opener.open(slide)
        nuclei = list(model.nuclei(model.prepare({"device": "cpu"}), source, Region(0, 0, 110, 90)))
    options = SlideOptions(mask="all", shard_px=64, max_nucleus_um=8.0, outputs=("parquet",))
    weights[name].segmenter().segment_slide(slide, tmp_path, slide=options)
    table = pq.read_table(tmp_path / "slide" / "nuclei.parquet", columns=["score", "geometry"])
    outlines = shapely.from_wkb(table["geometry"].to_numpy(zero_copy_only=False))
    areas = shapely.area(shapely.intersection(outlines, shapely.box(0, 0, 110, 90))).round()
    assert nuclei
    assert {(one.score, one.area_px) for one in nuclei} <= set(
        zip(table["score"].to_pylist(), areas, strict=True)
    )
