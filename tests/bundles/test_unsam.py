"""The UN-SAM bundle from training to evaluation and inference, in one process."""

import csv
import json
import logging
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from nucsam_monai.metrics.summary import ALL_IMAGES
from nucsam_monai.networks.sam import read_header
from nucsam_monai.utils.errors import CheckpointError, FailedImagesError, ImageReadError
from tests.bundles.conftest import Training
from tests.bundles.runs import HEIGHT, OF_THE_FOLDER, WIDTH, draw, network_of, raised_from, tensors
from tests.bundles.unsam_runs import bundle, evaluate

UNSURE = 0.4
"""A threshold that the answers of a hardly trained network lie around, so that there are nuclei."""

OUTPUTS = ("_instances.tif", ".geojson", "_nuclei.csv", "_overlay.png")


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def test_training_writes_weights_that_name_what_they_belong_to(training: Training) -> None:
    header = read_header(training.weights)
    assert header["method"] == "unsam"
    assert header["sam_variant"] == "micro"
    assert json.loads(header["domains"]) == ["bright", "dark"]
    assert all(torch.isfinite(tensor).all() for tensor in tensors(training.weights).values())


def test_evaluation_repeats_the_numbers_of_the_training_for_the_same_images(
    training: Training, tmp_path: Path
) -> None:
    settings = {**training.settings, "checkpoint": str(training.weights), "splits": ["validation"]}
    workflow = evaluate(**settings, output_dir=str(tmp_path))
    assert read_header(training.weights)["epoch"] == "2"
    assert workflow.evaluator.state.metrics["val_dice"] == training.val_dice
    assert summary(tmp_path)["splits"] == ["validation"]


