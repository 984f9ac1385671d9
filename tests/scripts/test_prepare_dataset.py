import os
import subprocess
import sys
from pathlib import Path

import pytest

from nucsam_monai.data.converters import CONVERTERS
from scripts.prepare_dataset import main
from tests.data.originals import dsb_members, monuseg_members, write_zip

ROOT = Path(__file__).parents[2]


def test_convert_and_validate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_zip(tmp_path / "stage1_train.zip", dsb_members())
    output = tmp_path / "data" / "dsb2018"
    assert main(["dsb2018", "--source", str(source), "--output_dir", str(output)]) == 0
    assert "training   images      8, nuclei       16" in capsys.readouterr().out
    assert main(["validate", str(output)]) == 0
    assert "valid dataset 'dsb2018'" in capsys.readouterr().out


def test_options_reach_the_converter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_zip(tmp_path / "train.zip", monuseg_members())
    output = str(tmp_path / "out")
    options = ["--validation_fraction", "0.4", "--workers", "1"]
    assert main(["monuseg", "--source", str(source), "--output_dir", output, *options]) == 0
    printed = capsys.readouterr().out
    assert "validation images      2" in printed
    assert "dropped         5 regions with fewer than 3 vertices" in printed


def test_list_names_every_dataset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    named = [line.split()[0] for line in printed.splitlines() if not line.startswith(" ")]
    assert named == list(CONVERTERS)
    for converter in CONVERTERS.values():
        for fact in (converter.info.licence, converter.info.images, *converter.info.protocols):
            assert fact in printed


def test_misspelt_option_stops_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_zip(tmp_path / "train.zip", monuseg_members())
    arguments = [
        "monuseg",
        "--source",
        str(source),
        "--output_dir",
        str(tmp_path / "out"),
        "--protokol",
        "monuseg37",
    ]
    assert main(arguments) == 1
    assert "unknown option --protokol; expected --source" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_error_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    source = write_zip(tmp_path / "train.zip", dsb_members())
    source.write_bytes(source.read_bytes()[:2000])
    script = str(ROOT / "scripts" / "prepare_dataset.py")
    finished = subprocess.run(
        [sys.executable, script, "dsb2018", "--source", str(source), "--output_dir", str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 1
    assert (
        finished.stderr == f"error: {source}: the zip archive is truncated or damaged. Download it again.\n"
    )
    assert finished.stdout == ""
    assert list(tmp_path.iterdir()) == [source]
