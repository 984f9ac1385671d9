"""What happens at the borders of epochs and domains."""

import copy

import torch
from ignite.engine import Engine, Events
from monai.data import set_rnd
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from nucsam_monai.engines.domain_schedule import DomainBatchSampler
from nucsam_monai.utils.errors import ConfigurationError


class DomainScheduleHandler:
    """Start every epoch with its own batches and seeds, and every domain with a new optimizer.

    All randomness of an epoch follows from the seed and the epoch's number, so that a resumed training goes
    on exactly as an uninterrupted one. When a sequential training turns to the next domain, the optimizer and
    the learning rate start anew and a common embedding kept per domain is handed on (UN-SAM, Algorithm 1).

    Ignite compares the count of iterations with the epoch's length to find out whether a training is done and
    at which epoch to resume it; when domains differ in size, it would stop too early and resume at a wrong
    epoch. ``engine.state.iteration`` therefore counts as if all epochs so far had been as long as the current
    one; take the epoch as the step of what is logged.

    Args:
        sampler: gives the batches.
        data_loader: the loader that uses ``sampler``.
        optimizer: starts anew with each domain.
        lr_scheduler: starts anew with each domain.
        network: a network with ``bypass.inherit``, or any other.
        seed: seed of the random transforms.

    Raises:
        ConfigurationError: ``data_loader`` keeps its workers from epoch to epoch, where new seeds never
            reach them.
    """

    def __init__(
        self,
        sampler: DomainBatchSampler,
        data_loader: DataLoader,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: LRScheduler,
        network: nn.Module,
        seed: int = 0,
    ) -> None:
        if data_loader.persistent_workers:
            raise ConfigurationError(
                "data_loader: persistent_workers is true, expected false: every epoch seeds its workers anew."
            )
        self.sampler = sampler
        self.data_loader = data_loader
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.network = network
        self.seed = seed
        self._new_optimizer = copy.deepcopy(optimizer.state_dict())
        self._new_lr_scheduler = copy.deepcopy(lr_scheduler.state_dict())

    def attach(self, engine: Engine) -> None:
        """Register for the start of every epoch."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.start_epoch)

    def start_epoch(self, engine: Engine) -> None:
        """Prepare the epoch that ``engine.state.epoch`` (1-based) counts."""
        epoch = engine.state.epoch - 1
        self.sampler.set_epoch(epoch)
        engine.state.epoch_length = len(self.sampler)
        engine.state.iteration = epoch * engine.state.epoch_length
        seed = (self.seed * 1_000_003 + epoch) % (1 << 31)
        torch.manual_seed(seed)
        set_rnd(self.data_loader.dataset, seed)
        if self.data_loader.generator is not None:
            self.data_loader.generator.manual_seed(seed)
        domain = self.sampler.domain_of_epoch(epoch)
        if domain is not None and epoch > 0 and self.sampler.starts_domain(epoch):
            self._start_domain(domain)

    def _start_domain(self, domain: int) -> None:
        self.optimizer.load_state_dict(copy.deepcopy(self._new_optimizer))
        self.lr_scheduler.load_state_dict(copy.deepcopy(self._new_lr_scheduler))
        bypass = getattr(getattr(self.network, "module", self.network), "bypass", None)
        if bypass is not None:
            bypass.inherit(domain)
