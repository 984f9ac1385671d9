"""Average, share between processes, save and export the weights of a training."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist
from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nucsam_monai.engines.domain_schedule import DomainBatchSampler
from nucsam_monai.handlers.training import PhasedMetric
from nucsam_monai.networks.promptnucseg import Segmentor
from nucsam_monai.networks.sam import read_header, save_sam, save_trained
from nucsam_monai.networks.sam.weights import read_safetensors
from nucsam_monai.utils.errors import ConfigurationError

logger = logging.getLogger(__name__)


class BestWeightsSaver:
    """Save the trained weights whenever the validation metric is the best so far.

    Each domain of a sequential schedule and each stage of a network that has some starts the comparison again, see
    :class:`~nucsam_monai.handlers.training.PhasedMetric`.

    A training whose epochs could not be compared, because the metric was NaN, saves its last weights when it ends.

    The file of the previous training is kept under the name ``<stem>.previous<suffix>``.

    Args:
        network: network whose trained tensors are saved.
        path: the ``.safetensors`` file.
        header: describes the training, see :func:`nucsam_monai.networks.sam.save_trained`.
        metric: name in the validator's metrics.
        sampler: the schedule of the domains, if any.
        mode: ``min`` where lower is better, ``max`` where higher is.

    Raises:
        ConfigurationError: the mode is unknown.
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
        self.followed = PhasedMetric(metric, sampler, network)
        self.mode = mode
        self.best = self._worst
        self.owns_file = False

    def attach(self, engine: Engine) -> None:
        """Attach to a validator, after the handler that computes the metric."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.compare)

    def compare(self, engine: Engine) -> None:
        """Save if this epoch is the best; ``engine.state.epoch`` is the trainer's, counted from 1.

        Raises:
            ConfigurationError: the validator has no such metric.
        """
        epoch = engine.state.epoch
        if self.followed.enter(epoch):
            self.best = self._worst
        value, metric = self.followed.read(engine), self.followed.name
        if math.isnan(value):
            logger.warning(
                "epoch %d: %s is NaN, so the epoch can't be compared: no validation image has a nucleus, or the "
                "training diverged.",
                epoch,
                metric,
            )
        better = value > self.best if self.mode == "max" else value < self.best
        if not better:
            return
        self.best = value
        self._save(epoch, {metric: repr(value)})
        logger.info("epoch %d: best %s so far, %.5f; weights saved to %s", epoch, metric, value, self.path)

    def save_last(self, engine: Engine) -> None:
        """Save the weights of a trainer's last epoch if none was the best."""
        if self.best == self._worst and engine.state.epoch:
            self._save(engine.state.epoch, {})
            logger.warning(
                "no epoch could be compared by %s: the weights of the last one, %d, are saved to %s",
                self.metric,
                engine.state.epoch,
                self.path,
            )

    def _save(self, epoch: int, facts: Mapping[str, str]) -> None:
        if not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0:
            self._keep_previous()
            save_trained(self.path, self.network, {**self.header, "epoch": str(epoch), **facts})

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs to continue comparing."""
        state = {"best": self.best, "domain": self.followed.domain, "owns_file": self.owns_file}
        return {**state, **self.followed.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the comparison of an interrupted training."""
        self.best = self._worst if state["best"] is None else float(state["best"])
        self.followed.load_state_dict(state)
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


ParamList = tuple[Tensor, ...] | list[Tensor]


