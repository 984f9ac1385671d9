import json

import fire

from scripts import benchmark_mala


def test_both_ways_are_timed_and_agree(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark_mala, "MAPS", ((2, 8), (1, 20)))
    output = tmp_path / "mala.json"
    fire.Fire(benchmark_mala.main, command=["--rank=4", "--repeats=2", f"--output={output}"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    report = json.loads(output.read_text())
    assert report["maps"] == lines
    assert [(row["maps"], row["side"]) for row in lines] == [(2, 8), (1, 20)]
    for row in lines:
        assert row["max_difference"] < 1e-5
        assert 0 < row["ours"]["min_ms"] <= row["ours"]["median_ms"]
        assert 0 < row["ours"]["kept_mib"] < row["unfolded"]["kept_mib"]
