"""Compute the nuclei prompter's loss: regression and classification of matched anchors, and a mask."""

import logging
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from monai.losses import FocalLoss
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import Tensor, nn
from torch.nn import functional as F

from nucsam_monai.networks.prompter import PrompterOutput
from nucsam_monai.utils.errors import ConfigurationError

logger = logging.getLogger(__name__)


class AnchorMatching(NamedTuple):
    """Hold the matched pairs of one image, in the order of the nuclei.

    Attributes:
        anchors: ``(G,)`` int64, the anchor of every nucleus; no anchor has two nuclei.
        cost: sum of the pairs' costs.
    """

    anchors: NDArray[np.int64]
    cost: float


def match_anchors(
    points: NDArray[np.floating],
    probabilities: NDArray[np.floating],
    nuclei: NDArray[np.floating],
    classes: NDArray[np.integer],
    distance_weight: float = 0.1,
) -> AnchorMatching:
    """Assign every nucleus of one image a separate anchor at the lowest total cost.

    The cost of a pair is ``alpha * ||p - b|| - q[c]`` (PromptNucSeg, section on the nuclei prompter; CFR-SAM,
    Eq. 1, with the sign changed). It is computed in float64, whatever the network computes in. A cost that is
    not finite becomes so large a number that as few such pairs as possible are taken.

    Args:
        points: ``(M, 2)`` predicted (x, y) in pixels.
        probabilities: ``(M, C + 1)`` predicted class probabilities q.
        nuclei: ``(G, 2)`` centroids (x, y) in pixels.
        classes: ``(G,)`` their classes c, from 0 to C - 1.
        distance_weight: alpha, per pixel.

    Raises:
        ConfigurationError: there are more nuclei than anchors, or a class that the network does not know.

    Example:
        >>> points, probabilities = np.array([[0.0, 0.0], [9.0, 0.0]]), np.full((2, 2), 0.5)
        >>> match_anchors(points, probabilities, np.array([[8.0, 0.0]]), np.array([0])).anchors
        array([1])
    """
    if len(nuclei) > len(points):
        raise ConfigurationError(
            f"{len(nuclei)} nuclei in an image of {len(points)} anchor points: expected at least one anchor for "
            "each nucleus. Take a smaller options.step, or smaller crops."
        )
    background = probabilities.shape[1] - 1
    if len(classes) and (classes.min() < 0 or classes.max() >= background):
        raise ConfigurationError(
            f"nuclei of class {classes.min()} to {classes.max()}: expected 0 to {background - 1}. Set n_classes to "
            "the dataset's number of classes."
        )
    if not len(nuclei):
        return AnchorMatching(np.zeros(0, dtype=np.int64), 0.0)
    # One row per nucleus: with its shorter side first the problem takes one shortest path for each nucleus.
    cost = distance_weight * cdist(nuclei.astype(np.float64), points.astype(np.float64))
    cost -= probabilities.astype(np.float64)[:, classes].T
    cost = _with_finite_numbers(cost)
    rows, anchors = linear_sum_assignment(cost)
    return AnchorMatching(anchors.astype(np.int64), float(cost[rows, anchors].sum()))


def _with_finite_numbers(cost: NDArray[np.float64]) -> NDArray[np.float64]:
    finite = np.isfinite(cost)
    if finite.all():
        return cost
    lowest, highest = (cost[finite].min(), cost[finite].max()) if finite.any() else (0.0, 0.0)
    # More than all finite pairs together can differ by, so that one such pair outweighs any other choice.
    large = highest + (highest - lowest + 1.0) * (len(cost) + 1)
    logger.warning(
        "%d of %d matching costs are not finite and were replaced by %g: the training diverges. "
        "Lower the learning rate or train in float32.",
        cost.size - finite.sum(),
        cost.size,
        large,
    )
    return np.where(finite, cost, large)


class PrompterTarget(NamedTuple):
    """Hold the nuclei of B images, G_b in image b.

    Attributes:
        points: B tensors ``(G_b, 2)`` float32, centroids as (x, y) in pixels.
        classes: B tensors ``(G_b,)`` int64, from 0.
        mask: ``(B, 1, H, W)`` of any nucleus; None where the network has no mask head.
        sizes: B tensors ``(G_b, 2)`` float32, width and height in pixels; None where the network predicts none.
    """

    points: Sequence[Tensor]
    classes: Sequence[Tensor]
    mask: Tensor | None
    sizes: Sequence[Tensor] | None = None


class PrompterLossTerms(NamedTuple):
    """Hold the terms of the loss, including their weights; each is a scalar."""

    regression: Tensor
    classification: Tensor
    mask: Tensor


