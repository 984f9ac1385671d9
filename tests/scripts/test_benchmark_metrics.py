import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_times_and_values_are_written(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "metrics.json"
    command = [
        sys.executable,
        "-m",
        "scripts.benchmark_metrics",
        "--sizes=64",
        "--repeats=2",
        "--references_up_to_px=64",
        f"--output={output}",
    ]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "64 x 64 px" in finished.stdout
    report = json.loads(output.read_text())
    assert {"processor", "numpy", "scipy"} <= set(report["machine"])
    (row,) = report["sizes"]
    assert row["nuclei"] == 2
    assert 0 < row["values"]["aji"] < 1
    assert 0 < row["aji_aji_plus_pq"]["min_ms"] <= row["aji_aji_plus_pq"]["median_ms"]
    assert row["with_detection"]["min_ms"] > 0
    assert row["detection"]["tp"] + row["detection"]["fn"] == row["nuclei"]
    assert row["slow_reference_difference"] < 1e-9
    assert row["monai_pq_difference"] < 1e-5
    *_, titles, cells = finished.stdout.splitlines()
    assert "slow reference" in titles
    assert cells.split()[:3] == ["64", "px", "2"]
