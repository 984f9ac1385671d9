"""Tissue is found where it is, and nowhere on empty glass."""

import json
from pathlib import Path

import numpy as np
import pytest

from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.wsi.grid import Lattice, Shard, WorkingGrid, active_cells, cut_shards
from nucsam_monai.wsi.shards import ShardTask
from nucsam_monai.wsi.tissue import draw_region, read_region, tissue_mask
from tests.wsi.slides import tissue_picture


def test_empty_glass_has_no_tissue() -> None:
    glass = np.random.default_rng(0).normal(243, 1.5, (400, 400, 3)).clip(0, 255).astype(np.uint8)
    assert not tissue_mask(glass, 8.0).any()


def test_an_image_full_of_tissue_is_tissue_everywhere() -> None:
    tissue = np.random.default_rng(0).normal((200, 120, 180), 12, (400, 400, 3)).clip(0, 255).astype(np.uint8)
    assert tissue_mask(tissue, 8.0).mean() > 0.99


def test_a_piece_of_tissue_is_found_with_its_margin() -> None:
    mask = tissue_mask(tissue_picture(300), 8.0)
    expected = np.pi * (100 + 30 / 8) ** 2
    assert mask[150, 150]
    assert not mask[5, 5]
    assert mask.sum() == pytest.approx(expected, rel=0.05)


def test_shards_cover_every_active_cell_once() -> None:
    cells = np.random.default_rng(1).random((23, 31)) < 0.1
    covered = np.zeros_like(cells, dtype=int)
    shards = cut_shards(cells, 5)
    for shard in shards:
        covered[shard.row : shard.row + shard.rows, shard.column : shard.column + shard.columns] += 1
        assert shard.rows <= 5
        assert shard.columns <= 5
    assert covered.max() == 1
    assert (covered[cells] == 1).all()
    assert [shard.index for shard in shards] == list(range(len(shards)))


def test_regions_are_made_of_whole_tiles_and_see_the_largest_nucleus() -> None:
    lattice = Lattice.of(256, 64, 120)
    shard = Shard(0, 3, 2, 4, 5)
    grid = WorkingGrid(0, 0.25, 1.0, 10_000, 10_000, False)
    task = ShardTask(None, grid, lattice, np.ones((52, 52), dtype=bool))
    core, region, evidence = shard.core(lattice), task.seen_by(shard), task.evidence(shard)
    assert region.x0 % 192 == 0
    assert (region.x1 - region.x0 - 256) % 192 == 0
    assert core.x0 - evidence.x0 >= 120
    assert evidence.y1 - core.y1 >= 120


def test_cells_follow_the_mask() -> None:
    mask = np.zeros((100, 100), dtype=bool)
    mask[50:60, 20:30] = True
    grid = WorkingGrid(0, 0.25, 1.0, 3200, 3200, False)
    cells = active_cells(mask, 8.0, grid, Lattice.of(256, 64, 120))
    rows, columns = np.nonzero(cells)
    assert rows.min() <= 50 * 32 // 192
    assert rows.max() >= 59 * 32 // 192
    assert columns.min() <= 20 * 32 // 192 <= 30 * 32 // 192 <= columns.max() + 1
    assert cells.sum() <= 9


def test_a_region_is_read_and_drawn(tmp_path: Path) -> None:
    ring = [[0, 0], [320, 0], [320, 640], [0, 640], [0, 0]]
    file = tmp_path / "region.geojson"
    file.write_text(
        json.dumps(
            [{"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}]
        )
    )
    region = read_region(file)
    assert region.area == 320 * 640
    mask = draw_region(region, (30, 30), 32.0)
    assert mask[10, 5]
    assert not mask[10, 15]
    file.write_text('{"type": "FeatureCollection", "features": []}')
    with pytest.raises(ConfigurationError, match="no polygon"):
        read_region(file)