class WeightAveraging:
    """Keep an average of a network's parameters and buffers, updated after every step.

    Weights move far at first, and an average of few steps would still hold them: in the first epochs it may be a
    copy, or the share of what stays may grow with the steps. Name it among the parts of
    :class:`~nucsam_monai.handlers.TrainingState`, so that a resumed training continues averaging.

    Args:
        network: network that is trained, on its device and without the wrapper of distributed training.
        decay: fraction of the average that stays in every step; None keeps no average, and ``averaged`` is the network
            itself, as it is trained.
        copy_epochs: number of epochs at whose steps the weights are copied.
        warm_up: after n averaged steps at most ``(1 + n) / (10 + n)`` stays: the average spans about the last tenth
            of the steps, until ``decay`` is reached.

    Example::

        "weight_averaging": {"_target_": "nucsam_monai.handlers.WeightAveraging", "network": "@network"}
        "evaluator": {"network": "$@weight_averaging.averaged", ...}
    """

    def __init__(
        self, network: nn.Module, decay: float | None = 0.99, copy_epochs: int = 5, *, warm_up: bool = False
    ) -> None:
        self.network = network
        self.decay = decay
        self.copy_epochs = copy_epochs
        self.warm_up = warm_up
        self._average: AveragedModel | None = None
        if decay is not None:
            self._average = AveragedModel(network, multi_avg_fn=self._mix, use_buffers=True).eval()

    @property
    def averaged(self) -> nn.Module:
        """A network like the trained one, in evaluation mode, that holds the average."""
        return self.network if self._average is None else self._average.module

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.update)

    def update(self, engine: Engine) -> None:
        """Update the average with the weights of this step."""
        if self._average is None:
            return
        if engine.state.epoch <= self.copy_epochs:
            self._average.n_averaged.zero_()  # the model copies while it has averaged nothing
        self._average.update_parameters(self.network)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the average and its number of steps."""
        return {} if self._average is None else self._average.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the average of an interrupted training."""
        if self._average is not None:
            self._average.load_state_dict(state)

    def _mix(self, averaged: ParamList, current: ParamList, steps: Tensor | int) -> None:
        """Mix tensors of one type into their averages of so many steps."""
        share = float(self.decay or 0)
        if self.warm_up:
            share = min(share, (1 + int(steps)) / (10 + int(steps)))
        get_ema_multi_avg_fn(share)(averaged, current, steps)


class SharedStatistics:
    """Copy the first process's buffers to all processes before they validate.

    Batch normalisation collects its running statistics from each process's own images. The first process
    saves the weights, so all of them have to validate with its statistics. Alone, there is nothing to share.

    Args:
        network: the network itself, without its distributed wrapper.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Attach to a validator that runs in all processes."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.share)

    def share(self, _engine: Engine) -> None:
        """Overwrite the buffers of all processes but the first."""
        if not (dist.is_available() and dist.is_initialized()):
            return
        for buffer in self.network.buffers():
            dist.broadcast(buffer, src=0)


class SAMExport:
    """Write the whole SAM of the best epoch at the end of a training.

    The file is what every bundle takes as ``sam_checkpoint``: the tensors that were trained, as they were in
    the best epoch, and those that were not.

    Args:
        network: network whose ``sam`` was trained.
        best_weights: wrote the trained tensors of the best epoch.
        path: the ``.safetensors`` file to be written.
    """

    def __init__(self, network: Segmentor, best_weights: BestWeightsSaver, path: str | Path) -> None:
        self.network = network
        self.best_weights = best_weights
        self.path = Path(path)

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.COMPLETED, self.export)

    def export(self, _engine: Engine) -> None:
        """Write the file, completely or not at all.

        Raises:
            CheckpointError: the file of the best weights is missing or damaged.
        """
        if dist.is_available() and dist.is_initialized() and dist.get_rank() > 0:
            return
        if not self.best_weights.owns_file:
            logger.warning("%s: not written, because no epoch of this training was validated.", self.path)
            return
        header = read_header(self.best_weights.path)
        trained = read_safetensors(self.best_weights.path)
        state = {
            name: trained.get(f"sam.{name}", tensor) for name, tensor in self.network.sam.state_dict().items()
        }
        facts = {"trained_by": header["method"], "epoch": header["epoch"]}
        save_sam(self.path, state, self.network.variant, self.network.image_size, facts)
