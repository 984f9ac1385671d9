"""PromptNucSeg with one encoder for both networks, from training to evaluation."""

from pathlib import Path

import pytest

from nucsam_monai.networks.sam import read_header
from nucsam_monai.utils.errors import ConfigurationError
from tests.bundles.conftest import TwoStageTraining
from tests.bundles.promptnucseg_runs import PROMPTNUCSEG
from tests.bundles.runs import assert_same_tensors, network_of, raised_from, tensors

SHARED = {"backbone": "shared"}


@pytest.fixture(scope="module")
def shared_training(
    promptnucseg_training: TwoStageTraining, tmp_path_factory: pytest.TempPathFactory
) -> TwoStageTraining:
    folder = tmp_path_factory.mktemp("shared")
    workflow = PROMPTNUCSEG.train("shared_encoder", **promptnucseg_training.settings, output_dir=str(folder))
    metrics = dict(workflow.evaluator.state.metrics)
    return TwoStageTraining(folder, promptnucseg_training.settings, metrics, "off")


def test_one_training_writes_the_weights_of_both_networks(shared_training: TwoStageTraining) -> None:
    folder = shared_training.folder
    prompter, segmentor = (read_header(folder / f"{name}.safetensors") for name in ("prompter", "segmentor"))
    assert prompter["epoch"] == segmentor["epoch"]
    assert "val_mpq" in prompter
    assert not any("features" in name for name in tensors(folder / "prompter.safetensors"))
    assert any("image_encoder" in name for name in tensors(folder / "segmentor.safetensors"))


def test_both_losses_reach_the_encoder(promptnucseg_training: TwoStageTraining, tmp_path: Path) -> None:
    settings = {**promptnucseg_training.settings, "epochs": 1, "output_dir": str(tmp_path)}
    encoders = []
    for weight in (0.0, 1.0):
        workflow = PROMPTNUCSEG.train("shared_encoder", **settings, prompter_weight=weight)
        encoders.append(network_of(workflow).segmentor.sam.image_encoder.patch_embed.state_dict())
    assert any((encoders[0][name] != encoders[1][name]).any() for name in encoders[0])


def test_evaluation_repeats_the_numbers_of_the_best_epoch(
    shared_training: TwoStageTraining, tmp_path: Path
) -> None:
    settings = {**shared_training.settings, "checkpoint": str(shared_training.folder), **SHARED}
    workflow = PROMPTNUCSEG.evaluate(**settings, splits=["validation"], output_dir=str(tmp_path))
    found = workflow.evaluator.state.metrics["val_mpq"]
    header = read_header(shared_training.folder / "prompter.safetensors")
    assert found == float(header["val_mpq"])


def test_a_resumed_training_ends_with_the_same_weights(
    shared_training: TwoStageTraining, tmp_path: Path
) -> None:
    settings = {**shared_training.settings, "output_dir": str(tmp_path)}
    PROMPTNUCSEG.train("shared_encoder", **settings, **{"train#trainer#max_epochs": 1})
    PROMPTNUCSEG.train("shared_encoder", **settings, resume=True)
    for name in ("prompter", "segmentor"):
        assert_same_tensors(tmp_path / f"{name}.safetensors", shared_training.folder / f"{name}.safetensors")


def test_a_prompter_of_its_own_cannot_be_trained_end_to_end(
    promptnucseg_training: TwoStageTraining, tmp_path: Path
) -> None:
    settings = {**promptnucseg_training.settings, "output_dir": str(tmp_path), "backbone": "compact"}
    with pytest.raises(RuntimeError) as error:
        PROMPTNUCSEG.train("shared_encoder", **settings)
    assert "expected 'shared'" in (raised_from(error.value, ConfigurationError) or "")


def test_inference_encodes_once_and_writes_its_files(
    shared_training: TwoStageTraining, tmp_path: Path
) -> None:
    names = ("device", "sam_variant", "image_size", "precision", "overlap_px", "point_radius_px", "levels")
    workflow = PROMPTNUCSEG.bundle(
        base="inference",
        **{key: shared_training.settings[key] for key in names},
        **SHARED,
        checkpoint=str(shared_training.folder),
        input=str(Path(str(shared_training.settings["dataset_dir"])) / "typed" / "images"),
        output_dir=str(tmp_path),
    )
    workflow.run()
    workflow.finalize()
    assert len(list(tmp_path.glob("*_instances.tif"))) == 7
