"""What the networks of the bundles have in common where nuclei are clicked one by one."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nucsam_monai.networks import CFRSAM, SAC, PromptNucSeg
from nucsam_monai.networks.cfrsam import EncodedImages
from nucsam_monai.networks.nucleus_prompts import MaskPrediction, NucleusPrompts
from nucsam_monai.networks.sam import SAM, EncoderFeatures, decode_prompts


class ClickNetwork(Protocol):
    """Encodes a tile once, and turns each click or box on it into the mask of one nucleus."""

    def encode(self, image: Tensor) -> Any:
        """Return what is kept of square images ``(1, 3, S, S)``."""
        ...

    def decode_clicks(self, embedding: Any, points: Tensor, labels: Tensor) -> MaskPrediction:
        """Return N masks for points ``(N, K, 2)`` and labels ``(N, K)``: 1 nucleus, 0 background, -1 padding."""
        ...

    def decode_boxes(self, embedding: Any, boxes: Tensor) -> MaskPrediction:
        """Return N masks for boxes ``(N, 4)``."""
        ...


class PromptNucSegClicks:
    """The segmentor of PromptNucSeg.

    Args:
        network: with its weights.
    """

    def __init__(self, network: PromptNucSeg) -> None:
        self.network = network

    def encode(self, image: Tensor) -> EncoderFeatures:
        """See :class:`ClickNetwork`."""
        return self.network.encode(image)

    def decode_clicks(self, embedding: EncoderFeatures, points: Tensor, labels: Tensor) -> MaskPrediction:
        """See :class:`ClickNetwork`."""
        return self.network.decode(embedding, _prompts(points, labels))

    def decode_boxes(self, embedding: EncoderFeatures, boxes: Tensor) -> MaskPrediction:
        """See :class:`ClickNetwork`."""
        return _decode(self.network.segmentor.sam, embedding, boxes=boxes)


class CFRSAMClicks:
    """CFR-SAM, whose masks of clicks are the refined ones; one that was trained with boxes takes boxes alone.

    Args:
        network: with its weights.
    """

    def __init__(self, network: CFRSAM) -> None:
        self.network = network

    def encode(self, image: Tensor) -> Any:
        """See :class:`ClickNetwork`."""
        return self.network.encode(image)

    def decode_clicks(self, embedding: Any, points: Tensor, labels: Tensor) -> MaskPrediction:
        """See :class:`ClickNetwork`."""
        if self.network.prompt == "box":
            return _decode(self.network.sam, embedding, points=(points, labels))
        return self.network.decode(embedding, _prompts(points, labels))

    def decode_boxes(self, embedding: Any, boxes: Tensor) -> MaskPrediction:
        """See :class:`ClickNetwork`."""
        if self.network.prompt == "box":
            corners = boxes.reshape(-1, 2, 2)
            return self.network.decode(
                embedding, _prompts(corners, corners.new_ones(corners.shape[:2]).long())
            )
        return _decode(self.network.sam, embedding, boxes=boxes)


class SACClicks:
    """SAC with each click as a prompt of its own, in place of one prompt of all points.

    Args:
        network: with its weights.
    """

    def __init__(self, network: SAC) -> None:
        self.network = network

    def encode(self, image: Tensor) -> EncoderFeatures:
        """See :class:`ClickNetwork`."""
        return self.network.sam.image_encoder(image, adapters=self.network.adapters)

    def decode_clicks(self, embedding: EncoderFeatures, points: Tensor, labels: Tensor) -> MaskPrediction:
        """See :class:`ClickNetwork`."""
        return _decode(self.network.sam, embedding, points=(points, labels))

    def decode_boxes(self, embedding: EncoderFeatures, boxes: Tensor) -> MaskPrediction:
        """See :class:`ClickNetwork`."""
        return _decode(self.network.sam, embedding, boxes=boxes)


def click_network(network: nn.Module) -> ClickNetwork | None:
    """Return how a network is asked for single nuclei; None where it cannot be."""
    if isinstance(network, PromptNucSeg):
        return PromptNucSegClicks(network)
    if isinstance(network, CFRSAM):
        return CFRSAMClicks(network)
    return SACClicks(network) if isinstance(network, SAC) else None


CLICKABLE = ("PromptNucSeg", "CFRSAM", "SAC")
"""Names of the networks that :func:`click_network` takes, for configurations that were not built yet."""


def _prompts(points: Tensor, labels: Tensor) -> NucleusPrompts:
    return NucleusPrompts(points, labels, torch.tensor([len(points)]))


def _decode(
    sam: SAM,
    features: EncoderFeatures | EncodedImages,
    *,
    points: tuple[Tensor, Tensor] | None = None,
    boxes: Tensor | None = None,
) -> MaskPrediction:
    """Ask plain SAM: one mask for each prompt."""
    embedding = features.embedding
    grid = (embedding.shape[-2], embedding.shape[-1])
    encoder = sam.prompt_encoder
    patch = encoder.input_image_size[0] // encoder.image_embedding_size[0]
    size = (grid[0] * patch, grid[1] * patch)
    sparse, dense = encoder(points, boxes, image_size=size)
    at = points if boxes is None else (boxes.reshape(-1, 2, 2), boxes.new_ones((len(boxes), 2)))
    masks = decode_prompts(
        sam.mask_decoder,
        embedding,
        encoder.position_code(grid),
        sparse,
        dense,
        [len(sparse)],
        pyramid=features.pyramid,
        places=None if at is None else encoder.places(*at, image_size=size),
    )
    return MaskPrediction(masks.logits, masks.iou)
