"""The page that shows results: what its server answers, and that it draws in a browser."""

import io
import json
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nucsam_monai.apps.viewer import find_results, main, serve
from nucsam_monai.io import write_prediction
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.prediction import prediction_from_instances
from nucsam_monai.wsi import SlideOptions, segment_slide
from tests.wsi.slides import oracle, picture_of, random_nuclei

SIDE = 1300  # more than two tiles, so that there are two levels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of two images: four nuclei of two classes, and none."""
    place = tmp_path_factory.mktemp("results")
    image = np.zeros((SIDE, 600, 3), dtype=np.uint8)
    image[600:] = (0, 0, 255)
    instances = np.zeros(image.shape[:2], dtype=np.int32)
    for number in range(4):
        instances[100 * number : 100 * number + 10 * (number + 1), 20:40] = number + 1
    scores = np.array([0.9, 0.4, 0.8, 0.6], dtype=np.float32)
    found = prediction_from_instances(
        instances, class_ids=np.array([0, 1, 0, 1]), scores=scores, class_names=("tumour", "stroma")
    )
    write_prediction(found, image, place / "found", "first")
    write_prediction(prediction_from_instances(np.zeros_like(instances)), image, place / "found", "second")
    (place / "images").mkdir()
    Image.fromarray(image).save(place / "images" / "first.png")
    return place


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    server = serve(find_results(folder / "found", folder / "images"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def get(url: str, **headers: str) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
        return answer.read()


def rows(address: str, query: str) -> list[int]:
    """Return the ids that a query of the table gives, in order."""
    return [int(row[1]) for row in json.loads(get(f"{address}/0/table?{query}"))["rows"]]


def test_the_first_answer_says_what_there_is(address: str) -> None:
    assert json.loads(get(f"{address}/results")) == ["first", "second"]
    described = json.loads(get(f"{address}/0/describe"))
    assert described["levels"] == [[600, SIDE, 1.0], [300, SIDE // 2, 2.0]]
    assert (described["nuclei"], described["largest"], described["classes"]) == (4, 800, ["stroma", "tumour"])
    assert json.loads(get(f"{address}/1/describe"))["nuclei"] == 0


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("sort=id", [1, 2, 3, 4]),
        ("sort=score&down=1", [1, 3, 4, 2]),
        ("sort=area&down=1&count=2", [4, 3]),
        ("sort=id&first=1&count=2", [2, 3]),
        ("sort=id&score=0.6", [1, 3, 4]),
        ("sort=id&least=300&most=600", [2, 3]),
        ("sort=id&classes=1", [1, 3]),
        ("sort=id&classes=", [1, 2, 3, 4]),
    ],
)
def test_the_table_is_sorted_and_filtered(address: str, query: str, expected: list[int]) -> None:
    assert rows(address, query) == expected


def test_the_view_holds_the_outlines_of_its_rectangle(address: str) -> None:
    view = json.loads(get(f"{address}/0/view?box=0,150,600,{SIDE}&score=0.5"))
    assert (view["passing"], view["seen"]) == (3, 2)
    assert [row[1] for row in view["rows"]] == [3, 4]
    (ring,) = view["outlines"][0]
    assert sorted(map(tuple, ring[:-1])) == [(20, 200), (20, 230), (40, 200), (40, 230)]


def test_many_nuclei_are_dots(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nucsam_monai.apps.viewer.OUTLINES_AT_ONCE", 3)
    view = json.loads(get(f"{address}/0/view?box=0,0,600,{SIDE}"))
    assert "outlines" not in view
    assert len(view["rows"]) == 4


def test_tiles_are_those_of_the_image(address: str) -> None:
    tile = Image.open(io.BytesIO(get(f"{address}/0/tile/0/1/2")))
    assert tile.size == (600 - 512, SIDE - 2 * 512)
    assert abs(np.asarray(tile, dtype=int) - (0, 0, 255)).max() < 4


@pytest.mark.parametrize("path", ["nothing", "7/describe", "0/nothing", "0/tile/9/0/0", "0/view", "..%2f"])
def test_what_is_not_there_is_not_found(address: str, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as error:
        get(f"{address}/{path}")
    assert error.value.code == 404


def test_other_hosts_are_refused(address: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as error:
        get(f"{address}/results", Host="elsewhere.example")
    assert error.value.code == 403


def test_without_images_the_overlay_is_shown(folder: Path) -> None:
    assert find_results(folder / "found")[0].levels[0] == (600, SIDE, 1.0)


def test_a_folder_without_results_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigurationError, match="no results in it"):
        find_results(tmp_path)
    (tmp_path / "case").mkdir()
    (tmp_path / "case" / "DONE.json").write_text("{}")
    assert main([str(tmp_path), "--no_browser"]) == 1
    assert "the slide is missing. Pass --images" in capsys.readouterr().err


def test_a_slide_is_shown_in_pixels_of_its_finest_level(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    truth = random_nuclei(300, 60, seed=1)
    Image.fromarray(picture_of(truth)).save(tmp_path / "case.png")
    options = SlideOptions(mpp=0.25, mask="all", shard_px=240, max_nucleus_um=6.0)
    segment_slide(tmp_path / "case.png", tmp_path / "out", oracle(), options)
    (result,) = find_results(tmp_path / "out", tmp_path)
    assert (result.describe()["nuclei"], result.describe()["mpp"]) == (60, 0.25)
    view = result.view({"box": ["0,0,300,300"]})
    for row, rings in zip(view["rows"], view["outlines"], strict=True):
        column, line = (int(side) for side in np.min(rings[0], axis=0))
        box = truth[line : line + 24, column : column + 24]
        assert round(float(row[4]) / 0.25**2) in np.bincount(truth.ravel())[np.unique(box)]
    assert Image.open(io.BytesIO(result.tile(0, 0, 0))).size == (300, 300)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium")
def test_the_page_lists_and_draws_in_a_browser(address: str, tmp_path: Path) -> None:
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    command = ["chromium", *options, "--virtual-time-budget=8000", "--dump-dom", address]
    page = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "4 of 4 nuclei pass the filters" in page
    assert page.count("<tr data-index") == 4
