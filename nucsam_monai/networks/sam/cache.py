"""Cache what the frozen part of an image encoder returns, image by image."""

import hashlib
import json
import logging
import os
import re
import tempfile
import time
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd

from nucsam_monai.networks.sam.encoder import BlockAdapter, EncoderFeatures, ImageEncoder
from nucsam_monai.networks.sam.weights import bytes_of_tensor, digest_of_tensors
from nucsam_monai.utils.errors import CheckpointError, ConfigurationError
from nucsam_monai.utils.files import atomic_path

logger = logging.getLogger(__name__)


_OURS = re.compile(r"(\.)?[0-9a-f]{64}(-.+)?\.safetensors")
_ABANDONED_AFTER_S = 3600.0
_KEPT_SHARE = 0.9  # of the limit, when files are removed: most new files then need no look at the others
_LOOK_AGAIN_SHARE = 1 / 32  # of the limit: other processes write too


class Entry(NamedTuple):
    """Hold the cached tensors of one image.

    Attributes:
        tensors: contiguous tensors on the CPU, by name.
        header: description of the tensors, stored as it is.
    """

    tensors: dict[str, Tensor]
    header: dict[str, str]

    @property
    def bytes(self) -> int:
        """Size of the tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


class MemoryStore:
    """Keep the most recently used entries that fit into memory; a copy, also in another process, starts empty.

    Args:
        max_bytes: the limit; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._bytes = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return (MemoryStore, (self.max_bytes,))

    def get(self, key: str) -> Entry | None:
        """Return the entry, which becomes the one used last, or None."""
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def put(self, key: str, entry: Entry) -> None:
        """Keep an entry and drop those that were not used for longest."""
        if entry.bytes > self.max_bytes:
            return
        replaced = self._entries.pop(key, None)
        self._bytes += entry.bytes - (replaced.bytes if replaced else 0)
        self._entries[key] = entry
        while self._bytes > self.max_bytes:
            _, dropped = self._entries.popitem(last=False)
            self._bytes -= dropped.bytes


