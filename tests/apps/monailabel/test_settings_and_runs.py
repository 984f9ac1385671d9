"""What the server is started with, and which weights it serves."""

import json
from datetime import datetime
from pathlib import Path

import pytest

from nucsam_monai.apps.monailabel.model import (
    ORIGINAL,
    BundleRuns,
    sample_region,
    uncertainty,
    write_run_facts,
)
from nucsam_monai.apps.monailabel.refusals import RequestRefusedError, check_name, refusal_of
from nucsam_monai.apps.monailabel.settings import TOKEN_VARIABLE, read_settings
from nucsam_monai.utils.errors import CheckpointError, ConfigurationError, ImageReadError
from nucsam_monai.utils.image_source import ArrayImage
from tests.apps.monailabel.analytic import discs
from tests.bundles.runs import BUNDLES


def test_bundles_are_found_without_network_or_copy() -> None:
    settings = read_settings({"models": "unsam, promptnucseg"}, {})
    assert settings.bundles == {name: BUNDLES / name for name in ("unsam", "promptnucseg")}
    assert len(settings.token) >= 24
    assert settings.token != read_settings({"models": "unsam"}, {}).token
    assert settings.token not in repr(settings)


def test_a_folder_of_bundles_comes_first(tmp_path: Path) -> None:
    configs = tmp_path / "unsam" / "configs"
    configs.mkdir(parents=True)
    (configs / "inference.json").write_text("{}")
    settings = read_settings({"models": "unsam,sac", "bundle_dir": str(tmp_path)}, {TOKEN_VARIABLE: "x" * 16})
    assert settings.bundles == {"unsam": tmp_path / "unsam", "sac": BUNDLES / "sac"}
    assert settings.chosen_token


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({}, "models"),
        ({"models": "../unsam"}, "not the name"),
        ({"models": "nothing"}, "nothing"),
        ({"models": "unsam", "model": "x"}, "unknown"),
        ({"models": "unsam", "window_px": "many"}, "window_px"),
        ({"models": "unsam", "max_upload_mb": "0"}, "max_upload_mb"),
        ({"models": "unsam", "settings": "/nowhere.json"}, "cannot be read"),
    ],
)
def test_options_that_are_wrong(conf: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read_settings(conf, {})


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        '{"sac": {}}',
        '{"unsam": {"no_such_key": 1}}',
        '{"unsam": {"checkpoint": "$__import__(\'os\').system(\'true\')"}}',
        '{"unsam": {"sam_variant": "@device"}}',
        '{"unsam": {"spgen": {"tau": 1}}}',
    ],
)
def test_settings_files_that_are_wrong(content: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    file.write_text(content)
    with pytest.raises(ConfigurationError):
        read_settings({"models": "unsam", "settings": str(file)}, {})


def test_a_short_token_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="16"):
        read_settings({"models": "unsam"}, {TOKEN_VARIABLE: "secret"})


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "a\\b", ".x", "a\0", "a\nb", "x" * 201, "\u202ea"]
)
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(RequestRefusedError):
        check_name(name, "image")


def test_errors_and_their_status() -> None:
    assert refusal_of(RequestRefusedError("x", 409)) == (409, "x")
    assert refusal_of(ImageReadError("/srv/data/a.png: damaged")) == (422, "a.png: damaged")
    assert refusal_of(CheckpointError("x")) == (400, "x")
    assert refusal_of(ZeroDivisionError()) is None
    wrapped = RuntimeError("applying transform")
    wrapped.__cause__ = ImageReadError("x")
    assert refusal_of(wrapped) == (422, "x")
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads("{")
    assert (refusal_of(caught.value) or (0, ""))[0] == 400


def runs_with(folder: Path, *names: str) -> BundleRuns:
    original = folder / "shipped" / "model.safetensors"
    original.parent.mkdir(parents=True)
    original.write_bytes(b"shipped")
    for name in names:
        write_run_facts(folder / "runs" / name, {"run": name})
    return BundleRuns(folder / "runs", original, single_file=True)


def test_the_newest_run_comes_first_and_the_original_is_served_until_told(tmp_path: Path) -> None:
    runs = runs_with(tmp_path, "20260101-000000", "20260102-000000")
    (tmp_path / "runs" / ".20260103-000000.partial").mkdir()
    (tmp_path / "runs" / "20260104-000000").mkdir()  # not complete
    assert runs.choices() == (ORIGINAL, "20260102-000000", "20260101-000000")
    runs.serve("20260101-000000")
    assert runs.choices() == ("20260101-000000", ORIGINAL, "20260102-000000")
    assert runs.weights("20260101-000000") == tmp_path / "runs" / "20260101-000000" / "model.safetensors"
    runs.serve(ORIGINAL)
    assert runs.served() == ORIGINAL
    assert runs.original is not None
    assert runs.original.read_bytes() == b"shipped"


@pytest.mark.parametrize("name", ["nothing", "../shipped", ".20260103-000000.partial", ""])
def test_weights_that_are_not_there(name: str, tmp_path: Path) -> None:
    with pytest.raises(RequestRefusedError, match="expected one of"):
        runs_with(tmp_path, "20260101-000000").serve(name)


def test_names_of_runs_do_not_repeat(tmp_path: Path) -> None:
    runs = runs_with(tmp_path, "20260101-120000")
    assert runs.new_name(datetime(2026, 1, 1, 12)) == "20260101-120000-2"


def test_a_damaged_note_of_what_is_served_falls_back(tmp_path: Path) -> None:
    runs = runs_with(tmp_path, "20260101-120000")
    (runs.folder / "served.json").write_text("{")
    assert runs.served() == ORIGINAL


def test_uncertainty_looks_at_the_least_certain_nuclei() -> None:
    assert uncertainty([]) == 0
    assert uncertainty([1.0] * 50) == 0
    assert uncertainty([0.5] * 10 + [1.0] * 90) == pytest.approx(0.5)
    assert uncertainty([0.2] + [1.0] * 9) == pytest.approx(1 - (0.2 + 4) / 5)


def test_large_images_are_judged_by_their_middle() -> None:
    assert sample_region(ArrayImage(discs(40, 2048, [], 1))) == (512, 0, 1024, 40)
