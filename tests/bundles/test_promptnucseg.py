"""The PromptNucSeg bundle from training to evaluation and inference, in one process."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from monai.transforms import RandZoomd
from PIL import Image

from nucsam_monai.networks import Prompter
from nucsam_monai.networks.sam import build_sam, read_header
from nucsam_monai.utils.errors import CheckpointError, ConfigurationError
from tests.bundles.conftest import TwoStageTraining
from tests.bundles.promptnucseg_runs import CLASS_NAMES, PROMPTNUCSEG, joint_metrics
from tests.bundles.runs import (
    HEIGHT,
    OF_THE_FOLDER,
    WIDTH,
    assert_same_tensors,
    draw,
    network_of,
    raised_from,
    write_datasets,
)
from tests.handlers.tracked_engines import Store

WEIGHTS = ("prompter.safetensors", "segmentor.safetensors")
STATES = ("prompter_state.safetensors", "segmentor_state.safetensors")
OUTPUTS = ("_instances.tif", ".geojson", "_nuclei.csv", "_overlay.png")


def trained(training: TwoStageTraining, output: Path, **settings: Any) -> dict[str, Any]:
    """Settings that use the trained weights."""
    return {**training.settings, "checkpoint": str(training.folder), "output_dir": str(output), **settings}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_training_writes_the_weights_of_both_stages(promptnucseg_training: TwoStageTraining) -> None:
    folder = promptnucseg_training.folder
    assert {path.name for path in folder.iterdir()} == {*WEIGHTS, *STATES}
    prompter, segmentor = (read_header(folder / name) for name in WEIGHTS)
    assert (prompter["method"], segmentor["method"]) == ("prompter", "segmentor")
    assert json.loads(prompter["class_names"]) == list(CLASS_NAMES)
    assert "val_class_f1" in prompter
    assert "val_jaccard_distance" in segmentor


def test_each_stage_and_the_joint_validation_are_tracked_runs(
    promptnucseg_training: TwoStageTraining,
) -> None:
    store = Store(promptnucseg_training.store_uri)
    runs = {run.data.tags["stage"]: run for run in store.runs("nucsam/promptnucseg")}
    assert set(runs) == {"prompter", "segmentor", "joint"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for stage, metrics in {
        "prompter": ("train_loss", "val_f1", "val_class_f1", "lr_group_0"),
        "segmentor": ("train_loss", "val_mask_iou", "lr_group_0"),
    }.items():
        for metric in metrics:
            assert set(store.curve(runs[stage], metric)) == {1, 2}
    found = store.curve(runs["joint"], "val_pq")
    assert list(found.values()) == [promptnucseg_training.metrics["val_pq"]]
    assert "val_mpq" in promptnucseg_training.metrics
    assert "val_hovernet_f1" in promptnucseg_training.metrics


def test_stages_that_are_run_alone_give_the_same_weights(
    promptnucseg_training: TwoStageTraining, tmp_path: Path
) -> None:
    settings = {**promptnucseg_training.settings, "output_dir": str(tmp_path)}
    for stage in ("segmentor", "prompter"):
        PROMPTNUCSEG.train(**settings, run_id=stage)
        assert (tmp_path / f"{stage}.safetensors").is_file()
    for name in (*WEIGHTS, *STATES):
        assert_same_tensors(tmp_path / name, promptnucseg_training.folder / name)


def test_a_prompter_of_other_classes_is_a_start_and_no_checkpoint(
    promptnucseg_training: TwoStageTraining, tmp_path: Path
) -> None:
    trained_for = read_header(promptnucseg_training.folder / "prompter.safetensors")["class_names"]
    settings = {
        **promptnucseg_training.settings,
        "dataset_dir": str(write_datasets(tmp_path / "data")),
        "output_dir": str(tmp_path / "out"),
        "epochs": 1,
        "run_id": "prompter",
    }
    file = str(promptnucseg_training.folder / "prompter.safetensors")
    PROMPTNUCSEG.train(**settings, prompter_start=file)
    assert read_header(tmp_path / "out" / "prompter.safetensors")["class_names"] != trained_for
    with pytest.raises(RuntimeError) as raised:
        PROMPTNUCSEG.train(**settings, prompter_checkpoint=file)
    assert "but this network's is" in str(raised_from(raised.value, CheckpointError))


@pytest.mark.parametrize("cut", ["in the first stage", "between the stages", "in the second stage"])
def test_a_resumed_training_ends_with_the_same_weights(
    promptnucseg_training: TwoStageTraining, tmp_path: Path, cut: str
) -> None:
    settings = {**promptnucseg_training.settings, "output_dir": str(tmp_path)}
    first = {"prompter_stage#trainer#max_epochs": 1} if cut == "in the first stage" else {}
    PROMPTNUCSEG.train(**settings, **first, run_id="prompter")
    if cut == "in the second stage":
        PROMPTNUCSEG.train(**settings, **{"train#trainer#max_epochs": 1}, run_id="segmentor")
    workflow = PROMPTNUCSEG.train(**settings, resume=True)
    assert joint_metrics(workflow) == promptnucseg_training.metrics
    for name in (*WEIGHTS, *STATES):
        assert_same_tensors(tmp_path / name, promptnucseg_training.folder / name)


def test_the_averaged_weights_are_validated_and_kept(
    promptnucseg_training: TwoStageTraining, tmp_path: Path
) -> None:
    workflow = PROMPTNUCSEG.bundle(**promptnucseg_training.settings, output_dir=str(tmp_path))
    stage = {
        key: workflow.parser.get_parsed_content(f"prompter_stage::{key}")
        for key in ("weight_averaging", "best_weights", "trainer", "validation::evaluator")
    }
    averaged = stage["weight_averaging"].averaged
    assert stage["best_weights"].network is stage["validation::evaluator"].network is averaged
    assert stage["trainer"].network is network_of(workflow).prompter is not averaged


def test_evaluation_repeats_the_numbers_of_the_joint_validation(
    promptnucseg_training: TwoStageTraining, tmp_path: Path
) -> None:
    settings = trained(promptnucseg_training, tmp_path, splits=["validation"])
    workflow = PROMPTNUCSEG.evaluate(**settings)
    assert workflow.evaluator.state.metrics == promptnucseg_training.metrics


def test_evaluation_writes_tables_and_overlays(
    promptnucseg_training: TwoStageTraining, tmp_path: Path
) -> None:
    PROMPTNUCSEG.evaluate(**trained(promptnucseg_training, tmp_path))
    assert {row["id"] for row in rows_of(tmp_path / "per_image.csv")} == {"test_0", "test_1"}
    assert [row["class"] for row in rows_of(tmp_path / "per_class.csv")] == list(CLASS_NAMES)
    (row,) = rows_of(tmp_path / "summary.csv")
    assert {"aji", "dq", "sq", "pq", "dice", "mpq", "hovernet_f1", "greedy_f1"} <= set(row)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {"bpq_tissue", "mpq_tissue"} <= set(summary["tissue_means"])
    assert {name: header["method"] for name, header in summary["weights"].items()} == {
        "prompter": "prompter",
        "segmentor": "segmentor",
    }
    assert {path.name for path in (tmp_path / "overlays").iterdir()} == {
        "typed_test_0.png",
        "typed_test_1.png",
    }


def test_weights_with_classes_are_evaluated_on_data_without(
    promptnucseg_training: TwoStageTraining, tmp_path: Path
) -> None:
    settings = trained(promptnucseg_training, tmp_path / "out")
    PROMPTNUCSEG.evaluate(**{**settings, "dataset_dir": str(write_datasets(tmp_path / "data"))})
    row = rows_of(tmp_path / "out" / "summary.csv")[-1]
    assert row["domain"] == "all images"
    assert "pq" in row
    assert "mpq" not in row
    assert not (tmp_path / "out" / "per_class.csv").exists()


def test_oracle_prompts_need_no_prompter(promptnucseg_training: TwoStageTraining, tmp_path: Path) -> None:
    settings = trained(promptnucseg_training, tmp_path / "out", oracle_prompts=True, nms_threshold=1.0)
    (tmp_path / "weights").mkdir()
    segmentor = tmp_path / "weights" / WEIGHTS[1]
    segmentor.symlink_to(promptnucseg_training.folder / WEIGHTS[1])
    workflow = PROMPTNUCSEG.evaluate(**{**settings, "checkpoint": str(tmp_path / "weights")})
    assert len(workflow.evaluator.state.output[0]["pred"].nucleus_of_prompt) == 4
    facts = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert facts["checkpoint"] == {"prompter": None, "segmentor": str(segmentor)}
    assert facts["weights"]["prompter"] is None


def test_vanilla_sam_is_evaluated_without_a_trained_segmentor(
    promptnucseg_training: TwoStageTraining, tmp_path: Path
) -> None:
    weights = tmp_path / "sam_micro.pth"
    torch.save(build_sam("micro", 32).state_dict(), weights)
    settings = trained(promptnucseg_training, tmp_path / "out", finetune="none", sam_checkpoint=str(weights))
    network = network_of(PROMPTNUCSEG.evaluate(**settings))
    assert not any(parameter.requires_grad for parameter in network.segmentor.parameters())


@pytest.mark.parametrize("stage", ["training", "segmentor"])
def test_a_segmentor_of_which_nothing_learns_is_refused_before_anything_is_trained(
    promptnucseg_training: TwoStageTraining, sam_weights: str, tmp_path: Path, stage: str
) -> None:
    settings = {**promptnucseg_training.settings, "finetune": "none", "sam_checkpoint": sam_weights}
    with pytest.raises(RuntimeError) as error:
        PROMPTNUCSEG.train(**settings, output_dir=str(tmp_path / "out"), run_id=stage)
    assert "Run the stage 'prompter' alone" in (raised_from(error.value, ConfigurationError) or "")
    assert not (tmp_path / "out").exists()


def test_fewer_epochs_than_the_interval_leave_weights(
    promptnucseg_training: TwoStageTraining, tmp_path: Path
) -> None:
    settings = {**promptnucseg_training.settings, "epochs": 1, "val_interval": 10}
    PROMPTNUCSEG.train(**settings, output_dir=str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {*WEIGHTS, *STATES}


def test_the_segmentor_may_be_selected_by_the_instances_of_both_networks(
    promptnucseg_training: TwoStageTraining, tmp_path: Path
) -> None:
    PROMPTNUCSEG.train("select_by_pq", **promptnucseg_training.settings, output_dir=str(tmp_path))
    assert "val_mpq" in read_header(tmp_path / WEIGHTS[1])
    assert_same_tensors(tmp_path / WEIGHTS[0], promptnucseg_training.folder / WEIGHTS[0])


def test_evaluation_refuses_weights_of_another_prompter(
    promptnucseg_training: TwoStageTraining, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError) as error:
        PROMPTNUCSEG.evaluate(**trained(promptnucseg_training, tmp_path, anchor_step=16))
    assert "its options is" in (raised_from(error.value, CheckpointError) or "")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name, seed in (("one.png", 1), ("two.png", 2)):
        Image.fromarray(draw(np.random.default_rng(seed), 4)[0]).save(folder / name)
    return folder


def infer(training: TwoStageTraining, source: Path, output: Path, **settings: Any) -> Any:
    names = ("device", "sam_variant", "image_size", "precision", "overlap_px", "point_radius_px", "levels")
    shared = {key: training.settings[key] for key in names}
    workflow = PROMPTNUCSEG.bundle(
        base="inference",
        **shared,
        checkpoint=str(training.folder),
        input=str(source),
        output_dir=str(output),
        **settings,
    )
    assert workflow.check_properties() == []
    workflow.run()
    workflow.finalize()
    return workflow


def test_inference_writes_four_files_per_image(
    promptnucseg_training: TwoStageTraining, images: Path, tmp_path: Path
) -> None:
    infer(promptnucseg_training, images, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        stem + end for stem in ("one", "two") for end in OUTPUTS
    } | OF_THE_FOLDER
    assert tifffile.imread(tmp_path / "out" / "one_instances.tif").shape == (HEIGHT, WIDTH)


def write_points(folder: Path, points: dict[str, Any]) -> str:
    (folder / "points.json").write_text(json.dumps(points))
    return str(folder / "points.json")


def test_points_of_a_user_take_the_prompters_place(
    promptnucseg_training: TwoStageTraining, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    forward = Prompter.forward

    def spy(self: Prompter, image: torch.Tensor, *, with_mask: bool = True) -> Any:
        calls.append(with_mask)
        return forward(self, image, with_mask=with_mask)

    monkeypatch.setattr(Prompter, "forward", spy)
    points = write_points(tmp_path, {"two.png": [[16, 18], [48.5, 18]]})
    workflow = infer(promptnucseg_training, images, tmp_path / "out", points=points, nms_threshold=1.0)
    assert calls == [True, False]  # the first image's points are found, those of the second only classified
    assert len(workflow.evaluator.state.output[0]["pred"].nucleus_of_prompt) == 2
    rows = rows_of(tmp_path / "out" / "two_nuclei.csv")
    assert len(rows) <= 2
    assert all(row["class_name"] in CLASS_NAMES for row in rows)


def test_a_point_on_background_is_refused(
    promptnucseg_training: TwoStageTraining, images: Path, tmp_path: Path
) -> None:
    points = write_points(tmp_path, {"two.png": [[16, 18], [48, 18, 0]]})
    with pytest.raises(RuntimeError) as error:
        infer(promptnucseg_training, images, tmp_path / "out", points=points)
    assert "one point on each nucleus" in (raised_from(error.value, ConfigurationError) or "")


def test_data_without_classes_trains_one_class(dataset_dir: str, micro: None, tmp_path: Path) -> None:
    settings = {**PROMPTNUCSEG.tiny, "dataset_dir": dataset_dir, "output_dir": str(tmp_path)}
    workflow = PROMPTNUCSEG.train(**settings)
    assert network_of(workflow).class_names == ("nucleus",)
    assert "val_pq" in joint_metrics(workflow)
    assert "val_mpq" not in joint_metrics(workflow)


def test_both_stages_train_on_crops_at_random_zoom(
    promptnucseg_training: TwoStageTraining, tmp_path: Path
) -> None:
    settings = {**promptnucseg_training.settings, "zoom_range": [1.5, 2.0]}
    workflow = PROMPTNUCSEG.train("random_zoom", **settings, output_dir=str(tmp_path))
    for stage in ("prompter_stage", "train"):
        transforms = workflow.parser.get_parsed_content(f"{stage}::preprocessing").transforms
        (zoom,) = [transform for transform in transforms if isinstance(transform, RandZoomd)]
        assert (zoom.rand_zoom.min_zoom, zoom.rand_zoom.max_zoom) == ((1.5,), (2.0,))
    assert {path.name for path in tmp_path.iterdir()} == {*WEIGHTS, *STATES}
