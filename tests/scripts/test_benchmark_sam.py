"""The benchmark of stock SAM against ours, on the compact SAM at 64 px."""

import dataclasses
import json

import fire
import pytest
import torch
from benchmark_sam import main
from sam_benchmark.arithmetic import stock_forward_macs
from sam_benchmark.cases import PRESETS, Case, Contender, Settings, contenders, select_cases
from sam_benchmark.isolation import NoResultError, run_isolated
from sam_benchmark.measure import time_contenders
from sam_benchmark.report import HEADINGS, text_table

from nucsam_monai.utils.errors import ConfigurationError

SETTINGS = Settings(
    device="cpu",
    threads=1,
    repeats=2,
    seconds_per_case=60,
    timeout_seconds=300,
    memory_gb=64,
    stock_chunk=2,
    seed=0,
)
STOCK, OURS = Contender("stock", "fp32"), Contender("ours", "fp32")
TINY_CASES = [
    Case("encoder", "vit_tiny", 64, 2, "forward"),
    Case("encoder", "vit_tiny", 64, 1, "train"),
    Case("decoder", "vit_tiny", 64, 2, "forward", prompts=5),
    Case("decoder", "vit_tiny", 64, 2, "train", prompts=1),
]


@pytest.fixture(autouse=True)
def no_memory_limit(monkeypatch):
    """The limit would hold for the process of the tests."""
    monkeypatch.setattr("sam_benchmark.measure.limit_memory", lambda settings: None)


@pytest.mark.parametrize("case", TINY_CASES, ids=lambda case: case.key)
def test_stock_and_ours_compute_the_same(case):
    results = time_contenders(case, SETTINGS, [STOCK, OURS])
    assert results["ours fp32"]["max_difference"] < 1e-5
    for result in results.values():
        assert 0 < result["min_ms"] <= result["median_ms"]
        assert result["repeats"] == 2


@pytest.mark.parametrize("case", [case for case in TINY_CASES if case.mode == "forward"], ids=lambda c: c.key)
def test_the_counter_counts_what_the_sizes_give(case):
    results = time_contenders(case, SETTINGS, [STOCK, OURS])
    gmac = results["stock fp32"]["gmac"]
    assert gmac == pytest.approx(stock_forward_macs(case) / 1e9, rel=1e-3)
    assert results["ours fp32"]["gmac"] > gmac / 3  # fewer, but no layer is passed over


def test_the_gradients_of_the_comparison_do_not_vanish():
    from sam_benchmark.runners import Workbench

    for case in TINY_CASES[1::2]:
        runner = Workbench(case, SETTINGS).runner(STOCK)
        runner.step()
        assert runner.gradient().abs().max() > 1e-6


def test_a_difference_is_seen(monkeypatch):
    from sam_benchmark import runners

    rebuild = runners.stock_encoder

    def wrong(encoder, size):
        stock = rebuild(encoder, size)
        stock.pos_embed = torch.nn.Parameter(stock.pos_embed * 1.01)
        return stock

    monkeypatch.setattr(runners, "stock_encoder", wrong)
    results = time_contenders(TINY_CASES[0], SETTINGS, [STOCK, OURS])
    assert results["ours fp32"]["max_difference"] > 1e-4


def test_prompts_are_spread_over_the_images():
    assert Case("decoder", "vit_tiny", 64, 4, "forward", prompts=6).prompts_per_image == [2, 2, 1, 1]
    assert Case("decoder", "vit_tiny", 64, 4, "forward", prompts=1).prompts_per_image == [1, 0, 0, 0]


def test_contenders_take_part_only_where_they_exist():
    timm = [Contender("timm", "fp32")]
    encoder = Case("encoder", "vit_b", 256, 1, "forward")
    assert contenders(encoder, ["timm"], ["fp32"]) == timm
    assert (
        contenders(Case("encoder", "vit_h", 256, 1, "forward"), ["timm", "ours_checkpointed"], ["fp32"]) == []
    )
    assert (
        len(contenders(PRESETS["memory"][0], ["stock", "ours", "ours_checkpointed"], ["fp32", "bf16"])) == 6
    )


