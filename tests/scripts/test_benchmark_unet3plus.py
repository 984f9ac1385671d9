import json

import fire

from scripts import benchmark_unet3plus


def test_both_ways_are_timed_and_agree(tmp_path, capsys):
    output = tmp_path / "unet3plus.json"
    options = ["--filters=4,8,8,16,16", "--image_size=64", "--repeats=2", f"--output={output}"]
    fire.Fire(benchmark_unet3plus.main, command=options)
    results = json.loads(capsys.readouterr().out)
    report = json.loads(output.read_text())
    assert report["results"] == results
    assert report["filters"] == [4, 8, 8, 16, 16]
    assert results["max_relative_difference"] < 1e-5
    for name in ("enlarged first", "ours"):
        assert 0 < results[name]["min_ms"] <= results[name]["median_ms"]
    assert 0 < results["ours"]["kept_mib"] < results["enlarged first"]["kept_mib"]
