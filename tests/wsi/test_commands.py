"""The command line for slides: exit codes, a cohort with broken slides, a stop, and several processes."""

import csv
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from nucsam_monai.wsi.cluster import MethodSource
from scripts import segment_slides
from tests.wsi.slides import oracle, picture_of, random_nuclei, tissue_picture, write_tiff
from tests.wsi.test_run import outputs

ARGUMENTS = ("--mpp", "0.25", "--mask", "all", "--shard_px", "240")


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slide") / "slide.png"
    Image.fromarray(picture_of(random_nuclei(700, 300, seed=3))).save(path)
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs the command with the oracle in place of a bundle."""
    monkeypatch.setattr(MethodSource, "load", lambda *_: oracle())
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def call(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["segment_slides.py", *map(str, arguments)])
        return segment_slides.main()

    return call


def test_a_list_with_broken_slides(run: Callable[..., int], slide: Path, tmp_path: Path) -> None:
    bare = write_tiff(tmp_path / "bare.tif", tissue_picture(600), mpp=None)
    deep = np.zeros((600, 600, 3), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "deep.tif", deep, tile=(256, 256), photometric="rgb")
    glass = write_tiff(tmp_path / "glass.tif", np.full((600, 600, 3), 243, dtype=np.uint8))
    good = write_tiff(tmp_path / "good.tif", np.asarray(Image.open(slide)))
    paths = [bare, tmp_path / "deep.tif", glass, tmp_path / "absent.svs", good]
    (tmp_path / "list.txt").write_text("\n".join(map(str, paths)))
    assert run("run", "unsam", tmp_path / "list.txt", tmp_path / "out", "--shard_px", 240) == 3
    rows = list(csv.DictReader((tmp_path / "out" / "cohort.csv").open()))
    states = ["refused", "failed", "done_empty", "failed", "done"]
    assert [row["status"] for row in rows] == states
    sentences = ["Pass --mpp", "uint16, expected 8-bit", "", "no such file", ""]
    assert all(sentence in row["message"] for row, sentence in zip(rows, sentences, strict=True))


def test_wrong_calls_end_with_a_sentence(
    run: Callable[..., int], slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("run", "unsam", slide, tmp_path, *ARGUMENTS, "--outputs", "parquet,rows") != 0
    (tmp_path / "empty").mkdir()
    assert run("run", "unsam", tmp_path / "empty", tmp_path) == 2
    assert "no slides in it" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert run("run", "unsam", slide, tmp_path / "file", *ARGUMENTS) == 3
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "cannot be written (Not a directory)" in lines[0]


def test_a_finished_slide_is_recognised_without_a_network(
    run: Callable[..., int], slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("run", "unsam", slide, tmp_path, *ARGUMENTS) == 0
    before = outputs(tmp_path / "slide")

    def refuse(*_: object) -> None:
        raise AssertionError("the network is loaded")

    monkeypatch.setattr(MethodSource, "load", refuse)
    assert run("run", "unsam", slide, tmp_path, *ARGUMENTS) == 0
    assert outputs(tmp_path / "slide") == before
    for other in (("--domain", "breast"), ("--outputs", "csv"), ("--overwrite",)):
        with pytest.raises(AssertionError, match="is loaded"):
            run("run", "unsam", slide, tmp_path, *ARGUMENTS, *other)
    (tmp_path / "slide" / "nuclei.parquet").unlink()
    with pytest.raises(AssertionError, match="is loaded"):
        run("run", "unsam", slide, tmp_path, *ARGUMENTS)


SLOW = """
import sys, time
from nucsam_monai.wsi.cluster import MethodSource
from scripts import segment_slides
from tests.wsi.slides import Oracle, oracle

class Slow(Oracle):
    def infer(self, pixels):
        time.sleep(0.3)
        return super().infer(pixels)

MethodSource.load = lambda *_: oracle(lambda statistics: Slow())
sys.exit(segment_slides.main())
"""


def test_a_stop_ends_at_once_with_a_sentence(slide: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SLOW, "run", "unsam", str(slide), str(tmp_path), *ARGUMENTS]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "slide" / "shards").glob("*.parquet")):
        assert process.poll() is None
        time.sleep(0.01)
    start = time.perf_counter()
    process.terminate()
    _, err = process.communicate(timeout=30)
    assert time.perf_counter() - start < 5
    assert process.returncode == segment_slides.EXIT_STOPPED
    assert err.strip().splitlines()[-1] == "Stopped. Run the same command again to continue."
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("check", ["kill", "seams", "merge", "speed", "workers"])
def test_slides_at_their_real_size(check: str) -> None:
    script = Path(segment_slides.__file__).with_name("benchmark_slides.py")
    subprocess.run([sys.executable, script, check], check=True)
