"""Augmentation whose results come again, so that what was computed from them can be kept."""

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from monai.transforms import Compose, Randomizable, Transform

from nucsam_monai.utils.errors import ConfigurationError

_ENDLESS = 1 << 31


class AugmentedCopiesd(Randomizable, Transform):
    """Give one of a fixed number of augmented copies of an item, chosen anew each time.

    Copy k of an item is the same in every epoch, process and run, to the last bit. So a frozen encoder sees it
    once only: :class:`~nucsam_monai.networks.sam.EmbeddingCache` finds it again. Random transforms after this
    one would undo that. eU-Net3+ makes 50 copies of an image, 100 for CryoNuSeg.

    Args:
        transforms: dictionary transforms that take all their randomness from MONAI's ``set_random_state``.
        copies: of each item; None draws from so many that none comes again.
        id_key: what tells the items apart.
        seed: another seed makes other copies.

    Raises:
        ConfigurationError: fewer than one copy.

    Example:
        >>> import torch
        >>> from monai.transforms import RandGaussianNoised
        >>> copies = AugmentedCopiesd([RandGaussianNoised("image", prob=1.0)], copies=3)
        >>> item = {"id": "a", "image": torch.zeros(1, 2, 2)}
        >>> len({float(copies(item)["image"].sum()) for _ in range(50)})
        3
    """

    def __init__(
        self,
        transforms: Sequence[Callable],
        copies: int | None = 50,
        id_key: str = "id",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if copies is not None and copies < 1:
            raise ConfigurationError(f"augmented copies {copies}: expected 1 or more, or None.")
        self.augmentation = Compose(transforms)
        self.copies = copies
        self.id_key = id_key
        self.seed = seed

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the chosen copy of the item; the item itself is left as it is."""
        return self.copy_of(data, int(self.R.randint(self.copies or _ENDLESS)))

    def copy_of(self, data: Mapping[Hashable, Any], copy: int) -> dict[Hashable, Any]:
        """Return copy number ``copy`` of the item, from 0 on."""
        name = f"{self.seed}\0{data[self.id_key]}\0{copy}".encode()
        seed = int.from_bytes(hashlib.sha256(name).digest()[:4], "big")
        self.augmentation.set_random_state(seed=seed)
        return self.augmentation(dict(data))
