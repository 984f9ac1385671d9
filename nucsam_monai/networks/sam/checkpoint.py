"""SAM weights, official ones or our own, into the parts of a SAM: strictly and without unpickling."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
from torch import Tensor, nn

import nucsam_monai
from nucsam_monai.networks.sam.tensor_files import (
    digest_of_tensors,
    open_safetensors,
    read_tensors,
    require_same_tensors,
)
from nucsam_monai.networks.sam.variants import SAM_VARIANTS, SAMVariant
from nucsam_monai.utils.errors import CheckpointError
from nucsam_monai.utils.files import atomic_path

logger = logging.getLogger(__name__)

SAM_FORMAT = "nucsam_monai.sam.1"

_Signature = tuple[int, int, int, int, int]


class SAMWeights(NamedTuple):
    """The state dicts of SAM's parts, float32 on the CPU."""

    image_encoder: dict[str, Tensor]
    prompt_encoder: dict[str, Tensor]
    mask_decoder: dict[str, Tensor]


def load_official_checkpoint(path: Path | str, variant: SAMVariant) -> SAMWeights:
    """Read a checkpoint in the layout of the official ones and make sure that it is of ``variant``.

    Args:
        path: ``.safetensors``, for example of :func:`save_sam`, or any other suffix for a file written by
            ``torch.save``.
        variant: what the weights are meant for. What they are is read from the shapes of the tensors.

    Raises:
        CheckpointError: the file is missing, damaged, holds anything but tensors, or is of another variant.
    """
    path = Path(path)
    state = read_tensors(path)
    if path.suffix == ".safetensors":
        _check_header(path, state, variant)
    found, asked = _signature_of_state(path, state), _signature_of_variant(variant)
    if found != asked:
        known = [known.name for known in SAM_VARIANTS.values() if _signature_of_variant(known) == found]
        described = (
            f"'{known[0]}'" if known else f"unknown to this package (depth {found[0]}, width {found[1]})"
        )
        wanted = f" ({variant.checkpoint_file})" if variant.checkpoint_file else ""
        raise CheckpointError(
            f"{path}: the weights are of SAM variant {described}, but '{variant.name}' was asked for. "
            f"Change the variant or give the weights of '{variant.name}'{wanted}."
        )
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in SAMWeights._fields}
    for key, tensor in state.items():
        part, _, name = key.partition(".")
        if part not in parts:
            raise CheckpointError(
                f"{path}: found tensor '{key}', expected only {', '.join(parts)}. This is not a plain SAM."
            )
        parts[part][name] = tensor.float()
    return SAMWeights(**parts)


def save_sam(
    path: Path | str,
    state: Mapping[str, Tensor],
    variant: SAMVariant,
    image_size: int,
    facts: Mapping[str, str] | None = None,
) -> None:
    """Write a whole SAM to one safetensors file in the layout of the official ones, completely or not at all.

    The file is a ``sam_checkpoint`` like any other. Its header names variant and image size, and the SHA-256
    of the tensors, by which a damaged file is noticed when it is loaded.

    Args:
        path: the file; its name ends with ``.safetensors``.
        state: ``SAM.state_dict()``.
        variant: of this SAM.
        image_size: side in pixels of the images that it was trained on.
        facts: what else the header says, for example of the training.

    Raises:
        CheckpointError: the tensors are not those of a SAM of this variant.

    Example:
        >>> from nucsam_monai.networks.sam import build_sam
        >>> sam = build_sam("vit_tiny", 256)
        >>> save_sam("sam.safetensors", sam.state_dict(), sam.variant, 256)  # doctest: +SKIP
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: expected a name that ends with .safetensors.")
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    if _signature_of_state(path, tensors) != _signature_of_variant(variant):
        raise CheckpointError(f"{path}: the tensors to be written are not of SAM variant '{variant.name}'.")
    header = {
        **(facts or {}),
        "format": SAM_FORMAT,
        "sam_variant": variant.name,
        "image_size": str(image_size),
        "tensors_sha256": digest_of_tensors(tensors),
        "nucsam_monai_version": nucsam_monai.__version__,
    }
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata=header)
    logger.info("%s: saved a SAM of variant '%s', %d tensors.", path, variant.name, len(tensors))


def load_strictly(module: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load a state dict that must fit ``module`` tensor by tensor; a module on the meta device takes it over.

    Args:
        module: what is loaded into.
        state: every parameter and buffer of the module, by name.
        source: where the tensors come from, for messages.

    Raises:
        CheckpointError: a tensor is missing, unexpected or of another shape. Nothing is loaded then.
    """
    expected = module.state_dict()
    require_same_tensors(
        {name: tensor.shape for name, tensor in expected.items()},
        {name: tensor.shape for name, tensor in state.items()},
        source,
    )
    module.load_state_dict(state, assign=any(tensor.is_meta for tensor in expected.values()))
    logger.info("%s: loaded %d tensors into %s.", source, len(state), type(module).__name__)


def _check_header(path: Path, state: dict[str, Tensor], variant: SAMVariant) -> None:
    """Check what a file of this package says of itself; files of others say nothing."""
    with open_safetensors(path) as file:
        header = file.metadata() or {}
    if header.get("format", "").startswith("nucsam_monai.trained"):
        raise CheckpointError(
            f"{path}: holds what was trained of '{header.get('method')}', not a whole SAM. Give the official "
            "weights or the sam.safetensors of a pretraining; as 'checkpoint' the file serves its own method."
        )
    if header.get("format") != SAM_FORMAT:
        return
    if header.get("tensors_sha256") != digest_of_tensors(state):
        raise CheckpointError(f"{path}: damaged, its tensors are not what was written. Get it again.")
    if header.get("sam_variant") != variant.name:
        raise CheckpointError(
            f"{path}: the weights are of SAM variant '{header.get('sam_variant')}', but '{variant.name}' was "
            "asked for. Change the variant or give other weights."
        )
    logger.info("%s: a SAM pretrained on images of %s px.", path, header.get("image_size"))


def _signature_of_variant(variant: SAMVariant) -> _Signature:
    return (variant.depth, variant.width, variant.head_width, variant.pos_grid, variant.embed_channels)


def _signature_of_state(path: Path, state: dict[str, Tensor]) -> _Signature:
    """Read the same five numbers from the shapes of the tensors."""
    prefix = "image_encoder."
    blocks = {key.split(".")[2] for key in state if key.startswith(f"{prefix}blocks.")}
    try:
        _, pos_grid, _, width = state[f"{prefix}pos_embed"].shape
        head_width = state[f"{prefix}blocks.0.attn.rel_pos_h"].shape[-1]
        embed_channels = state[f"{prefix}neck.0.weight"].shape[0]
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"{path}: not a SAM checkpoint: the image encoder's position tables or neck are not in it."
        ) from error
    return (len(blocks), width, head_width, pos_grid, embed_channels)
