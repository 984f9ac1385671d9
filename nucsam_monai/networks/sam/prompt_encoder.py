"""Encode points, boxes and masks as inputs of the mask decoder."""

import torch
from segment_anything.modeling import PromptEncoder as OfficialPromptEncoder
from torch import Tensor

from nucsam_monai.networks.sam.layers import use_float32_norms
from nucsam_monai.networks.sam.variants import SAMVariant

BOX_LABELS = (2, 3)
"""Labels of two points that are the corners of a box."""

PADDING_LABEL = -1
"""Label of a point that only fills up a prompt to the common number of points."""


class PromptEncoder(OfficialPromptEncoder):
    """Encode points, boxes and masks like SAM's prompt encoder, for images of any size.

    "Segment Anything" (Kirillov et al., 2023), appendix A. Three things differ from the official class, none
    of which changes its numbers in float32: coordinates can be normalised by another image size than the one
    the encoder was built for, autocast is off inside because half precision cannot tell neighbouring pixels
    apart, and nothing is written in place. Boxes may also be given as points with labels of their own, so that
    one batch holds both kinds of prompts.
    """

    def forward(
        self,
        points: tuple[Tensor, Tensor] | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
        *,
        image_size: tuple[int, int] | None = None,
        pad: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Encode N prompts; N may be 0.

        Args:
            points: ``(N, K, 2)`` coordinates as (x, y) in pixels and ``(N, K)`` labels: 1 is foreground, 0 is
                background, -1 is padding; 2 and 3 are the corners of a box.
            boxes: ``(N, 4)`` corners as (x_min, y_min, x_max, y_max) in pixels.
            masks: ``(N, 1, 4h, 4w)`` mask logits, ``h`` and ``w`` being the image embedding's sides.
            image_size: height and width in pixels of the image that the coordinates refer to, as it is seen
                by the image encoder; by default the size given at construction.
            pad: append a padding point to points alone, as the official code does.

        Returns:
            Sparse tokens ``(N, T, C)``, where T is K + 1 for points alone (one padding point is appended),
            2 for boxes alone and K + 2 for both; and dense embeddings ``(N, C, h, w)``.
        """
        height, width = image_size or self.input_image_size
        with torch.autocast(device_type=self._get_device().type, enabled=False):
            tokens = []
            if points is not None:
                tokens.append(self._point_tokens(*points, (height, width), pad=pad and boxes is None))
            if boxes is not None:
                tokens.append(self._box_tokens(boxes, (height, width)))
            count = self._get_batch_size(points, boxes, masks)
            no_tokens = self.no_mask_embed.weight.new_zeros((count, 0, self.embed_dim))
            sparse = torch.cat([no_tokens, *tokens], dim=1)
            if masks is not None:
                return sparse, self.mask_downscaling(masks.to(no_tokens.dtype))
            patch = self.input_image_size[0] // self.image_embedding_size[0]
            dense = self.no_mask_embed.weight[:, :, None, None]
            return sparse, dense.expand(count, -1, height // patch, width // patch)

    def places(self, points: Tensor, labels: Tensor, *, image_size: tuple[int, int] | None = None) -> Tensor:
        """Return where N prompts are, as shares (x, y) of the image's width and height.

        A prompt is in the middle of its foreground points, or of the corners of its box.

        Args:
            points: ``(N, K, 2)``, as in :meth:`forward`.
            labels: ``(N, K)``.
            image_size: see :meth:`forward`.

        Returns:
            ``(N, 2)`` float32; zero where a prompt has no such point.
        """
        height, width = image_size or self.input_image_size
        counted = (labels > 0).unsqueeze(-1)
        total = (counted * (points.float() + 0.5)).sum(dim=1) / counted.sum(dim=1).clamp(min=1)
        return total / torch.tensor([width, height], device=total.device)

    def position_code(self, grid: tuple[int, int]) -> Tensor:
        """Return the position code ``(1, C, h, w)`` of an image embedding's cells, ``grid`` = (h, w)."""
        with torch.autocast(device_type=self._get_device().type, enabled=False):
            return self.pe_layer(grid).unsqueeze(0)

    def _point_tokens(
        self, coordinates: Tensor, labels: Tensor, image_size: tuple[int, int], *, pad: bool
    ) -> Tensor:
        labels = labels.long()  # boolean and unsigned labels cannot hold the padding label
        if pad:
            coordinates = torch.cat([coordinates, torch.zeros_like(coordinates[:, :1])], dim=1)
            labels = torch.cat([labels, torch.full_like(labels[:, :1], PADDING_LABEL)], dim=1)
        code = self.pe_layer.forward_with_coords(coordinates.float() + 0.5, image_size)
        label = labels.unsqueeze(-1)
        background, foreground = self.point_embeddings[0].weight, self.point_embeddings[1].weight
        code = torch.where(label == PADDING_LABEL, self.not_a_point_embed.weight, code)
        code = torch.where(label == 0, code + background, code)
        code = torch.where(label == 1, code + foreground, code)
        for corner in BOX_LABELS:
            code = torch.where(label == corner, code + self.point_embeddings[corner].weight, code)
        return code

    def _box_tokens(self, boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
        code = self.pe_layer.forward_with_coords(boxes.float().reshape(-1, 2, 2) + 0.5, image_size)
        corners = torch.cat([self.point_embeddings[2].weight, self.point_embeddings[3].weight])
        return code + corners


def corners_of_boxes(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the corners ``(N, 2, 2)`` and labels ``(N, 2)`` that stand for boxes ``(N, 4)`` as prompts of points."""
    labels = torch.tensor(BOX_LABELS, device=boxes.device)
    return boxes.reshape(-1, 2, 2), labels.expand(len(boxes), -1)


def build_prompt_encoder(variant: SAMVariant, image_size: tuple[int, int]) -> PromptEncoder:
    """Build the prompt encoder of a variant for images of ``image_size`` = (height, width) pixels.

    Raises:
        ConfigurationError: a side is not a multiple of the variant's patch.
    """
    encoder = PromptEncoder(
        embed_dim=variant.embed_channels,
        image_embedding_size=variant.grid(image_size),
        input_image_size=image_size,
        mask_in_chans=variant.mask_in_chans,
    )
    use_float32_norms(encoder)
    return encoder
