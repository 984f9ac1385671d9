import json

import fire
import torch

from scripts import benchmark_refinement
from scripts.kept_memory import PeakMemory


def test_all_ways_of_refining_are_measured_and_agree(tmp_path, capsys):
    output = tmp_path / "refinement.json"
    options = ["--image_size=128", "--prompts=2", "--nucleus_px=10", "--margin_px=4", "--repeats=1"]
    fire.Fire(benchmark_refinement.main, command=[*options, f"--output={output}"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert json.loads(output.read_text())["results"] == lines
    assert [row["prompts"] for row in lines] == [2]
    for row in lines:
        assert row["max_difference"] < 1e-4
        assert 0 < row["in_boxes"]["min_ms"] <= row["in_boxes"]["median_ms"]
        assert 0 < row["in_boxes"]["peak_mib"] < row["at_once"]["peak_mib"]
        assert row["in_chunks"]["peak_mib"] < row["at_once"]["peak_mib"]


def test_the_peak_counts_what_lives_at_once():
    kept = torch.zeros(100)
    with PeakMemory() as memory:
        for _ in range(3):
            (kept + 1).mul_(2)  # in place: 400 bytes
        first = kept + 1
        second = first[:50] * 2
        kept.view(10, 10)
    assert memory.peak_bytes == first.nbytes + second.nbytes
