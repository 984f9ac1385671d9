"""Keep the weights of the best epoch."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch.distributed as dist
from ignite.engine import Engine, Events
from torch import nn

from nucsam_monai.engines.domain_schedule import DomainBatchSampler
from nucsam_monai.networks.sam import save_trained
from nucsam_monai.utils.errors import ConfigurationError

logger = logging.getLogger(__name__)


class BestWeightsSaver:
    """Save what was trained whenever the validation's metric is the best so far.

    With a sequential schedule the metric is that of the domain in training, and each domain starts the
    comparison anew: the best epoch of the first domain has not seen the last one.

    The file of the training before is kept under the name ``<stem>.previous<suffix>``.

    Args:
        network: whose trained tensors are saved.
        path: the ``.safetensors`` file.
        header: describes the training, see :func:`nucsam_monai.networks.sam.save_trained`.
        metric: name in the validator's metrics.
        sampler: the schedule of the domains, where there is one.
        mode: ``min`` where lower is better, ``max`` where higher is.

    Raises:
        ConfigurationError: an unknown mode.
    """

    def __init__(
        self,
        network: nn.Module,
        path: str | Path,
        header: Mapping[str, str],
        metric: str = "val_loss",
        sampler: DomainBatchSampler | None = None,
        mode: Literal["min", "max"] = "min",
    ) -> None:
        if mode not in ("min", "max"):
            raise ConfigurationError(f"mode '{mode}': expected 'min' or 'max'.")
        self.network = network
        self.path = Path(path)
        self.header = dict(header)
        self.metric = metric
        self.sampler = sampler
        self.mode = mode
        self.best = self._worst
        self.domain: int | None = None
        self.owns_file = False

    def attach(self, engine: Engine) -> None:
        """Attach to a validator, behind the handler that computes the metric."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.compare)

    def compare(self, engine: Engine) -> None:
        """Save if this epoch is the best; ``engine.state.epoch`` is the trainer's, counted from 1.

        Raises:
            ConfigurationError: the validator has no such metric.
        """
        epoch, metric = engine.state.epoch, self.metric
        domain = None if self.sampler is None else self.sampler.domain_of_epoch(epoch - 1)
        if self.sampler is not None and domain is not None:
            metric = f"{self.metric}_{self.sampler.domains[domain]}"
        if metric not in engine.state.metrics:
            reported = ", ".join(engine.state.metrics) or "nothing"
            raise ConfigurationError(
                f"'{metric}': the validator reports {reported}. Attach its handler first."
            )
        value = float(engine.state.metrics[metric])
        if domain != self.domain:
            self.best, self.domain = self._worst, domain
        if math.isnan(value):
            logger.warning(
                "epoch %d: %s is NaN, nothing saved. Either the domain has no validation images or the "
                "training diverged.",
                epoch,
                metric,
            )
        better = value > self.best if self.mode == "max" else value < self.best
        if not better:
            return
        self.best = value
        if not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0:
            self._keep_previous()
            save_trained(self.path, self.network, {**self.header, "epoch": str(epoch), metric: repr(value)})
        logger.info("epoch %d: best %s so far, %.5f; weights saved to %s", epoch, metric, value, self.path)

    def state_dict(self) -> dict[str, float | int | bool | None]:
        """Return what a resumed training needs to go on comparing."""
        return {"best": self.best, "domain": self.domain, "owns_file": self.owns_file}

    def load_state_dict(self, state: Mapping[str, float | int | bool | None]) -> None:
        """Take over the comparison of an interrupted training."""
        best, domain = state["best"], state["domain"]
        self.best = self._worst if best is None else float(best)
        self.domain = None if domain is None else int(domain)
        self.owns_file = bool(state["owns_file"])

    @property
    def _worst(self) -> float:
        return -math.inf if self.mode == "max" else math.inf

    def _keep_previous(self) -> None:
        if self.path.exists() and not self.owns_file:
            previous = self.path.with_name(f"{self.path.stem}.previous{self.path.suffix}")
            self.path.replace(previous)
            logger.info("the weights of an earlier training are kept as %s", previous)
        self.owns_file = True