def test_the_encoder_has_no_prompts():
    axes = {
        "variants": ["vit_b"],
        "sizes": [256],
        "batches": [1, 4],
        "modes": ["forward"],
        "prompts": [1, 32],
    }
    cases = select_cases({**axes, "parts": ["encoder", "decoder"]})
    assert [case.prompts for case in cases] == [0, 0, 1, 32, 1, 32]
    assert len({case.key for case in cases}) == 6


def test_a_contender_without_enough_memory_is_left_out():
    starved = dataclasses.replace(SETTINGS, memory_gb=0.001)
    results = run_isolated(time_contenders, TINY_CASES[0], starved, [STOCK, OURS], timeout_seconds=300)
    assert set(results) == {"stock fp32", "ours fp32"}
    assert all("of memory" in result["skipped"] for result in results.values())


def test_what_gives_no_result_says_why():
    with pytest.raises(NoResultError, match="not finished in 1 s"):
        run_isolated(_sleep, timeout_seconds=1)
    with pytest.raises(NoResultError, match="failed: ZeroDivisionError"):
        run_isolated(divmod, 1, 0, timeout_seconds=300)


def _sleep() -> None:
    import time

    time.sleep(600)


def test_the_table_names_what_was_left_out():
    results = {
        "stock fp32": {"skipped": "needs more than 8 GB of memory"},
        "ours fp32": {"median_ms": 2.0, "min_ms": 1.0, "gmac": 0.5, "max_difference": None},
    }
    cases = {
        "a": {"skipped": "not finished in 300 s"},
        "b": {"results": results, "peak_gflops": {"fp32": 1000.0}},
    }
    lines = text_table(cases).splitlines()
    assert lines[0].split() == " ".join(HEADINGS).split()
    assert "not finished in 300 s" in lines[1]
    assert "needs more than 8 GB" in lines[2]
    assert lines[3].split()[-2:] == ["50", "%"]  # 2 * 0.5 GFLOP in 2 ms of 1000 GFLOP/s


def test_a_run_is_written_and_taken_up_again(tmp_path, capsys):
    output, markdown = tmp_path / "deep" / "sam.json", tmp_path / "sam.md"
    selection = ["--variants=vit_tiny", "--sizes=64", "--batches=1", "--modes=forward", "--precisions=fp32"]
    common = [*selection, "--threads=1", "--repeats=1", f"--output={output}"]
    fire.Fire(main, [*common, "--parts=encoder"])
    assert "1/1 encoder" in capsys.readouterr().err
    report = json.loads(output.read_text())
    (case,) = report["cases"].values()
    assert case["results"]["ours fp32"]["max_difference"] < 1e-5
    assert case["results"]["stock fp32"]["peak_mib"] > case["results"]["stock fp32"]["working_mib"] > 0
    assert case["peak_gflops"]["fp32"] > 1
    assert {"processor", "cores", "threads", "flags", "gpu"} <= set(report["machine"])

    fire.Fire(main, [*common, "--parts=encoder,decoder", "--prompts=1", f"--markdown={markdown}"])
    printed = capsys.readouterr()
    assert "1/1 decoder" in printed.err
    assert printed.out.count("ours fp32") == markdown.read_text().count("ours fp32") == 2
    again = json.loads(output.read_text())["cases"]
    assert len(again) == 2
    assert again[next(iter(report["cases"]))] == case

    with pytest.raises(ConfigurationError, match="its seed is 0"):
        fire.Fire(main, [*common, "--seed=1"])


@pytest.mark.parametrize("wrong", [{"variants": "vit_x"}, {"preset": "all"}, {"sizes": 0}])
def test_what_cannot_be_measured_is_refused(tmp_path, wrong):
    with pytest.raises(ConfigurationError, match="expected"):
        main(output=str(tmp_path / "sam.json"), **wrong)
    assert list(tmp_path.iterdir()) == []
