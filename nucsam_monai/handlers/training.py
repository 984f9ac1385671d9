"""Control a training between its steps: schedules, early stopping, validation, gradient clipping and timing."""

import copy
import logging
import math
import time
from collections.abc import Mapping, Sequence, Sized
from typing import Any, Protocol

import torch
from ignite.engine import Engine, Events
from monai.data import set_rnd
from monai.engines.utils import IterationEvents
from monai.handlers import ValidationHandler
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from nucsam_monai.engines.domain_schedule import DomainBatchSampler, rank_and_processes
from nucsam_monai.networks.sam import EmbeddingCache
from nucsam_monai.utils.errors import ConfigurationError

logger = logging.getLogger(__name__)


class DomainScheduleHandler:
    """Start every epoch with its own batches and seeds, and every domain with a new optimizer.

    All randomness of an epoch follows from the seed, the epoch's number and the process, so that a resumed training
    continues exactly like an uninterrupted one, and processes augment their images independently. When a sequential
    training turns to the next domain, the optimizer and the learning rate are reset and a common embedding kept per
    domain is passed on (UN-SAM, Algorithm 1).

    Ignite compares the count of iterations with the epoch's length to find out whether a training is done and
    at which epoch to resume it; when domains differ in size, it would stop too early and resume at a wrong
    epoch. ``engine.state.iteration`` therefore counts as if all epochs so far had been as long as the current
    one; take the epoch as the step of what is logged.

    Args:
        sampler: gives the batches.
        data_loader: the loader that uses ``sampler``.
        optimizer: reset at the start of each domain.
        lr_scheduler: reset at the start of each domain.
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
                "data_loader: persistent_workers is true, expected false: every epoch reseeds its workers."
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
        seed = (self.seed * 1_000_003 + epoch + rank_and_processes()[0] * 15_485_863) % (1 << 31)
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


class PhasedMetric:
    """Read a validator's metric; its values are comparable only within one domain and one stage of a training.

    With a sequential schedule the metric is that of the domain in training: the best epoch of the first domain has
    not seen the last one. In the same way the mask of a network that trains its parts one after the other is
    meaningless while another part trains.

    Args:
        name: in the validator's metrics.
        sampler: the schedule of the domains, if any.
        network: network that is trained; its ``stage`` counts if it has one.
    """

    def __init__(
        self, name: str, sampler: DomainBatchSampler | None = None, network: nn.Module | None = None
    ) -> None:
        self._name = name
        self.sampler = sampler
        self.network = network
        self.domain: int | None = None
        self.stage: str | None = None

    @property
    def domain_name(self) -> str | None:
        """The domain in training; None if all train together."""
        return None if self.sampler is None or self.domain is None else self.sampler.domains[self.domain]

    @property
    def last_epoch_of_domain(self) -> int | None:
        """The last epoch of the domain in training, counted from 1; None if all train together."""
        return (
            None if self.sampler is None or self.domain is None else (self.domain + 1) * self.sampler.epochs
        )

    @property
    def name(self) -> str:
        """The metric of the domain in training."""
        return self._name if self.domain_name is None else f"{self._name}_{self.domain_name}"

    def enter(self, epoch: int) -> bool:
        """Return whether the domain or stage of ``epoch``, counted from 1, differs from that of the last call."""
        domain = None if self.sampler is None else self.sampler.domain_of_epoch(epoch - 1)
        stage = getattr(self.network, "stage", None)
        # Without an earlier stage the comparison continues: it starts, or its state was written without stages.
        changed = domain != self.domain or (self.stage is not None and stage != self.stage)
        self.domain, self.stage = domain, stage
        return changed

    def read(self, validator: Engine) -> float:
        """Return the value after a validation.

        Raises:
            ConfigurationError: the validator has no such metric.
        """
        metrics = validator.state.metrics
        if self.name not in metrics:
            reported = ", ".join(metrics) or "nothing"
            raise ConfigurationError(
                f"'{self.name}': the validator reports {reported}. Attach its handler first."
            )
        return float(metrics[self.name])

    def state_dict(self) -> dict[str, int | str | None]:
        """Return the phase, if the training has phases."""
        domain = {} if self.sampler is None else {"domain": self.domain}
        return {**domain, **({} if self.stage is None else {"stage": self.stage})}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the phase of an interrupted training."""
        self.domain, self.stage = state.get("domain"), state.get("stage")


class StagedNetwork(Protocol):
    """Declare a network that trains in stages.

    Attributes:
        stage: the current stage.
        fixed_stages: stages that end by their epochs alone, because validations do not reflect what they train.
    """

    stage: str
    fixed_stages: Sequence[str]

    def begin_epoch(self, epoch: int) -> None:
        """Switch to the training stage of the 0-based ``epoch``."""

    def check_epochs(self, epochs: int) -> None:
        """Refuse a number of epochs that ends before the last stage starts."""


