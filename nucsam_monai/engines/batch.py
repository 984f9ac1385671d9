"""Collate items into batches, and split a batch into inputs and target."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from monai.data import list_data_collate
from monai.engines import PrepareBatch
from torch import Tensor

from nucsam_monai.inferers import DetectedPoints, FindPoints, PointFinder, TilePointFinder
from nucsam_monai.losses.cfrsam import CFRSAMTarget
from nucsam_monai.losses.prompter import PrompterTarget
from nucsam_monai.losses.promptnucseg import EndToEndTarget, NucleusTargets
from nucsam_monai.networks.nucleus_prompts import NucleusPrompts
from nucsam_monai.networks.sam.prompt_encoder import BOX_LABELS
from nucsam_monai.utils.errors import ConfigurationError

Items = Sequence[Mapping[str, Any]]
PreparedBatch = tuple[Tensor, Any, tuple[Any, ...], dict[str, Any]]

PROMPT_KEYS = ("points", "point_labels", "masks", "class_ids")
"""Keys of an item with one row per prompt, as :class:`~nucsam_monai.transforms.NucleusPromptsd` gives them."""

POINT_KEYS = ("points", "point_classes", "point_sizes", "classes")
"""Keys of an item with one entry per nucleus, as :class:`~nucsam_monai.transforms.NucleusCentroidsd` gives them."""


def _collate(items: Items, joined: Sequence[str] = (), listed: Sequence[str] = ()) -> dict[str, Any]:
    """Concatenate the rows of some keys, list the values of others, and stack all else as MONAI does."""
    ragged = {*joined, *listed}
    batch: dict[str, Any] = list_data_collate(
        [{key: value for key, value in item.items() if key not in ragged} for item in items]
    )
    batch |= {key: torch.cat([item[key] for item in items]) for key in joined if key in items[0]}
    batch |= {key: [item[key] for item in items] for key in listed if key in items[0]}
    if joined:
        batch["prompts_per_image"] = torch.tensor([len(item["points"]) for item in items])
    return batch


def collate_nuclei(items: Items) -> dict[str, Any]:
    """Collate items with prompts: the rows of :data:`PROMPT_KEYS` are concatenated.

    Args:
        items: items of one batch with ``points``; the number of prompts may differ and may be 0.

    Returns:
        The batch with ``prompts_per_image`` ``(B,)`` int64 added.

    Example:
        >>> items = [{"points": torch.zeros(n, 1, 2), "id": str(n)} for n in (2, 0)]
        >>> batch = collate_nuclei(items)
        >>> batch["points"].shape, batch["prompts_per_image"], batch["id"]
        (torch.Size([2, 1, 2]), tensor([2, 0]), ['2', '0'])
    """
    return _collate(items, joined=PROMPT_KEYS)


def collate_points(items: Items) -> dict[str, Any]:
    """Collate items with any number of nuclei: the values of :data:`POINT_KEYS` become lists.

    Args:
        items: items of one batch, all with the same keys.

    Example:
        >>> items = [{"image": torch.zeros(3, 8, 8), "points": torch.zeros(n, 2)} for n in (1, 4)]
        >>> [len(points) for points in collate_points(items)["points"]]
        [1, 4]
    """
    return _collate(items, listed=POINT_KEYS)


def collate_end_to_end(items: Items) -> dict[str, Any]:
    """Collate items with prompts as :func:`collate_nuclei` does, and their ``centroids`` and classes as lists.

    Args:
        items: items of one batch; ``centroids`` are the ``points`` of
            :class:`~nucsam_monai.transforms.NucleusCentroidsd`.
    """
    return _collate(items, joined=PROMPT_KEYS, listed=("centroids", "point_classes"))


class _Batch:
    """Hold a batch whose tensors are moved to the device on access.

    Args:
        data: the collated batch.
        device: device of the tensors.
        non_blocking: see ``Tensor.to``.
        cast: further arguments of ``Tensor.to``.
    """

    def __init__(
        self,
        data: Mapping[str, Any],
        device: str | torch.device | None,
        non_blocking: bool,
        cast: Mapping[str, Any],
    ) -> None:
        self.data = data
        self.place = {"device": device, "non_blocking": non_blocking}
        self.cast = dict(cast)

    def __contains__(self, key: str) -> bool:
        return key in self.data

    def moved(self, key: str) -> Tensor:
        """Return a tensor on the device."""
        return self.data[key].to(**self.place)

    def converted(self, key: str) -> Tensor:
        """Return a tensor on the device, converted to a type."""
        return self.data[key].to(**self.place, **self.cast)

    def prompts(self) -> NucleusPrompts:
        """Return the prompts of a batch of :func:`collate_nuclei`; their numbers stay on the CPU."""
        return NucleusPrompts(
            self.moved("points"),
            self.moved("point_labels"),
            self.data["prompts_per_image"],
            has_boxes=bool((self.data["point_labels"] == BOX_LABELS[0]).any()),
        )

    def nuclei(self) -> NucleusTargets:
        """Return the masks, and classes and dense maps if the batch has them."""
        classes, dense = (self.moved(key) if key in self else None for key in ("class_ids", "dense"))
        return NucleusTargets(self.moved("masks"), classes, dense)


class _Prepare(PrepareBatch):
    """Split a batch into the network's image, target, positional arguments and keyword arguments."""

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> PreparedBatch:
        """Return ``(image, target, arguments, named arguments)`` on ``device``.

        Args:
            batchdata: the collated batch.
            device: device of the result.
            non_blocking: see ``Tensor.to``.
            kwargs: keyword arguments of ``Tensor.to`` for the image.
        """
        batch = _Batch(batchdata, device, non_blocking, kwargs)
        return (batch.converted("image"), self.target(batch), self.positional(batch), self.named(batch))

    @abstractmethod
    def target(self, batch: _Batch) -> Any:
        """Return the target of the loss."""

    def positional(self, batch: _Batch) -> tuple[Any, ...]:
        """Return the positional arguments of the network after the image."""
        return ()

    def named(self, batch: _Batch) -> dict[str, Any]:
        """Return the keyword arguments of the network."""
        return {}


