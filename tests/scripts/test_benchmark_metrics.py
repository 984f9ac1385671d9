import json
from pathlib import Path

import fire
import pytest

from scripts.benchmark_metrics import main


def test_times_and_values_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "deep" / "metrics.json"
    options = ["--sizes=64", "--repeats=2", "--references_up_to_px=64", f"--output={output}"]
    fire.Fire(main, command=options)
    printed = capsys.readouterr().out
    assert "64 x 64 px" in printed
    report = json.loads(output.read_text())
    assert {"processor", "versions"} <= set(report["machine"])
    (row,) = report["sizes"]
    assert row["nuclei"] == 2
    assert 0 < row["values"]["aji"] < 1
    assert 0 < row["aji_aji_plus_pq"]["min_ms"] <= row["aji_aji_plus_pq"]["median_ms"]
    assert row["with_detection"]["min_ms"] > 0
    assert row["detection"]["tp"] + row["detection"]["fn"] == row["nuclei"]
    assert row["slow_reference_difference"] < 1e-9
    assert row["monai_pq_difference"] < 1e-5
    *_, titles, cells = printed.splitlines()
    assert "slow reference" in titles
    assert cells.split()[:3] == ["64", "px", "2"]
