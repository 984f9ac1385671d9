"""SAM's mask decoder, for many prompts on several images at once."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from segment_anything.modeling import MaskDecoder, TwoWayTransformer
from segment_anything.modeling.transformer import TwoWayAttentionBlock
from torch import Tensor, nn
from torch.nn import functional as F

from nucsam_monai.networks.sam.fine_maps import (
    FineMaps,
    FineMaskDecoder,
    add_hills,
    add_outlines,
    fine_maps_of,
)
from nucsam_monai.networks.sam.kernels import (
    attend,
    attend_to_image,
    attend_to_tokens,
    join_heads,
    mix_tokens,
    split_heads,
)
from nucsam_monai.networks.sam.layers import use_float32_norms
from nucsam_monai.networks.sam.variants import SAMVariant
from nucsam_monai.utils.errors import ConfigurationError


def build_mask_decoder(variant: SAMVariant) -> MaskDecoder:
    """Build the mask decoder of a variant, official keys and weights layout.

    Run it through :func:`~nucsam_monai.networks.sam.decoder.decode_prompts`: its own forward pass repeats
    one image embedding for all prompts and is wrong for a batch of several images.
    """
    options = {
        "transformer_dim": variant.embed_channels,
        "transformer": TwoWayTransformer(
            depth=variant.decoder_depth,
            embedding_dim=variant.embed_channels,
            num_heads=variant.decoder_heads,
            mlp_dim=variant.decoder_mlp_width,
        ),
        "iou_head_depth": variant.iou_head_depth,
        "iou_head_hidden_dim": variant.iou_head_width,
    }
    pyramid = variant.pyramid_channels
    decoder = FineMaskDecoder(pyramid, **options) if pyramid else MaskDecoder(**options)
    use_float32_norms(decoder)
    return decoder


_CACHED_CELLS = 2**13
"""Image cells of all prompts in one chunk on a CPU: 32 prompts at 16 x 16 cells, 2 at 64 x 64.

Measured with ViT-B on one core: larger chunks take up to a third more time per prompt, because their tensors
leave the caches and their memory goes back to the system after every operation; smaller ones make the matrix
products of the prompt tokens inefficient.
"""

_DEVICE_CELLS = 2**18
"""The same on other devices: 1024 prompts at 16 x 16 cells, 64 at 64 x 64; more would not be faster."""

_USED_SHARE = 0.5
"""Part of a device's free memory that a chunk may take: the rest is for fragments and for its results."""


def bytes_per_prompt(
    mask_decoder: MaskDecoder,
    grid: tuple[int, int],
    *,
    tokens: int,
    element_bytes: int = 4,
    upscaled: bool = False,
) -> int:
    """Estimate the memory that decoding one more prompt takes at the peak of inference.

    With P = h * w cells of C channels the peak lies in the upscaling, whose second half has 2 * P * C
    numbers before and after its activation, beside P * C in its first half and P * C cells; mask prompts
    keep P * C cells from before the transformer, and 2 * P * C are added for copies. The scores of T tokens
    in H heads and their softmax take 2 * T * H * P.
    A returned feature map has another 2 * P * C. With a fine map the logits of the three masks are 64 times P each,
    three times over. Under autocast the estimate for float32 is an upper bound.

    Args:
        mask_decoder: the decoder.
        grid: height and width of the image embedding in cells.
        tokens: prompt tokens of a prompt.
        element_bytes: bytes of one number.
        upscaled: whether feature maps are returned.
    """
    cells = grid[0] * grid[1]
    channels = mask_decoder.transformer_dim
    heads = mask_decoder.transformer.num_heads
    all_tokens = 1 + mask_decoder.num_mask_tokens + tokens
    numbers = cells * ((11 if upscaled else 9) * channels + 2 * all_tokens * heads)
    if isinstance(mask_decoder, FineMaskDecoder):
        numbers += cells * 64 * 3 * 3
    return numbers * element_bytes