class PrompterLoss(nn.Module):
    """Compute ``L_reg + L_cls + L_aux`` (PromptNucSeg, section on the nuclei prompter; CFR-SAM, Eq. 2).

    Predicted sizes are compared as points are, with the same weight (CFR-SAM, ablation with box prompts).

    Args:
        background_weight: beta of anchors without a nucleus; the paper has 0.4 for PanNuke, 0.25 for CPM-17
            and 0.2 for Kumar.
        distance_weight: alpha of the matching, per pixel.
        regression_weight: gamma.
        regression: ``squared`` coordinate errors as in the authors' code, or the paper's norm ``l2``.
        normaliser: divisor of the sum of the cross-entropies: ``code`` takes the sum of the weights
            as in the authors' code, ``paper`` the number of anchors.
        mask_weight: weight of the pixel focal loss (gamma 2, no class balance).

    Raises:
        ConfigurationError: ``regression`` or ``normaliser`` is unknown.
    """

    def __init__(
        self,
        background_weight: float = 0.4,
        *,
        distance_weight: float = 0.1,
        regression_weight: float = 5e-3,
        regression: Literal["squared", "l2"] = "squared",
        normaliser: Literal["code", "paper"] = "code",
        mask_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if regression not in ("squared", "l2"):
            raise ConfigurationError(f"loss regression '{regression}': expected 'squared' or 'l2'.")
        if normaliser not in ("code", "paper"):
            raise ConfigurationError(f"loss normaliser '{normaliser}': expected 'code' or 'paper'.")
        self.background_weight = background_weight
        self.distance_weight = distance_weight
        self.regression_weight = regression_weight
        self.regression = regression
        self.normaliser = normaliser
        self.mask_weight = mask_weight
        self.focal = FocalLoss(gamma=2.0, alpha=None)

    def forward(self, output: PrompterOutput, target: PrompterTarget) -> Tensor:
        """Return the scalar loss; see :meth:`terms`."""
        terms = self.terms(output, target)
        return terms.regression + terms.classification + terms.mask

    def terms(self, output: PrompterOutput, target: PrompterTarget) -> PrompterLossTerms:
        """Return the three losses of a batch.

        Args:
            output: output of the network.
            target: the nuclei of the same images; an image may have none.

        Raises:
            ConfigurationError: output and target are of different images, an image has more nuclei than
                anchors, or a class is unknown.
        """
        _check_target(output, target)
        points, class_logits = output.points.float(), output.class_logits.float()
        anchors = self._match(points, class_logits, target)
        device = points.device
        image = torch.cat([torch.full_like(found, number) for number, found in enumerate(anchors)])
        image, anchor = image.to(device), torch.cat(anchors).to(device)
        truth = torch.cat([nuclei.to(device, torch.float32) for nuclei in target.points])
        classes = torch.cat([kinds.to(device, torch.int64) for kinds in target.classes])

        labels = torch.full(class_logits.shape[:2], class_logits.shape[-1] - 1, device=device)
        labels[image, anchor] = classes
        errors = self._regression(points[image, anchor] - truth)
        if output.sizes is not None and target.sizes is not None:
            sizes = torch.cat([nuclei.to(device, torch.float32) for nuclei in target.sizes])
            errors = errors + self._regression(output.sizes.float()[image, anchor] - sizes)
        mask_loss = points.new_zeros(())
        if output.mask_logits is not None and target.mask is not None:
            mask_loss = self.focal(output.mask_logits.float(), target.mask.float())
        return PrompterLossTerms(
            self.regression_weight * errors,
            self._classification(class_logits.flatten(0, 1), labels.flatten()),
            self.mask_weight * mask_loss,
        )

    @torch.no_grad()
    def _match(self, points: Tensor, class_logits: Tensor, target: PrompterTarget) -> list[Tensor]:
        """Return the anchors of each image's nuclei, ``(G_b,)`` int64 on the CPU."""
        predicted = points.cpu().numpy()
        probabilities = class_logits.softmax(dim=-1).cpu().numpy()
        matched = [
            match_anchors(
                predicted[image],
                probabilities[image],
                nuclei.detach().cpu().numpy().astype(np.float64),
                classes.cpu().numpy(),
                self.distance_weight,
            )
            for image, (nuclei, classes) in enumerate(zip(target.points, target.classes, strict=True))
        ]
        return [torch.from_numpy(matching.anchors) for matching in matched]

    def _regression(self, errors: Tensor) -> Tensor:
        """Return the error per nucleus of the global batch; without nuclei 0 with a gradient of 0."""
        count = torch.tensor(float(len(errors)), device=errors.device)
        if dist.is_available() and dist.is_initialized():
            # gradients are averaged over the processes, hence the mean number and not the total
            dist.all_reduce(count)
            count /= dist.get_world_size()
        if self.regression == "squared":
            return errors.square().sum() / count.clamp(min=1)
        return torch.linalg.vector_norm(errors, dim=-1).sum() / count.clamp(min=1)

    def _classification(self, logits: Tensor, labels: Tensor) -> Tensor:
        weights = logits.new_ones(logits.shape[-1])
        weights[-1] = self.background_weight
        if self.normaliser == "code":
            return F.cross_entropy(logits, labels, weights)
        return F.cross_entropy(logits, labels, weights, reduction="sum") / len(labels)


def _check_target(output: PrompterOutput, target: PrompterTarget) -> None:
    images = len(output.points)
    if not len(target.points) == len(target.classes) == images:
        raise ConfigurationError(
            f"target: found points of {len(target.points)} and classes of {len(target.classes)} images, expected "
            f"the {images} of the output."
        )
    for number, (points, classes) in enumerate(zip(target.points, target.classes, strict=True)):
        if points.shape != (len(classes), 2):
            raise ConfigurationError(
                f"target of image {number}: found points {tuple(points.shape)} and {len(classes)} classes, "
                "expected (G, 2) and G."
            )
    if output.sizes is not None and [len(sizes) for sizes in target.sizes or ()] != [
        *map(len, target.points)
    ]:
        raise ConfigurationError(
            "target sizes: expected width and height of every nucleus, because options.sizes is on."
        )
    if output.mask_logits is None:
        return
    if target.mask is None or target.mask.shape != output.mask_logits.shape:
        found = "none" if target.mask is None else str(tuple(target.mask.shape))
        raise ConfigurationError(
            f"target mask: found {found}, expected the {tuple(output.mask_logits.shape)} of the network's. "
            "Give the mask of any nucleus, or switch options.aux_mask off."
        )
