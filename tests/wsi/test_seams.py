"""Every nucleus once, wherever a slide is cut; and the checks notice when a part of the rule is missing."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
from PIL import Image

from nucsam_monai.wsi import SlideOptions, merge, run, segment_slide, shards
from nucsam_monai.wsi.grid import Lattice, Rectangle, Shard
from nucsam_monai.wsi.nuclei_table import Measured, boxes_of
from tests.wsi.slides import (
    TiledOracle,
    areas_and_places,
    oracle,
    picture_of,
    random_nuclei,
    without_lines,
)

SIDE, NUCLEI = 700, 450

Nuclei = list[tuple[int, int, int]]


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return random_nuclei(SIDE, NUCLEI, seed=1)


@pytest.fixture(scope="module")
def slide(truth: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slide") / "slide.png"
    Image.fromarray(picture_of(truth)).save(path)
    return path


def found(slide: Path, output: Path, shard_px: int) -> Nuclei:
    chosen = SlideOptions(mpp=0.25, mask="all", shard_px=shard_px, max_nucleus_um=6.0, outputs=("parquet",))
    segment_slide(slide, output, oracle(lambda statistics: TiledOracle()), chosen)
    table = pq.read_table(output / slide.stem / "nuclei.parquet")
    boxes = boxes_of(table).astype(int)
    assert table["id"].to_pylist() == list(range(1, len(table) + 1))
    return [
        (area, int(box[0] + box[2]), int(box[1] + box[3]))
        for area, box in zip(table["area_px"].to_pylist(), boxes, strict=True)
    ]


def lost_and_doubled(nuclei: Nuclei, truth: np.ndarray) -> tuple[int, int]:
    return len(areas_and_places(without_lines(truth)) - set(nuclei)), len(nuclei) - len(set(nuclei))


def check_that_every_nucleus_is_found_once(
    slide: Path, truth: np.ndarray, output: Path, shard_px: int
) -> None:
    nuclei = found(slide, output, shard_px)
    assert lost_and_doubled(nuclei, truth) == (0, 0)
    assert len(nuclei) == len(np.unique(truth)) - 1
    files = (output / slide.stem / "shards").glob("*.parquet")
    owned = sum(np.count_nonzero(pq.read_table(file, columns=["own"])["own"]) for file in files)
    assert owned == len(nuclei), "each belongs to one shard before the merge"


@pytest.mark.parametrize("shard_px", [96, 336, 480, 4000])
def test_every_nucleus_is_found_once(slide: Path, truth: np.ndarray, tmp_path: Path, shard_px: int) -> None:
    check_that_every_nucleus_is_found_once(slide, truth, tmp_path, shard_px)


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
    assert sorted(set(rows)) == sorted({y for _, _, y in areas_and_places(without_lines(truth))})
    table = pq.read_table(tmp_path / "long" / "nuclei.parquet")
    assert all(table["cut"].to_pylist())


def shifted_region(shard: Shard, lattice: Lattice) -> Rectangle:
    """Regions that begin anywhere, and not on the lattice."""
    core, halo, shift = shard.core(lattice), lattice.halo * lattice.stride_px, shard.index % 2
    end = halo + lattice.overlap_px + shift
    return Rectangle(core.x0 - halo + shift, core.y0 - halo + shift, core.x1 + end, core.y1 + end)


MUTATIONS: dict[str, tuple[Any, str, Any]] = {
    "regions do not begin on the lattice": (Shard, "region", shifted_region),
    "shards are not compared with one another": (
        merge,
        "_same_nuclei",
        lambda journal, reported: np.zeros((2, 0), dtype=int),
    ),
    "no halo": (
        Lattice,
        "of",
        classmethod(lambda cls, tile, overlap, largest: cls(tile, tile - overlap, 0)),
    ),
    "nobody owns a nucleus": (
        shards,
        "_centroid_inside",
        lambda measured, core: np.zeros(len(measured.area), bool),
    ),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_check_fails_without_a_part_of_the_rule(
    slide: Path, truth: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mutation: str
) -> None:
    monkeypatch.setattr(*MUTATIONS[mutation])
    with pytest.raises(AssertionError):
        check_that_every_nucleus_is_found_once(slide, truth, tmp_path, 240)


def test_shards_that_disagree_about_the_owner_give_a_nucleus_once(
    slide: Path, truth: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spare nuclei fill the gap."""
    monkeypatch.setattr(*MUTATIONS["nobody owns a nucleus"])
    assert lost_and_doubled(found(slide, tmp_path, 240), truth) == (0, 0)


def check_owners(inside: Callable[[Measured, Rectangle], np.ndarray]) -> None:
    """Centroids near the border of two cores far from the slide's corner belong to the right one."""
    generator = np.random.default_rng(0)
    area = generator.integers(50, 500, 1000)
    border = 200_000
    sum_x = border * area + generator.integers(-3, 4, 1000)
    nothing = np.zeros((1000, 3))
    measured = Measured(area, sum_x, 100 * area, nothing, nothing, nothing)
    left = inside(measured, Rectangle(border - 4032, 0, border, 4032))
    right = inside(measured, Rectangle(border, 0, border + 4032, 4032))
    exact = [Fraction(int(x), int(a)) < border for x, a in zip(sum_x, area, strict=True)]
    assert left.tolist() == exact
    assert right.tolist() == (~left).tolist()


def test_an_owner_is_decided_in_whole_numbers() -> None:
    check_owners(shards._centroid_inside)

    def in_floats(measured: Measured, core: Rectangle) -> np.ndarray:
        x = (measured.sum_x / measured.area).astype(np.float32)
        return (x >= core.x0) & (x < core.x1)

    with pytest.raises(AssertionError):
        check_owners(in_floats)


def check_that_the_order_of_work_does_not_matter(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found(slide, tmp_path / "first", 240)
    in_order = run.pending
    monkeypatch.setattr(run, "pending", lambda *args: in_order(*args)[::-1])
    found(slide, tmp_path / "second", 240)
    files = [tmp_path / name / "slide" / "nuclei.parquet" for name in ("first", "second")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_ids_do_not_depend_on_the_order_of_the_shards(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_that_the_order_of_work_does_not_matter(slide, tmp_path, monkeypatch)


def test_ids_in_the_order_of_completion_are_noticed(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = run.cut_shards

    def as_completed(*args: Any) -> list[Shard]:
        shards = cut(*args)
        backwards = run.pending is not pending
        return [replace(shard, index=n) for n, shard in enumerate(shards[::-1] if backwards else shards)]

    pending = run.pending
    monkeypatch.setattr(run, "cut_shards", as_completed)
    with pytest.raises(AssertionError):
        check_that_the_order_of_work_does_not_matter(slide, tmp_path, monkeypatch)
