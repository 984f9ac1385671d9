"""A whole experiment with a real bundle at tiny size, and its page in the browser."""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import monai
import pytest
import torch
from experiments import Experiment, Places, run_experiment
from experiments.report import Report
from experiments.tracking import MLFLOW_EXPERIMENT
from monai.bundle import ConfigWorkflow
from monai.utils import path_to_sqlite_uri

from scripts.mlflow_screenshot import browse, find_browser, parent_of, runs_page, served
from tests.handlers.tracked_engines import Store
from tests.scripts.experiments.stub import experiment_of, places_of

TINY = {
    "baseline_size": "small",
    "image_size": 64,
    "epochs": 2,
    "val_interval": 1,
    "batch_size": 2,
    "samples_per_epoch": 2,
}


def run_here(arguments: Sequence[str], log: Path, lock: int | None) -> int:
    """Run the commands in this process, which saves the seconds of their imports."""
    run, files = arguments[4], json.loads(arguments[6])
    workflow = ConfigWorkflow(config_file=files, run_id=run, logging_file=False)
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    return 0


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, dataset_dir: str, template_database: Path
) -> tuple[Experiment, Places, Report]:
    folder = tmp_path_factory.mktemp("real")
    uri = path_to_sqlite_uri(shutil.copy(template_database, folder / "mlflow.db"))
    experiment = experiment_of(
        folder,
        metrics=["dice", "pq", "total_m", "gmacs"],
        methods=[{"name": "U-Net", "bundle": "baselines", "settings": TINY}],
        forms={"small": {"datasets": ["bright"]}},
    )
    places = places_of(folder, dataset_dir, uri)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        path, threads = list(sys.path), torch.get_num_threads()
        report = run_experiment(experiment, places, run=run_here)
    sys.path[:] = path
    torch.set_num_threads(threads)
    monai.utils.set_determinism(None)
    monai.data.set_track_meta(True)
    return experiment, places, report


def test_a_bundle_is_trained_tested_measured_and_tracked(
    finished: tuple[Experiment, Places, Report],
) -> None:
    _, places, report = finished
    assert report.complete
    assert 0 <= report.results.value("U-Net", "bright", "dice") <= 1
    assert 0.3 < report.results.value("U-Net", "cost", "total_m") < 0.5
    assert report.results.value("U-Net", "cost", "gmacs") > 0
    assert {"convergence.png", "sheet_bright.png"} <= {path.name for path in report.folder.iterdir()}
    store = Store(places.tracking_uri or "")
    runs = {run.data.tags["workflow"]: run for run in store.runs(MLFLOW_EXPERIMENT)}
    assert set(runs) == {"benchmark", "train", "evaluate"}
    parent = runs["benchmark"].info.run_id
    assert {runs[kind].data.tags["mlflow.parentRunId"] for kind in ("train", "evaluate")} == {parent}
    assert {"overlays", "curves.csv", "per_image.csv"} <= store.artifacts(runs["evaluate"])


@pytest.mark.slow
@pytest.mark.skipif(find_browser() is None, reason="no Chromium")
def test_the_page_shows_parent_child_metrics_and_overlay(finished: tuple[Experiment, Places, Report]) -> None:
    experiment, places, _ = finished
    uri = places.tracking_uri or ""
    store = Store(uri)
    runs = {run.data.tags["workflow"]: run for run in store.runs(MLFLOW_EXPERIMENT)}
    parent, child = parent_of(experiment.full_name, uri), runs["evaluate"].info.run_id
    assert parent == runs["benchmark"].info.run_id
    (overlay,) = store.artifacts(runs["evaluate"], "overlays")
    with served(uri) as (address, _):
        page = browse(f"{runs_page(address, uri)}/{parent}", "--dump-dom")
        artifacts = browse(f"{runs_page(address, uri)}/{child}/artifacts/{overlay}", "--dump-dom")
    for text in (experiment.full_name, "U-Net on bright, seed 0", "dice"):
        assert text in page
    assert Path(overlay).name in artifacts