class FileStore:
    """Keep one safetensors file per entry, in subfolders named by the first two digits of the key.

    Any number of processes may read and write the same folder: files appear complete or not at all, and of
    two writers of one key the last wins. A damaged file counts as missing and is removed. When the folder
    has reached its limit, the files not read for longest are removed; with several writers it may pass the
    limit by one part in 32 for each. A write that fails later, such as on a full disk, is logged once and
    ends writing, not the training.

    Args:
        folder: folder of the store, created if missing. Other files in it are left alone.
        max_bytes: limit of all files together.

    Raises:
        ConfigurationError: the folder cannot be made or written.
    """

    def __init__(self, folder: Path | str, max_bytes: int) -> None:
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        self._writable = True
        self._total: int | None = None  # bytes in the folder; None asks for a look
        self._written = 0  # bytes written here since the last look
        self._was_full = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()
        except OSError as error:
            raise ConfigurationError(
                f"{self.folder}: the embedding cache cannot be written there ({error.strerror or error}). Give "
                "a folder that you may write, or null to work without a cache."
            ) from error

    def get(self, key: str) -> Entry | None:
        """Return the entry, which becomes the one used last, or None."""
        path = self._path(key)
        try:
            os.utime(path)
            return _read(path, key)
        except FileNotFoundError:
            return None
        except CheckpointError as error:
            if path.exists():  # else another process has just removed it
                logger.warning("%s Removed from the embedding cache; it is computed again.", error)
                self._remove(path)
        except OSError as error:
            logger.warning("%s: cannot be read (%s); it is computed again.", path, error)
        return None

    def put(self, key: str, entry: Entry) -> None:
        """Write an entry and make room for it first."""
        if not self._writable or entry.bytes > self.max_bytes:
            return
        header = {**entry.header, "key": key}
        header["crc32"] = _checksum(Entry(entry.tensors, header))
        try:
            self._make_room(entry.bytes)
            with atomic_path(self._path(key)) as temporary:
                safetensors.torch.save_file(entry.tensors, temporary, metadata=header)
        except (OSError, safetensors.SafetensorError) as error:
            self._writable = False
            logger.warning("%s: writing to the embedding cache ends here (%s).", self.folder, error)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def _make_room(self, size: int) -> None:
        """Remove files until ``size`` more bytes fit."""
        full = self._total is None or self._total + size > self.max_bytes
        if full or self._written > self.max_bytes * _LOOK_AGAIN_SHARE:
            files = sorted(self._look())
            self._total, self._written = sum(length for _, length, _ in files), 0
            if self._total + size > self.max_bytes:
                self._warn_of_full()
                for _, length, path in files:
                    if self._total + size <= self.max_bytes * _KEPT_SHARE:
                        break
                    self._remove(path)
                    self._total -= length
        self._total = (self._total or 0) + size
        self._written += size

    def _warn_of_full(self) -> None:
        if not self._was_full:
            self._was_full = True
            logger.warning(
                "%s: the embedding cache is full with %.1f GB, so embeddings that were not used for longest are "
                "computed again. Raise embedding_cache_gb if all images are to fit.",
                self.folder,
                self.max_bytes / 1e9,
            )

    def _look(self) -> Iterator[tuple[int, int, Path]]:
        """Yield when each file was used last (ns), its bytes and its path; tidy up after killed writers."""
        for path in self.folder.glob("[0-9a-f][0-9a-f]/*"):
            if not (match := _OURS.fullmatch(path.name)):
                continue
            with suppress(FileNotFoundError):
                status = path.stat()
                if not match[1]:
                    yield status.st_mtime_ns, status.st_size, path
                elif time.time() - status.st_mtime > _ABANDONED_AFTER_S:
                    self._remove(path)

    @staticmethod
    def _remove(path: Path) -> None:
        # A process that is reading the file keeps it until it is done, by the rules of POSIX; Windows refuses.
        with suppress(PermissionError):
            path.unlink(missing_ok=True)