def test_evaluation_writes_tables_and_overlays_of_the_test_images(training: Training, tmp_path: Path) -> None:
    evaluate(**training.settings, checkpoint=str(training.weights), output_dir=str(tmp_path))
    with (tmp_path / "per_image.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = {(row["domain"], row["id"]) for row in rows}
    assert names == {("bright", "test_0"), ("dark", "test_0"), ("dark", "test_1")}
    overlays = {path.stem for path in (tmp_path / "overlays").iterdir()}
    assert overlays == {f"{domain}_{name}" for domain, name in names}
    domains = [(row["domain"], row["images"]) for row in summary(tmp_path)["summary"]]
    assert domains[:2] == [("bright", 1), ("dark", 2)]


def test_an_evaluation_measures_as_the_paper_does_and_cuts_touching_nuclei(
    training: Training, tmp_path: Path
) -> None:
    settings = {**training.settings, "checkpoint": str(training.weights), "output_dir": str(tmp_path)}
    settings |= {"metric_size": 48, "metric_smooth": 1.0, "instances": "watershed"}
    workflow = evaluate(**settings)
    assert (
        workflow.parser.get_parsed_content("validate::postprocessing").transforms[0].instances == "watershed"
    )
    (overall,) = [row for row in summary(tmp_path)["summary"] if row["domain"] == ALL_IMAGES]
    assert {"dice", "dice_48px_smooth1", "iou_48px_smooth1", "hd_48px", "hd95_48px"} <= set(overall)


def test_evaluation_prompts_every_nucleus(training: Training, tmp_path: Path) -> None:
    settings = {**training.settings, "checkpoint": str(training.weights), "output_dir": str(tmp_path)}
    workflow = bundle("evaluate", **settings, prompt="gt_points", max_points=2)
    shapes = [
        tuple(batch["points"].shape) for batch in workflow.parser.get_parsed_content("validate::dataloader")
    ]
    assert shapes == [(1, 4, 2)] * 3


def test_evaluation_refuses_weights_of_another_network(training: Training, tmp_path: Path) -> None:
    settings = {**training.settings, "checkpoint": str(training.weights), "output_dir": str(tmp_path)}
    with pytest.raises(RuntimeError) as error:
        evaluate(**settings, **{"network_def#spgen#enabled": False})
    assert raised_from(error.value, CheckpointError)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with every kind of image a user may have, none of them square, and one broken file."""
    folder = tmp_path / "images"
    folder.mkdir()
    pixels, _ = draw(np.random.default_rng(1), 4)
    Image.fromarray(pixels).save(folder / "png.png")
    Image.fromarray(pixels).save(folder / "jpeg.jpg", quality=95)
    tifffile.imwrite(folder / "tiff.tif", pixels, photometric="rgb")
    columns_first = pixels[..., 0].T.copy()
    nibabel.save(nibabel.Nifti1Image(columns_first, np.eye(4)), folder / "nifti.nii.gz")
    Image.fromarray(pixels).save(folder / "broken.png")
    whole = (folder / "broken.png").read_bytes()
    (folder / "broken.png").write_bytes(whole[: len(whole) // 2])
    return folder


def infer(training: Training, source: Path, output: Path, **settings: object) -> None:
    shared = {key: training.settings[key] for key in ("device", "sam_variant", "image_size", "precision")}
    workflow = bundle(
        base="inference",
        **shared,
        **settings,
        input=str(source),
        output_dir=str(output),
        checkpoint=str(training.weights),
    )
    assert workflow.check_properties() == []
    workflow.run()
    workflow.finalize()


def test_inference_writes_four_files_per_image_and_passes_over_the_broken_one(
    training: Training, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "predictions"
    with caplog.at_level(logging.WARNING), pytest.raises(RuntimeError) as error:
        infer(training, images, output, threshold=UNSURE)
    assert "1 of 5 images could not be segmented" in (raised_from(error.value, FailedImagesError) or "")
    stems = {"png", "jpeg", "tiff", "nifti"}
    written = {stem + end for stem in stems for end in OUTPUTS}
    assert {path.name for path in output.iterdir()} == written | OF_THE_FOLDER
    for stem in stems:
        instances = tifffile.imread(output / f"{stem}_instances.tif")
        assert instances.shape == (HEIGHT, WIDTH)
        assert Image.open(output / f"{stem}_overlay.png").size == (WIDTH, HEIGHT)
        features = json.loads((output / f"{stem}.geojson").read_text())["features"]
        with (output / f"{stem}_nuclei.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(features) == len(rows) == instances.max() > 0
    reported = [record.getMessage() for record in caplog.records]
    assert any("skipped" in message and "broken.png" in message for message in reported)


def test_lossless_formats_of_the_same_pixels_give_the_same_nuclei(
    training: Training, images: Path, tmp_path: Path
) -> None:
    (images / "broken.png").unlink()
    infer(training, images, tmp_path / "predictions", threshold=UNSURE)
    png, tiff, nifti = (
        tifffile.imread(tmp_path / "predictions" / f"{stem}_instances.tif")
        for stem in ("png", "tiff", "nifti")
    )
    np.testing.assert_array_equal(png, tiff)
    np.testing.assert_array_equal(png, nifti)


def test_inference_on_a_dataset_takes_its_test_images(training: Training, tmp_path: Path) -> None:
    infer(training, Path(str(training.settings["dataset_dir"])), tmp_path / "predictions")
    written = {path.name for path in (tmp_path / "predictions").glob("*.geojson")}
    assert written == {"bright_test_0.geojson", "dark_test_0.geojson", "test_1.geojson"}


def test_inference_fails_where_no_image_can_be_read(training: Training, images: Path, tmp_path: Path) -> None:
    for path in images.iterdir():
        if path.stem != "broken":
            path.unlink()
    with pytest.raises(RuntimeError) as error:
        infer(training, images, tmp_path / "predictions")
    assert raised_from(error.value, ImageReadError)
    assert {path.name for path in (tmp_path / "predictions").iterdir()} == OF_THE_FOLDER


def test_every_property_that_monai_asks_for_is_there(training: Training, tmp_path: Path) -> None:
    settings = {**training.settings, "output_dir": str(tmp_path)}
    assert bundle(**settings).check_properties() == []
    assert bundle("evaluate", **settings, checkpoint=str(training.weights)).check_properties() == []


def test_only_what_was_trained_is_saved_and_the_frozen_encoder_stays_as_it_was(
    training: Training, tmp_path: Path
) -> None:
    settings = {**training.settings, "network_def#encoder#trainable": "bypass"}
    workflow = bundle(**settings, output_dir=str(tmp_path / "train"))
    network = network_of(workflow)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    workflow.run()
    after = network.state_dict()
    saved = tensors(tmp_path / "train" / "model.safetensors")
    frozen = [name for name in before if name.startswith("image_encoder.")]
    assert frozen
    assert not set(frozen) & set(saved)
    assert [name for name in frozen if not torch.equal(before[name], after[name])] == []
    assert any(not torch.equal(before[name], after[name]) for name in saved if name.startswith("bypass."))

    shared = {
        **settings,
        "checkpoint": str(tmp_path / "train" / "model.safetensors"),
        "splits": ["validation"],
    }
    evaluated = evaluate(**shared, output_dir=str(tmp_path / "evaluate"))
    trained, reloaded = (run.evaluator.state.metrics for run in (workflow, evaluated))
    assert {key: trained[key] for key in reloaded if key in trained} == dict(reloaded)
