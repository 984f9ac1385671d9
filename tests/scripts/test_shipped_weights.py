"""The scripts behind the weights that ship: thresholds, the file, robustness and the comparison of designs."""

import hashlib
import json
import logging
import re
import shutil
from pathlib import Path

import benchmark_clicks
import benchmark_compact_sam
import benchmark_robustness
import choose_thresholds
import monai
import numpy as np
import pytest
import ship_weights
import torch
from safetensors.torch import load_file

from nucsam_monai import load
from nucsam_monai.networks.sam import read_header, trained_setting
from nucsam_monai.utils.errors import CheckpointError
from nucsam_monai.utils.exit import own_error
from tests.handlers.tracked_engines import Store

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "tests" / "data" / "samples"


def test_weights_become_a_version_of_the_model_of_their_bundle(
    store: Store, store_uri: str, tmp_path: Path
) -> None:
    weights = tmp_path / "unsam" / "models" / "compact_he.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    for _ in range(2):
        ship_weights.register(weights, store_uri, {"threshold": 0.5})
    version = store.client.get_model_version_by_alias("nucsam-unsam", "compact_he")
    assert version.version in (2, "2")
    run = store.client.get_run(version.run_id)
    assert run.data.params == {"threshold": "0.5"}
    assert store.artifacts(run) == {weights.name}


@pytest.fixture
def one_sample(tmp_path: Path) -> Path:
    """A dataset folder with one of the sample images."""
    folder = tmp_path / "samples"
    shutil.copytree(SAMPLES, folder)
    content = json.loads((folder / "dataset.json").read_text())
    content["test"] = content["test"][:1]
    content["conversion"]["counts"]["test"] = {"images": 1, "nuclei": content["test"][0].get("nuclei", 0)}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def test_weights_ship_with_their_settings_and_name_their_digest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shipped = ROOT / "bundles" / "unsam" / "models" / "compact.safetensors"
    output = tmp_path / "again.safetensors"
    with caplog.at_level(logging.INFO):
        ship_weights.main(str(shipped), str(output), threshold=0.7, distance_rule={"marker_threshold": 0.3})
    assert hashlib.sha256(output.read_bytes()).hexdigest() in caplog.text
    assert trained_setting(output, "threshold", None) == 0.7
    assert trained_setting(output, "distance_rule", None) == {"marker_threshold": 0.3}
    assert trained_setting(output, "pixel_std", None) == "image"
    assert read_header(output)["sam_variant"] == "hybrid"
    assert load("unsam", str(output)).value("threshold") == 0.7


def test_the_chosen_thresholds_are_the_best_of_the_table(
    one_sample: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    choose_thresholds.main(
        "unsam",
        str(one_sample),
        split="test",
        thresholds=(0.3, 0.6),
        marker_thresholds=(0.4,),
        min_scores=(0.3,),
    )
    *rows, best = capsys.readouterr().out.splitlines()
    means = {re.findall(r"[\d.]+", row)[0]: float(row.split(":")[1].split()[0]) for row in rows}
    assert len(means) == 2
    expected = max(means, key=means.__getitem__)
    assert (
        f"--threshold {float(expected)} --distance_rule \"{{'marker_threshold': 0.4, 'min_score': 0.3}}\""
        in best
    )


def test_robustness_measures_every_change(
    one_sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "robustness.json"
    benchmark_robustness.main("unsam", str(one_sample), output=str(output))
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 2 + len(benchmark_robustness.CHANGES)
    means = json.loads(output.read_text())["aji_and_pq"]
    assert all(values["samples"][0] > 0.3 for values in means.values())
    assert means["as published"]["samples"] == pytest.approx(
        means["16 bits, a quarter of the range"]["samples"], abs=0.1
    )


def test_clicks_and_boxes_find_the_nuclei_they_ask_for(
    one_sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "clicks.json"
    benchmark_clicks.main("promptnucseg", str(one_sample), nuclei_per_image=3, output=str(output))
    assert len(capsys.readouterr().out.splitlines()) == 2 + 3
    ious = json.loads(output.read_text())["ious"]["samples"]
    assert [len(values) for values in ious.values()] == [3, 3, 3]
    assert np.mean(ious["box"]) > 0.5


def test_prompts_lie_in_the_nucleus() -> None:
    nucleus = np.zeros((20, 30), dtype=bool)
    nucleus[4:9, 10:12] = nucleus[7:9, 10:20] = True
    prompts = benchmark_clicks.prompts_of(nucleus, np.random.default_rng(0))
    for name in ("click anywhere", "click on the centre"):
        ((x, y),) = prompts[name]["points"]
        assert nucleus[y, x]
    assert prompts["box"]["boxes"] == [[10, 4, 20, 9]]


@pytest.mark.parametrize("name", benchmark_robustness.CHANGES)
def test_changes_keep_what_they_should(name: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    zoom, change = benchmark_robustness.CHANGES[name]
    changed = change(pixels)
    assert changed.shape[:2] == (24 * zoom, 40 * zoom)
    assert (name == "as published") == np.array_equal(changed, pixels)


def test_designs_are_ordered_by_their_mean() -> None:
    rows = [
        {
            "candidate": name,
            "seed": 0,
            "parameters": 3_900_000,
            "crops": 2560,
            "metrics": {"a": {"aji": value, "pq": value}, "b": {"aji": 0.5, "pq": 0.5}},
        }
        for name, value in (("U-shaped", 0.2), ("hybrid", 0.6))
    ]
    header, _, first, second = benchmark_compact_sam.table(rows).splitlines()
    assert "a AJI / PQ | b AJI / PQ | mean" in header
    assert first.endswith("| 0.600 / 0.600 | 0.500 / 0.500 | 0.550 |")
    assert "UN-SAM" in first
    assert second.endswith("| 0.350 |")
    assert "U-shaped" in second


def test_of_several_cycles_the_mean_ships(tmp_path: Path) -> None:
    models = ROOT / "bundles" / "unsam" / "models"
    sources = [models / "compact.safetensors", models / "compact_he.safetensors"]
    output = tmp_path / "mean.safetensors"
    ship_weights.main([str(source) for source in sources], str(output), threshold=0.5)
    one, other, mean = (load_file(path) for path in (*sources, output))
    for name in ("decoder.queries.0", "image_encoder.neck.0.weight"):
        assert torch.equal(mean[name], ((one[name].float() + other[name].float()) / 2).half())
    foreign = ROOT / "bundles" / "promptnucseg" / "models" / "compact.safetensors"
    with pytest.raises(CheckpointError, match=r"not weights of the network of .*compact\.safetensors"):
        ship_weights.main([str(sources[0]), str(foreign)], str(output))


def test_monais_loader_refuses_other_domains_than_those_of_the_weights() -> None:
    with pytest.raises(RuntimeError) as caught:
        monai.bundle.load(
            "unsam",
            model_file="models/compact.safetensors",
            bundle_dir=str(ROOT / "bundles"),
            workflow_type="inference",
            net_override={"domains": ["a", "b"]},
            device="cpu",
        )
    assert "its domains is" in str(own_error(caught.value))