def prompts_per_chunk(
    mask_decoder: MaskDecoder, embedding: Tensor, *, tokens: int, upscaled: bool = False
) -> int:
    """Choose how many prompts to decode at a time, at least one.

    On a CPU the caches decide, and a chunk stays below a hundred megabytes whatever the image's size. On a
    GPU the free memory decides, up to a number of prompts that keeps it busy. Where gradients are recorded
    memory does not count: what the backward pass needs is kept in any case.

    Args:
        mask_decoder: the decoder.
        embedding: ``(B, C, h, w)`` image embeddings; their device and type count.
        tokens: prompt tokens of a prompt.
        upscaled: whether feature maps are returned.
    """
    grid = (embedding.shape[2], embedding.shape[3])
    cells = grid[0] * grid[1]
    if embedding.device.type == "cpu":
        return max(1, _CACHED_CELLS // cells)
    most = max(1, _DEVICE_CELLS // cells)
    if embedding.device.type != "cuda" or torch.is_grad_enabled():
        return most
    # What PyTorch holds without using it counts as free.
    free, _ = torch.cuda.mem_get_info(embedding.device)
    free += torch.cuda.memory_reserved(embedding.device) - torch.cuda.memory_allocated(embedding.device)
    # Under autocast the embedding may be of half precision while the decoder's norms are not.
    element_bytes = max(embedding.element_size(), mask_decoder.iou_token.weight.element_size())
    needed = bytes_per_prompt(
        mask_decoder, grid, tokens=tokens, element_bytes=element_bytes, upscaled=upscaled
    )
    return max(1, min(most, int(_USED_SHARE * free) // needed))


class ImageSide(NamedTuple):
    """What the first layer needs of B images, whichever prompts ask.

    Attributes:
        cells: ``(B, P, C)`` embedding with the dense prompt embedding added.
        key: ``(B, H, P, D / H)`` keys for the prompt tokens.
        value: ``(B, H, P, D / H)`` values for the prompt tokens.
        query: ``(B, H, P, D / H)`` scaled queries to the prompt tokens.
    """

    cells: Tensor
    key: Tensor
    value: Tensor
    query: Tensor


def image_side(transformer: TwoWayTransformer, cells: Tensor, code: Tensor) -> ImageSide:
    """Project B images ``(B, P, C)`` with position code ``(1, P, C)`` for the first layer, once per image."""
    first = transformer.layers[0]
    to_image, to_token = first.cross_attn_token_to_image, first.cross_attn_image_to_token
    placed = cells + code
    query = split_heads(to_token.q_proj(placed), to_token.num_heads)
    return ImageSide(
        cells,
        split_heads(to_image.k_proj(placed), to_image.num_heads),
        split_heads(to_image.v_proj(cells), to_image.num_heads),
        query / math.sqrt(query.shape[-1]),
    )


def run_two_way(
    transformer: TwoWayTransformer,
    images: ImageSide | Tensor,
    code: Tensor,
    prompts: Tensor,
    counts: Sequence[int],
    answers: int,
) -> tuple[Tensor, Tensor]:
    """Run the transformer ("Segment Anything", appendix A) with the image side of layer one shared.

    Args:
        transformer: the layers.
        images: the projected images, or the cells ``(N, P, C)`` where every prompt has a dense embedding of
            its own.
        code: ``(1, P, C)`` position code of the cells.
        prompts: ``(N, T, C)`` tokens in the order of the images.
        counts: number of prompts of each image, with sum N.
        answers: number of leading tokens whose result is asked for.

    Returns:
        Tokens ``(N, answers, C)`` and cells ``(N, P, C)``.
    """
    first, *others = transformer.layers
    if isinstance(images, ImageSide):
        queries, cells = _shared_layer(first, prompts, images, counts)
    else:
        queries, cells = _layer(first, prompts, prompts, images, code)
    for layer in others:
        queries, cells = _layer(layer, queries, prompts, cells, code)

    # Final attention from the tokens to the image, for the tokens that are returned
    queries = queries[:, :answers]
    attended = attend_to_image(
        transformer.final_attn_token_to_image, queries + prompts[:, :answers], cells + code, cells
    )
    return transformer.norm_final_attn(queries + attended), cells


def _layer(
    layer: TwoWayAttentionBlock, queries: Tensor, prompts: Tensor, cells: Tensor, code: Tensor
) -> tuple[Tensor, Tensor]:
    """Run a layer with cells ``(N, P, C)`` of each prompt's own."""
    keys = cells + code
    # Self-attention block
    queries = _self_attn(layer, queries, prompts)
    # Cross-attention block, tokens attending to image embedding, and MLP block
    attended = attend_to_image(layer.cross_attn_token_to_image, queries + prompts, keys, cells)
    queries = _add_and_mlp(layer, queries, attended)
    # Cross-attention block, image embedding attending to tokens
    update = attend_to_tokens(layer.cross_attn_image_to_token, keys, queries + prompts, queries)
    # In place: a new tensor of this size costs as much as the sum
    return queries, layer.norm4(update.add_(cells))


def _shared_layer(
    layer: TwoWayAttentionBlock, prompts: Tensor, images: ImageSide, counts: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Run the first layer, whose cells are the same for all prompts of an image."""
    # Self-attention block
    queries = _self_attn(layer, prompts, prompts)
    # Cross-attention block, tokens attending to image embedding, and MLP block
    attended = _shared_cross_attn_token_to_image(layer, images, queries + prompts, counts)
    queries = _add_and_mlp(layer, queries, attended)
    # Cross-attention block, image embedding attending to tokens
    update = _shared_cross_attn_image_to_token(layer, images, queries + prompts, queries, counts)
    return queries, layer.norm4(update.add_(_per_prompt(images.cells, counts)))


def _add_and_mlp(layer: TwoWayAttentionBlock, queries: Tensor, attended: Tensor) -> Tensor:
    queries = layer.norm2(queries + attended)
    return layer.norm3(queries + layer.mlp(queries))


def _self_attn(layer: TwoWayAttentionBlock, queries: Tensor, prompts: Tensor) -> Tensor:
    if layer.skip_first_layer_pe:
        return layer.norm1(attend(layer.self_attn, queries, queries, queries))
    placed = queries + prompts
    return layer.norm1(queries + attend(layer.self_attn, placed, placed, queries))


def _shared_cross_attn_token_to_image(
    layer: TwoWayAttentionBlock, images: ImageSide, queries: Tensor, counts: Sequence[int]
) -> Tensor:
    """Attend from the tokens to the image; the tokens of all prompts of an image form one sequence."""
    attention = layer.cross_attn_token_to_image
    mixed = []
    per_image = attention.q_proj(queries).split(list(counts))
    for query, key, value in zip(per_image, images.key.split(1), images.value.split(1), strict=True):
        if len(query):
            # (n, T, D) -> (1, H, n * T, D / H)
            heads = split_heads(query.flatten(0, 1).unsqueeze(0), attention.num_heads)
            mixed.append(join_heads(F.scaled_dot_product_attention(heads, key, value))[0])
    return attention.out_proj(torch.cat(mixed).unflatten(0, queries.shape[:2]))


def _shared_cross_attn_image_to_token(
    layer: TwoWayAttentionBlock, images: ImageSide, keys: Tensor, values: Tensor, counts: Sequence[int]
) -> Tensor:
    """Attend from the image to the tokens of each prompt."""
    attention = layer.cross_attn_image_to_token
    heads = attention.num_heads
    scores = []
    for part, query in zip(attention.k_proj(keys).split(list(counts)), images.query, strict=True):
        # (n, T, D) -> (H, n * T, D / H)
        key = part.flatten(0, 1).unflatten(1, (heads, -1)).transpose(0, 1)
        # (H, n * T, D / H) @ (H, D / H, P) -> (n, H * T, P)
        scores.append((key @ query.mT).unflatten(1, part.shape[:2]).transpose(0, 1).flatten(1, 2))
    return mix_tokens(attention, torch.cat(scores), values)


def _per_prompt(images: Tensor, counts: Sequence[int]) -> Tensor:
    """Give each prompt its image: ``(B, P, C)`` to ``(N, P, C)``."""
    if len(images) == 1:
        return images  # broadcasts
    index = [image for image, count in enumerate(counts) for _ in range(count)]
    return images.index_select(0, torch.tensor(index, device=images.device))


def upscale_cells(decoder: MaskDecoder, cells: Tensor) -> Tensor:
    """Up-scale an image embedding four times, leaving the pixels in the order of their cells.

    Transposed convolutions whose stride is their kernel's side never overlap: each is a matrix product per
    cell. So nothing is rearranged before the masks are one channel wide, and the normalisation, in float32,
    reads neighbouring numbers.

    Args:
        decoder: the decoder, whose ``output_upscaling`` holds the layers.
        cells: ``(N, P, C)``.

    Returns:
        ``(N, P, 16, C / 8)``: the 16 pixels of each cell, quarter by quarter; see :func:`pixels_to_maps`.
    """
    first, norm, activation, second, last_activation = decoder.output_upscaling
    cells = _transposed_convolution(first, cells)
    weight, bias = norm.weight.float(), norm.bias.float()
    normed = F.layer_norm(cells.float(), weight.shape, weight, bias, norm.eps).to(cells.dtype)
    return last_activation(_transposed_convolution(second, activation(normed))).flatten(2, 3)


def pixels_to_maps(pixels: Tensor, grid: tuple[int, int]) -> Tensor:
    """Rearrange ``(N, P, 16, M)`` pixels of P = h * w cells to maps ``(N, M, 4h, 4w)``."""
    count, _, _, channels = pixels.shape
    height, width = grid
    # N, h, w, quarter's row and column, pixel's row and column inside the quarter, M
    blocks = pixels.reshape(count, height, width, 2, 2, 2, 2, channels).permute(0, 7, 1, 3, 5, 2, 4, 6)
    return blocks.reshape(count, channels, 4 * height, 4 * width)


def _transposed_convolution(convolution: nn.ConvTranspose2d, cells: Tensor) -> Tensor:
    """Apply a 2 x 2 convolution of stride 2 to ``(..., C)``; the four pixels go to ``(..., 4, C')``."""
    # (C, C', 2, 2) -> (4 * C', C)
    weight = convolution.weight.permute(2, 3, 1, 0).flatten(0, 2)
    bias = None if convolution.bias is None else convolution.bias.repeat(4)
    return F.linear(cells, weight, bias).unflatten(-1, (4, -1))


UPSCALED_CELLS = 2**11
"""Image cells of all prompts that a CPU up-scales together: 8 prompts at 16 x 16 cells (measured)."""


class DecodedMasks(NamedTuple):
    """Hold the masks of N prompts.

    Attributes:
        logits: ``(N, M, 4h, 4w)`` mask logits, M = 1 or 3; a pixel is foreground above 0. With a fine map they are
            ``(N, M, 8h, 8w)``.
        iou: ``(N, M)`` predicted intersection over union of each mask.
        upscaled: ``(N, C / 8, 4h, 4w)`` image features after upscaling, on request.
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
      :mod:`~nucsam_monai.networks.sam.kernels`;
    - the last attention, the hyper-networks and the product with the upscaled features are computed for the
      masks that are returned.

    Variants with a fine map draw outlines on it, as HQ-SAM does (Ke et al., 2023): the logits are doubled in size
    bilinearly, and the product of the map with a second kernel of each mask is added. Prompts that have a place are
    told what all maps show there, and a hill near it is added as well, see
    :class:`~nucsam_monai.networks.sam.fine_maps.FineMaskDecoder`.

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
        return_upscaled: also return the upscaled feature map of each prompt.
        extra_tokens: ``(E, C)`` learned tokens that stand behind the decoder's own in every prompt.
        chunk_size: decode at most this many prompts at a time, which bounds the memory of inference; "auto"
            chooses by :func:`~nucsam_monai.networks.sam.decoder.prompts_per_chunk`; None decodes all
            at once.

    Raises:
        ConfigurationError: the numbers of images, prompts and counts do not fit together, or fine maps are missing
            or not for this decoder.

    Example:
        Two images with three prompts and none::

            decode_prompts(decoder, embedding, code, sparse, dense, [3, 0]).logits.shape  # (3, 1, 4h, 4w)
    """
    counts = checked_counts(prompts_per_image, images=len(embedding), prompts=len(sparse))
    _check_pyramid(mask_decoder, embedding, pyramid)
    if len(dense) not in (1, len(sparse)):
        raise ConfigurationError(f"dense: expected 1 or {len(sparse)} prompts, found {len(dense)}.")
    if chunk_size is not None and chunk_size != "auto" and chunk_size < 1:
        raise ConfigurationError(f"chunk_size {chunk_size}: expected a positive number of prompts.")
    if not len(sparse):
        return _no_masks(mask_decoder, embedding, multimask, return_upscaled, extra_tokens)
    size = chunk_size or len(sparse)
    if size == "auto":
        tokens = sparse.shape[1] + (0 if extra_tokens is None else len(extra_tokens))
        size = prompts_per_chunk(mask_decoder, embedding, tokens=tokens, upscaled=return_upscaled)
    grid = (embedding.shape[2], embedding.shape[3])
    code = as_cells(as_computed(image_pe))

    # Project the images for the first layer once, if their prompts share the dense embedding
    shared = None
    if len(dense) == 1 or dense.stride(0) == 0:
        shared = image_side(mask_decoder.transformer, as_cells(as_computed(embedding + dense[:1])), code)
    fine = fine_maps_of(embedding, pyramid, places, counts)

    # Decode chunk by chunk
    chunks = []
    for prompts, images, chunk_counts in chunks_of(counts, size):
        if shared is None:
            side: ImageSide | Tensor = _own_cells(embedding[images], dense[prompts], chunk_counts)
        else:
            side = ImageSide(*(tensor[images] for tensor in shared))
        chunk = decode_chunk(
            mask_decoder,
            side,
            code,
            sparse[prompts],
            chunk_counts,
            grid,
            None if fine is None else fine.of_chunk(prompts, images),
            multimask=multimask,
            return_upscaled=return_upscaled,
            extra_tokens=extra_tokens,
        )
        chunks.append(chunk)
    return join_chunks(chunks)


def join_chunks(chunks: Sequence[DecodedMasks]) -> DecodedMasks:
    """Return the masks of all chunks, one after the other."""
    if len(chunks) == 1:
        return chunks[0]
    logits, iou, upscaled, extra = zip(*chunks, strict=True)
    return DecodedMasks(
        torch.cat(logits),
        torch.cat(iou),
        None if upscaled[0] is None else torch.cat(upscaled),
        None if extra[0] is None else torch.cat(extra),
    )


def checked_counts(prompts_per_image: Tensor | Sequence[int], images: int, prompts: int) -> list[int]:
    """Return the number of prompts of each image as a list.

    Raises:
        ConfigurationError: not one number for each image, or their sum is not the number of prompts.
    """
    counts = torch.as_tensor(prompts_per_image, dtype=torch.long).tolist()
    if len(counts) != images or sum(counts) != prompts or any(count < 0 for count in counts):
        raise ConfigurationError(
            f"prompts_per_image {counts}: expected one count for each of {images} images, "
            f"with sum {prompts}, the number of prompts."
        )
    return counts


def chunks_of(counts: Sequence[int], size: int) -> Iterator[tuple[slice, slice, list[int]]]:
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


def decode_chunk(
    mask_decoder: MaskDecoder,
    images: ImageSide | Tensor,
    code: Tensor,
    sparse: Tensor,
    counts: Sequence[int],
    grid: tuple[int, int],
    fine: FineMaps | None,
    *,
    multimask: bool,
    return_upscaled: bool,
    extra_tokens: Tensor | None,
) -> DecodedMasks:
    """Decode some prompts; see :func:`decode_prompts`.

    Args:
        mask_decoder: the decoder.
        images: input of the first layer: features of the images, or the cells ``(N, P, C)`` of each prompt.
        code: ``(1, P, C)``, or ``(N, P, C)`` for each prompt's own cells.
        sparse: ``(N, T, C)`` prompt tokens.
        counts: number of prompts of each image.
        grid: rows and columns of the P cells.
        fine: fine map, for decoders that have one.
        multimask: return three masks.
        return_upscaled: also return the upscaled feature maps.
        extra_tokens: ``(E, C)`` further learned tokens.
    """
    masks = _returned_masks(mask_decoder, multimask)

    # Concatenate output tokens: IoU first, then the masks, then those that a method adds
    own_tokens = [mask_decoder.iou_token.weight, mask_decoder.mask_tokens.weight]
    output_tokens = torch.cat(own_tokens if extra_tokens is None else [*own_tokens, extra_tokens])
    outputs = output_tokens.expand(len(sparse), -1, -1)
    seen = None
    if fine is not None and fine.seen is not None:
        seen = mask_decoder.seen_at_place(fine.seen)[:, None]
        outputs = outputs + seen
    prompts = torch.cat([outputs, sparse], dim=1)

    # Run the transformer
    answers = 1 + masks.stop if extra_tokens is None else len(output_tokens)
    tokens, cells = run_two_way(mask_decoder.transformer, images, code, prompts, counts, answers=answers)
    if seen is not None:
        tokens = tokens + seen

    def of_masks(hypernetworks: nn.ModuleList, dim: int) -> Tensor:
        return torch.stack([hypernetworks[mask](tokens[:, 1 + mask]) for mask in masks], dim=dim)

    # Upscale mask embeddings and predict masks using the mask tokens
    kernels = of_masks(mask_decoder.output_hypernetworks_mlps, dim=2)
    logits, upscaled = _draw(mask_decoder, cells, kernels, grid, return_upscaled)
    if fine is not None:
        kernels = of_masks(mask_decoder.fine_hypernetworks_mlps, dim=1)
        logits = add_outlines(logits, kernels, fine, counts)
        if fine.places is not None:
            hills = of_masks(mask_decoder.place_hypernetworks_mlps, dim=1)
            logits = add_hills(logits, hills, fine.places)

    # Predict mask quality
    iou = mask_decoder.iou_prediction_head(tokens[:, 0])[:, masks.start : masks.stop]
    extra = None if extra_tokens is None else tokens[:, 1 + mask_decoder.num_mask_tokens :]
    return DecodedMasks(logits, iou, upscaled, extra)


def _draw(
    mask_decoder: MaskDecoder, cells: Tensor, kernels: Tensor, grid: tuple[int, int], return_upscaled: bool
) -> tuple[Tensor, Tensor | None]:
    """Up-scale cells ``(N, P, C)`` and multiply them with the masks' kernels ``(N, C / 8, M)``.

    On a CPU a few prompts at a time, so that the upscaled features, the largest tensors of all, stay in the
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
    return as_cells(embedding.repeat_interleave(repeats, 0, output_size=len(dense)) + dense)


def as_computed(maps: Tensor) -> Tensor:
    """Return maps in the type that autocast multiplies in, so that they are not cast for every product."""
    kind = maps.device.type
    if maps.is_meta:  # has no autocast
        return maps
    return maps.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else maps


def as_cells(maps: Tensor) -> Tensor:
    """Reshape maps ``(B, C, h, w)`` to contiguous ``(B, h * w, C)``."""
    return maps.flatten(2).mT.contiguous()


_SHARPNESS = 3.0
"""Factor on the weights of queries and keys: the attention between a point and the cells around it stands out."""

_LOUDNESS = 6.0
"""Factor on what a cell takes over from the tokens, which would else be lost beside its own features."""


@torch.no_grad()
def start_localised(decoder: MaskDecoder) -> None:
    """Let prompt tokens and image cells attend to each other by their distance, before any training.

    Tokens and cells carry the same code of their positions, but independent random projections of queries and keys
    hide how similar two codes are, and a decoder trained from scratch answers with empty masks for a long time
    until it has found out. With the same projection for both, a point and the cells near it agree from the start.
    Only for weights that are drawn at random: pretrained ones know better.

    Args:
        decoder: changed in place; names and shapes of its weights stay.

    Example:
        >>> from nucsam_monai.networks.sam import build_sam
        >>> start_localised(build_sam("vit_tiny", 256).mask_decoder)
    """
    for layer in decoder.transformer.layers:
        for attention in (layer.cross_attn_token_to_image, layer.cross_attn_image_to_token):
            attention.q_proj.weight.mul_(_SHARPNESS)
            attention.k_proj.load_state_dict(attention.q_proj.state_dict())
        layer.cross_attn_image_to_token.out_proj.weight.mul_(_LOUDNESS)
    last = decoder.transformer.final_attn_token_to_image
    last.k_proj.load_state_dict(last.q_proj.state_dict())