class PreparePointsBatch(_Prepare):
    """Pass ``image``, ``label`` if there is one, and the user's points if there are any.

    The named argument is ``points``: coordinates and labels, the batch's ``points`` and ``point_labels``.
    """

    def target(self, batch: _Batch) -> Tensor | None:
        """Return the label."""
        return batch.converted("label") if "label" in batch else None

    def named(self, batch: _Batch) -> dict[str, Any]:
        """Return ``points``."""
        if "points" not in batch:
            return {}
        return {"points": (batch.converted("points"), batch.converted("point_labels"))}


class PrepareDomainBatch(PreparePointsBatch):
    """Also pass the batch's domain as the keyword argument ``domain``."""

    def named(self, batch: _Batch) -> dict[str, Any]:
        """Return ``domain`` and ``points``.

        Raises:
            ConfigurationError: the batch mixes domains.
        """
        named = super().named(batch)
        if "domain" in batch:
            domains = set(batch.data["domain"])
            if len(domains) > 1:
                raise ConfigurationError(f"batch: expected images of one domain, found {sorted(domains)}.")
            named["domain"] = domains.pop()
        return named


class PrepareTruthBatch(PreparePointsBatch):
    """Also pass the label's first channel as ``truth``; for training only.

    A network whose own prompts are poor at first can take them from there in a warm-up (SAC, generator).
    """

    def named(self, batch: _Batch) -> dict[str, Any]:
        """Return ``truth`` and ``points``."""
        return {**super().named(batch), "truth": batch.converted("label")[:, :1]}


class PrepareNucleusBatch(_Prepare):
    """Pass a batch of :func:`collate_nuclei`: image, ground truth of its nuclei, and ``prompts``."""

    def target(self, batch: _Batch) -> Any:
        """Return the masks of the prompted nuclei."""
        return batch.nuclei()

    def named(self, batch: _Batch) -> dict[str, Any]:
        """Return ``prompts``."""
        return {"prompts": batch.prompts()}


