"""Hold the nuclei of an image: the type that all inferers return and all writers, metrics and servers take."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.label_runs import areas_px, centroids_xy_of, label_runs, moments, rank_ids

NUCLEUS_DTYPE = np.dtype(
    [
        ("id", np.int32),  # the pixel value in `instances`
        ("class_id", np.int16),  # index into `class_names`; 0 without classes
        ("score", np.float32),  # confidence in [0, 1]
        ("centroid_x_px", np.float64),  # centre of mass, pixel centres at integers
        ("centroid_y_px", np.float64),
        ("box_x_min_px", np.int32),  # half-open box: x_min <= x < x_max
        ("box_y_min_px", np.int32),
        ("box_x_max_px", np.int32),
        ("box_y_max_px", np.int32),
        ("area_px", np.int64),  # square pixels
    ]
)

_LARGEST_ID = np.iinfo(np.int32).max


@dataclass(frozen=True, repr=False)
class NucleiPrediction:
    """Hold the nuclei of one image.

    Attributes:
        instances: ``(H, W)`` int32 label map; 0 is background, every other value is the id of one nucleus.
        table: structured array with one row per nucleus, sorted by ``id``, with the fields ``id``, ``class_id``,
            ``score`` (0 to 1), ``centroid_x_px``, ``centroid_y_px``, ``box_x_min_px``, ``box_y_min_px``,
            ``box_x_max_px``, ``box_y_max_px`` (half-open: min <= x < max) and ``area_px``.
        foreground: ``(H, W)`` float32 probability of being a nucleus; None if the method predicts none.
        class_names: names of the classes, indexed by ``table["class_id"]``; ``("nucleus",)`` without classes.
    """

    instances: np.ndarray
    table: np.ndarray
    foreground: np.ndarray | None = None
    class_names: tuple[str, ...] = field(default=("nucleus",))

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        return f"NucleiPrediction({self.summary})"

    @property
    def summary(self) -> str:
        """Summary such as ``37 nuclei, 256 x 256 px``; with several classes, also the count of each class."""
        height, width = self.instances.shape
        words = f"{len(self)} {'nucleus' if len(self) == 1 else 'nuclei'}"
        if len(self.class_names) > 1 and len(self):
            counts = np.bincount(self.table["class_id"], minlength=len(self.class_names)).tolist()
            pairs = zip(self.class_names, counts, strict=True)
            words += f" ({', '.join(f'{name}: {count}' for name, count in pairs)})"
        return f"{words}, {width} x {height} px"


def prediction_from_instances(
    instances: np.ndarray,
    *,
    foreground: np.ndarray | None = None,
    scores: np.ndarray | None = None,
    class_ids: np.ndarray | None = None,
    class_names: Sequence[str] = ("nucleus",),
) -> NucleiPrediction:
    """Measure every nucleus of a label map: centroid, box, area and score.

    Args:
        instances: ``(H, W)`` integers, 0 = background. Ids may have gaps and are kept.
        foreground: ``(H, W)`` probability of being a nucleus.
        scores: ``(n,)`` confidence of each nucleus in [0, 1], ordered by id. Default: the mean foreground of the
            nucleus, or 1 without ``foreground``.
        class_ids: ``(n,)`` index of each nucleus's class, ordered by id. Default: 0.
        class_names: names of the classes.

    Raises:
        ConfigurationError: ``instances`` is not a two-dimensional array of integers from 0 to 2^31 - 1,
            ``foreground`` has another shape, or there are more or fewer scores or classes than nuclei.

    Example:
        >>> nuclei = prediction_from_instances(np.array([[0, 3, 3], [0, 3, 3]]))
        >>> nuclei.table["id"], nuclei.table["area_px"], nuclei.table["centroid_x_px"]
        (array([3], dtype=int32), array([4]), array([1.5]))
    """
    instances = np.asarray(instances)
    foreground = None if foreground is None else np.asarray(foreground)
    _check_maps(instances, foreground)
    runs = label_runs(instances)
    ids, nucleus = rank_ids(instances.ravel()[runs.starts])
    count = len(ids)
    for name, values in (("scores", scores), ("class_ids", class_ids)):
        if values is not None and len(values) != count:
            raise ConfigurationError(f"{name}: expected one per nucleus ({count}), found {len(values)}.")
    table = np.zeros(count, dtype=NUCLEUS_DTYPE)
    table["id"] = ids
    area = areas_px(runs, nucleus, count)
    table["area_px"] = area
    centroids = centroids_xy_of(moments(runs), nucleus, area)
    table["centroid_x_px"], table["centroid_y_px"] = centroids.T
    drawn = nucleus >= 0
    rows, columns = np.divmod(runs.starts[drawn], max(runs.width, 1))
    for axis, first, end in (("x", columns, columns + runs.lengths[drawn]), ("y", rows, rows + 1)):
        lowest = np.full(count, np.iinfo(np.int32).max)
        highest = np.zeros(count, dtype=np.int64)
        np.minimum.at(lowest, nucleus[drawn], first)
        np.maximum.at(highest, nucleus[drawn], end)
        table[f"box_{axis}_min_px"] = lowest
        table[f"box_{axis}_max_px"] = highest
    if scores is not None:
        table["score"] = scores
    elif foreground is not None and count:
        sums = np.add.reduceat(foreground.ravel(), runs.starts, dtype=np.float64)
        table["score"] = np.bincount(nucleus[drawn], weights=sums[drawn], minlength=count) / area
    else:
        table["score"] = 1.0
    if class_ids is not None:
        table["class_id"] = class_ids
    return NucleiPrediction(
        instances=instances.astype(np.int32, copy=False),
        table=table,
        foreground=None if foreground is None else foreground.astype(np.float32, copy=False),
        class_names=tuple(class_names),
    )


def _check_maps(instances: np.ndarray, foreground: np.ndarray | None) -> None:
    """Raise if ``instances`` is not a label map or ``foreground`` has another shape."""
    if instances.ndim != 2 or not np.issubdtype(instances.dtype, np.integer):
        raise ConfigurationError(
            "instances: expected a (H, W) map of integers, "
            f"found shape {instances.shape} of {instances.dtype}."
        )
    if instances.size and (instances.min() < 0 or instances.max() > _LARGEST_ID):
        raise ConfigurationError(
            f"instances: expected ids in 0..{_LARGEST_ID}, found {instances.min()}..{instances.max()}. "
            "Renumber the nuclei."
        )
    if foreground is not None and foreground.shape != instances.shape:
        raise ConfigurationError(
            f"foreground: expected the shape of instances, {instances.shape}, found {foreground.shape}."
        )
