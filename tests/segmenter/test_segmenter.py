"""A kept bundle answers as the bundle's own inference does, whatever an image comes as."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from nucsam_monai import load
from nucsam_monai.engines.bundle import configured_segmenter
from nucsam_monai.inferers import ClickSegmenter, clicks_in_image
from nucsam_monai.io import read_image, read_label_map
from nucsam_monai.networks import CFRSAM, UNSAM
from nucsam_monai.networks.nucleus_prompts import PromptableNetwork
from nucsam_monai.networks.sam import save_trained, with_settings
from nucsam_monai.segmenter import Segmenter, takes_prompts
from nucsam_monai.utils.errors import CheckpointError, ConfigurationError, ImageReadError
from nucsam_monai.utils.exit import own_error
from nucsam_monai.utils.image_source import ArrayImage
from nucsam_monai.utils.prediction import NucleiPrediction
from tests.bundles.runs import BUNDLES, REPOSITORY, BundleRuns
from tests.tiny_bundles import SEGMENTING, Weights

every_bundle = pytest.mark.parametrize("name", SEGMENTING)
CLICKED = [name for name in SEGMENTING if takes_prompts(Segmenter(BUNDLES / name).config)]


@every_bundle
def test_instances_are_those_of_the_bundles_own_inference(
    name: str, weights: dict[str, Weights], images: Path, tmp_path: Path
) -> None:
    own = weights[name]
    settings = {
        **own.settings,
        "checkpoint": str(own.path),
        "input": str(images),
        "output_dir": str(tmp_path),
    }
    workflow = BundleRuns(name).bundle(base="inference", device="$torch.device('cpu')", **settings)
    workflow.run()
    segmenter = load(name, own.path, "cpu", **own.settings)
    for file in sorted(images.glob("*.png")):
        image = read_image(file)
        nuclei = segmenter.segment(image)
        assert nuclei.instances.shape == image.shape[:2]
        assert (nuclei.instances == read_label_map(tmp_path / f"{file.stem}_instances.tif")).all()


@pytest.fixture(scope="module")
def unsam(weights: dict[str, Weights]) -> Segmenter:
    return weights["unsam"].segmenter()


def test_an_image_may_come_as_anything(unsam: Segmenter, images: Path) -> None:
    file = images / "image 0.png"
    pixels = read_image(file)
    with_alpha = np.concatenate([pixels, np.zeros_like(pixels[..., :1])], axis=2)
    same: list[Any] = [pixels, with_alpha, file, str(file), Image.open(file), Image.fromarray(with_alpha)]
    found = unsam.segment(same)
    assert all((one.instances == found[0].instances).all() for one in found)
    assert all((one.image == pixels).all() for one in found)


def test_grey_and_wide_values_follow_the_rule_of_files(unsam: Segmenter, tmp_path: Path) -> None:
    wide = (np.arange(40 * 33).reshape(40, 33) * 40).astype(np.uint16)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    from_array, from_file, from_pillow = unsam.segment(
        [wide, tmp_path / "wide.png", Image.open(tmp_path / "wide.png")]
    )
    assert from_array.image.max() == 255
    assert (from_array.image == from_file.image).all()
    assert (from_array.image == from_pillow.image).all()
    grey = from_array.image[..., 0]
    assert (unsam.segment(grey).instances == from_array.instances).all()
    assert (unsam.segment(grey / 255.0).instances == from_array.instances).all()
    assert (unsam.segment(Image.fromarray(grey)).instances == from_array.instances).all()


def test_range_and_size_are_options_of_an_image(unsam: Segmenter, tmp_path: Path) -> None:
    wide = (np.arange(40 * 33).reshape(40, 33) * 3).astype(np.uint16)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    for image in (wide, tmp_path / "wide.png"):
        found = unsam.segment(image, intensity_range=[0, 8000])
        assert found.image.max() == round(wide.max() / 8000 * 255)
    with pytest.raises(ConfigurationError, match="intensity_range"):
        unsam.segment(wide, intensity_range="0-8000")
    with pytest.raises(ImageReadError, match=r"40 x 33|33 x 40.*max_pixels"):
        unsam.segment(tmp_path / "wide.png", max_pixels=100)


@pytest.mark.parametrize("name", ["unsam", "promptnucseg"])
def test_the_bundles_own_inference_segments_large_images_in_parts(
    name: str, weights: dict[str, Weights], images: Path, tmp_path: Path
) -> None:
    own = weights[name]
    settings = {**own.settings, "strips_above_mpx": 0.0025, "overlay_px": 32}  # one of two images is larger
    places = {"checkpoint": str(own.path), "input": str(images), "output_dir": str(tmp_path)}
    workflow = BundleRuns(name).bundle(base="inference", device="$torch.device('cpu')", **settings, **places)
    workflow.run()
    parser = workflow.parser
    assert configured_segmenter(parser).network is parser.get_parsed_content(
        "network_def"
    )  # not loaded twice
    segmenter = load(name, own.path, "cpu", **settings)
    for file in images.glob("*.png"):
        nuclei = segmenter.segment(file)
        assert (nuclei.instances == read_label_map(tmp_path / f"{file.stem}_instances.tif")).all()
        assert max(read_image(tmp_path / f"{file.stem}_overlay.png").shape) == 32
        rows = (tmp_path / f"{file.stem}_nuclei.csv").read_text().splitlines()
        assert len(rows) == len(nuclei) + 1
    summary = json.loads((tmp_path / "inference_summary.json").read_text())
    assert (summary["segmented"], summary["failed"]) == (2, {})


def test_an_image_that_cannot_be_divided_is_segmented_as_a_whole_if_there_is_memory(
    unsam: Segmenter, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: Any = {"fit": "resize", "strips_above_mpx": 0.001}
    whole = unsam.segment(images / "image 0.png", fit="resize")
    assert (unsam.segment(images / "image 0.png", **options).instances == whole.instances).all()
    monkeypatch.setattr("nucsam_monai.io.images.free_memory_bytes", lambda: 10**5)
    with pytest.raises(ImageReadError, match=r"70 x 40.*0.000224 GB.*0.0001 GB are free.*fit 'resize'"):
        unsam.segment(read_image(images / "image 0.png"), **options)


@every_bundle
def test_every_bundle_reads_files_by_the_keys_of_images(name: str, tmp_path: Path) -> None:
    for side in (8, 11):
        Image.fromarray(np.full((side, side), 500, np.uint16)).save(tmp_path / f"{side}.png")
    settings = {"intensity_range": [0, 1000], "max_pixels": 100, "overlay_px": 64, "input": str(tmp_path)}
    segmenter = Segmenter(BUNDLES / name, settings={**settings, "output_dir": str(tmp_path / "out")})
    read = segmenter.value("preprocessing")
    assert np.unique(read({"image": str(tmp_path / "8.png"), "id": "8"})["pixels"]).tolist() == [128]
    with pytest.raises(RuntimeError) as caught:
        read({"image": str(tmp_path / "11.png"), "id": "11"})
    assert "allowed 100" in str(own_error(caught.value))
    writer = segmenter.value("handlers")[-1].handlers[0]
    assert (writer.overlay_px, writer.output_dir) == (64, tmp_path / "out")


@pytest.mark.parametrize(
    "image",
    [np.zeros((0, 5, 3), np.uint8), np.zeros((4, 4, 2)), np.full((4, 4), np.nan), "missing.png"],
)
def test_what_is_not_an_image_is_refused(unsam: Segmenter, image: Any) -> None:
    with pytest.raises(ImageReadError):
        unsam.segment(image)


def test_something_else_than_an_image_is_refused(unsam: Segmenter) -> None:
    with pytest.raises(ConfigurationError, match="found dict"):
        unsam.segment({})  # type: ignore[call-overload]


@every_bundle
def test_an_empty_image_has_an_answer(name: str, weights: dict[str, Weights]) -> None:
    nuclei = weights[name].segmenter().segment(np.zeros((20, 45), np.uint8))
    assert nuclei.instances.shape == (20, 45)
    assert len(nuclei.table) == len(np.unique(nuclei.instances[nuclei.instances > 0]))


def test_what_was_found_saves_and_shows_itself(unsam: Segmenter, images: Path, tmp_path: Path) -> None:
    nuclei = unsam.segment(images / "image 0.png", threshold=0.0)
    assert isinstance(nuclei, NucleiPrediction)
    assert repr(nuclei) == "NucleiPrediction(1 nucleus, 70 x 40 px)"
    files = nuclei.save(tmp_path / "new", "tissue")
    assert sorted(file.name for file in files.values()) == [
        "tissue.geojson",
        "tissue_instances.tif",
        "tissue_nuclei.csv",
        "tissue_overlay.png",
    ]
    assert (read_label_map(files["instances"]) == nuclei.instances).all()
    assert (read_image(files["overlay"]) == nuclei.overlay()).all()
    assert (nuclei.overlay(np.zeros_like(nuclei.image))[1:-1, 1:-1] == 0).all()
    assert "1 nucleus" in nuclei._repr_html_()
    assert "data:image/png;base64," in nuclei._repr_html_()


def test_options_change_the_answer_and_the_network_stays(unsam: Segmenter, images: Path) -> None:
    image = read_image(images / "image 0.png")
    network = unsam.network
    assert (unsam.segment(image, threshold=0.0).instances == 1).all()
    assert len(unsam.segment(image, threshold=1.1)) == 0
    assert unsam.network is network
    assert unsam.segment(image, threshold=0.0, domain="nuclei").foreground is not None
    assert unsam.domains == ("nuclei",)


def test_options_that_do_not_exist_are_refused(
    unsam: Segmenter, weights: dict[str, Weights], images: Path
) -> None:
    with pytest.raises(ConfigurationError, match=r"no key 'thresold'; its keys are .*threshold"):
        load("unsam", weights["unsam"].path, thresold=0.4)
    with pytest.raises(ConfigurationError, match="no key 'thresold'"):
        unsam.segment(images / "image 0.png", thresold=0.4)
    with pytest.raises(ConfigurationError, match=r"image_size.*load\(\)"):
        unsam.segment(images / "image 0.png", image_size=64)
    with pytest.raises(ConfigurationError, match="without a leading"):
        unsam.segment(images / "image 0.png", threshold="$__import__('os')")
    with pytest.raises(ConfigurationError, match="threshold 'low': expected a number"):
        unsam.segment(images / "image 0.png", threshold="low")
    with pytest.raises(ConfigurationError, match=r"overlap 'low': expected a number as 0\.25"):
        unsam.segment(images / "image 0.png", overlap="low")
    with pytest.raises(ConfigurationError, match="device 'gpu'"):
        Segmenter(BUNDLES / "unsam", device="gpu")
    with pytest.raises(ConfigurationError, match="has no domains"):
        weights["sac"].segmenter().segment(images / "image 0.png", domain="he")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A copy of the configuration of UN-SAM without weights."""
    folder = tmp_path / "mine #1"
    (folder / "configs").mkdir(parents=True)
    config = (BUNDLES / "unsam" / "configs" / "inference.json").read_text()
    (folder / "configs" / "inference.json").write_text(config)
    return folder