class NetworkEpoch:
    """Call ``network.begin_epoch`` with the 0-based number of every epoch that starts.

    The number is the trainer's own, so that a resumed training continues in its stage.

    Args:
        network: the network itself, without its distributed wrapper.
        epochs: epochs of the whole training, which the network may refuse; None skips the check.

    Raises:
        ConfigurationError: so few epochs that a part of the network would never be trained.
    """

    def __init__(self, network: StagedNetwork, epochs: int | None = None) -> None:
        self.network = network
        if epochs is not None:
            network.check_epochs(epochs)

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.begin)

    def begin(self, engine: Engine) -> None:
        """Pass the network its 0-based epoch; ``engine.state.epoch`` counts from 1."""
        self.network.begin_epoch(engine.state.epoch - 1)


class EarlyStopping:
    """Stop the training after ``patience`` validations without a new best metric.

    MONAI's ``EarlyStopHandler`` loses its count when a training is interrupted, and no value switches it off.
    Here the count is a part of :class:`~nucsam_monai.handlers.TrainingState`, and a training that was stopped
    stops at once when it is resumed.

    Every domain of a sequential schedule and every stage of a network starts the comparison again. In a sequential
    training the metric is that of the domain in training, and its turn ends instead of the training.

    Args:
        validator: the engine that validates within the training.
        patience: validations without improvement; None never stops.
        metric: name in the validator's metrics, higher is better. A NaN is not an improvement.
        sampler: the schedule of the domains, if any.
        network: network that is trained; its ``stage`` counts if it has one, except for ``fixed_stages``.

    Raises:
        ConfigurationError: ``patience`` is below 1.

    Example:
        In a bundle, among the handlers of the trainer::

            {"_target_": "nucsam_monai.handlers.EarlyStopping", "validator": "@validate#evaluator", "patience": 10}
    """

    def __init__(
        self,
        validator: Engine,
        patience: int | None = 10,
        metric: str = "val_dice",
        *,
        sampler: DomainBatchSampler | None = None,
        network: nn.Module | None = None,
    ) -> None:
        if patience is not None and patience < 1:
            raise ConfigurationError(
                f"early stopping: patience {patience}, expected 1 or more validations, or null for never."
            )
        self.validator = validator
        self.patience = patience
        self.metric = metric
        self.followed = PhasedMetric(metric, sampler, network)
        self.best = -math.inf
        self.without_improvement = 0
        self._trainer: Engine | None = None

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer and to the validator."""
        self._trainer = engine
        self.validator.add_event_handler(Events.EPOCH_COMPLETED, self.compare)

    def compare(self, validator: Engine) -> None:
        """Count a finished validation.

        Raises:
            ConfigurationError: the validator has no such metric.
        """
        if self.followed.enter(1 if self._trainer is None else self._trainer.state.epoch):
            self.best, self.without_improvement = -math.inf, 0
        if self.followed.stage in getattr(self.followed.network, "fixed_stages", ()):
            return
        value = self.followed.read(validator)
        if value > self.best:
            self.best, self.without_improvement = value, 0
        else:
            self.without_improvement += 1
        self._stop_if_exhausted()

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs to continue counting."""
        counted = {"best": self.best, "without_improvement": self.without_improvement}
        return {**counted, **self.followed.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the count of an interrupted training."""
        self.best, self.without_improvement = float(state["best"]), int(state["without_improvement"])
        self.followed.load_state_dict(state)
        self._stop_if_exhausted()

    def _stop_if_exhausted(self) -> None:
        if self.patience is None or self.without_improvement < self.patience or self._trainer is None:
            return
        trained = self.followed.domain_name
        logger.info(
            "no better %s than %.5f in %d validations: %s.",
            self.followed.name,
            self.best,
            self.without_improvement,
            f"the turn of '{trained}' ends" if trained else "the training stops",
        )
        last = self.followed.last_epoch_of_domain
        if last is None or last == self._trainer.state.max_epochs:
            self._trainer.terminate()
        else:
            # The next epoch is the first one of the next domain; a state saved from here on says so as well.
            self._trainer.state.epoch = last
            self.best, self.without_improvement = -math.inf, 0


class FinalValidation(ValidationHandler):
    """Validate like MONAI's :class:`~monai.handlers.ValidationHandler`, and also after the last epoch.

    Weights are saved only of validated epochs: a training shorter than the interval would save none, and the last
    epochs of a longer one would never be considered. The arguments are those of MONAI's handler.

    Example:
        Epochs 4, 8 and 10 of ten::

            {"_target_": "nucsam_monai.handlers.FinalValidation", "validator": "@validate#evaluator",
             "epoch_level": true, "interval": 4}
    """

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        super().attach(engine)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.validate_last)

    def validate_last(self, engine: Engine) -> None:
        """Validate after the last epoch, unless the interval has just done so."""
        is_last = engine.state.epoch == engine.state.max_epochs
        if is_last and not (self.epoch_level and engine.state.epoch % self.interval == 0):
            self(engine)


class GradientClipping:
    """Clip the norm of a network's gradient.

    For trainers without ``amp``: with it the gradient still carries the scaler's factor when it is clipped.

    Args:
        network: network whose gradient is clipped.
        max_norm: largest 2-norm over all parameters.
    """

    def __init__(self, network: nn.Module, max_norm: float = 1.0) -> None:
        self.network = network
        self.max_norm = max_norm

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer of MONAI."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self.clip)

    def clip(self, _engine: Engine) -> None:
        """Scale the gradient if it is longer than ``max_norm``."""
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)


_LARGE_SHARE = 0.25  # of an epoch, for images
_TIMED_STEPS = 3  # of the first epoch: enough to tell minutes from hours


class LoaderLog:
    """Log after the first epoch of a training which share of its time was spent waiting for images."""

    def __init__(self) -> None:
        self._started = self._asked = 0.0
        self._waited = 0.0

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, before the handler that validates."""
        engine.add_event_handler(Events.EPOCH_STARTED(once=1), self.start)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self.ask)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self.receive)
        engine.add_event_handler(Events.EPOCH_COMPLETED(once=1), self.report)

    def start(self, _engine: Engine) -> None:
        """Record the time at the start of the epoch."""
        self._started, self._waited = time.perf_counter(), 0.0

    def ask(self, _engine: Engine) -> None:
        """Record when a batch is asked for."""
        self._asked = time.perf_counter()

    def receive(self, _engine: Engine) -> None:
        """Add the time that a batch took."""
        self._waited += time.perf_counter() - self._asked

    def report(self, engine: Engine) -> None:
        """Log the share, and what raises the speed if it is large."""
        took = time.perf_counter() - self._started
        share = self._waited / took if took else 0.0
        hint = " Raise --num_workers." if share > _LARGE_SHARE else ""
        steps = engine.state.epoch_length
        logger.info(
            "the first epoch: %s steps in %.1f s, %.0f %% for images.%s", steps, took, 100 * share, hint
        )


