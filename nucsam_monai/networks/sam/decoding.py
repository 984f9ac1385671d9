"""Masks for many prompts on several images at once."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from segment_anything.modeling import MaskDecoder
from torch import Tensor
from torch.nn import functional

from nucsam_monai.networks.sam.mask_decoder import STEEPEST, FineMaskDecoder
from nucsam_monai.networks.sam.prompt_chunks import prompts_per_chunk
from nucsam_monai.networks.sam.two_way import ImageSide, image_side, run_two_way
from nucsam_monai.networks.sam.upscaling import pixels_to_maps, upscale_cells
from nucsam_monai.utils.errors import ConfigurationError

UPSCALED_CELLS = 2**11
"""Image cells of all prompts that a CPU up-scales together: 8 prompts at 16 x 16 cells (measured)."""


class DecodedMasks(NamedTuple):
    """The masks of N prompts.

    Attributes:
        logits: ``(N, M, 4h, 4w)`` mask logits, M = 1 or 3; a pixel is foreground above 0. With a fine map they are
            ``(N, M, 8h, 8w)``.
        iou: ``(N, M)`` predicted intersection over union of each mask.
        upscaled: ``(N, C / 8, 4h, 4w)`` image features after up-scaling, on request.
        extra: ``(N, E, C)`` what became of the tokens that a method adds to the decoder's own.
    """

    logits: Tensor
    iou: Tensor
    upscaled: Tensor | None = None
    extra: Tensor | None = None


def decode_prompts(
    mask_decoder: MaskDecoder,
    embedding: Tensor,
    image_pe: Tensor,
    sparse: Tensor,
    dense: Tensor,
    prompts_per_image: Tensor | Sequence[int],
    *,
    pyramid: Sequence[Tensor] = (),
    places: Tensor | None = None,
    multimask: bool = False,
    return_upscaled: bool = False,
    extra_tokens: Tensor | None = None,
    chunk_size: int | Literal["auto"] | None = "auto",
) -> DecodedMasks:
    """Decode prompts that belong to different images, each against its own image's embedding.

    The prompts of all images are concatenated in the order of the images; an image may have none, and all may
    have none. "Segment Anything" (Kirillov et al., 2023), appendix A, gives the decoder itself; the numbers
    are those of the official decoder, only rounded differently:

    - prompts without masks share their image's dense embedding, and with it the image's side of the first
      layer's attention, which is computed once per image;
    - other projections of image cells are folded into the few prompt tokens, see
      :mod:`~nucsam_monai.networks.sam.prompt_attention`;
    - the last attention, the hyper-networks and the product with the up-scaled features are computed for the
      masks that are returned.

    Variants with a fine map draw outlines on it, as HQ-SAM does (Ke et al., 2023): the logits are doubled in size
    bilinearly, and the product of the map with a second kernel of each mask is added. Prompts that have a place are
    told what all maps show there, and a hill near it is added as well, see
    :class:`~nucsam_monai.networks.sam.mask_decoder.FineMaskDecoder`.

    Args:
        mask_decoder: the decoder of the embedding's variant.
        embedding: ``(B, C, h, w)`` image embeddings.
        image_pe: ``(1, C, h, w)`` position code of the embedding's cells.
        sparse: ``(N, T, C)`` prompt tokens.
        dense: ``(N, C, h, w)`` or ``(1, C, h, w)`` dense prompt embeddings; one that is expanded to N prompts
            counts as one.
        prompts_per_image: ``(B,)`` integers with sum N; on the CPU they cost no synchronisation.
        pyramid: the finer maps of the images, coarse to fine, of variants that have such; the last one is the fine map
            ``(B, fine_channels, 8h, 8w)``.
        places: ``(N, 2)`` where each prompt is, as shares (x, y) of the image's width and height, see
            :meth:`~nucsam_monai.networks.sam.prompt_encoder.PromptEncoder.places`; None where prompts ask for objects
            all over the image. Decoders without a fine map do not look at it.
        multimask: return the three ambiguity masks instead of the single mask.
        return_upscaled: also return the up-scaled feature map of each prompt.
        extra_tokens: ``(E, C)`` learned tokens that stand behind the decoder's own in every prompt.
        chunk_size: decode at most this many prompts at a time, which bounds the memory of inference; "auto"
            chooses by :func:`~nucsam_monai.networks.sam.prompt_chunks.prompts_per_chunk`; None decodes all
            at once.

    Raises:
        ConfigurationError: the numbers of images, prompts and counts do not fit together, or fine maps are missing
            or not for this decoder.

    Example:
        Two images with three prompts and none::

            decode_prompts(decoder, embedding, code, sparse, dense, [3, 0]).logits.shape  # (3, 1, 4h, 4w)
    """
    chunks = list(
        decode_in_chunks(
            mask_decoder,
            embedding,
            image_pe,
            sparse,
            dense,
            prompts_per_image,
            pyramid=pyramid,
            places=places,
            multimask=multimask,
            return_upscaled=return_upscaled,
            extra_tokens=extra_tokens,
            chunk_size=chunk_size,
        )
    )
    if not chunks:
        return _no_masks(mask_decoder, embedding, multimask, return_upscaled, extra_tokens)
    if len(chunks) == 1:
        return chunks[0]
    logits, iou, upscaled, extra = zip(*chunks, strict=True)
    return DecodedMasks(
        torch.cat(logits),
        torch.cat(iou),
        torch.cat(upscaled) if return_upscaled else None,
        None if extra_tokens is None else torch.cat(extra),
    )


def decode_in_chunks(
    mask_decoder: MaskDecoder,
    embedding: Tensor,
    image_pe: Tensor,
    sparse: Tensor,
    dense: Tensor,
    prompts_per_image: Tensor | Sequence[int],
    *,
    pyramid: Sequence[Tensor] = (),
    places: Tensor | None = None,
    multimask: bool = False,
    return_upscaled: bool = False,
    extra_tokens: Tensor | None = None,
    chunk_size: int | Literal["auto"] | None = "auto",
) -> Iterator[DecodedMasks]:
    """Decode like :func:`decode_prompts`, handing out each chunk's masks before the next is decoded.

    Yields:
        The masks of consecutive prompts; nothing where there are no prompts.
    """
    counts = _checked_counts(prompts_per_image, images=len(embedding), prompts=len(sparse))
    _check_pyramid(mask_decoder, embedding, pyramid)
    if len(dense) not in (1, len(sparse)):
        raise ConfigurationError(f"dense: expected 1 or {len(sparse)} prompts, found {len(dense)}.")
    if chunk_size is not None and chunk_size != "auto" and chunk_size < 1:
        raise ConfigurationError(f"chunk_size {chunk_size}: expected a positive number of prompts.")
    if not len(sparse):
        return
    size = chunk_size or len(sparse)
    if size == "auto":
        tokens = sparse.shape[1] + (0 if extra_tokens is None else len(extra_tokens))
        size = prompts_per_chunk(mask_decoder, embedding, tokens=tokens, upscaled=return_upscaled)
    grid = (embedding.shape[2], embedding.shape[3])
    code = _cells(image_pe)
    shared = None
    if len(dense) == 1 or dense.stride(0) == 0:
        shared = image_side(mask_decoder.transformer, _cells(embedding + dense[:1]), code)
    # Images are taken apart once: their gradients are joined once then, and not for each chunk.
    fine_maps = pyramid[-1].unbind() if pyramid else None
    seen = None if places is None or not pyramid else _seen_at(places, (embedding, *pyramid), counts)
    for prompts, images, chunk_counts in _chunks(counts, size):
        side = (
            _own_cells(embedding[images], dense[prompts], chunk_counts)
            if shared is None
            else ImageSide(*(tensor[images] for tensor in shared))
        )
        yield _decode_chunk(
            mask_decoder,
            side,
            code,
            sparse[prompts],
            chunk_counts,
            grid,
            None if fine_maps is None else fine_maps[images],
            None if places is None else places[prompts],
            None if seen is None else seen[prompts],
            multimask,
            return_upscaled,
            extra_tokens,
        )


def _checked_counts(prompts_per_image: Tensor | Sequence[int], images: int, prompts: int) -> list[int]:
    counts = torch.as_tensor(prompts_per_image, dtype=torch.long).tolist()
    if len(counts) != images or sum(counts) != prompts or any(count < 0 for count in counts):
        raise ConfigurationError(
            f"prompts_per_image {counts}: expected one count for each of {images} images, "
            f"with sum {prompts}, the number of prompts."
        )
    return counts


def _chunks(counts: Sequence[int], size: int) -> Iterator[tuple[slice, slice, list[int]]]:
    """Yield the prompts of each chunk, the range of images they belong to and their numbers per image."""
    owners = [image for image, count in enumerate(counts) for _ in range(count)]
    for start in range(0, len(owners), size):
        chunk = owners[start : start + size]
        images, numbers = range(chunk[0], chunk[-1] + 1), Counter(chunk)
        yield (
            slice(start, start + len(chunk)),
            slice(images.start, images.stop),
            [numbers[image] for image in images],
        )


def _decode_chunk(
    mask_decoder: MaskDecoder,
    images: ImageSide | Tensor,
    code: Tensor,
    sparse: Tensor,
    counts: Sequence[int],
    grid: tuple[int, int],
    fine_maps: Sequence[Tensor] | None,
    places: Tensor | None,
    seen: Tensor | None,
    multimask: bool,
    return_upscaled: bool,
    extra_tokens: Tensor | None,
) -> DecodedMasks:
    masks = _returned_masks(mask_decoder, multimask)
    own_tokens = [mask_decoder.iou_token.weight, mask_decoder.mask_tokens.weight]
    output_tokens = torch.cat(own_tokens if extra_tokens is None else [*own_tokens, extra_tokens])
    asked = output_tokens.expand(len(sparse), -1, -1)
    if seen is not None:
        seen = mask_decoder.seen_at_place(seen)[:, None]
        asked = asked + seen
    prompts = torch.cat([asked, sparse], dim=1)
    # The IoU token comes first, then the tokens of the masks, then those that were added.
    answers = 1 + masks.stop if extra_tokens is None else len(output_tokens)
    tokens, cells = run_two_way(mask_decoder.transformer, images, code, prompts, counts, answers=answers)
    if seen is not None:
        tokens = tokens + seen
    hypernetworks = mask_decoder.output_hypernetworks_mlps
    kernels = torch.stack([hypernetworks[mask](tokens[:, 1 + mask]) for mask in masks], dim=2)
    logits, upscaled = _draw(mask_decoder, cells, kernels, grid, return_upscaled)
    if fine_maps is not None:
        hypernetworks = mask_decoder.fine_hypernetworks_mlps
        kernels = torch.stack([hypernetworks[mask](tokens[:, 1 + mask]) for mask in masks], dim=1)
        logits = _add_outlines(logits, kernels, fine_maps, counts)
        if places is not None:
            hypernetworks = mask_decoder.place_hypernetworks_mlps
            hills = torch.stack([hypernetworks[mask](tokens[:, 1 + mask]) for mask in masks], dim=1)
            logits = _add_hills(logits, hills, places)
    iou = mask_decoder.iou_prediction_head(tokens[:, 0])[:, masks.start : masks.stop]
    extra = None if extra_tokens is None else tokens[:, 1 + mask_decoder.num_mask_tokens :]
    return DecodedMasks(logits, iou, upscaled, extra)


def _draw(
    mask_decoder: MaskDecoder, cells: Tensor, kernels: Tensor, grid: tuple[int, int], return_upscaled: bool
) -> tuple[Tensor, Tensor | None]:
    """Up-scale cells ``(N, P, C)`` and multiply them with the masks' kernels ``(N, C / 8, M)``.

    On a CPU a few prompts at a time, so that the up-scaled features, the largest tensors of all, stay in the
    cache until they are reduced to masks.
    """
    together = max(1, UPSCALED_CELLS // cells.shape[1]) if cells.device.type == "cpu" else len(cells)
    maps, features = [], []
    for part, kernel in zip(cells.split(together), kernels.split(together), strict=True):
        pixels = upscale_cells(mask_decoder, part)
        # (N, P * 16, C / 8) @ (N, C / 8, M) -> (N, P, 16, M)
        maps.append((pixels.flatten(1, 2) @ kernel).unflatten(1, pixels.shape[1:3]))
        if return_upscaled:
            features.append(pixels_to_maps(pixels, grid))
    return pixels_to_maps(torch.cat(maps), grid), torch.cat(features) if return_upscaled else None


def _seen_at(places: Tensor, maps: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """Return what maps ``(B, C, ...)`` say at the places ``(N, 2)`` of prompts, ``(N, sum of C)``."""
    grids = (2 * places.float() - 1).split(list(counts))
    found = [
        torch.cat([_at(own, feature[image : image + 1]) for feature in maps], dim=1)
        for image, own in enumerate(grids)
        if len(own)
    ]
    return torch.cat(found)


def _at(places: Tensor, feature: Tensor) -> Tensor:
    """Interpolate one map ``(1, C, h, w)`` at places ``(n, 2)`` in -1..1: ``(n, C)`` float32."""
    sampled = functional.grid_sample(
        feature.float(), places[None, None], padding_mode="border", align_corners=False
    )
    return sampled[0, :, 0].mT


def _add_outlines(
    logits: Tensor, kernels: Tensor, fine_maps: Sequence[Tensor], counts: Sequence[int]
) -> Tensor:
    """Double logits ``(N, M, 4h, 4w)`` in size and add the products of ``(N, M, F)`` kernels and fine maps.

    Args:
        logits: of the up-scaled features.
        kernels: one per mask.
        fine_maps: ``(F, 8h, 8w)`` of each image.
        counts: number of prompts of each image.
    """
    # (n * M, F) @ (F, 8h * 8w), all masks of an image at once
    outlines = [
        (own.flatten(0, 1) @ fine.flatten(1)).unflatten(0, own.shape[:2])
        for own, fine in zip(kernels.split(list(counts)), fine_maps, strict=True)
        if len(own)
    ]
    size = fine_maps[0].shape[-2:]
    logits = functional.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)
    return logits + torch.cat(outlines).unflatten(-1, size)


def _add_hills(logits: Tensor, hills: Tensor, places: Tensor) -> Tensor:
    """Add an elliptic hill near each prompt's place.

    Args:
        logits: ``(N, M, 8h, 8w)`` float32.
        hills: ``(N, M, 6)``, see :class:`~nucsam_monai.networks.sam.mask_decoder.FineMaskDecoder`.
        places: ``(N, 2)`` shares (x, y) of width and height.
    """
    height, width = logits.shape[-2:]
    with torch.autocast(logits.device.type, enabled=False):
        top, right, down, slope_x, slope_y, tilt = hills.float().unsqueeze(-1).unbind(2)  # (N, M, 1)
        slope_x, slope_y = (slope.clamp(max=STEEPEST).exp() for slope in (slope_x, slope_y))
        tilt = 2 * torch.tanh(tilt) * (slope_x * slope_y).sqrt()
        x, y = (
            (torch.arange(side, device=logits.device) + 0.5 - side * place[:, None].float())[:, None] / 8
            - shift
            for side, place, shift in ((width, places[:, 0], right), (height, places[:, 1], down))
        )  # (N, M, 8w) and (N, M, 8h), in cells from the hill's top
        along_x, along_y = -slope_x * x * x, top - slope_y * y * y
        # (N * M, 8h, 3) @ (N * M, 3, 8w): along_y + along_x + tilt * y * x
        rows = torch.stack([along_y, torch.ones_like(y), tilt * y], dim=-1).flatten(0, 1)
        columns = torch.stack([torch.ones_like(x), along_x, x], dim=-2).flatten(0, 1)
        return torch.baddbmm(logits.flatten(0, 1), rows, columns).unflatten(0, hills.shape[:2])


def _check_pyramid(mask_decoder: MaskDecoder, embedding: Tensor, pyramid: Sequence[Tensor]) -> None:
    """Make sure that a decoder gets the finer maps that it was built for, and no others."""
    expected = []
    if isinstance(mask_decoder, FineMaskDecoder):
        batch, _, height, width = embedding.shape
        expected = [
            (batch, channels, 2 ** (1 + level) * height, 2 ** (1 + level) * width)
            for level, channels in enumerate(mask_decoder.pyramid_channels)
        ]
    found = [tuple(maps.shape) for maps in pyramid]
    if found != expected:
        raise ConfigurationError(
            f"pyramid: found maps {found or 'none'}, expected {expected or 'none'} for this mask decoder. Pass the "
            "pyramid of the encoder's features; what cannot pass it needs a SAM variant without one."
        )


def _no_masks(
    mask_decoder: MaskDecoder,
    embedding: Tensor,
    multimask: bool,
    return_upscaled: bool,
    extra_tokens: Tensor | None,
) -> DecodedMasks:
    masks = len(_returned_masks(mask_decoder, multimask))
    height, width = 4 * embedding.shape[2], 4 * embedding.shape[3]
    upscaled = embedding.new_zeros((0, mask_decoder.transformer_dim // 8, height, width))
    doubled = 2 if isinstance(mask_decoder, FineMaskDecoder) else 1
    return DecodedMasks(
        embedding.new_zeros((0, masks, doubled * height, doubled * width)),
        embedding.new_zeros((0, masks)),
        upscaled if return_upscaled else None,
        None if extra_tokens is None else embedding.new_zeros((0, *extra_tokens.shape)),
    )


def _returned_masks(mask_decoder: MaskDecoder, multimask: bool) -> range:
    return range(1, mask_decoder.num_mask_tokens) if multimask else range(1)


def _own_cells(embedding: Tensor, dense: Tensor, counts: Sequence[int]) -> Tensor:
    """Repeat each image for its prompts and add their dense embeddings: ``(N, P, C)``."""
    repeats = torch.tensor(counts, device=embedding.device)
    return _cells(embedding.repeat_interleave(repeats, 0, output_size=len(dense)) + dense)


def _cells(maps: Tensor) -> Tensor:
    """Reshape ``(B, C, h, w)`` to contiguous ``(B, h * w, C)``."""
    return maps.flatten(2).mT.contiguous()
