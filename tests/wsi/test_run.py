"""Runs that are killed, slides without anything on them, and what a cohort does with broken ones."""

import contextlib
import errno
import gzip
import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
from PIL import Image

from nucsam_monai.utils.errors import ConfigurationError, OutputError
from nucsam_monai.wsi import (
    Journal,
    Method,
    SlideError,
    SlideMetadataError,
    SlideOptions,
    SlideResult,
    progress,
    run,
    segment_cohort,
    segment_slide,
)
from nucsam_monai.wsi.grid import cut_shards
from nucsam_monai.wsi.ranks import Ranks
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


class Watching(Oracle):
    """Counts the shards that are written whenever the network begins."""

    def __init__(self, shards: Path) -> None:
        self.shards, self.written = shards, []  # type: tuple[Path, list[int]]

    def infer(self, pixels: np.ndarray) -> Any:
        self.written.append(sum(file.name[0] != "." for file in self.shards.glob("*.parquet")))
        return super().infer(pixels)


@pytest.mark.parametrize("unwritten", [0, 1])
def test_a_kill_costs_the_shard_in_work_and_on_a_gpu_the_one_before(
    slide: Path, uninterrupted: Path, tmp_path: Path, unwritten: int
) -> None:
    watching = Watching(tmp_path / "slide" / "shards")
    method = replace(oracle(lambda _: watching), unwritten=unwritten)
    segment_slide(slide, tmp_path, method, OPTIONS)
    begun = range(len(list((uninterrupted / "shards").iterdir())))
    written = watching.written[-len(begun) :]  # the first times are timed tiles
    assert all(number - unwritten <= done <= number for number, done in zip(begun, written, strict=True))
    assert outputs(tmp_path / "slide") == outputs(uninterrupted)


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


def test_tissue_and_a_nucleus_at_the_edge_of_the_slide(tmp_path: Path) -> None:
    truth = np.zeros((900, 900), dtype=np.int32)
    truth[880:, 885:] = 0x905090  # in the last corner, its pixels as dark as tissue
    image = np.full((900, 900, 3), 243, dtype=np.uint8)
    image[300:, 300:] = 255, 200, 255
    image = np.where((truth > 0)[..., None], picture_of(truth), image)

    class OneNucleus(Oracle):
        def infer(self, pixels: np.ndarray) -> Any:
            return (pixels == (0x90, 0x50, 0x90)).all(axis=-1).astype(np.int32)

    path = write_tiff(tmp_path / "edge.tif", image)
    options = SlideOptions(shard_px=240, max_nucleus_um=6.0)
    result = segment_slide(path, tmp_path, oracle(lambda _: OneNucleus()), options)
    assert (result.status, result.nuclei) == ("done", 1)
    table = pq.read_table(tmp_path / "edge" / "nuclei.parquet")
    assert table["area_px"].to_pylist() == [300]
    assert not table["cut"][0].as_py()


