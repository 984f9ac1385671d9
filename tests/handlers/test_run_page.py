"""What MLflow's pages show of a run: name, description, address."""

import logging
from pathlib import Path

import pytest
from PIL import Image

from nucsam_monai.handlers import TrackedRun
from nucsam_monai.handlers.run_page import (
    MAX_DESCRIPTION_LENGTH,
    best_overlay,
    described,
    description,
    run_name,
    runs_page,
    where_to_look,
)
from tests.bundles.runs import BUNDLES
from tests.handlers.tracked_engines import EXPERIMENT, Store


@pytest.mark.parametrize(
    ("tags", "seed", "bundle", "name"),
    [
        ({"bundle": "unsam", "dataset": "a+b+c+d"}, 0, "unsam", "UN-SAM, 4 domains, seed 0"),
        (
            {"bundle": "unsam", "dataset": "dsb2018", "split": "test"},
            1,
            "unsam",
            "UN-SAM, dsb2018, test, seed 1",
        ),
        ({"method": "unet", "bundle": "baselines", "dataset": "a"}, 0, "baselines", "unet, a, seed 0"),
        ({"bundle": "mine", "stage": "prompter"}, None, None, "mine, prompter"),
    ],
)
def test_the_name_of_a_run_is_short(
    tags: dict[str, str], seed: int | None, bundle: str | None, name: str
) -> None:
    assert run_name(tags, seed, bundle and BUNDLES / bundle) == name


@pytest.mark.parametrize(
    ("weights", "name"),
    [
        ("bundles/unsam/models/compact_he.safetensors", "UN-SAM, he, a"),
        ("bundles/unsam/models/compact.safetensors", "UN-SAM, a"),
        ("output/mine/model.safetensors", "UN-SAM, mine, a"),
        ("output/unsam_on_dsb2018_seed_42-1234abcd/model.safetensors", "UN-SAM, a"),
    ],
)
def test_evaluations_of_different_weights_have_different_names(weights: str, name: str) -> None:
    assert run_name({"method": "UN-SAM", "dataset": "a"}, weights=weights) == name


def test_a_long_command_is_broken_before_its_options() -> None:
    text = description({}, "/env/bin/python3 -m monai.bundle run training --seed 0 --output_dir 'a --b'")
    lines = ["python -m monai.bundle run training \\", "    --seed 0 \\", "    --output_dir 'a --b'"]
    assert text.splitlines()[1:4] == lines


def test_the_address_shows_the_runs_and_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert where_to_look("https://me:secret@host/", "7") == (
        "https://host/#/experiments/7/runs?workflowType=machine_learning"
    )
    assert where_to_look("sqlite:////my runs/m.db", "7").endswith(
        "nucsam mlflow --store 'sqlite:////my runs/m.db')"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////my runs/m.db")
    assert where_to_look("sqlite:////my runs/m.db", "7").endswith("nucsam mlflow)")


def write_evaluation(folder: Path) -> Path:
    (folder / "overlays").mkdir()
    for name in ("he_a", "he_b", "he_drawn_only"):
        Image.new("RGB", (900, 300)).save(folder / "overlays" / f"{name}.png")
    (folder / "per_image.csv").write_text("id,domain,dice,aji\na,he,0.9,0.2\nb,he,0.8,0.6\nc,he,1.0,1.0\n")
    return folder


def test_the_best_overlay_is_that_of_the_highest_aji(tmp_path: Path) -> None:
    assert best_overlay(tmp_path) is None
    found = best_overlay(write_evaluation(tmp_path))
    assert found is not None
    assert found.name == "he_b.png"


def test_a_finished_run_says_what_it_found_and_where_to_look(
    store: Store, tracked: TrackedRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_evaluation(tmp_path)
    with caplog.at_level(logging.INFO, logger="nucsam_monai"), tracked:
        tracked.log_metrics({"val_dice": 0.5, "val_dice_ci_low": 0.4, "train_loss": 2.0})
        tracked.log_metrics({"val_dice": 0.75}, step=1)
        tracked.add_artifacts([tmp_path / "per_image.csv", tmp_path / "overlays"])
    run = store.only_run()
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith("**dice 0.750**")
    assert f"](get-artifact?path=small_he_b.png&run_uuid={run.info.run_id})" in note
    small = store.client.download_artifacts(run.info.run_id, "small_he_b.png", str(tmp_path))
    assert Image.open(small).size == (560, 187)
    assert "| val_dice | 0.75 |" in note
    assert "ci_low" not in note
    assert "train_loss" not in note
    assert run.data.tags["command"].partition(" ")[2] in note.replace(" \\\n   ", "")
    assert runs_page(str(tracked.uri), run.info.experiment_id) in caplog.records[-1].getMessage()


def test_a_long_description_ends_after_a_whole_line() -> None:
    (text,) = described("| a | b |\n" * 1000).values()
    assert MAX_DESCRIPTION_LENGTH - 10 <= len(text) <= MAX_DESCRIPTION_LENGTH
    assert text.endswith("| a | b |")


def test_a_name_that_is_given_is_kept(store: Store, store_uri: str) -> None:
    with TrackedRun(EXPERIMENT, store_uri, params={}, name="mine"):
        pass
    assert store.only_run().info.run_name == "mine"
