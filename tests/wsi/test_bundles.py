"""Bundles with the weights that ship, on a slide."""

import json
import sys
from pathlib import Path
from typing import Any

import monai.bundle
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from nucsam_monai import load
from nucsam_monai.io import read_image, write_png
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.wsi import SlideOptions
from nucsam_monai.wsi.bundles import method_of
from tests.bundles.runs import BUNDLES, raised_from
from tests.tiny_bundles import SEGMENTING, Weights, micro, no_traces, weights
from tests.wsi.slides import write_tiff
from tests.wsi.test_regions import same_up_to_ids

__all__ = ["micro", "no_traces", "weights"]

SAMPLE = Path(__file__).parents[1] / "data" / "samples" / "images" / "breast_cancer.png"


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = read_image(SAMPLE)
    tissue = np.tile(image, (3, 3, 1))[:520, :520]
    return write_tiff(tmp_path_factory.mktemp("slide") / "slide.tif", tissue)


@pytest.fixture(scope="module")
def unsam() -> Any:
    return load("unsam", precision="fp32")


def outlines(segmenter: Any, slide: Path, output: Path, shard_px: int) -> list[bytes]:
    options = SlideOptions(mask="all", shard_px=shard_px, outputs=("parquet",))
    segmenter.segment_slide(slide, output, slide=options)
    return sorted(pq.read_table(output / slide.stem / "nuclei.parquet")["geometry"].to_pylist())


def test_shards_give_the_nuclei_of_one_pass(unsam: Any, slide: Path, tmp_path: Path) -> None:
    whole = outlines(unsam, slide, tmp_path / "whole", 4032)
    assert len(whole) > 20
    assert outlines(unsam, slide, tmp_path / "shards", 384) == whole
    mean, std = json.loads((tmp_path / "whole" / "slide" / "plan.json").read_text())["statistics"]
    assert 0 < std < mean < 255


def test_a_region_segmented_in_parts_is_the_image_segmented_at_once(unsam: Any) -> None:
    """The network and its post-processing apart give what ``segment`` gives together."""
    image = read_image(SAMPLE)[:256, :256]
    options = {"diameter": None}
    expected = unsam.segment(image, **options)
    found = unsam.nuclei_of_region(unsam.infer_region(image, None, None, **options), **options)
    np.testing.assert_array_equal(found.instances, expected.instances)
    mean, std = float(image.mean()), float(image.astype(np.float64).std(ddof=1))
    told = unsam.nuclei_of_region(unsam.infer_region(image, None, (mean, std), **options), **options)
    assert len(told) == len(expected)


def test_a_large_image_has_the_nuclei_of_the_whole_and_of_the_slide(unsam: Any, tmp_path: Path) -> None:
    image = np.tile(read_image(SAMPLE), (2, 1, 1))[:470, :250]
    whole = unsam.segment(image)
    parts = unsam.segment(image, strips_above_mpx=0.1)
    assert len(whole) > 50
    assert whole.foreground is not None
    assert parts.foreground is None
    assert same_up_to_ids(parts.instances, whole.instances)
    assert sorted(parts.table["score"]) == pytest.approx(sorted(whole.table["score"]), abs=1e-5)
    assert parts.class_names == whole.class_names
    write_png(tmp_path / "large.png", image)
    options = SlideOptions(mpp=0.25, mask="all", outputs=("parquet",))
    unsam.segment_slide(tmp_path / "large.png", tmp_path / "slide", slide=options)
    table = pq.read_table(tmp_path / "slide" / "large" / "nuclei.parquet")
    for axis in "xy":
        places = table[f"centroid_{axis}_um"].to_numpy() / 0.25 - 0.5
        np.testing.assert_allclose(np.sort(places), np.sort(parts.table[f"centroid_{axis}_px"]))


def test_a_missing_library_is_named(unsam: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nucsam_monai.wsi", None)
    with pytest.raises(ConfigurationError, match=r"not installed\. Type: pip install"):
        unsam.segment_slide("a.svs", "output")


def test_options_that_look_beyond_a_tile_are_refused() -> None:
    segmenter = load("promptnucseg", neg_test=2)
    with pytest.raises(ConfigurationError, match="where it is cut"):
        method_of(segmenter)


@pytest.mark.parametrize("bundle", SEGMENTING)
def test_every_method_finds_the_nuclei_of_one_pass_each_once(
    bundle: str, weights: dict[str, Weights], tmp_path: Path
) -> None:
    """Prompters normalise over what they see, so on slides they see the tiles of the lattice."""
    image = read_image(SAMPLE)[:32, :210]
    slide = write_tiff(tmp_path / "slide.tif", image)
    segmenter = weights[bundle].segmenter()
    maps = segmenter.infer_region(image, None, None)
    # Of random weights' probabilities the highest only, so that nuclei are no larger than a shard sees whole.
    chosen: dict[str, Any] = {"threshold": float(maps.quantile(0.95))} if torch.is_tensor(maps) else {}
    found = {}
    for shard_px in (4032, 48):  # of which the latter see at most 152 px
        options = SlideOptions(mask="all", shard_px=shard_px, max_nucleus_um=8.0, outputs=("parquet",))
        segmenter.segment_slide(slide, tmp_path / str(shard_px), slide=options, **chosen)
        table = pq.read_table(tmp_path / str(shard_px) / "slide" / "nuclei.parquet")
        found[shard_px] = sorted(table["geometry"].to_pylist())
        places = set(zip(*(table[f"centroid_{axis}_um"].to_pylist() for axis in "xy"), strict=True))
        assert len(places) == len(table) > 5
    assert found[48] == found[4032]


@pytest.mark.parametrize("bundle", SEGMENTING)
def test_the_configuration_of_a_bundle_segments_slides_as_the_front_door_does(
    bundle: str, weights: dict[str, Weights], tmp_path: Path
) -> None:
    own = weights[bundle]
    slide = write_tiff(tmp_path / "slide.tif", read_image(SAMPLE)[:60, :40])
    files = [str(BUNDLES / bundle / "configs" / "inference.json"), str(BUNDLES / "inference_wsi.json")]
    settings = {key: "$None" if value is None else value for key, value in own.settings.items()}
    changed = {**settings, "checkpoint": str(own.path), "device": "cpu", "outputs": "parquet"}
    places = {"input": str(slide), "output_dir": str(tmp_path / "run"), "bundle_root": str(BUNDLES / bundle)}
    monai.bundle.run(config_file=files, **changed, **places, mask="all", max_nucleus_um=2.0)
    options = SlideOptions(mask="all", max_nucleus_um=2.0, outputs=("parquet",))
    own.segmenter().segment_slide(slide, tmp_path / "door", slide=options)
    one, other = (tmp_path / name / "slide" / "nuclei.parquet" for name in ("run", "door"))
    assert one.read_bytes() == other.read_bytes()
    assert (tmp_path / "run" / "cohort.csv").is_file()


def test_a_misspelt_option_of_slides_is_refused(tmp_path: Path) -> None:
    files = [str(BUNDLES / "unsam" / "configs" / "inference.json"), str(BUNDLES / "inference_wsi.json")]
    with pytest.raises(RuntimeError) as error:
        monai.bundle.run(config_file=files, output_dir=str(tmp_path), shard_pxs=48)
    assert "Did you mean 'shard_px'?" in (raised_from(error.value, ConfigurationError) or "")
