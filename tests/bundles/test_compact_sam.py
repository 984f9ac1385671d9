"""The compact SAM's bundle: training, resuming, evaluation, and the SAM that other methods start from."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import verify_metadata
from safetensors import safe_open

from nucsam_monai.networks import SAC, UNSAM, Segmentor
from nucsam_monai.networks.sam import read_header
from nucsam_monai.utils.errors import CheckpointError
from tests.bundles.compact_sam_runs import COMPACT_SAM, CONFIGS, bundle, run
from tests.bundles.runs import assert_same_tensors, network_of, raised_from, tensors

FILES = ("model.safetensors", "sam.safetensors", "training_state.safetensors")


class PowerCutError(Exception):
    """The machine goes down."""


@dataclass(frozen=True)
class Pretraining:
    folder: Path
    dataset_dir: str

    @property
    def sam(self) -> str:
        return str(self.folder / "sam.safetensors")

    @property
    def weights(self) -> Path:
        return self.folder / "model.safetensors"


@pytest.fixture(scope="module")
def pretraining(tmp_path_factory: pytest.TempPathFactory, dataset_dir: str, micro: None) -> Pretraining:
    folder = tmp_path_factory.mktemp("compact_sam")
    run(dataset_dir=dataset_dir, output_dir=str(folder))
    return Pretraining(folder, dataset_dir)


def header_of(path: str) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def test_training_writes_its_weights_and_the_whole_sam(pretraining: Pretraining) -> None:
    assert {path.name for path in pretraining.folder.iterdir()} == set(FILES)
    header = header_of(pretraining.sam)
    assert (header["sam_variant"], header["image_size"]) == ("micro", "64")
    assert header["epoch"] == read_header(pretraining.weights)["epoch"]
    sam, trained = tensors(Path(pretraining.sam)), tensors(pretraining.weights)
    assert {f"sam.{name}" for name in sam} == {name for name in trained if not name.startswith("dense_head.")}
    assert all(torch.equal(tensor, trained[f"sam.{name}"]) for name, tensor in sam.items())
    assert {name.split(".")[0] for name in sam} == {"image_encoder", "prompt_encoder", "mask_decoder"}


@pytest.mark.parametrize(
    "build",
    [
        lambda path: SAC("micro", 64, sam_checkpoint=path).sam.state_dict(),
        lambda path: Segmentor("micro", 64, sam_checkpoint=path).sam.state_dict(),
        lambda path: UNSAM("micro", ["a"], 64, sam_checkpoint=path).state_dict(),
    ],
    ids=["sac", "segmentor", "unsam"],
)
def test_other_methods_start_from_it(pretraining: Pretraining, build) -> None:
    expected, found = tensors(Path(pretraining.sam)), build(pretraining.sam)
    shared = [name for name in expected if not name.startswith("mask_decoder.") or name in found]
    assert len(shared) > 50
    assert [name for name in shared if not torch.equal(found[name], expected[name])] == []


def test_the_loss_falls(dataset_dir: str, micro: None, tmp_path: Path) -> None:
    workflow = bundle(dataset_dir=dataset_dir, output_dir=str(tmp_path), epochs=8, lr=0.002, val_interval=8)
    losses: list[float] = []
    workflow.trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: losses.append(engine.state.output["loss"])
    )
    workflow.run()
    each = len(losses) // 8
    assert sum(losses[-each:]) < 0.9 * sum(losses[:each])


def test_the_weights_of_the_bundle_are_not_a_sam_checkpoint(pretraining: Pretraining) -> None:
    with pytest.raises(CheckpointError, match=r"trained of 'compact_sam', not a whole SAM"):
        SAC("micro", 64, sam_checkpoint=str(pretraining.weights))


def test_a_training_resumed_in_its_second_epoch_ends_with_the_same_files(
    pretraining: Pretraining, tmp_path: Path
) -> None:
    settings = {"dataset_dir": pretraining.dataset_dir, "output_dir": str(tmp_path)}

    def cut(engine: Engine) -> None:
        if engine.state.epoch == 2 and (engine.state.iteration - 1) % engine.state.epoch_length == 1:
            raise PowerCutError

    workflow = bundle(**settings)
    workflow.trainer.add_event_handler(Events.ITERATION_STARTED, cut)
    with pytest.raises(RuntimeError) as error:
        workflow.run()
    assert raised_from(error.value, PowerCutError)
    assert not (tmp_path / "sam.safetensors").exists()
    run(**settings, resume=True)
    for name in FILES:
        assert_same_tensors(tmp_path / name, pretraining.folder / name)
    (tmp_path / "sam.safetensors").unlink()
    run(**settings, resume=True)  # nothing is left to train
    assert_same_tensors(tmp_path / "sam.safetensors", pretraining.folder / "sam.safetensors")


def test_evaluation_repeats_the_metric_of_the_best_epoch(pretraining: Pretraining, tmp_path: Path) -> None:
    workflow = run(
        "evaluate",
        dataset_dir=pretraining.dataset_dir,
        output_dir=str(tmp_path),
        checkpoint=str(pretraining.weights),
        splits=["validation"],
    )
    distance = workflow.evaluator.state.metrics["val_jaccard_distance"]
    assert distance == float(read_header(pretraining.weights)["val_jaccard_distance"])
    with (tmp_path / "per_image.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["domain"], row["id"]) for row in rows} == {
        ("bright", "validation_0"),
        ("dark", "validation_0"),
        ("dark", "validation_1"),
    }
    mean = sum(float(row["jaccard_distance"]) for row in rows) / len(rows)
    assert mean == pytest.approx(distance)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["weights"]["method"] == "compact_sam"


def test_every_property_that_monai_asks_for_is_there(pretraining: Pretraining, tmp_path: Path) -> None:
    settings = {"dataset_dir": pretraining.dataset_dir, "output_dir": str(tmp_path)}
    workflow = bundle(**settings)
    assert workflow.check_properties() == []
    assert all(parameter.requires_grad for parameter in network_of(workflow).parameters())
    assert bundle("evaluate", **settings, checkpoint=str(pretraining.weights)).check_properties() == []


def test_without_a_validation_no_sam_is_written(
    dataset_dir: str, micro: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    workflow = bundle(dataset_dir=dataset_dir, output_dir=str(tmp_path))
    export = workflow.parser.get_parsed_content("train::handlers")[-1]
    export.export(workflow.trainer)
    assert not (tmp_path / "sam.safetensors").exists()
    assert any("no epoch of this training was validated" in record.getMessage() for record in caplog.records)


def test_metadata_follows_monais_schema() -> None:
    schema = Path(__file__).with_name("meta_schema.json")
    verify_metadata(meta_file=str(CONFIGS / "metadata.json"), filepath=str(schema))


def test_tiny_settings_name_keys_that_exist() -> None:
    assert set(COMPACT_SAM.tiny) <= set(json.loads((CONFIGS / "train.json").read_text()))
