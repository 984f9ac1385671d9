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
