"""Schedule the domains of a training: one after the other (UN-SAM, Algorithm 1) or mixed."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch.distributed as dist
from torch.utils.data import Sampler

from nucsam_monai.utils.errors import ConfigurationError, DatasetError

Schedule = Literal["sequential", "interleaved", "mixed"]


class DomainBatchSampler(Sampler[list[int]]):
    """Draw batches of images from several domains, different in every epoch but reproducible.

    - ``sequential``: ``epochs`` epochs on the first domain, then as many on the next (UN-SAM, Algorithm 1)
    - ``interleaved``: all batches of all domains in every epoch, in random order, as in the authors' released code
    - ``mixed``: every batch is drawn from all images, for networks without domains

    With ``sequential`` and ``interleaved`` each batch has images of one domain. The batches of an epoch depend only on
    ``seed`` and the epoch, so a resumed training gets the same ones. Several processes divide a batch that is as many
    times larger.

    Args:
        items: training items in the order of the dataset, with ``"domain"``.
        domains: domains in training order.
        batch_size: images per step and process.
        epochs: epochs per domain (``sequential``) or in total.
        schedule: ``"sequential"``, ``"interleaved"`` or ``"mixed"``.
        samples_per_epoch: images per epoch, of each domain or (``mixed``) in total. Default: every image once.
        seed: seed of the order.
        weights: ``(n,)`` relative frequency of each item within its group, for example from
            :func:`nucsam_monai.data.balanced_weights`; an image may then be drawn twice before another.

    Raises:
        ConfigurationError: the schedule is unknown, a size is below 1, there is no domain or a domain occurs twice, or
            the weights are not one positive number per item.
        DatasetError: a domain has no item.
    """

    def __init__(
        self,
        items: Sequence[Mapping[str, Any]],
        domains: Sequence[str],
        batch_size: int,
        epochs: int,
        *,
        schedule: Schedule = "sequential",
        samples_per_epoch: int | None = None,
        seed: int = 0,
        weights: Sequence[float] | None = None,
    ) -> None:
        if schedule not in get_args(Schedule):
            raise ConfigurationError(
                f"schedule '{schedule}': expected one of {', '.join(get_args(Schedule))}."
            )
        if batch_size < 1 or epochs < 1 or (samples_per_epoch is not None and samples_per_epoch < 1):
            raise ConfigurationError(
                "batch_size, epochs and samples_per_epoch: expected at least 1, "
                f"found {batch_size}, {epochs} and {samples_per_epoch}."
            )
        self.domains = tuple(domains)
        if not self.domains or len(set(self.domains)) != len(self.domains):
            raise ConfigurationError(
                f"domains: expected different names, at least one; found {list(domains)}."
            )
        self.items_of = [np.flatnonzero([item["domain"] == name for item in items]) for name in self.domains]
        for name, indices in zip(self.domains, self.items_of, strict=True):
            if len(indices) == 0:
                raise DatasetError(f"domain '{name}': no training images. Check dataset_dir and domains.")
        if schedule == "mixed":
            self.items_of = [np.sort(np.concatenate(self.items_of))]
        if weights is not None and (len(weights) != len(items) or min(weights) <= 0):
            raise ConfigurationError(f"weights: expected {len(items)} positive numbers, one per item.")
        self.weights = None if weights is None else np.asarray(weights, dtype=np.float64)
        self.batch_size = batch_size
        self.epochs = epochs
        self.schedule = schedule
        self.samples_per_epoch = samples_per_epoch
        self.seed = seed
        self.epoch = 0

    @property
    def total_epochs(self) -> int:
        """Epochs of the whole training."""
        return self.epochs * (len(self.domains) if self.schedule == "sequential" else 1)

    def domain_of_epoch(self, epoch: int) -> int | None:
        """Return the index of the domain that 0-based ``epoch`` trains; None where all train together."""
        return min(epoch // self.epochs, len(self.domains) - 1) if self.schedule == "sequential" else None

    def starts_domain(self, epoch: int) -> bool:
        """Return whether 0-based ``epoch`` is the first one of a domain of a sequential training."""
        return self.schedule == "sequential" and epoch % self.epochs == 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the 0-based epoch that the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(math.ceil(self._samples(k) / self._global_batch) for k in self._active_domains())

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        queues = [self._batches(k, rng) for k in self._active_domains()]
        while queues:
            queue = queues[int(rng.integers(len(queues)))]
            yield self._share(queue.pop())
            queues = [queue for queue in queues if queue]

    @property
    def _global_batch(self) -> int:
        return self.batch_size * rank_and_processes()[1]

    def _active_domains(self) -> Sequence[int]:
        domain = self.domain_of_epoch(self.epoch)
        return range(len(self.items_of)) if domain is None else [domain]

    def _samples(self, domain: int) -> int:
        return self.samples_per_epoch or len(self.items_of[domain])

    def _batches(self, domain: int, rng: np.random.Generator) -> list[list[int]]:
        """Return the shuffled batches of one group; more samples than images repeat the images evenly."""
        indices, wanted = self.items_of[domain], self._samples(domain)
        if self.weights is not None:
            share = self.weights[indices] / self.weights[indices].sum()
            order = rng.choice(indices, size=wanted, p=share).tolist()
            return [
                order[start : start + self._global_batch] for start in range(0, wanted, self._global_batch)
            ]
        passes = [rng.permutation(indices) for _ in range(math.ceil(wanted / len(indices)))]
        order = np.concatenate(passes)[:wanted].tolist()
        return [order[start : start + self._global_batch] for start in range(0, wanted, self._global_batch)]

    def _share(self, batch: list[int]) -> list[int]:
        """Return this process's share of a batch; a short batch wraps around so that no process waits."""
        rank, processes = rank_and_processes()
        even = math.ceil(len(batch) / processes) * processes
        return [batch[i % len(batch)] for i in range(rank, even, processes)]


def rank_and_processes() -> tuple[int, int]:
    """Return rank and number of the processes that train together."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
