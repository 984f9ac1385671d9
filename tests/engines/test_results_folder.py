"""An inference that is started again goes on where it was."""

import json
from pathlib import Path

import pytest

from nucsam_monai.engines import ReadableImages, ResultsFolder
from nucsam_monai.engines import results_folder as module
from nucsam_monai.utils.errors import ConfigurationError, FailedImagesError, ImageReadError, OutputError


@pytest.fixture
def items(tmp_path: Path) -> list[dict[str, str]]:
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(b"pixels")
    return [{"image": str(tmp_path / f"{name}.png"), "id": name} for name in "abc"]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


def started(
    output: Path, items: list[dict[str, str]], settings: dict[str, str] | None = None, **options: bool
) -> ResultsFolder:
    results = ResultsFolder(output, items, **options)
    results._settings = lambda: {"threshold": "0.5", **(settings or {})}
    results.start()
    return results


def write(results: ResultsFolder, *names: str) -> None:
    for name in names:
        file = results.folder / f"{name}.geojson"
        file.parent.mkdir(exist_ok=True)
        file.write_text("{}")
        results.add(name, 3, [file])


def left(results: ResultsFolder) -> list[str]:
    return [item["id"] for item in results.left]


def test_finished_images_are_skipped(output: Path, items: list[dict[str, str]]) -> None:
    first = started(output, items)
    assert left(first) == ["a", "b", "c"]
    write(first, "a", "b")
    assert left(started(output, items)) == ["c"]
    again = started(output, items, overwrite=True)
    assert left(again) == ["a", "b", "c"]
    write(again, "a")
    assert left(started(output, items)) == ["b", "c"]


def test_nothing_is_written_before_the_first_image(output: Path, items: list[dict[str, str]]) -> None:
    started(output, items)
    assert not output.exists()


def test_changed_images_missing_results_and_torn_lines_are_done_again(
    output: Path, items: list[dict[str, str]]
) -> None:
    write(started(output, items), "a", "b", "c")
    (output / "b.geojson").unlink()
    Path(items[2]["image"]).write_bytes(b"other pixels")
    results = started(output, items)
    assert left(results) == ["b", "c"]
    write(results, "b")
    journal = output / module.JOURNAL_NAME
    journal.write_text(journal.read_text()[:-9])
    assert left(started(output, items)) == ["b", "c"]
    write(started(output, items), "b", "c")
    assert left(started(output, items)) == []


def test_results_of_other_settings_are_not_mixed(output: Path, items: list[dict[str, str]]) -> None:
    write(started(output, items), "a")
    with pytest.raises(ConfigurationError, match=r"another threshold \(was 0.5, is 0.4\).*--overwrite True"):
        started(output, items, {"threshold": "0.4"})
    assert left(started(output, items, {"threshold": "0.4"}, overwrite=True)) == ["a", "b", "c"]


def test_other_images_may_go_to_the_same_folder(output: Path, items: list[dict[str, str]]) -> None:
    write(started(output, items[:1]), "a")
    assert left(started(output, items[1:], {"threshold": "0.4"})) == ["b", "c"]


def test_failed_images_are_named_and_tried_again(output: Path, items: list[dict[str, str]]) -> None:
    def read(item: dict[str, str]) -> dict[str, str]:
        if item["id"] == "b":
            raise ImageReadError(f"{item['image']}: damaged.")
        return item

    results = started(output, items)
    for item in ReadableImages(items, read, results):
        write(results, item["id"])
    with pytest.raises(
        FailedImagesError, match=r"1 of 3 images could not be segmented; all are in .*b\.png"
    ) as error:
        results.finish()
    assert error.value.exit_code == 3
    summary = json.loads((output / module.SUMMARY_NAME).read_text())
    assert summary == {
        "images": 3,
        "segmented": 2,
        "finished_before": 0,
        "failed": {items[1]["image"]: f"{items[1]['image']}: damaged."},
    }
    again = started(output, items)
    assert left(again) == ["b"]
    write(again, "b")
    again.finish()
    assert json.loads((output / module.SUMMARY_NAME).read_text())["finished_before"] == 2


def test_a_full_or_foreign_disk_is_noticed_before_the_first_image(
    output: Path, items: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (output.parent / "file").write_text("")
    with pytest.raises(OutputError, match="file: can't be written"):
        started(output.parent / "file", items)

    class Usage:
        free = 3

    with monkeypatch.context() as patch:
        patch.setattr(module.shutil, "disk_usage", lambda _: Usage)
        with pytest.raises(OutputError, match=f"{output}: 0.0 MB are free"):
            started(output, items)

    def read_only(**_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(module.tempfile, "TemporaryFile", read_only)
    with pytest.raises(OutputError, match=f"{output}: can't be written .Read-only"):
        started(output, items)