class PrepareDetectionBatch(_Prepare):
    """Pass a batch of :func:`collate_nuclei` to a detector, which computes its own losses.

    The named arguments are ``masks`` ``(n, S, S)`` and ``class_ids`` ``(n,)`` of each image.
    """

    def target(self, batch: _Batch) -> None:
        """Return None, because the network computes its own losses."""

    def named(self, batch: _Batch) -> dict[str, Any]:
        """Return masks and classes of the nuclei of each image."""
        masks = batch.moved("masks")
        classes = (
            batch.moved("class_ids")
            if "class_ids" in batch
            else masks.new_zeros(len(masks), dtype=torch.int64)
        )
        counts = batch.data["prompts_per_image"].tolist()
        return {"masks": masks.split(counts), "class_ids": classes.split(counts)}


class PrepareCFRSAMBatch(PrepareNucleusBatch):
    """Pass a batch to CFR-SAM's second stage.

    The mask of all nuclei, ``foreground`` ``(B, 1, S, S)``, is part of the target if the batch has it.
    """

    def target(self, batch: _Batch) -> CFRSAMTarget:
        """Return the masks of the prompted nuclei and of all nuclei."""
        foreground = batch.moved("foreground")[:, 0] if "foreground" in batch else None
        return CFRSAMTarget(batch.moved("masks"), foreground, batch.data["prompts_per_image"])


class PrepareEndToEndBatch(PrepareNucleusBatch):
    """Pass a batch of :func:`collate_end_to_end` with the targets of both networks."""

    def target(self, batch: _Batch) -> EndToEndTarget:
        """Return points and masks; the points stay on the CPU, where they are matched."""
        mask = batch.moved("mask") if "mask" in batch else None
        points = PrompterTarget(batch.data["centroids"], batch.data["point_classes"], mask)
        return EndToEndTarget(points, batch.nuclei())


class PreparePrompterBatch(PrepareBatch):
    """Pass the images of a batch of :func:`collate_points`, and in training its nuclei.

    Batches hold ``image`` and, in training, ``points``, ``point_classes``, ``mask`` and perhaps ``point_sizes``.
    """

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, PrompterTarget | None]:
        """Return ``(image, target)``; points and classes stay where they are: they are matched on the CPU."""
        batch = _Batch(batchdata, device, non_blocking, kwargs)
        target = None
        if "points" in batch:
            mask = batch.converted("mask") if "mask" in batch else None
            sizes = batchdata.get("point_sizes")
            target = PrompterTarget(batchdata["points"], batchdata["point_classes"], mask, sizes)
        return batch.converted("image"), target


class PreparePromptsBatch(_Prepare):
    """Pass one image and its prompts, in the order that :class:`~nucsam_monai.inferers.PromptedInferer` expects.

    Prompts are found by the prompter, or are the ``points`` ``(1, K, 2)`` of the batch. Given points may have classes
    ``point_classes`` ``(1, K)``, and sizes ``point_sizes`` ``(1, K, 2)`` if they stand for boxes; otherwise they get
    those of the prompter.

    Args:
        finder: finds and classifies points.
        given_points: use the points of the batch if it has any: from the ground truth (the ablation with oracle
            prompts) or from a user.
    """

    def __init__(self, finder: PointFinder | TilePointFinder, *, given_points: bool = False) -> None:
        self.finder = finder
        self.given_points = given_points

    def target(self, batch: _Batch) -> None:
        """Return None, because there is no loss."""

    def positional(self, batch: _Batch) -> tuple[Any, ...]:
        """Return the prompts.

        Raises:
            ConfigurationError: a given point is marked as background.
        """
        given = self.given_points and "points" in batch
        return (self._given(batch.data) if given else self.finder,)

    def _given(self, batch: Mapping[str, Any]) -> DetectedPoints | FindPoints:
        points = batch["points"][0]
        if "point_labels" in batch and (batch["point_labels"] != 1).any():
            raise ConfigurationError(
                f"points of '{batch['id'][0]}': found some with label 0 (background), expected one point on each "
                "nucleus. Remove them."
            )
        if "point_classes" not in batch:
            return partial(self.finder.classify, points=points)
        sizes = batch["point_sizes"][0] if "point_sizes" in batch else None
        return DetectedPoints(points, torch.ones(len(points)), batch["point_classes"][0], sizes)