class EmbeddingCacheLog:
    """Log the estimated time of the first epoch, and after every epoch how many embeddings came from the cache.

    The first epoch is slow, because the encoder runs for every image. Later epochs are faster the more of their
    augmented copies are in the cache.

    Args:
        cache: the cache that the network in training uses.
        images: different ones in the whole training, to compare their size with the cache's limit; None if unknown.
    """

    def __init__(self, cache: EmbeddingCache, images: int | None = None) -> None:
        self.cache = cache
        self.images = images
        self._started = 0.0
        self._before = (0, 0)
        self._announced = False

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, before the handler that validates, whose images are counted separately."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.announce)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.report)

    def start(self, _engine: Engine) -> None:
        """Record the time and the counts at the start of an epoch."""
        self._started = time.perf_counter()
        self._before = (self.cache.hits, self.cache.misses)

    def announce(self, engine: Engine) -> None:
        """Log after a few steps how long the epoch will take, once in a training."""
        length = engine.state.epoch_length or 1
        done = (engine.state.iteration - 1) % length + 1
        if self._announced or done < min(_TIMED_STEPS, length):
            return
        self._announced = True
        per_step = (time.perf_counter() - self._started) / done
        logger.info(
            "embedding cache: %d steps took %.1f s, so this epoch takes about %s; SAM ran for %d of %d images "
            "so far, and the others were in the cache.",
            done,
            per_step * done,
            _duration(per_step * length),
            self._new(),
            self._new() + self._known(),
        )
        self._compare_size()

    def report(self, engine: Engine) -> None:
        """Log how long the epoch took and how many of its images SAM had to encode."""
        logger.info(
            "embedding cache: epoch %d took %s; SAM ran for %d images, %d were in the cache.",
            engine.state.epoch,
            _duration(time.perf_counter() - self._started),
            self._new(),
            self._known(),
        )

    def _compare_size(self) -> None:
        """Log how large the cache will get, as a warning if that exceeds its limit."""
        if self.images is None or not self.cache.entry_bytes:
            return
        needed = self.images * self.cache.entry_bytes
        fits = needed <= self.cache.max_bytes
        logger.log(
            logging.INFO if fits else logging.WARNING,
            "embedding cache: %d different images of %.2g MB each take %.3g GB, and %.3g GB are permitted%s.",
            self.images,
            self.cache.entry_bytes / 1e6,
            needed / 1e9,
            self.cache.max_bytes / 1e9,
            "" if fits else ", so SAM runs again for most of them in every epoch; raise embedding_cache_gb",
        )

    def _known(self) -> int:
        return self.cache.hits - self._before[0]

    def _new(self) -> int:
        return self.cache.misses - self._before[1]


def embedding_cache_log(
    cache: EmbeddingCache | None, items: Sized | None = None, copies: int | None = None
) -> EmbeddingCacheLog | None:
    """Return the log of a cache, None without a cache.

    Args:
        cache: the cache that the network in training uses.
        items: the training images.
        copies: augmented ones of each; None for any number, whose size is not known.
    """
    if cache is None:
        return None
    return EmbeddingCacheLog(cache, None if items is None or copies is None else len(items) * copies)


def _duration(seconds: float) -> str:
    """Format a duration: seconds, or minutes from two minutes on.

    Example:
        >>> _duration(90), _duration(600)
        ('90 s', '10 min')
    """
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
