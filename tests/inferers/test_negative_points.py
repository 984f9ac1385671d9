import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nucsam_monai.inferers.negative_points import nearest_others
from nucsam_monai.inferers.prompt_tiles import visit_tiles
from nucsam_monai.inferers.tiling import plan_tiles


@given(st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), min_size=1, max_size=9), st.integers(1, 3))
def test_negatives_are_the_nearest_other_points_of_the_tile(points, count):
    xy = np.array(points, dtype=float)
    visits = visit_tiles(np.array(points), plan_tiles((30, 30), 16, 4))
    half = visits.select(np.arange(len(visits)) % 2 == 0)
    found, labels = nearest_others(xy, half, visits, count)
    assert found.shape == (len(half), count, 2)
    for row, (tile, prompt) in enumerate(zip(*half, strict=True)):
        x, y = points[prompt]
        others = [points[i] for t, i in zip(*visits, strict=True) if t == tile and points[i] != (x, y)]
        distances = sorted((x - a) ** 2 + (y - b) ** 2 for a, b in others)[:count]
        assert labels[row].tolist() == [0] * len(distances) + [-1] * (count - len(distances))
        drawn = [tuple(point) for point in found[row, : len(distances)].tolist()]
        assert [(x - a) ** 2 + (y - b) ** 2 for a, b in drawn] == distances
        assert set(drawn) <= set(others)
        assert (found[row, len(distances) :] == (x, y)).all()
