"""Label maps that the metric tests draw."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

DTYPES = (np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64)
LARGE_IDS = (0, 1, 3, 65_535, 65_536, 70_001, 2**22, 2**22 + 1, 2**31 - 1)
HUGE_IDS = (0, 2, 2**40, 2**62)


def _ids_of(dtype: np.dtype) -> tuple[int, ...]:
    most = np.iinfo(dtype).max
    return tuple(i for i in (*range(5), *LARGE_IDS, *HUGE_IDS, most) if i <= most)


@st.composite
def pairs_of_label_maps(
    draw: st.DrawFn, max_side: int = 8, max_ids: int = 4
) -> tuple[np.ndarray, np.ndarray]:
    """Two maps of one shape, of any dtypes, with few instances that touch, nest and split."""
    shape = (draw(st.integers(1, max_side)), draw(st.integers(1, max_side)))

    def label_map() -> np.ndarray:
        dtype = np.dtype(draw(st.sampled_from(DTYPES)))
        ids = draw(st.lists(st.sampled_from(_ids_of(dtype)), min_size=1, max_size=max_ids, unique=True))
        return np.array(ids, dtype)[draw(arrays(np.intp, shape, elements=st.integers(0, len(ids) - 1)))]

    return label_map(), label_map()


def random_blocks(rng: np.random.Generator, side: int = 12, count: int = 4) -> np.ndarray:
    """Rectangles that touch, overlap each other's edge, nest or vanish, with random ids."""
    labels = np.zeros((side, side), np.int64)
    ids = rng.choice(200_000, size=count, replace=False) + 1
    for label in ids[: rng.integers(0, count + 1)]:
        top, left = rng.integers(0, side - 1, 2)
        height, width = rng.integers(1, side // 2 + 2, 2)
        labels[top : top + height, left : left + width] = label
    return labels


def discs(
    rng: np.random.Generator, side: int, centres: np.ndarray, radii: np.ndarray, jitter_px: float
) -> np.ndarray:
    """Discs around jittered centres, ids 1..n in order; later discs lie over earlier ones."""
    labels = np.zeros((side, side), np.int32)
    rows, columns = np.mgrid[:side, :side]
    for label, (centre, radius) in enumerate(zip(centres, radii, strict=True), start=1):
        row, column = centre + rng.normal(0, jitter_px, 2)
        labels[(rows - row) ** 2 + (columns - column) ** 2 <= radius**2] = label
    return labels


def pair_of_discs(seed: int, side: int = 96, count: int = 40, jitter_px: float = 2.0) -> list[np.ndarray]:
    """Ground truth and a displaced prediction, crowded enough for chains of competing overlaps."""
    rng = np.random.default_rng(seed)
    centres, radii = rng.uniform(0, side, (count, 2)), rng.uniform(3, 9, count)
    return [discs(rng, side, centres, radii, jitter) for jitter in (0.0, jitter_px)]


def random_classes(labels: np.ndarray, class_count: int, seed: int) -> dict[int, int]:
    """A class for every instance."""
    rng = np.random.default_rng(seed)
    return {int(i): int(rng.integers(class_count)) for i in np.unique(labels) if i}


def relabelled(labels: np.ndarray, seed: int) -> tuple[np.ndarray, dict[int, int]]:
    """The same instances under other ids in another order, many above 65,535, and the new id of every old one."""
    ids = np.unique(labels[labels > 0])
    new_ids = np.random.default_rng(seed).choice(10**6, size=len(ids), replace=False) + 1
    renamed = np.zeros(labels.shape, np.int64)
    for old, new in zip(ids, new_ids, strict=True):
        renamed[labels == old] = new
    return renamed, dict(zip(ids.tolist(), new_ids.tolist(), strict=True))
