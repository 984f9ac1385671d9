"""From the prompter's anchor points to one point per nucleus."""

import logging

import numpy as np
import torch
from scipy.spatial import KDTree

from nucsam_monai.inferers.detected_points import DetectedPoints
from nucsam_monai.networks.prompter import PrompterOutput
from nucsam_monai.utils.errors import ConfigurationError

logger = logging.getLogger(__name__)


@torch.no_grad()
def select_points(
    output: PrompterOutput, image_size: tuple[int, int], *, mask_filter: bool, radius: float
) -> DetectedPoints:
    """Keep one anchor point per nucleus, the most certain first (PromptNucSeg, nuclei prompter and inference).

    An anchor counts if background is not its likeliest class. Points are clipped to the image; the mask filter
    (MAPF) takes those away that lie where the auxiliary mask sees no nucleus; of points near to each other
    only the best stays.

    Args:
        output: of the network for one image.
        image_size: height and width of the image in pixels.
        mask_filter: use the auxiliary mask.
        radius: largest distance in pixels of points that are taken for the same nucleus.

    Raises:
        ConfigurationError: several images, a negative radius, or a mask filter without a mask.
    """
    _check_request(output, mask_filter, radius)
    points = output.points[0].float().cpu().numpy()
    probabilities = output.class_logits[0].float().softmax(dim=-1).cpu().numpy()
    class_ids = probabilities.argmax(axis=1)
    scores = probabilities.max(axis=1)
    usable = np.isfinite(points).all(axis=1) & np.isfinite(scores)
    if not usable.all():
        logger.warning(
            "%d of %d points are not finite and were dropped; the weights are damaged or have diverged.",
            len(usable) - usable.sum(),
            len(usable),
        )
    keep = usable & (class_ids < probabilities.shape[1] - 1)
    chosen = np.flatnonzero(keep)
    height, width = image_size
    points = points.clip(0, np.array([width - 1, height - 1], dtype=np.float32))
    if mask_filter and output.mask_logits is not None:
        x, y = points[chosen].astype(np.int64).T
        on_nucleus = output.mask_logits[0, 0].float().cpu().numpy()[y, x] > 0  # logit 0 is probability 0.5
        chosen = chosen[on_nucleus]
    chosen = chosen[suppress_near_points(points[chosen], scores[chosen], radius)]
    sizes = None if output.sizes is None else output.sizes[0].float().cpu().numpy()[chosen]
    return DetectedPoints(points[chosen], scores[chosen], class_ids[chosen], sizes)


def suppress_near_points(points: np.ndarray, scores: np.ndarray, radius: float) -> np.ndarray:
    """Go through points from the best to the worst and drop all within ``radius`` of one that was kept.

    Args:
        points: ``(n, 2)``, finite.
        scores: ``(n,)``; of equal ones the first goes first.
        radius: in the unit of ``points``; a point at exactly this distance is dropped.

    Returns:
        ``(k,)`` int64, the indices of the kept points from the best to the worst.

    Example:
        >>> suppress_near_points(np.array([[0.0, 0.0], [1.0, 0.0], [9.0, 0.0]]), np.array([0.5, 0.9, 0.6]), 2)
        array([1, 2])
    """
    if not len(points):
        return np.zeros(0, dtype=np.int64)
    tree = KDTree(points)
    dropped = np.zeros(len(points), dtype=bool)
    kept = []
    for index in np.argsort(-scores, kind="stable"):
        if dropped[index]:
            continue
        kept.append(index)
        dropped[tree.query_ball_point(points[index], radius)] = True
    return np.array(kept, dtype=np.int64)


def _check_request(output: PrompterOutput, mask_filter: bool, radius: float) -> None:
    if len(output.points) != 1:
        raise ConfigurationError(
            f"output: found {len(output.points)} images, expected one. Select points image by image."
        )
    if not radius >= 0:
        raise ConfigurationError(f"radius {radius}: expected a distance of 0 px or more.")
    if mask_filter and output.mask_logits is None:
        raise ConfigurationError(
            "mask_filter: the output holds no mask. Switch options.aux_mask on in training and with_mask in "
            "inference, or the filter off."
        )
