"""Every nucleus once, wherever a slide is cut."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
from PIL import Image

from nucsam_monai.wsi import SlideOptions, merge, segment_slide, shards
from nucsam_monai.wsi.grid import Lattice
from nucsam_monai.wsi.nuclei_table import boxes_of
from tests.wsi.slides import areas_and_places, oracle, picture_of, random_nuclei

SIDE, NUCLEI = 1600, 2500


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return random_nuclei(SIDE, NUCLEI, seed=1)


@pytest.fixture(scope="module")
def slide(truth: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slide") / "slide.png"
    Image.fromarray(picture_of(truth)).save(path)
    return path


def found(slide: Path, output: Path, shard_px: int, **options: object) -> list[tuple[int, int, int]]:
    chosen = SlideOptions(
        mpp=0.25, mask="all", shard_px=shard_px, max_nucleus_um=6.0, outputs=("parquet",), **options
    )  # type: ignore[arg-type]
    segment_slide(slide, output, oracle(), chosen)
    table = pq.read_table(output / slide.stem / "nuclei.parquet")
    boxes = boxes_of(table).astype(int)
    assert table["id"].to_pylist() == list(range(1, len(table) + 1))
    return [
        (area, int(box[0] + box[2]), int(box[1] + box[3]))
        for area, box in zip(table["area_px"].to_pylist(), boxes, strict=True)
    ]


def lost_and_doubled(nuclei: list[tuple[int, int, int]], truth: np.ndarray) -> tuple[int, int]:
    return len(areas_and_places(truth) - set(nuclei)), len(nuclei) - len(set(nuclei))


@pytest.mark.parametrize("shard_px", [96, 336, 480, 4000])
def test_every_nucleus_is_found_once(slide: Path, truth: np.ndarray, tmp_path: Path, shard_px: int) -> None:
    nuclei = found(slide, tmp_path, shard_px)
    assert lost_and_doubled(nuclei, truth) == (0, 0)
    assert len(nuclei) == NUCLEI


def test_outlines_are_lossless(slide: Path, truth: np.ndarray, tmp_path: Path) -> None:
    found(slide, tmp_path, 480)
    table = pq.read_table(tmp_path / "slide" / "nuclei.parquet")
    outlines = shapely.from_wkb(table["geometry"].to_numpy())
    assert shapely.is_valid(outlines).all()
    np.testing.assert_array_equal(shapely.area(outlines), table["area_px"].to_numpy())


def test_nuclei_larger_than_the_halo_are_neither_lost_nor_doubled(tmp_path: Path) -> None:
    truth = np.zeros((700, 700), dtype=np.int32)
    for n, y in enumerate(range(20, 680, 30)):
        truth[y : y + 20, 30 + n : 630 - n] = n + 1
    Image.fromarray(picture_of(truth)).save(tmp_path / "long.png")
    nuclei = found(tmp_path / "long.png", tmp_path, 96)
    rows = [y for _, _, y in nuclei]
    assert sorted(set(rows)) == sorted({y for _, _, y in areas_and_places(truth)})
    table = pq.read_table(tmp_path / "long" / "nuclei.parquet")
    assert all(table["cut"].to_pylist())


def test_spare_nuclei_are_doubled_without_the_merge(
    slide: Path, truth: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge, "_same_nuclei", lambda journal, reported: np.zeros((2, 0), dtype=int))
    assert lost_and_doubled(found(slide, tmp_path, 480), truth)[1] > 0


def test_a_shard_without_a_halo_cuts_nuclei(
    slide: Path, truth: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Lattice, "of", classmethod(lambda cls, tile, overlap, largest: cls(tile, tile - overlap, 0))
    )
    assert lost_and_doubled(found(slide, tmp_path, 480), truth)[0] > 0


def test_an_owner_by_the_middle_of_the_box_is_caught_by_the_merge(
    slide: Path, truth: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards that disagree about whose a nucleus is still give it once: spare ones fill the gap."""
    monkeypatch.setattr(shards, "_centroid_inside", lambda measured, core: np.zeros(len(measured.area), bool))
    assert lost_and_doubled(found(slide, tmp_path, 480), truth) == (0, 0)


def test_ids_do_not_depend_on_the_order_of_the_shards(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nucsam_monai.wsi import run

    found(slide, tmp_path / "first", 480)
    in_order = run.pending
    monkeypatch.setattr(run, "pending", lambda *args: in_order(*args)[::-1])
    found(slide, tmp_path / "second", 480)
    files = [tmp_path / name / "slide" / "nuclei.parquet" for name in ("first", "second")]
    assert files[0].read_bytes() == files[1].read_bytes()
