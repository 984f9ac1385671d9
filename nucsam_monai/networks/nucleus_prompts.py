"""Define the inputs and outputs of segmenters that are prompted nucleus by nucleus."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from nucsam_monai.networks.sam.prompt_encoder import PADDING_LABEL
from nucsam_monai.utils.errors import ConfigurationError


class NucleusPrompts(NamedTuple):
    """Hold the prompts of N nuclei on B images: one positive point each and K negative points (PromptNucSeg).

    A network that is prompted by boxes takes two opposite corners of each in place of points, with
    SAM's labels 2 and 3. Boxes and points may mix: all are filled up to one length with padding then.

    Attributes:
        points: ``(N, 1 + K, 2)`` float as (x, y) in pixels of the image, pixel centres at integers. The nuclei
            of all images are concatenated in the order of the images.
        labels: ``(N, 1 + K)`` int64: 1 this nucleus, 0 another nucleus, -1 padding.
        prompts_per_image: ``(B,)`` int64 with sum N; an image may have none.
        has_boxes: whether some prompts are boxes for the segmentor of PromptNucSeg. The padding point that SAM appends
            to points, but not to boxes, is then among the points already.
    """

    points: Tensor
    labels: Tensor
    prompts_per_image: Tensor
    has_boxes: bool = False


class MaskPrediction(NamedTuple):
    """Hold the masks of N nuclei.

    Attributes:
        logits: ``(N, 1, 4h, 4w)`` mask logits for an embedding of ``h x w`` cells, ``(N, 1, 8h, 8w)`` with a fine
            map; a pixel is foreground above 0.
        iou: ``(N, 1)`` predicted intersection over union.
        class_logits: ``(N, C)``, from a segmenter that also classifies.
    """

    logits: Tensor
    iou: Tensor
    class_logits: Tensor | None = None


@runtime_checkable
class PromptableNetwork(Protocol):
    """Declare a network that encodes a tile once and segments one nucleus for each click or box on it."""

    def encode(self, image: Tensor) -> Any:
        """Return what is kept of square images ``(1, 3, S, S)``, normalised with SAM's constants."""
        ...

    def decode_clicks(self, embedding: Any, points: Tensor, labels: Tensor) -> MaskPrediction:
        """Return N masks for points ``(N, K, 2)`` and labels ``(N, K)``: 1 nucleus, 0 background, -1 padding."""
        ...

    def decode_boxes(self, embedding: Any, boxes: Tensor) -> MaskPrediction:
        """Return N masks for boxes ``(N, 4)`` as (x_min, y_min, x_max, y_max)."""
        ...


def prompts_of_one_image(points: Tensor, labels: Tensor) -> NucleusPrompts:
    """Return prompts ``(N, K, 2)`` with labels ``(N, K)`` that are all of the same image."""
    return NucleusPrompts(points, labels, torch.tensor([len(points)]))


def boxes_of(prompts: NucleusPrompts) -> Tensor:
    """Return the boxes ``(N, 4)`` as (x_min, y_min, x_max, y_max) that two opposite corners each stand for.

    Raises:
        ConfigurationError: the prompts have not two points each.
    """
    corners = prompts.points
    if corners.shape[1:] != (2, 2):
        raise ConfigurationError(
            f"prompts: found points of shape {tuple(corners.shape)}, expected (N, 2, 2), the two corners of a box, "
            "because the network is built with prompt 'box'."
        )
    return torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)


def padding_prompt(prompts: NucleusPrompts) -> NucleusPrompts:
    """Return one padding prompt on the first image, for batches without prompts.

    Decoding it and dropping the result keeps every trained tensor in the graph of a batch without nuclei.
    """
    points = prompts.points.new_zeros((1, *prompts.points.shape[1:]))
    labels = prompts.labels.new_full((1, *prompts.labels.shape[1:]), PADDING_LABEL)
    counts = prompts.prompts_per_image.clone()
    counts[0] = 1
    return NucleusPrompts(points, labels, counts, prompts.has_boxes)
