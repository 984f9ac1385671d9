import json

import benchmark_inference
import fire
import monai
import pytest
import torch
from inference_benchmark.clock import StageClock

from nucsam_monai.utils.errors import ConfigurationError


@pytest.fixture(autouse=True)
def as_before():
    """The benchmark runs torch on one thread; the tests after it need not."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    monai.data.set_track_meta(True)


@pytest.mark.parametrize("method", ["promptnucseg", "sac"])
def test_every_stage_is_timed_and_the_nuclei_are_written(tmp_path, capsys, method):
    output, table = tmp_path / "inference.json", tmp_path / "inference.md"
    options = [f"--methods={method}", "--variants=vit_tiny", "--side_px=256", "--nuclei=30", "--repeats=1"]
    fire.Fire(benchmark_inference.main, command=[*options, f"--output={output}", f"--markdown={table}"])
    report = json.loads(output.read_text())
    (row,) = report["rows"]
    stages = set(row["seconds"]) - (set() if method == "promptnucseg" else {"prompter"})
    assert all(row["seconds"][stage] > 0 for stage in stages)
    assert row["total_seconds"] == pytest.approx(sum(row["seconds"].values()), abs=1e-3)
    assert 0 < row["merge_and_write_share"] < 1
    assert 0.6 * report["image"]["nuclei"] < row["instances"] <= report["image"]["nuclei"]
    assert f"| {method} | vit_tiny |" in table.read_text()
    assert "random weights" in capsys.readouterr().out


def test_an_unknown_method_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="unet"):
        benchmark_inference.main(output=str(tmp_path / "x.json"), methods="unet")


def test_a_stage_does_not_count_for_the_one_that_calls_it(monkeypatch):
    times = iter([0, 1, 3, 7, 15, 31])
    for clock in ("time.perf_counter", "time.process_time"):  # one thread is timed by the processor's time
        monkeypatch.setattr(clock, lambda: next(times))
    clock = StageClock(torch.device("cpu"))
    with clock.stage("outer"):
        for _ in range(2):
            with clock.stage("inner"):
                pass
    assert clock.seconds == {"outer": 1 + 4 + 16, "inner": 2 + 8}
