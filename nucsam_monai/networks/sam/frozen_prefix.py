"""How much of an image encoder is frozen, counted from its input, and what identifies that part."""

import hashlib
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd

from nucsam_monai.networks.sam.adapter import BlockAdapter
from nucsam_monai.networks.sam.image_encoder import ImageEncoder
from nucsam_monai.networks.sam.tensor_files import digest_of_tensors

Adapters = Sequence[BlockAdapter] | nn.ModuleList | None


class FrozenPrefix(NamedTuple):
    """The leading part of an encoder that gives the same numbers for the same image at every step.

    Attributes:
        blocks: leading frozen blocks, which is also the 0-based index of the first trained one.
        neck: whether the neck is frozen as well, and with it everything.
    """

    blocks: int
    neck: bool


def frozen_prefix(encoder: ImageEncoder, adapters: Adapters = None) -> FrozenPrefix:
    """Return what is frozen in front of the first trained part; see :func:`first_trained_block`."""
    blocks = first_trained_block(encoder, adapters)
    return FrozenPrefix(blocks, neck=blocks == encoder.variant.depth and _is_fixed(encoder.neck))


def first_trained_block(encoder: ImageEncoder, adapters: Adapters = None) -> int:
    """Return the index of the first block whose output can change from one training step to the next.

    A block counts as frozen where neither it nor its adapter has a parameter that requires a gradient or a
    layer that acts differently in training (dropout, statistics of batch normalisation) and is in training
    mode. Such layers are known by their type; an adapter has to hold its randomness in them.

    Args:
        encoder: the encoder.
        adapters: what is passed to its ``forward``.

    Returns:
        0 where the patch embedding, the positions or the first block are trained; the encoder's depth where
        no block is.

    Raises:
        ConfigurationError: the number of adapters is not the depth.

    Example:
        >>> from nucsam_monai.networks.sam.variants import sam_variant
        >>> encoder = ImageEncoder(sam_variant("vit_tiny")).requires_grad_(False)
        >>> _ = encoder.blocks[2].requires_grad_(True)
        >>> first_trained_block(encoder)
        2
    """
    pairs = list(zip(encoder.blocks, encoder.one_per_block(adapters), strict=True))
    if encoder.pos_embed.requires_grad or not _is_fixed(encoder.patch_embed):
        return 0
    for index, (block, adapter) in enumerate(pairs):
        if not (_is_fixed(block) and _is_fixed(adapter)):
            return index
    return len(pairs)


class PrefixDigests:
    """Digests of frozen prefixes, computed again only where a tensor has changed since the last time.

    A change is seen by the tensor's identity, address and version, which every operation in place counts,
    optimizers and ``load_state_dict`` among them. Writing through ``.data`` goes unnoticed.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], tuple[list[weakref.ref[Tensor]], str]] = {}

    def __reduce__(self) -> tuple[Any, ...]:  # addresses mean nothing in a copy or another process
        return (PrefixDigests, ())

    def digest(self, encoder: ImageEncoder, prefix: FrozenPrefix, adapters: Adapters = None) -> str:
        """Return the SHA-256 over the weights of ``prefix`` and over the options that change its output."""
        active = [
            (f"adapters.{index}", adapter)
            for index, adapter in zip(range(prefix.blocks), encoder.one_per_block(adapters), strict=False)
            if type(adapter) is not BlockAdapter
        ]
        options = [repr(encoder.variant), encoder.pos_embed_mode, repr(prefix)]
        options += [line for name, adapter in active for line in _describe(name, adapter)]
        tensors = dict(_tensors_of_encoder(encoder, prefix))
        for name, adapter in active:
            tensors.update(adapter.named_parameters(prefix=name))
            tensors.update(adapter.named_buffers(prefix=name))

        state = tuple((id(tensor), tensor.data_ptr(), _version(tensor)) for tensor in tensors.values())
        key = (*options, state)
        found = self._known.get(key)
        if found and all(ref() is tensor for ref, tensor in zip(found[0], tensors.values(), strict=True)):
            return found[1]
        digest = hashlib.sha256("\n".join([*options, digest_of_tensors(tensors)]).encode()).hexdigest()
        self._forget_dead()
        self._known[key] = ([weakref.ref(tensor) for tensor in tensors.values()], digest)
        return digest

    def _forget_dead(self) -> None:
        """Keep only what belongs to tensors that are still there and unchanged."""
        self._known = {
            key: (refs, digest)
            for key, (refs, digest) in self._known.items()
            if all(
                (tensor := ref()) is not None and (tensor.data_ptr(), _version(tensor)) == seen[1:]
                for ref, seen in zip(refs, key[-1], strict=True)
            )
        }


def _is_fixed(module: nn.Module) -> bool:
    """Whether a module gives the same output for the same image at every step."""
    return not any(parameter.requires_grad for parameter in module.parameters()) and not any(
        _varies(part) for part in module.modules()
    )


def _varies(layer: nn.Module) -> bool:
    """Whether a layer draws random numbers, or mixes or remembers the images of a batch."""
    if isinstance(layer, _BatchNorm):  # without running statistics it uses the batch's own, always
        return layer.training or layer.running_mean is None
    if isinstance(layer, _NormBase):  # instance normalisation
        return layer.training and layer.track_running_stats
    return layer.training and isinstance(layer, _DropoutNd | nn.RReLU | nn.MultiheadAttention)


def _tensors_of_encoder(encoder: ImageEncoder, prefix: FrozenPrefix) -> Iterator[tuple[str, Tensor]]:
    yield "pos_embed", encoder.pos_embed
    parts: list[tuple[str, nn.Module]] = [("patch_embed", encoder.patch_embed)]
    parts += [(f"blocks.{index}", encoder.blocks[index]) for index in range(prefix.blocks)]
    if prefix.neck:
        parts.append(("neck", encoder.neck))
    for name, part in parts:
        yield from part.named_parameters(prefix=name)


def _describe(name: str, module: nn.Module) -> Iterator[str]:
    """Name the classes inside an adapter and their options, such as a scale, that no tensor holds."""
    for path, part in module.named_modules(prefix=name):
        options = {
            key: value
            for key, value in sorted(vars(part).items())
            if not key.startswith("_")
            and key != "training"
            and isinstance(value, bool | int | float | str | tuple)
        }
        yield f"{path} {type(part).__module__}.{type(part).__qualname__} {options}"


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
