"""Embeddings of images that a frozen encoder has seen before, kept on disk and in memory."""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from nucsam_monai.networks.sam.embedding_store import Entry, FileStore, MemoryStore
from nucsam_monai.networks.sam.frozen_prefix import FrozenPrefix, PrefixDigests
from nucsam_monai.utils.errors import ConfigurationError

logger = logging.getLogger(__name__)

FORMAT = "nucsam_monai.embedding.1"
Storage = Literal["fp32", "fp16", "bf16"]

_STORED = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_COMPUTED = {str(dtype): dtype for dtype in (torch.float64, *_STORED.values())}


class EmbeddingCache:
    """A content-addressed cache of what the frozen part of an image encoder returns, image by image.

    An entry's key is a digest of the frozen weights, the prepared image, the precision, the depth of the
    frozen part and the format; what changed is therefore simply not found. Only the device is left out: its
    rounding is all that differs. :func:`~nucsam_monai.networks.sam.cached_encoding.encode_cached` uses it.

    It pays where the encoder meets the same pixels again: fixed tiles, validation, repeated inference, and
    methods whose encoder sees the image before augmentation. Random crops or colours never hit. Entries of
    the half types are rounded when they are computed, so that the first epoch sees the later ones' numbers.

    Per image of 256 px in a half type, ViT-B takes 0.13 MB where everything is frozen and 0.39 MB up to a
    block; four times that with levels, and at 1024 px sixteen times that.

    Args:
        folder: where files are kept; see :class:`~nucsam_monai.networks.sam.embedding_store.FileStore`. None
            keeps entries in memory only.
        max_bytes: limit of the folder.
        max_memory_bytes: limit in the memory of each process; 0 keeps nothing there.
        storage: type of stored numbers; never wider than the computed ones.
        transform_key: anything else that an entry shall depend on, for example a version of the transforms.
            The prepared image is part of the key in any case.

    Attributes:
        hits: images found.
        misses: images not found.

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
        self.hits = 0
        self.misses = 0
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
            key: of :meth:`key`.
            tensors: at least one, all of one floating-point type.
            description: what a file's header says for people to read.

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
        self._memory.put(key, entry)
        if self._files is not None:
            self._files.put(key, entry)
        return _restore(entry)

    def announce(self, prefix: FrozenPrefix, variant: str) -> None:
        """Log how far the cache reaches, at first and whenever training has frozen or unfrozen something."""
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
        folder: where files are kept; None, with no memory either, works without a cache.
        size_gb: limit of the folder in 10^9 bytes.
        memory_gb: limit in the memory of each process in 10^9 bytes.
        storage: ``fp32``, ``fp16`` or ``bf16``.

    Raises:
        ConfigurationError: see :class:`EmbeddingCache`.

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
