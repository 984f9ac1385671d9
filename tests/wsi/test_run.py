"""Runs that are killed, slides without anything on them, and what a cohort does with broken ones."""

import gzip
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.wsi import (
    Journal,
    SlideError,
    SlideMetadataError,
    SlideOptions,
    segment_cohort,
    segment_slide,
)
from tests.qupath import check_qupath_objects
from tests.wsi.slides import Oracle, oracle, picture_of, random_nuclei, tissue_picture, write_tiff

OPTIONS = SlideOptions(mpp=0.25, mask="all", shard_px=240, max_nucleus_um=6.0)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slide") / "slide.png"
    Image.fromarray(picture_of(random_nuclei(900, 600, seed=3))).save(path)
    return path


@pytest.fixture(scope="module")
def uninterrupted(slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("uninterrupted")
    segment_slide(slide, output, oracle(), OPTIONS)
    return output / "slide"


def outputs(folder: Path) -> dict[str, bytes]:
    return {
        name: (folder / name).read_bytes() for name in json.loads((folder / "DONE.json").read_text())["files"]
    }


WORK = """
import sys; from pathlib import Path
from nucsam_monai.wsi import segment_slide
from tests.wsi.slides import oracle
from tests.wsi.test_run import OPTIONS
print("ready", flush=True)
segment_slide(Path(sys.argv[1]), Path(sys.argv[2]), oracle(), OPTIONS)
"""


def test_a_killed_run_is_continued_to_the_same_bytes(
    slide: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    generator = np.random.default_rng(0)
    shards = len(list((uninterrupted / "shards").glob("*.parquet")))
    for _ in range(3):
        before = set((tmp_path / "slide" / "shards").glob("*.parquet"))
        process = subprocess.Popen([sys.executable, "-c", WORK, slide, tmp_path], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(float(generator.uniform(0.05, 0.6)))
        process.kill()
        process.wait()
        process.stdout.close()
        assert before <= set((tmp_path / "slide" / "shards").glob("*.parquet"))
    segment_slide(slide, tmp_path, oracle(), OPTIONS)
    assert len(list((tmp_path / "slide" / "shards").glob("*.parquet"))) == shards
    assert outputs(tmp_path / "slide") == outputs(uninterrupted)
    assert not list((tmp_path / "slide").rglob(".*-*"))


def test_a_finished_slide_is_left_as_it_is(slide: Path, uninterrupted: Path) -> None:
    def refuse(statistics: Any) -> Any:
        raise AssertionError("the network is not needed")

    before = (uninterrupted / "nuclei.parquet").stat().st_mtime_ns
    assert segment_slide(slide, uninterrupted.parent, oracle(refuse), OPTIONS).status == "done"
    assert (uninterrupted / "nuclei.parquet").stat().st_mtime_ns == before


def test_other_options_need_another_folder(slide: Path, uninterrupted: Path) -> None:
    with pytest.raises(ConfigurationError, match="other values of options"):
        segment_slide(slide, uninterrupted.parent, oracle(), SlideOptions(mpp=0.25, mask="all"))


def test_two_runs_do_not_share_a_folder(slide: Path, tmp_path: Path) -> None:
    with Journal(tmp_path / "slide").locked(), pytest.raises(ConfigurationError, match="another run"):
        segment_slide(slide, tmp_path, oracle(), OPTIONS)


class Unsteady(Oracle):
    """Fails the first times it is asked."""

    def __init__(self, failures: int) -> None:
        self.left = failures

    def infer(self, pixels: np.ndarray) -> Any:
        if self.left:
            self.left -= 1
            raise RuntimeError("out of memory")
        return super().infer(pixels)


def test_a_failed_shard_is_tried_again(slide: Path, uninterrupted: Path, tmp_path: Path) -> None:
    segment_slide(slide, tmp_path, oracle(lambda _: Unsteady(2)), OPTIONS)
    assert outputs(tmp_path / "slide") == outputs(uninterrupted)


def test_a_slide_whose_shards_fail_does_not_stop_the_cohort(slide: Path, tmp_path: Path) -> None:
    bare = write_tiff(tmp_path / "bare.tif", tissue_picture(600), mpp=None)
    options = SlideOptions(mask="all", shard_px=240, max_nucleus_um=6.0)

    def segment(path: Path) -> Any:
        chosen = options if path == bare else OPTIONS
        method = oracle(lambda _: Unsteady(10**9)) if path.stem == "broken" else oracle()
        return segment_slide(path, tmp_path / "out", method, chosen)

    broken = tmp_path / "broken.png"
    broken.write_bytes(slide.read_bytes())
    results = segment_cohort([broken, bare, tmp_path / "absent.svs", slide], tmp_path / "out", segment)
    assert [result.status for result in results] == ["failed", "refused", "failed", "done"]
    assert "out of memory" in results[0].message
    assert "Pass --mpp" in results[1].message
    assert len((tmp_path / "out" / "cohort.csv").read_text().splitlines()) == 5


@pytest.mark.parametrize("kind", ["glass", "tissue"])
def test_a_slide_without_nuclei_is_complete(kind: str, tmp_path: Path) -> None:
    image = np.full((900, 900, 3), 243, dtype=np.uint8)
    if kind == "tissue":
        image[:] = (250, 200, 250)
    path = write_tiff(tmp_path / "empty.tif", image)

    class Nothing(Oracle):
        def infer(self, pixels: np.ndarray) -> Any:
            return np.zeros(pixels.shape[:2], dtype=np.int32)

    options = SlideOptions(shard_px=240, max_nucleus_um=6.0)
    assert segment_slide(path, tmp_path, oracle(lambda _: Nothing()), options).status == "done_empty"
    folder = tmp_path / "empty"
    assert pq.read_table(folder / "nuclei.parquet").num_rows == 0
    assert json.loads(gzip.decompress((folder / "nuclei.geojson.gz").read_bytes()))["features"] == []
    assert len(gzip.decompress((folder / "nuclei.csv.gz").read_bytes()).splitlines()) == 1


def test_outputs_agree_and_open(uninterrupted: Path) -> None:
    table = pq.read_table(uninterrupted / "nuclei.parquet")
    document = json.loads(gzip.decompress((uninterrupted / "nuclei.geojson.gz").read_bytes()))
    lines = gzip.decompress((uninterrupted / "nuclei.csv.gz").read_bytes()).decode().splitlines()
    statistics = json.loads((uninterrupted / "statistics.json").read_text())
    assert len(table) == len(document["features"]) == len(lines) - 1 == statistics["nuclei"] == 600
    check_qupath_objects(document)
    for picture in ("overlay.png", "density.png"):
        width, height = Image.open(uninterrupted / picture).size
        assert width == 900 < height  # a small slide is shown pixel by pixel, above its scales
    geo = json.loads(table.schema.metadata[b"geo"])
    assert geo["version"] == "1.1.0"
    assert geo["columns"]["geometry"]["crs"] is None
    geopandas = pytest.importorskip("geopandas")
    frame = geopandas.read_parquet(uninterrupted / "nuclei.parquet")
    assert frame.crs is None
    assert frame.geometry.is_valid.all()


def test_a_missing_mpp_is_never_guessed(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "bare.tif", tissue_picture(600), mpp=None)
    with pytest.raises(SlideMetadataError, match="Pass --mpp"):
        segment_slide(path, tmp_path, oracle(), SlideOptions())


def test_an_output_folder_that_is_a_file(slide: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        segment_slide(slide, tmp_path / "file", oracle(), OPTIONS)


def test_errors_of_readers_belong_to_one_family() -> None:
    assert issubclass(SlideMetadataError, SlideError)