@pytest.mark.parametrize(("bearable", "status"), [(0.01, "failed"), (0.2, "partial")])
def test_a_slide_with_a_broken_tile(
    bearable: float, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run.MOST_UNREADABLE == 0.01
    monkeypatch.setattr(run, "MOST_UNREADABLE", bearable)
    path = write_tiff(tmp_path / "slide.tif", np.full((1400, 1400, 3), 200, dtype=np.uint8), levels=1)
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        offset, size = page.dataoffsets[7], page.databytecounts[7]  # type: ignore[union-attr]
    with path.open("r+b") as broken:
        broken.seek(offset)
        broken.write(b"\0" * size)

    class Nothing(Oracle):
        def infer(self, pixels: np.ndarray) -> Any:
            return np.zeros(pixels.shape[:2], dtype=np.int32)

    def segment(path: Path) -> Any:
        options = SlideOptions(max_nucleus_um=6.0, outputs=("parquet",))
        return segment_slide(path, tmp_path, oracle(lambda _: Nothing(), 256, 64), options)

    (result,) = segment_cohort([path], tmp_path, segment)
    assert result.status == status
    assert ("0.016 of 0.147 mm2 are unreadable" in result.message) == (status == "failed")
    mask = np.asarray(Image.open(tmp_path / "slide" / "tissue.png"))
    assert mask.all(), "what cannot be read on the thumbnail is no glass"


def test_a_run_ends_where_nothing_can_be_written_and_continues_later(
    slide: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, written, room = os.fsync, [0], [0]

    def limited(file: int) -> None:
        if written[0] >= room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written[0] += 1
        sync(file)

    monkeypatch.setattr(os, "fsync", limited)
    for room[0] in (0, 3, 4, 12, 20, 21, 22, 24, 25, 100):
        with contextlib.suppress(OSError):
            segment_slide(slide, tmp_path, oracle(), OPTIONS)
            break
        folder = tmp_path / "slide"
        assert not list(folder.rglob(".*-*")), "nothing half-written stays"
        for file in folder.rglob("nuclei.*"):
            assert file.read_bytes() == (uninterrupted / file.name).read_bytes()
    assert room[0] == 100
    assert outputs(tmp_path / "slide") == outputs(uninterrupted)


def test_a_full_disk_ends_the_cohort(slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    begun: list[Path] = []

    def segment(path: Path) -> SlideResult:
        begun.append(path)
        return segment_slide(path, tmp_path, oracle(), OPTIONS)

    with pytest.raises(OutputError, match="No space left"):
        segment_cohort([slide, tmp_path / "next.png"], tmp_path, segment)
    assert begun == [slide]


def ranks_run(slide: Path, output: Path, monkeypatch: pytest.MonkeyPatch, methods: list[Method]) -> list[str]:
    """Run the processes of torchrun as threads; return how each one ended."""
    rank = threading.local()
    monkeypatch.setattr(Ranks, "of_environment", lambda: Ranks(rank.value, len(methods), "launch"))

    def work(value: int) -> str:
        rank.value = value
        try:
            return segment_slide(slide, output, methods[value], OPTIONS).status
        except SlideError as error:
            return str(error)

    with ThreadPoolExecutor(len(methods)) as threads:
        return list(threads.map(work, range(len(methods))))


def test_processes_of_torchrun_share_a_slide(
    slide: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = [0, 0]

    def counting(rank: int) -> Method:
        class Counting(Oracle):
            def nuclei(self, maps: Any) -> Any:
                counts[rank] += maps.shape[0] > 64  # no tile that is timed
                return super().nuclei(maps)

        return oracle(lambda _: Counting())

    found = ranks_run(slide, tmp_path, monkeypatch, [counting(0), counting(1)])
    assert found == ["done", "done"]
    assert counts == [8, 8]
    assert outputs(tmp_path / "slide") == outputs(uninterrupted)
    failing = [oracle(), oracle(lambda _: Unsteady(10**9))]
    messages = ranks_run(slide, tmp_path / "failing", monkeypatch, failing)
    assert all("shards failed 2 times" in message for message in messages)


def test_ranks_are_those_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    assert Ranks.of_environment() == Ranks(0, 1)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    assert Ranks.of_environment() == Ranks(0, 1), "of another launcher"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    ranks = Ranks.of_environment()
    assert (ranks.rank, ranks.count) == (3, 4)
    assert [shard.index for shard in ranks.share(cut_shards(np.ones((4, 4), bool), 1))] == [3, 7, 11, 15]


def test_a_slide_says_what_it_costs_and_how_far_it_is(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Slow(Oracle):
        def infer(self, pixels: np.ndarray) -> Any:
            time.sleep(0.01)
            return super().infer(pixels)

    monkeypatch.setattr(progress, "_LOG_S", 0.1)
    caplog.set_level("INFO")
    segment_slide(slide, tmp_path, oracle(lambda _: Slow()), OPTIONS)
    assert re.search(r"slide\.png: 0\.05 mm2 in 16 shards, 729 tiles of 64 px, about \d+ s", caplog.text)
    assert re.search(r"0\.0\d of 0\.05 mm2, [\d.]+ s/mm2, network busy \d+ %, \d+ s left", caplog.text)
    assert re.search(r"0\.05 of 0\.05 mm2, .* 0 s left", caplog.text), "the last line is of the whole slide"
    monkeypatch.setattr(progress, "_LONG_S", 0)
    segment_slide(slide, tmp_path, oracle(lambda _: Slow()), OPTIONS, overwrite=True)
    assert any(record.levelname == "WARNING" and "tiles of" in record.message for record in caplog.records)


def test_a_given_mpp_that_differs_from_the_files_and_a_coarse_slide_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_tiff(tmp_path / "slide.tif", np.full((300, 300, 3), 255, dtype=np.uint8), mpp=0.25)
    options = SlideOptions(mpp=0.26, mask="all", shard_px=240, outputs=("parquet",))
    segment_slide(path, tmp_path, oracle(), options)
    assert "0.26 um/px given, but the file says 0.25" in caplog.text
    caplog.clear()
    segment_slide(path, tmp_path, oracle(), replace(options, mpp=0.251), overwrite=True)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    coarse = write_tiff(tmp_path / "coarse.tif", np.full((100, 100, 3), 255, dtype=np.uint8), mpp=1.0)
    segment_slide(coarse, tmp_path, oracle(), replace(options, mpp=None))
    assert "1 um/px, enlarged to the network's 0.25 um/px" in caplog.text


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
