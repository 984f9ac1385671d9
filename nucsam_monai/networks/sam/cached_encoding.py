"""Encoding with a cache: the frozen blocks run for new images only, the trained ones for all."""

import torch
from torch import Tensor

from nucsam_monai.networks.sam.embedding_cache import EmbeddingCache
from nucsam_monai.networks.sam.features import EncoderFeatures
from nucsam_monai.networks.sam.frozen_prefix import Adapters, FrozenPrefix, frozen_prefix
from nucsam_monai.networks.sam.image_encoder import ImageEncoder
from nucsam_monai.networks.sam.tensor_files import digest_of_tensors


def encode_cached(
    encoder: ImageEncoder,
    image: Tensor,
    cache: EmbeddingCache | None,
    *,
    adapters: Adapters = None,
    return_levels: bool = False,
) -> EncoderFeatures:
    """Encode normalised images like ``encoder`` itself, taking from ``cache`` what its frozen part returns.

    How far the frozen part reaches is looked up at every call: where training unfreezes a block between two
    calls, the cache reaches up to that block from then on, and says so in the log. Gradients flow in the
    trained rest. The cache is passed by where nothing can be gained or kept: the first block is trained, the
    image itself needs a gradient, the encoder has a trunk, whose maps are needed beside the blocks' outputs, or
    the network is being traced or exported.

    Args:
        encoder: the encoder.
        image: ``(B, 3, H, W)``, as for :meth:`ImageEncoder.forward`; known and new images may mix.
        cache: None encodes without a cache.
        adapters: one per block. Those of frozen blocks must treat each image of a batch for itself.
        return_levels: also return the outputs of ``variant.feature_blocks``.

    Raises:
        ConfigurationError: as :meth:`ImageEncoder.forward`.

    Example:
        >>> from nucsam_monai.networks.sam.variants import sam_variant
        >>> encoder = ImageEncoder(sam_variant("vit_tiny")).requires_grad_(False)
        >>> cache = EmbeddingCache(None, max_memory_bytes=10**8)
        >>> for _ in range(2):
        ...     features = encode_cached(encoder, torch.zeros(1, 3, 64, 64), cache)
        >>> cache.hits, cache.misses
        (1, 1)
    """
    exported = torch.jit.is_tracing() or torch.compiler.is_exporting()  # type: ignore[attr-defined]
    if cache is None or exported or image.requires_grad or encoder.trunk is not None:
        return encoder(image, adapters=adapters, return_levels=return_levels)
    prefix = _reach(encoder, cache, adapters)
    if prefix.blocks == 0:
        return encoder(image, adapters=adapters, return_levels=return_levels)

    wanted = encoder.output_blocks(return_levels)
    outputs = _frozen_outputs(encoder, image, cache, prefix, adapters, wanted)
    if prefix.neck:
        return encoder.features(outputs, return_levels)
    tokens = outputs[prefix.blocks - 1]
    outputs |= encoder.run_blocks(tokens, prefix.blocks, adapters=adapters, keep=wanted)
    return encoder.features({block: encoder.apply_neck(outputs[block]) for block in wanted}, return_levels)


@torch.compiler.disable
def _reach(encoder: ImageEncoder, cache: EmbeddingCache, adapters: Adapters) -> FrozenPrefix:
    prefix = frozen_prefix(encoder, adapters)
    cache.announce(prefix, encoder.variant.name)
    return prefix


@torch.compiler.disable
@torch.no_grad()
def _frozen_outputs(
    encoder: ImageEncoder,
    image: Tensor,
    cache: EmbeddingCache,
    prefix: FrozenPrefix,
    adapters: Adapters,
    wanted: tuple[int, ...],
) -> dict[int, Tensor]:
    """Return outputs of frozen blocks by block: necked where the neck is frozen, else tokens.

    They are those of the ``wanted`` blocks inside the prefix and of its last block.
    """
    image = image.as_subclass(torch.Tensor)  # without metadata of a transform
    keep = tuple(sorted({block for block in wanted if block < prefix.blocks} | {prefix.blocks - 1}))
    precision = _precision(image.device.type)
    described = (cache.digests.digest(encoder, prefix, adapters), precision, str(keep))
    pixels = image.cpu()
    keys = [cache.key(digest_of_tensors({"image": single}), *described) for single in pixels]
    place = {key: index for index, key in reversed(list(enumerate(keys)))}  # of the first of equal images
    found = {key: entry for key in place if (entry := cache.get(key)) is not None}
    new = [key for key in place if key not in found]
    if new:
        tokens = encoder.embed(image[[place[key] for key in new]])
        outputs = encoder.run_blocks(tokens, 0, prefix.blocks, adapters=adapters, keep=keep)
        if prefix.neck:
            outputs = {block: encoder.apply_neck(tokens) for block, tokens in outputs.items()}
        about = {"sam_variant": encoder.variant.name, "precision": precision, "prefix": str(tuple(prefix))}
        for row, key in enumerate(new):
            found[key] = cache.put(
                key, {_name(block): output[row] for block, output in outputs.items()}, about
            )
    return {block: torch.stack([found[key][_name(block)] for key in keys]).to(image.device) for block in keep}


def _precision(device_type: str) -> str:
    """Name the type that autocast computes in; without autocast, weights and image say it themselves."""
    if not torch.is_autocast_enabled(device_type):
        return "as given"
    return f"autocast {torch.get_autocast_dtype(device_type)}"


def _name(block: int) -> str:
    return f"block_{block:02d}"
