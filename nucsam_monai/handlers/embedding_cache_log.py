"""How long the epochs take while a frozen encoder still meets new images."""

import logging
import time

from ignite.engine import Engine, Events

from nucsam_monai.networks.sam import EmbeddingCache

logger = logging.getLogger(__name__)

_TIMED_STEPS = 3  # of the first epoch: enough to tell minutes from hours


class EmbeddingCacheLog:
    """Say early how long the first epoch takes, and after every epoch what came from the embedding cache.

    The first epoch is the slow one: the encoder runs for every image. Images that come again are read, so
    later epochs are faster, the more so the more of their augmented copies are known.

    Args:
        cache: the cache that the network in training uses.
    """

    def __init__(self, cache: EmbeddingCache) -> None:
        self.cache = cache
        self._started = 0.0
        self._before = (0, 0)
        self._announced = False

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, in front of the handler that validates: its images count for themselves."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.announce)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.report)

    def start(self, _engine: Engine) -> None:
        """Note the time and the counts at the start of an epoch."""
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

    def report(self, engine: Engine) -> None:
        """Log what the epoch took and how many of its images SAM had to see."""
        logger.info(
            "embedding cache: epoch %d took %s; SAM ran for %d images, %d were in the cache.",
            engine.state.epoch,
            _duration(time.perf_counter() - self._started),
            self._new(),
            self._known(),
        )

    def _known(self) -> int:
        return self.cache.hits - self._before[0]

    def _new(self) -> int:
        return self.cache.misses - self._before[1]


def embedding_cache_log(cache: EmbeddingCache | None) -> EmbeddingCacheLog | None:
    """Return the log of a cache, None where there is none."""
    return None if cache is None else EmbeddingCacheLog(cache)


def _duration(seconds: float) -> str:
    """Return a duration for people: seconds, or minutes from two minutes on.

    Example:
        >>> _duration(90), _duration(600)
        ('90 s', '10 min')
    """
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
