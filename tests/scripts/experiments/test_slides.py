"""Whole slides as a part of an experiment."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from experiments import expand, run_experiment
from experiments.steps import folder_of
from experiments.tracking import MLFLOW_EXPERIMENT
from PIL import Image

from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.wsi import segment_slide
from nucsam_monai.wsi.cohort import write_cohort
from tests.handlers.tracked_engines import Store
from tests.scripts.experiments.stub import StubCommands, experiment_of, places_of
from tests.wsi.slides import oracle, picture_of, random_nuclei
from tests.wsi.test_run import OPTIONS


class SegmentsSlides(StubCommands):
    """Segments slides with the oracle."""

    def _evaluate(self, settings: dict, output: Path) -> None:
        if "input" not in settings:
            super()._evaluate(settings, output)
            return
        assert settings["mpp"] == 0.25
        assert Path(settings["checkpoint"]).exists()
        assert "epochs" not in settings
        write_cohort(output, [segment_slide(settings["input"], output, oracle(), OPTIONS)])


@pytest.fixture
def data(dataset_dir: str, tmp_path: Path) -> Path:
    """The datasets, and a slide with its nuclei."""
    folder = tmp_path / "data"
    shutil.copytree(dataset_dir, folder)
    Image.fromarray(picture_of(random_nuclei(300, 60, seed=3))).save(folder / "slide.png")
    segment_slide(folder / "slide.png", folder / "truth", oracle(), OPTIONS)
    return folder


def forms(**slide: Any) -> dict[str, Any]:
    entry = {"name": "one", "file": "slide.png", "settings": {"mpp": 0.25}, **slide}
    bundles = {"unsam": {"settings": {"epochs": 3}}}
    return {"small": {"datasets": ["bright"], "slides": [entry], "bundles": bundles}}


def test_each_method_segments_the_slide_and_mlflow_and_report_show_it(
    data: Path, tmp_path: Path, store_uri: str
) -> None:
    experiment = experiment_of(tmp_path, forms=forms(truth="truth/slide/nuclei.parquet"))
    places = places_of(tmp_path, str(data), store_uri)
    for commands in (SegmentsSlides(), StubCommands()):  # the second time nothing is left to do
        report = run_experiment(experiment, places, run=commands)
    assert commands.calls == []
    store = Store(store_uri)
    runs = {run.info.run_name: run for run in store.runs(MLFLOW_EXPERIMENT)}
    assert len(runs) == 5
    for method in "AB":
        slide = runs[f"{method} on slide one"]
        assert slide.data.metrics["nuclei"] == 60
        assert [slide.data.metrics[name] for name in ("pq", "aji")] == pytest.approx([1, 1])
        assert {"tissue_mm2", "nuclei_per_mm2", "seconds_per_mm2"} <= set(slide.data.metrics)
        assert (slide.data.tags["method"], slide.data.tags["slide"]) == (method, "one")
        assert {"overlay.png", "density.png", "statistics.json"} <= store.artifacts(slide)
    text = (report.folder / "results.md").read_text()
    assert "## Whole slides" in text
    assert "| A | one | " in text
    settings = folder_of(expand(experiment).slides[0], places) / "settings.json"
    assert json.loads(settings.read_text())["input"] == str(data / "slide.png")


def test_a_missing_slide_and_a_misspelt_key_are_found_before_the_start(data: Path, tmp_path: Path) -> None:
    wrong = forms(truth="absent.parquet", settings={"shard": 9})
    experiment = experiment_of(tmp_path, forms=wrong)
    with pytest.raises(ConfigurationError) as error:
        run_experiment(experiment, places_of(tmp_path, str(data)), run=StubCommands())
    assert "slide 'one': no " in str(error.value)
    assert "unknown key 'shard'. Did you mean 'shard_px'?" in str(error.value)
