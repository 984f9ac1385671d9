"""The bundles' commands exactly as a user types them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from monai.utils import path_to_sqlite_uri

from nucsam_monai.networks.sam import read_header
from tests.bundles.runs import BUNDLES, REPOSITORY
from tests.handlers.tracked_engines import Store

TRAINING = ["-m", "monai.bundle", "run", "training", "--config_file"]


def run(arguments: list[str], folder: Path, environment: dict[str, str]) -> str:
    finished = subprocess.run(
        arguments,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-6000:]
    return finished.stdout + finished.stderr


def settings(dataset_dir: str, output: Path) -> list[str]:
    values = {
        "dataset_dir": dataset_dir,
        "output_dir": output,
        "image_size": 64,
        "epochs": 1,
        "val_interval": 1,
        "batch_size": 1,
        "samples_per_epoch": 1,
    }
    return [text for key, value in values.items() for text in (f"--{key}", str(value))]


@pytest.mark.parametrize(
    ("bundle", "place"),
    [
        pytest.param("unsam", "elsewhere", marks=pytest.mark.slow),
        pytest.param("unsam", "repository", marks=pytest.mark.slow),  # below it runs with two processes
        pytest.param("unsam", "bundle", marks=pytest.mark.slow),
        pytest.param("sac", "repository", marks=pytest.mark.slow),
    ],
)
def test_the_training_command_from_any_folder(
    bundle: str,
    place: str,
    dataset_dir: str,
    store_uri: str,
    tmp_path: Path,
    user_environment: dict[str, str],
) -> None:
    folder, config = {
        "repository": (REPOSITORY, f"bundles/{bundle}/configs/train.json"),
        "bundle": (BUNDLES / bundle, "configs/train.json"),
        "elsewhere": (tmp_path, str(BUNDLES / bundle / "configs" / "train.json")),
    }[place]
    if place != "repository":  # stands for the installed package
        user_environment = {**user_environment, "PYTHONPATH": str(REPOSITORY)}
    tracking = ["--tracking_uri", store_uri if place == "repository" else "off"]
    output = tmp_path / "output"
    log = run(
        [sys.executable, *TRAINING, config, *settings(dataset_dir, output), *tracking],
        folder,
        user_environment,
    )
    assert "Traceback" not in log
    assert read_header(output / "model.safetensors")["epoch"] == "1"
    if place == "repository":
        assert Store(store_uri).only_run(f"nucsam/{bundle}").info.status == "FINISHED"


def train_with_two_processes(
    bundle: str, dataset_dir: str, output: Path, uri: str, environment: dict[str, str], *options: str
) -> None:
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nnodes=1",
        "--nproc_per_node=2",
    ]
    files = json.dumps([f"bundles/{bundle}/configs/{name}.json" for name in ("train", "multi_gpu_train")])
    own = [*settings(dataset_dir, output), "--tracking_uri", uri, *options]
    run([*torchrun, *TRAINING, files, *own], REPOSITORY, environment)


@pytest.mark.parametrize(
    "bundle", ["unsam", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sac", "sam_eunet3p"))]
)
def test_two_processes_train_one_model_in_one_run(
    bundle: str, dataset_dir: str, template_database: Path, tmp_path: Path, user_environment: dict[str, str]
) -> None:
    uri = path_to_sqlite_uri(shutil.copy(template_database, tmp_path / "mlflow.db"))
    output = tmp_path / "output"
    train_with_two_processes(bundle, dataset_dir, output, uri, user_environment)
    assert {path.name for path in output.iterdir()} == {"model.safetensors", "training_state.safetensors"}
    store = Store(uri)
    finished = store.only_run(f"nucsam/{bundle}")
    assert finished.info.status == "FINISHED"
    assert set(store.curve(finished, "val_dice")) == {1}


@pytest.mark.slow
def test_two_processes_train_both_networks_of_promptnucseg(
    dataset_dir: str, template_database: Path, tmp_path: Path, user_environment: dict[str, str]
) -> None:
    uri = path_to_sqlite_uri(shutil.copy(template_database, tmp_path / "mlflow.db"))
    output = tmp_path / "output"
    overlap = ("--overlap_px", "16")
    train_with_two_processes("promptnucseg", dataset_dir, output, uri, user_environment, *overlap)
    stages = ("prompter", "segmentor")
    assert {path.name for path in output.iterdir()} == {
        f"{stage}{end}.safetensors" for stage in stages for end in ("", "_state")
    }
    runs = {run.data.tags["stage"]: run for run in Store(uri).runs("nucsam/promptnucseg")}
    assert {stage: run.info.status for stage, run in runs.items()} == dict.fromkeys(
        ("prompter", "segmentor", "joint"), "FINISHED"
    )
