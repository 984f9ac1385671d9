"""A kept bundle answers as the bundle's own inference does."""

from pathlib import Path

import numpy as np
import pytest

from nucsam_monai.apps.monailabel.bundle import ServedBundle
from nucsam_monai.apps.monailabel.click_networks import click_network
from nucsam_monai.apps.monailabel.click_segmenter import ClickSegmenter
from nucsam_monai.apps.monailabel.clicks import Clicks
from nucsam_monai.apps.monailabel.image_source import ArrayImage
from nucsam_monai.apps.monailabel.options import options_of_config
from nucsam_monai.io import read_image, read_label_map
from nucsam_monai.networks import CFRSAM
from nucsam_monai.utils.errors import ConfigurationError
from tests.apps.monailabel.conftest import SMALL, Weights
from tests.bundles.runs import BUNDLES, BundleRuns


@pytest.mark.parametrize("name", SMALL)
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
    served = own.served()
    for file in sorted(images.glob("*.png")):
        image = read_image(file)
        answer = served.predict(image, {option.name: option.default for option in served.options})
        assert answer.instances.shape == image.shape[:2]
        assert (answer.instances == read_label_map(tmp_path / f"{file.stem}_instances.tif")).all()
    assert len(answer) > 0


def test_options_change_the_answer_and_the_network_stays(weights: dict[str, Weights], images: Path) -> None:
    served = weights["unsam"].served()
    image = read_image(images / "image 0.png")
    network = served.network
    everything = served.predict(image, {"threshold": 0.0})
    assert (everything.instances == 1).all()
    assert len(served.predict(image, {"threshold": 1.0})) == 0
    assert served.network is network
    assert served.predict(image, {"threshold": 0.0}, domain="nuclei").foreground is not None
    assert served.domains == ("nuclei",)


@pytest.mark.parametrize("name", ["sac", "promptnucseg"])
def test_networks_of_the_bundles_take_clicks_and_boxes(
    name: str, weights: dict[str, Weights], images: Path
) -> None:
    served = weights[name].served()
    segmenter = served.click_segmenter
    assert segmenter is not None
    source = ArrayImage(read_image(images / "image 0.png"))
    marked = Clicks(np.array([[8.0, 9], [60, 30]]), np.array([[20.0, 20]]), np.array([[30.0, 8, 44, 22]]))
    first, again = segmenter.segment(source, marked), segmenter.segment(source, marked)
    assert served.click_segmenter is segmenter
    assert [one.box for one in first] == [one.box for one in again]
    assert segmenter.encoded_tiles == 3
    assert all(0 <= one.score <= 1 for one in first)


@pytest.mark.parametrize("prompt", ["point", "box"])
def test_cfrsam_takes_clicks_and_boxes(
    prompt: str, micro: None, weights: dict[str, Weights], images: Path
) -> None:
    network = click_network(CFRSAM("micro", 32, adapter="full", prompt=prompt).eval())  # type: ignore[arg-type]
    assert network is not None
    prepare = weights["promptnucseg"].served().prepare
    source = ArrayImage(read_image(images / "image 0.png")[:32, :32])
    marked = Clicks(np.array([[8.0, 9]]), np.zeros((0, 2)), np.array([[10.0, 8, 24, 22]]))
    segmenter = ClickSegmenter(network, prepare, 32, "fp32")
    assert len(segmenter.segment(source, marked)) <= 2
    assert segmenter.encoded_tiles == 1


def test_a_bundle_without_clicks(weights: dict[str, Weights]) -> None:
    assert weights["unsam"].served().click_segmenter is None


def test_every_option_of_the_bundles_is_permitted_by_default() -> None:
    for name in SMALL:
        options = options_of_config(ServedBundle(BUNDLES / name, None)._config)
        assert options
        assert all(option.read(option.shown) == option.default for option in options)


def test_what_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"inference\.json"):
        ServedBundle(tmp_path, None)
    with pytest.raises(ConfigurationError, match="seeed"):
        ServedBundle(BUNDLES / "unsam", None, settings={"seeed": 1})
