"""The SAC bundle from training to evaluation and inference, in one process."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from monai.bundle import ConfigParser
from PIL import Image

from nucsam_monai import networks
from nucsam_monai.data import DatasetWriter
from nucsam_monai.data.dataset import DatasetMetadata
from nucsam_monai.networks.sam import build_sam, read_header
from nucsam_monai.utils.errors import CheckpointError, DatasetError
from tests.bundles.conftest import Training
from tests.bundles.runs import BUNDLES, HEIGHT, OF_THE_FOLDER, WIDTH, draw, network_of, raised_from, tensors
from tests.bundles.sac_runs import SAC
from tests.handlers.tracked_engines import Store

OUTPUTS = ("_instances.tif", ".geojson", "_nuclei.csv", "_overlay.png")


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def trained(training: Training, output: Path, **settings: Any) -> dict[str, Any]:
    """Settings that use the trained weights."""
    return {
        **training.settings,
        "checkpoint": str(training.weights),
        "output_dir": str(output),
        **settings,
    }


def test_training_is_one_tracked_run_whose_weights_name_what_they_belong_to(sac_training: Training) -> None:
    header = read_header(sac_training.weights)
    assert (header["method"], header["sam_variant"]) == ("sac", "micro")
    assert json.loads(header["options"])["adapter"] == "full"
    assert all(torch.isfinite(tensor).all() for tensor in tensors(sac_training.weights).values())
    store = Store(sac_training.store_uri)
    run = store.only_run("nucsam/sac")
    assert run.info.status == "FINISHED"
    assert run.data.params["n_points"] == "1"
    assert store.curve(run, "val_dice")[2] == sac_training.val_dice
    for metric in ("train_loss", "lr_group_0", "val_pq", "val_loss"):
        assert set(store.curve(run, metric)) == {1, 2}


@pytest.mark.parametrize("n_expert", [0, 1])
def test_evaluation_repeats_the_numbers_of_the_training(
    sac_training: Training, tmp_path: Path, n_expert: int
) -> None:
    settings = {**sac_training.settings, "n_expert": n_expert, "output_dir": str(tmp_path / "train")}
    val_dice = sac_training.val_dice
    weights = sac_training.weights
    if n_expert:
        val_dice = SAC.train(**settings).evaluator.state.metrics["val_dice"]
        weights = tmp_path / "train" / "model.safetensors"
    # of two validations the better one is kept
    assert read_header(weights)["val_dice"]
    settings |= {"output_dir": str(tmp_path / "evaluate"), "checkpoint": str(weights)}
    evaluated = SAC.evaluate(**settings, splits=["validation"]).evaluator.state.metrics["val_dice"]
    assert repr(evaluated) == read_header(weights)["val_dice"]
    assert evaluated >= val_dice
    assert summary(tmp_path / "evaluate")["n_expert_test"] == n_expert


def test_evaluation_writes_tables_and_overlays_of_the_test_images(
    sac_training: Training, tmp_path: Path
) -> None:
    SAC.evaluate(**trained(sac_training, tmp_path))
    with (tmp_path / "per_image.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = {(row["domain"], row["id"]) for row in rows}
    assert all(0 <= float(row["dice_5_thresholds"]) <= 1 for row in rows)
    assert names == {("bright", "test_0"), ("dark", "test_0"), ("dark", "test_1")}
    assert {path.stem for path in (tmp_path / "overlays").iterdir()} == {"_".join(name) for name in names}
    assert summary(tmp_path)["weights"]["method"] == "sac"


def test_evaluation_refuses_weights_of_another_network(sac_training: Training, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as error:
        SAC.evaluate(**trained(sac_training, tmp_path, adapter="lora"))
    assert "its options" in (raised_from(error.value, CheckpointError) or "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("prompts", [{"n_points_test": 0}, {"n_points_test": 0, "n_expert_test": 3}])
def test_a_network_trained_with_auto_points_is_tested_without_them(
    sac_training: Training, tmp_path: Path, prompts: dict[str, int]
) -> None:
    workflow = SAC.evaluate(**trained(sac_training, tmp_path, **prompts))
    assert network_of(workflow).eval().generator.count == 0
    assert {key: summary(tmp_path)[key] for key in prompts} == prompts


def test_vanilla_sam_is_evaluated_without_a_checkpoint(sac_training: Training, tmp_path: Path) -> None:
    weights = tmp_path / "sam_micro.pth"
    torch.save(build_sam("micro", 32).state_dict(), weights)
    settings = {**sac_training.settings, "sam_checkpoint": str(weights), "output_dir": str(tmp_path / "out")}
    workflow = SAC.train("evaluate", "zero_shot", **settings)
    assert not any(parameter.requires_grad for parameter in network_of(workflow).parameters())
    assert (workflow.evaluator.state.batch[0]["point_labels"] == 1).sum() == 1
    facts = summary(tmp_path / "out")
    assert (facts["checkpoint"], facts["weights"], facts["n_expert_test"]) == (None, None, 1)
    assert facts["fit"] == "resize"


@pytest.mark.parametrize(("variant", "image_size"), [("vit_tiny", 256), ("vit_b", 1024), ("vit_h", 1024)])
def test_vanilla_sam_sees_whole_images_at_the_size_it_was_trained_at(variant: str, image_size: int) -> None:
    parser = ConfigParser()
    parser.read_config(
        [BUNDLES / "sac" / "configs" / f"{name}.json" for name in ("train", "evaluate", "zero_shot")]
    )
    parser["sam_variant"] = variant
    assert parser.get_parsed_content("image_size") == image_size
    assert parser.get_parsed_content("fit") == "resize"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two images that are not square."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, seed in (("one.png", 1), ("two.png", 2)):
        Image.fromarray(draw(np.random.default_rng(seed), 4)[0]).save(folder / name)
    return folder


def infer(training: Training, source: Path, output: Path, *overlays: str, **settings: Any) -> Any:
    names = ("device", "sam_variant", "image_size", "precision", "generator_input_size")
    shared = {key: training.settings[key] for key in names}
    settings = {"checkpoint": str(training.weights), **shared, **settings}
    workflow = SAC.bundle(*overlays, base="inference", **settings, input=str(source), output_dir=str(output))
    assert workflow.check_properties() == []
    workflow.run()
    workflow.finalize()
    return workflow


def test_inference_writes_four_files_per_image(sac_training: Training, images: Path, tmp_path: Path) -> None:
    infer(sac_training, images, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        stem + end for stem in ("one", "two") for end in OUTPUTS
    } | OF_THE_FOLDER
    assert tifffile.imread(tmp_path / "out" / "one_instances.tif").shape == (HEIGHT, WIDTH)


def write_points(folder: Path, points: dict[str, Any]) -> str:
    (folder / "points.json").write_text(json.dumps(points))
    return str(folder / "points.json")


@pytest.mark.parametrize("inferer", ["tiles", "resized"])
def test_points_of_a_user_reach_the_network_in_its_pixels(
    sac_training: Training, images: Path, tmp_path: Path, inferer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor] | None] = []
    forward = networks.SAC.forward

    def spy(self: networks.SAC, image: torch.Tensor, points: Any = None, truth: Any = None) -> Any:
        seen.append(points)
        return forward(self, image, points, truth)

    monkeypatch.setattr(networks.SAC, "forward", spy)
    settings = {"n_points_test": 0, "points": write_points(tmp_path, {"two.png": [[40, 50], [3, 4, 0]]})}
    if inferer == "resized":
        resize = {"_target_": "nucsam_monai.inferers.ResizeInferer", "image_size": "@image_size"}
        settings["spatial_inferer"] = resize
    infer(sac_training, images, tmp_path / "out", **settings)
    given = [points for points in seen if points is not None]
    assert len(given) < len(seen)  # the other image has no points
    where = [
        tuple(point)
        for coordinates, labels in given
        for point in coordinates[labels == 1].tolist()
        + [[-x, -y] for x, y in coordinates[labels == 0].tolist()]
    ]
    if inferer == "resized":
        assert where == [
            ((40 + 0.5) / 2 - 0.5, pytest.approx((50 + 0.5) * 32 / 72 - 0.5)),
            (-(3.5 / 2 - 0.5), pytest.approx(-(4.5 * 32 / 72 - 0.5))),
        ]
    else:  # tiles of 32 px every 24 px and the last at the border
        assert (-3.0, -4.0) in where
        assert {(40.0 - x, 50.0 - y) for x in (24, 32) for y in (24, 40)} <= set(where)


@pytest.mark.parametrize(
    ("points", "message"),
    [({"three.png": [[1, 2]]}, "no such image"), ({"one.png": [[WIDTH, 2]]}, "outside of the image")],
)
def test_points_that_fit_no_image_stop_before_anything_is_written(
    sac_training: Training, images: Path, tmp_path: Path, points: dict[str, Any], message: str
) -> None:
    with pytest.raises(RuntimeError) as error:
        infer(sac_training, images, tmp_path / "out", points=write_points(tmp_path, points))
    assert message in (raised_from(error.value, DatasetError) or "")
    assert not (tmp_path / "out").exists()


def test_two_images_are_learned_by_heart(tmp_path: Path, thin_generator: None) -> None:
    """Two images of 64 x 64 px with a disc each."""
    rows, columns = np.mgrid[:64, :64]
    metadata = DatasetMetadata("two", "two", "synthetic", 20.0, 0.5, "CC0-1.0", "none")
    with DatasetWriter(tmp_path / "two", metadata) as writer:
        for number, (y, x, radius) in enumerate([(22, 24, 13), (40, 36, 15)]):
            instances = ((rows - y) ** 2 + (columns - x) ** 2 <= radius**2).astype(np.int32)
            image = np.repeat(np.where(instances, 60, 200)[..., None], 3, axis=2).astype(np.uint8)
            for split in ("training", "validation"):
                writer.add(split, f"{split}_{number}", image, instances)
    workflow = SAC.train(
        **{
            "dataset_dir": str(tmp_path / "two"),
            "output_dir": str(tmp_path / "out"),
            "sam_variant": "vit_tiny",
            "image_size": 64,
            "epochs": 2,
            "val_interval": 2,
            "samples_per_epoch": 50,
            "lr": 0.002,
            "warmup_epochs": 0,
            "train#augmentation": [],
        }
    )
    assert workflow.evaluator.state.metrics["val_dice"] > 0.95