def test_weights_by_default_by_name_and_by_path(
    bundle: Path, weights: dict[str, Weights], images: Path
) -> None:
    own = weights["unsam"]
    with pytest.raises(CheckpointError, match="There are none"):
        load(bundle)
    (bundle / "models").mkdir()
    shipped = {name: bundle / "models" / f"{name}.safetensors" for name in ("compact", "compact_he")}
    for file in shipped.values():
        file.write_bytes(own.path.read_bytes())
    by_default, by_name, by_path = (
        load(bundle, chosen, "cpu", image_size=32, precision="fp32") for chosen in (None, "he", own.path)
    )
    assert by_name.checkpoint == shipped["compact_he"]
    image = images / "image 1.png"
    expected = by_path.segment(image).instances
    assert (by_default.segment(image).instances == expected).all()
    assert (by_name.segment(image).instances == expected).all()
    with pytest.raises(CheckpointError, match=r"weights 'ihc'.*compact\.safetensors, models/compact_he"):
        load(bundle, "ihc")


def test_what_is_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"inference\.json"):
        Segmenter(tmp_path)
    with pytest.raises(ConfigurationError, match=r"inference\.json"):
        load("compact_sam")
    with pytest.raises(ConfigurationError, match="unsamm"):
        load("unsamm")


def test_weights_of_learned_instances_need_no_settings(micro: None, images: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = UNSAM("micro", ["nuclei"], 32, decoder={"queries_per_domain": 2}, encoder={"trainable": "all"})
    settings = {
        "instances": "distance",
        "pixel_std": "image",
        "threshold": 0.3,
        "distance_rule": {"min_area_px": 5},
    }
    save_trained(tmp_path / "model.safetensors", network, with_settings(network.header, settings))
    segmenter = load("unsam", tmp_path / "model.safetensors", "cpu", image_size=32, precision="fp32")
    rule = segmenter.value("postprocessing").transforms[0]
    assert (rule.instances, rule.distance_rule.threshold, rule.distance_rule.min_area_px) == (
        "distance",
        0.3,
        5,
    )
    nuclei = segmenter.segment(images / "image 0.png", threshold=0.0)
    assert len(nuclei) > 0
    assert nuclei.foreground is not None
    for row in nuclei.table:
        inside = nuclei.instances == row["id"]
        assert 0 <= row["score"] <= nuclei.foreground[inside].mean() + 1e-6
    with pytest.raises(CheckpointError, match="its sam_variant is 'micro', but this network's is 'vit_tiny'"):
        load("unsam", tmp_path / "model.safetensors", "cpu", image_size=32, sam_variant="vit_tiny")


def test_the_bundles_whose_networks_take_prompts_are_known_unbuilt(weights: dict[str, Weights]) -> None:
    assert CLICKED == ["cfrsam", "promptnucseg", "sac"]
    for name in SEGMENTING:
        segmenter = weights[name].segmenter()
        assert isinstance(segmenter.network, PromptableNetwork) == (name in CLICKED)
        assert (segmenter.click_segmenter is not None) == (name in CLICKED)


@pytest.mark.parametrize("name", CLICKED)
def test_prompts_become_nuclei_of_their_number(name: str, weights: dict[str, Weights], images: Path) -> None:
    segmenter = weights[name].segmenter()
    points, boxes = [(8, 9), (60, 30)], [(30, 8, 44, 22)]
    nuclei = segmenter.segment(images / "image 0.png", points, boxes)
    again = segmenter.segment(images / "image 0.png", points=np.array(points), boxes=np.array(boxes))
    assert set(nuclei.table["id"]) <= {1, 2, 3}
    assert (nuclei.instances == again.instances).all()
    assert ((nuclei.table["score"] >= 0) & (nuclei.table["score"] <= 1)).all()
    clicked = segmenter.click_segmenter
    assert clicked is not None
    assert clicked.encoded_tiles == 3
    assert len(segmenter.segment(images / "image 0.png", points=[])) == 0


def test_prompts_that_cannot_be_used(weights: dict[str, Weights], unsam: Segmenter, images: Path) -> None:
    sac, image = weights["sac"].segmenter(), images / "image 0.png"
    with pytest.raises(ConfigurationError, match="unsam takes no prompts"):
        unsam.segment(image, points=[(5, 5)])
    with pytest.raises(ConfigurationError, match=r"points: \(70, 5\) is outside"):
        sac.segment(image, points=[(70, 5)])
    with pytest.raises(ConfigurationError, match=r"points: expected \(n, 2\)"):
        sac.segment(image, points=[5, 5])
    with pytest.raises(ConfigurationError, match=r"boxes: expected .* at least 1 pixel"):
        sac.segment(image, boxes=[(9, 9, 2, 2)])
    with pytest.raises(ConfigurationError, match="list of images"):
        sac.segment([image], points=[(5, 5)])  # type: ignore[call-overload]
    with pytest.raises(ConfigurationError, match="threshold: this option has no effect"):
        sac.segment(image, points=[(5, 5)], threshold=0.2)


@pytest.mark.parametrize("prompt", ["point", "box"])
def test_cfrsam_takes_clicks_and_boxes_however_it_was_trained(
    prompt: str, micro: None, weights: dict[str, Weights], images: Path
) -> None:
    network = CFRSAM("micro", 32, adapter="full", prompt=prompt).eval()  # type: ignore[arg-type]
    clicked = ClickSegmenter(network, weights["promptnucseg"].segmenter().prepare, 32, "fp32")
    source = ArrayImage(read_image(images / "image 0.png")[:32, :32])
    assert len(clicked.segment(source, clicks_in_image((32, 32), [(8, 9)], boxes=[(10, 8, 24, 22)]))) == 2
    assert clicked.encoded_tiles == 1


def test_the_front_door_costs_nothing_before_it_is_used() -> None:
    code = (
        "import sys, nucsam_monai; assert 'load' in nucsam_monai.__all__; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


def test_headers_and_tensors_of_the_tiny_weights_are_read_alone(weights: dict[str, Weights]) -> None:
    own = weights["unsam"]
    network = Segmenter(BUNDLES / "unsam", own.path, settings={"image_size": 32}).network
    assert json.loads(network.header["options"])["spgen"]["channels"] == 32
    assert all(torch.equal(network.state_dict()[key], value) for key, value in load_file(own.path).items())
