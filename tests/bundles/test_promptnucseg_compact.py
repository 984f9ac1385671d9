"""PromptNucSeg on a convolutional trunk: one training, one weights file, from UN-SAM's weights to inference."""

from pathlib import Path

import pytest
import torch

from nucsam_monai.networks import UNSAM
from nucsam_monai.networks.sam import read_header, save_trained
from nucsam_monai.utils.errors import ConfigurationError
from tests.bundles.promptnucseg_runs import PROMPTNUCSEG
from tests.bundles.runs import assert_same_tensors, network_of, raised_from, tensors
from tests.networks.conftest import MICRO_TRUNK

OVERLAYS = ("shared_encoder", "compact")


@pytest.fixture(scope="module")
def settings(dataset_dir: str, micro: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("unsam")
    torch.manual_seed(0)
    network = UNSAM(MICRO_TRUNK.name, ["nuclei"], 32, encoder={"trainable": "all"})
    save_trained(folder / "model.safetensors", network, network.header)
    return {
        "dataset_dir": dataset_dir,
        "sam_variant": MICRO_TRUNK.name,
        "encoder_start": str(folder / "model.safetensors"),
        "epochs": 2,
        "samples_per_epoch": 6,
    }


@pytest.fixture(scope="module")
def folder(settings: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compact")
    PROMPTNUCSEG.train(*OVERLAYS, **settings, output_dir=str(folder))
    return folder


def test_the_compact_model_without_the_shared_encoder_is_refused(
    settings: dict[str, object], tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError) as error:
        PROMPTNUCSEG.train("compact", **settings, output_dir=str(tmp_path))
    assert "Name shared_encoder.json between train.json" in (
        raised_from(error.value, ConfigurationError) or ""
    )
    assert list(tmp_path.iterdir()) == []


def test_one_file_holds_everything_that_was_trained(folder: Path) -> None:
    assert {path.name for path in folder.glob("*.safetensors")} == {
        "model.safetensors",
        "segmentor_state.safetensors",
    }
    header = read_header(folder / "model.safetensors")
    assert header["method"] == "promptnucseg"
    assert '"pixel_std": "image"' in header["settings"]
    assert {name.split(".")[0] for name in tensors(folder / "model.safetensors")} == {"prompter", "segmentor"}


def test_training_starts_from_unsam_and_the_encoder_learns_slowly(
    settings: dict[str, object], tmp_path: Path
) -> None:
    start = tensors(Path(str(settings["encoder_start"])))["image_encoder.neck.0.weight"]
    learned = []
    for factor in (0.0, 0.1):
        frozen = {"network.segmentor.sam.image_encoder": factor}
        workflow = PROMPTNUCSEG.train(*OVERLAYS, **settings, output_dir=str(tmp_path), lr_factors=frozen)
        learned.append(network_of(workflow).segmentor.sam.image_encoder.neck[0].weight.detach())
    assert torch.equal(learned[0], start)
    assert not torch.equal(learned[1], start)


def test_evaluation_repeats_the_numbers_of_the_best_epoch(
    settings: dict[str, object], folder: Path, tmp_path: Path
) -> None:
    weights = str(folder / "model.safetensors")
    workflow = PROMPTNUCSEG.evaluate(
        *OVERLAYS, **settings, checkpoint=weights, splits=["validation"], output_dir=str(tmp_path)
    )
    assert workflow.evaluator.state.metrics["val_pq"] == float(read_header(weights)["val_pq"])


def test_a_resumed_training_ends_with_the_same_weights(
    settings: dict[str, object], folder: Path, tmp_path: Path
) -> None:
    own = {**settings, "output_dir": str(tmp_path)}
    PROMPTNUCSEG.train(*OVERLAYS, **own, **{"train#trainer#max_epochs": 1})
    PROMPTNUCSEG.train(*OVERLAYS, **own, resume=True)
    assert_same_tensors(tmp_path / "model.safetensors", folder / "model.safetensors")


def test_inference_needs_nothing_but_the_file(
    settings: dict[str, object], folder: Path, tmp_path: Path
) -> None:
    workflow = PROMPTNUCSEG.bundle(
        base="inference",
        device="$torch.device('cpu')",
        precision="fp32",
        overlap_px=8,
        checkpoint=str(folder / "model.safetensors"),
        input=str(Path(str(settings["dataset_dir"])) / "dark" / "images"),
        output_dir=str(tmp_path),
    )
    assert workflow.parser.get_parsed_content("sam_variant") == MICRO_TRUNK.name
    assert workflow.parser.get_parsed_content("pixel_std") == "image"
    workflow.run()
    workflow.finalize()
    assert len(list(tmp_path.glob("*_instances.tif"))) == 9
