"""Assemble SAM: image encoder, prompt encoder and mask decoder under their official names."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nucsam_monai.networks.sam.decode_window import decode_in_windows
from nucsam_monai.networks.sam.decoder import DecodedMasks, build_mask_decoder, decode_prompts
from nucsam_monai.networks.sam.encoder import BlockAdapter, EncoderFeatures, ImageEncoder
from nucsam_monai.networks.sam.prompt_encoder import build_prompt_encoder, corners_of_boxes
from nucsam_monai.networks.sam.variants import SAMVariant, sam_variant
from nucsam_monai.networks.sam.weights import load_official_checkpoint, load_strictly
from nucsam_monai.utils.errors import ConfigurationError


class SAM(nn.Module):
    """Combine image encoder, prompt encoder and mask decoder of one variant, with the keys of the official checkpoints.

    Args:
        variant: the sizes.
        image_size: height and width in pixels of the images that prompts refer to unless told otherwise.
        pos_embed_mode: see :class:`ImageEncoder`.
        activation_checkpointing: see :class:`ImageEncoder`.
        decode_window: side in cells of the part of the embedding that a local prompt is decoded on, see
            :func:`~nucsam_monai.networks.sam.decode_window.decode_in_windows`; 0 takes the whole embedding.
    """

    def __init__(
        self,
        variant: SAMVariant,
        image_size: tuple[int, int],
        *,
        pos_embed_mode: Literal["bicubic", "bilinear"] = "bicubic",
        activation_checkpointing: bool = False,
        decode_window: int = 0,
    ) -> None:
        super().__init__()
        if decode_window < 0:
            raise ConfigurationError(
                f"decode_window {decode_window}: expected 0, for the whole embedding, or a number of cells."
            )
        self.variant = variant
        self.decode_window = decode_window
        self.image_encoder = ImageEncoder(
            variant, pos_embed_mode=pos_embed_mode, activation_checkpointing=activation_checkpointing
        )
        self.prompt_encoder = build_prompt_encoder(variant, image_size)
        self.mask_decoder = build_mask_decoder(variant)

    def forward(
        self,
        image: Tensor,
        points: Tensor,
        labels: Tensor,
        prompts_per_image: Tensor,
        *,
        multimask: bool = False,
    ) -> DecodedMasks:
        """Segment what N point prompts show on B images.

        Args:
            image: ``(B, 3, H, W)`` normalised images.
            points: ``(N, K, 2)`` as (x, y) in pixels of these images.
            labels: ``(N, K)``: 1 foreground, 0 background, -1 padding.
            prompts_per_image: ``(B,)`` integers with sum N.
            multimask: return three ambiguity masks per prompt instead of one.
        """
        return self.decode(self.encode(image), points, labels, prompts_per_image, multimask=multimask)

    def encode(
        self,
        image: Tensor,
        *,
        adapters: Sequence[BlockAdapter] | nn.ModuleList | None = None,
        return_levels: bool = False,
    ) -> EncoderFeatures:
        """Encode ``(B, 3, H, W)`` normalised images; see :meth:`ImageEncoder.forward`."""
        return self.image_encoder(image, adapters=adapters, return_levels=return_levels)

    def decode(
        self,
        features: EncoderFeatures,
        points: Tensor,
        labels: Tensor,
        prompts_per_image: Tensor | Sequence[int],
        *,
        pad: bool = True,
        is_local: bool = True,
        multimask: bool = False,
        return_upscaled: bool = False,
        extra_tokens: Tensor | None = None,
    ) -> DecodedMasks:
        """Segment what N prompts show on B encoded images.

        Args:
            features: output of :meth:`encode`.
            points: ``(N, K, 2)`` as (x, y) in pixels of the images, prompts in the order of the images.
            labels: ``(N, K)``: 1 foreground, 0 background, -1 padding; 2 and 3 are the corners of a box.
            prompts_per_image: ``(B,)`` integers with sum N.
            pad: append SAM's padding point to each prompt, as it belongs to points, but not to boxes.
            is_local: each prompt asks for one object near it, not for objects all over the image.
            multimask: return three ambiguity masks per prompt instead of one.
            return_upscaled: also return the upscaled feature map of each prompt.
            extra_tokens: ``(E, C)`` learned tokens, see :func:`~nucsam_monai.networks.sam.decoder.decode_prompts`.

        Raises:
            ConfigurationError: the numbers of images and prompts do not fit each other.
        """
        grid = (features.embedding.shape[-2], features.embedding.shape[-1])
        size = (grid[0] * self.variant.patch, grid[1] * self.variant.patch)
        sparse, dense = self.prompt_encoder((points, labels), image_size=size, pad=pad)
        inputs = (
            self.mask_decoder,
            features.embedding,
            self.prompt_encoder.position_code(grid),
            sparse,
            dense,
            prompts_per_image,
        )
        places = self.prompt_encoder.places(points, labels, image_size=size) if is_local else None
        options: dict[str, Any] = {
            "pyramid": features.pyramid,
            "multimask": multimask,
            "extra_tokens": extra_tokens,
        }
        if self.decode_window and places is not None and not return_upscaled:
            return decode_in_windows(*inputs, window=self.decode_window, places=places, **options)
        return decode_prompts(*inputs, places=places, return_upscaled=return_upscaled, **options)

    def decode_points(self, features: EncoderFeatures, points: Tensor, labels: Tensor) -> DecodedMasks:
        """Return one mask for each of N prompts of points on one encoded image; see :meth:`decode`."""
        return self.decode(features, points, labels, [len(points)])

    def decode_boxes(self, features: EncoderFeatures, boxes: Tensor) -> DecodedMasks:
        """Return one mask for each box ``(N, 4)``, (x_min, y_min, x_max, y_max) in pixels, on one encoded image."""
        return self.decode(features, *corners_of_boxes(boxes), [len(boxes)], pad=False)


def build_sam(
    variant: str | SAMVariant,
    image_size: int | tuple[int, int] = 1024,
    checkpoint: Path | str | None = None,
    *,
    pos_embed_mode: Literal["bicubic", "bilinear"] = "bicubic",
    activation_checkpointing: bool = False,
    decode_window: int = 0,
) -> SAM:
    """Build a SAM, with the weights of an official checkpoint or with random ones.

    Args:
        variant: a name of :data:`~nucsam_monai.networks.sam.variants.SAM_VARIANTS` or the sizes themselves.
        image_size: side, or height and width, in pixels of the images that it will see.
        checkpoint: file in the official layout, ``.pth`` or ``.safetensors``; None draws random weights.
        pos_embed_mode: see :class:`ImageEncoder`.
        activation_checkpointing: see :class:`ImageEncoder`.
        decode_window: see :class:`SAM`.

    Raises:
        ConfigurationError: unknown variant, or an image size that is not a multiple of its patch.
        CheckpointError: the file is damaged or holds another variant.

    Example:
        >>> build_sam("vit_tiny", 256).variant.name
        'vit_tiny'
    """
    variant = sam_variant(variant) if isinstance(variant, str) else variant
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    # On the meta device no weights are drawn; the file's tensors are put in place of them.
    with torch.device("meta") if checkpoint else nullcontext():
        sam = SAM(
            variant,
            size,
            pos_embed_mode=pos_embed_mode,
            activation_checkpointing=activation_checkpointing,
            decode_window=decode_window,
        )
    if checkpoint:
        for part, state in load_official_checkpoint(checkpoint, variant)._asdict().items():
            load_strictly(getattr(sam, part), state, source=f"{checkpoint}")
    return sam
