import json
import sys

import adapters
import benchmark_peers
import numpy as np
import process
import pytest
from PIL import Image

from nucsam_monai.utils.errors import ConfigurationError


class Mirror:
    """A system that answers with what it gets."""

    def __init__(self, weights):
        self.weights = weights

    def network(self, pixels):
        return pixels[..., 0] // 200

    def perfect(self, labels):
        return labels

    def instances(self, maps):
        return maps


class Missing:
    def __init__(self, weights):
        raise ModuleNotFoundError("No module named 'stardist'", name="stardist")


@pytest.fixture
def files(tmp_path):
    labels = np.zeros((40, 50), np.int32)
    labels[3:9, 4:12], labels[20:30, 20:30] = 1, 2
    np.save(tmp_path / "labels.npy", labels)
    Image.fromarray(np.full((40, 50, 3), 255, np.uint8)).save(tmp_path / "a.png")
    return tmp_path / "a.png", tmp_path / "labels.npy"


def test_random_weights_are_post_processed_as_if_they_were_right(monkeypatch, files):
    monkeypatch.setattr(adapters, "PEERS", {"mirror": (Mirror, "pip install mirror")})
    assert process.measure("mirror", *files, 2, 1, "")["nuclei"] == 2
    row = process.measure("mirror", *files, 2, 1, "mirror.pt")
    assert row["nuclei"] == 0  # one label everywhere, as its network says
    assert row["peak_mib"] > 0
    assert all(row[stage]["wall_s"] >= 0 for stage in benchmark_peers.STAGES)


def test_a_system_that_is_not_installed_says_how(monkeypatch, files):
    monkeypatch.setattr(adapters, "PEERS", {"stardist": (Missing, "pip install stardist")})
    row = process.measure("stardist", *files, 1, 1, "")
    assert row == {"missing": "stardist is not installed: pip install stardist"}


def test_a_process_that_fails_is_a_row():
    row = benchmark_peers.run([sys.executable, "-c", "raise SystemExit('no luck')"], 1, 60)
    assert row == {"missing": "failed: no luck"}
    assert benchmark_peers.run([sys.executable, "-c", "print(); print('{}')"], 1, 60) == {}
    slow = [sys.executable, "-c", "import time; time.sleep(9)"]
    assert benchmark_peers.run(slow, 1, 0.1) == {"missing": "not finished in 0 s"}


def test_an_unknown_system_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="nobody"):
        benchmark_peers.main(str(tmp_path / "a.json"), "nobody")


def test_the_table_has_measured_and_missing_rows():
    stage = {"cpu_s": 1.0, "wall_s": 2.0}
    measured = {
        "nuclei": 7,
        "peak_mib": 1234,
        "start_s": [2.0, 1.5],
        **dict.fromkeys(benchmark_peers.STAGES, stage),
    }
    rows = json.loads(json.dumps({"one": measured, "other": {"missing": "not there"}}))
    report = {"image": {"side_px": 1000, "nuclei": 7}, "processor": "x", "threads": 1, "rows": rows}
    table = benchmark_peers.as_markdown(report).splitlines()
    assert table[-2] == "| one |  | 7 | 1.00 | 1.00 | 1.00 | 3.00 | 6.00 | 48 | 1,234 | 1.5 |"
    assert table[-1].startswith("| other | not there |")


def test_the_middles_of_tiles_cover_the_image():
    pixels = np.arange(7 * 9).reshape(7, 9, 1)
    stack = adapters.tiles(pixels, 6, 4)[:, 1:5, 1:5, 0]
    assert stack.shape == (6, 4, 4)
    rows = [np.concatenate(list(row), 1) for row in stack.reshape(2, 3, 4, 4)]
    assert (np.concatenate(rows)[:7, :9] == pixels[..., 0]).all()


def test_directions_run_from_minus_one_to_one_in_every_nucleus():
    labels = np.zeros((6, 9), np.int32)
    labels[1:4, 2:7] = 1
    horizontal, vertical = adapters.directions(labels)
    assert horizontal[2, 2:7].tolist() == [-1, -0.5, 0, 0.5, 1]
    assert vertical[1:4, 3].tolist() == [-1, 0, 1]
    assert not horizontal[0].any()