def _read(path: Path, key: str) -> Entry:
    """Read and check one file; a file that is not what was written raises CheckpointError."""
    # Read at once: safetensors opens a file twice, and another process may replace it in between.
    data = path.read_bytes()
    try:
        tensors = safetensors.torch.load(data)
        header = dict(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {}))
    except (safetensors.SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged safetensors file ({error}).") from error
    checksum = header.pop("crc32", None)
    entry = Entry(tensors, header)
    if header.get("key") != key or checksum != _checksum(entry):
        raise CheckpointError(f"{path}: damaged, its content is not what was written.")
    return entry


def _checksum(entry: Entry) -> str:
    value = zlib.crc32(repr(sorted(entry.header.items())).encode())
    for name in sorted(entry.tensors):
        value = zlib.crc32(bytes_of_tensor(entry.tensors[name]), zlib.crc32(name.encode(), value))
    return f"{value:08x}"


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
    """Return the frozen part in front of the first trained one; see :func:`first_trained_block`."""
    blocks = first_trained_block(encoder, adapters)
    return FrozenPrefix(blocks, neck=blocks == encoder.variant.depth and _is_fixed(encoder.neck))


def first_trained_block(encoder: ImageEncoder, adapters: Adapters = None) -> int:
    """Return the index of the first block whose output can change from one training step to the next.

    A block counts as frozen where neither it nor its adapter has a parameter that requires a gradient or a
    layer that acts differently in training (dropout, statistics of batch normalisation) and is in training
    mode. Such layers are known by their type; an adapter has to hold its randomness in them.

    Args:
        encoder: the encoder.
        adapters: adapters that are passed to its ``forward``.

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


FORMAT = "nucsam_monai.embedding.1"
Storage = Literal["fp32", "fp16", "bf16"]

_STORED = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_COMPUTED = {str(dtype): dtype for dtype in (torch.float64, *_STORED.values())}


class EmbeddingCache:
    """Cache the output of the frozen part of an image encoder for each image, addressed by content.

    An entry's key is a digest of the frozen weights, the prepared image, the precision, the depth of the
    frozen part and the format; what changed is therefore simply not found. Only the device is left out: its
    rounding is all that differs. :func:`~nucsam_monai.networks.sam.cache.encode_cached` uses it.

    It pays where the encoder meets the same pixels again: fixed tiles, validation, repeated inference, and
    methods whose encoder sees the image before augmentation. Random crops or colours never hit. Entries of
    the half types are rounded when they are computed, so that the first epoch sees the later ones' numbers.

    Per image of 256 px in a half type, ViT-B takes 0.13 MB where everything is frozen and 0.39 MB up to a
    block; four times that with levels, and at 1024 px sixteen times that.

    Args:
        folder: folder of the files, see :class:`~nucsam_monai.networks.sam.cache.FileStore`. None
            keeps entries in memory only.
        max_bytes: limit of the folder.
        max_memory_bytes: limit in the memory of each process; 0 keeps nothing there.
        storage: type of stored numbers; never wider than the computed ones.
        transform_key: anything else that an entry depends on, for example a version of the transforms.
            The prepared image is part of the key in any case.

    Attributes:
        hits: images found.
        misses: images not found.
        entry_bytes: size of what was kept last; 0 before.

    Raises:
        ConfigurationError: unknown storage, a limit that is not positive, neither folder nor memory, or a
            folder that cannot be written.

    Example:
        >>> cache = EmbeddingCache(None, max_memory_bytes=10**8)
        >>> cache.hits, cache.misses
        (0, 0)
    """

    def __init__(
        self,
        folder: Path | str | None,
        *,
        max_bytes: int = 10 * 10**9,
        max_memory_bytes: int = 0,
        storage: Storage = "fp16",
        transform_key: str = "",
    ) -> None:
        if storage not in get_args(Storage):
            raise ConfigurationError(
                f"embedding cache: storage {storage!r} is none of: {', '.join(get_args(Storage))}."
            )
        if max_bytes <= 0 or max_memory_bytes < 0 or (folder is None and max_memory_bytes == 0):
            raise ConfigurationError(
                f"embedding cache: found folder {folder}, max_bytes {max_bytes} and max_memory_bytes "
                f"{max_memory_bytes}; expected a folder with a limit above 0, memory, or both."
            )
        self.storage = storage
        self.transform_key = transform_key
        self.max_bytes = max_bytes
        self.hits = 0
        self.misses = 0
        self.entry_bytes = 0
        self.digests = PrefixDigests()
        self._files = None if folder is None else FileStore(folder, max_bytes)
        self._memory = MemoryStore(max_memory_bytes)
        self._prefix: FrozenPrefix | None = None
        self._warned_of_overflow = False

    def key(self, image_digest: str, *described: str) -> str:
        """Return the key of an image for an encoder that ``described`` identifies."""
        parts = [FORMAT, self.storage, self.transform_key, image_digest, *described]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def get(self, key: str) -> dict[str, Tensor] | None:
        """Return the tensors of an image in the type in which they were computed, on the CPU; or None."""
        entry = self._memory.get(key)
        if entry is None and self._files is not None:
            entry = self._files.get(key)
            if entry is not None:
                self._memory.put(key, entry)
        if entry is None:
            self.misses += 1
            return None
        self.hits += 1
        return _restore(entry)

    def put(
        self, key: str, tensors: Mapping[str, Tensor], description: Mapping[str, str]
    ) -> dict[str, Tensor]:
        """Keep the tensors of an image.

        Args:
            key: key from :meth:`key`.
            tensors: at least one, all of one floating-point type.
            description: for people who read a file's header.

        Returns:
            What :meth:`get` will return from now on: the tensors rounded to the storage type, on the CPU.
            Where a number does not fit that type, the tensors as they are; they are not kept.
        """
        dtypes = {tensor.dtype for tensor in tensors.values()}
        computed = dtypes.pop()
        stored = _STORED[self.storage] if _STORED[self.storage].itemsize < computed.itemsize else computed
        # Cloned: a row of a batch must not keep the batch, nor tie the entry to its device and mode.
        rounded = {
            name: tensor.detach().to("cpu", stored).clone(memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        }
        if not all(tensor.isfinite().all() for tensor in rounded.values()):
            self._warn_of_overflow()
            return {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        entry = Entry(rounded, {**description, "format": FORMAT, "dtype": str(computed)})
        self.entry_bytes = sum(tensor.nbytes for tensor in rounded.values())
        self._memory.put(key, entry)
        if self._files is not None:
            self._files.put(key, entry)
        return _restore(entry)

    def announce(self, prefix: FrozenPrefix, variant: str) -> None:
        """Log how far the cache reaches, at first and whenever parts are frozen or unfrozen."""
        if prefix == self._prefix:
            return
        self._prefix = prefix
        if prefix.blocks == 0:
            logger.warning(
                "embedding cache: not used, as training changes the patch embedding or the first block of %s.",
                variant,
            )
        else:
            reach = "everything" if prefix.neck else f"the first {prefix.blocks} blocks"
            logger.info("embedding cache: holds what %s of the encoder %s returns.", reach, variant)

    def _warn_of_overflow(self) -> None:
        if not self._warned_of_overflow:
            self._warned_of_overflow = True
            logger.warning(
                "embedding cache: some images give numbers that %s cannot hold and are not cached. "
                "Choose storage bf16 or fp32.",
                self.storage,
            )


def build_embedding_cache(
    folder: str | None, size_gb: float = 10.0, memory_gb: float = 0.0, storage: Storage = "fp16"
) -> EmbeddingCache | None:
    """Build the embedding cache of a configuration, or none.

    Args:
        folder: folder of the files; None, together with no memory, disables the cache.
        size_gb: limit of the folder in 10^9 bytes.
        memory_gb: limit in the memory of each process in 10^9 bytes.
        storage: ``fp32``, ``fp16`` or ``bf16``.

    Raises:
        ConfigurationError: as for :class:`EmbeddingCache`.

    Example:
        In a bundle::

            "embedding_cache": null,
            "embedding_cache_gb": 10,
            "cache": {
                "_target_": "nucsam_monai.networks.sam.build_embedding_cache",
                "folder": "@embedding_cache",
                "size_gb": "@embedding_cache_gb"
            }
    """
    if folder is None and memory_gb == 0:
        return None
    return EmbeddingCache(
        folder, max_bytes=int(size_gb * 1e9), max_memory_bytes=int(memory_gb * 1e9), storage=storage
    )


def _restore(entry: Entry) -> dict[str, Tensor]:
    dtype = _COMPUTED[entry.header["dtype"]]
    return {name: tensor.to(dtype) for name, tensor in entry.tensors.items()}


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
    calls, the cache reaches up to that block from then on, which is logged. Gradients flow in the
    trained rest. The cache is bypassed where it cannot help: the first block is trained, the
    image itself needs a gradient, the encoder has a trunk, whose maps are needed in addition to the blocks' outputs, or
    the network is being traced or exported.

    Args:
        encoder: the encoder.
        image: ``(B, 3, H, W)``, as for :meth:`ImageEncoder.forward`; known and new images may mix.
        cache: None encodes without a cache.
        adapters: one per block. Those of frozen blocks must treat each image of a batch for itself.
        return_levels: also return the outputs of ``variant.feature_blocks``.

    Raises:
        ConfigurationError: as for :meth:`ImageEncoder.forward`.

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
    """Name the type that autocast computes in; without autocast it follows from weights and image."""
    if not torch.is_autocast_enabled(device_type):
        return "as given"
    return f"autocast {torch.get_autocast_dtype(device_type)}"


def _name(block: int) -> str:
    return f"block_{block:02d}"
