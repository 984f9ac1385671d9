"""Combine the handlers that every training, validation, evaluation and inference has.

A composite is attached like a single handler. In a configuration it is an item of a list, so other handlers can be
added.
"""

import logging
import shlex
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from monai.handlers import LrScheduleHandler, StatsHandler, from_engine
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from nucsam_monai.engines.bundle import domains_of, header_of
from nucsam_monai.engines.configuration import current_parser, deciding_settings, settings_named
from nucsam_monai.engines.domain_schedule import DomainBatchSampler
from nucsam_monai.engines.results_folder import ResultsFolder
from nucsam_monai.handlers.evaluation import PredictionWriter
from nucsam_monai.handlers.mlflow import MLflowTracker, TrackedRun, move_to_front
from nucsam_monai.handlers.training import (
    DomainScheduleHandler,
    EarlyStopping,
    FinalValidation,
    GradientClipping,
    LoaderLog,
)
from nucsam_monai.handlers.training_state import NOT_COMPARED, TrainingState
from nucsam_monai.handlers.weights import BestWeightsSaver, WeightAveraging
from nucsam_monai.utils.errors import CheckpointError, ConfigurationError
from nucsam_monai.utils.lock import FolderLock
from nucsam_monai.utils.paths import trained_weights

logger = logging.getLogger(__name__)

_TABLES = ("per_image.csv", "summary.csv", "per_class.csv", "per_tissue.csv", "summary.json", "overlays")


class Handler(Protocol):
    """Declare an object that can be attached to an engine."""

    def attach(self, engine: Engine) -> None:
        """Register at the engine's events."""


class _Handlers:
    """Attach several handlers in order."""

    def __init__(self, handlers: Iterable[Handler | None]) -> None:
        self.handlers = [handler for handler in handlers if handler is not None]

    def attach(self, engine: Engine) -> None:
        """Attach all of them to an engine."""
        for handler in self.handlers:
            handler.attach(engine)


class TrainingHandlers(_Handlers):
    """Attach all handlers of a training: validation, logging, tracking, weights and resuming.

    Track it, seed every epoch, clip the gradient, show and log progress, validate, schedule the learning rate and
    save a state to resume from.

    Args:
        run: tracks the training.
        data_loader: training data loader with a :class:`DomainBatchSampler`.
        lr_scheduler: learning-rate scheduler, stepped after every epoch.
        network: network that is trained, without the wrapper of distributed training.
        validator: evaluator that is run every ``val_interval`` epochs and after the last one.
        val_interval: number of epochs between validations; None trains without validation and saves the last weights.
        best_weights: saves the weights of the best epoch, which are uploaded to MLflow. The state to resume from,
            ``training_state.safetensors`` or ``<stage>_state.safetensors``, is written next to them.
        resume: whether to resume, see :class:`TrainingState`.
        max_grad_norm: largest norm of the gradient.
        weight_averaging: averages the weights.
        early_stopping: stops the training early.
        extra: more handlers, called before those that validate and save.
        parts: more objects whose state is saved, by name.
        artifacts: more files to upload at the end.
        stage: name of the stage in trainings with several stages.
        hide_progress: whether to hide the progress bar.

    Raises:
        ConfigurationError: the loader has another sampler.
    """

    def __init__(
        self,
        run: TrackedRun,
        *,
        data_loader: DataLoader,
        lr_scheduler: LRScheduler,
        network: nn.Module,
        validator: Engine,
        val_interval: int | None,
        best_weights: BestWeightsSaver,
        resume: bool = False,
        max_grad_norm: float = 1.0,
        weight_averaging: WeightAveraging | None = None,
        early_stopping: EarlyStopping | None = None,
        extra: Sequence[Handler | None] = (),
        parts: Mapping[str, Any] | None = None,
        artifacts: Sequence[str | Path] = (),
        stage: str | None = None,
        hide_progress: bool | None = None,
    ) -> None:
        optimizer = lr_scheduler.optimizer
        kept = {
            "optimizer": optimizer,
            "lr_scheduler": lr_scheduler,
            "best_weights": best_weights,
            "weight_averaging": weight_averaging,
            "early_stopping": early_stopping,
            **(parts or {}),
        }
        sampler = _domain_sampler(data_loader)
        parser = current_parser()
        self.best_weights = best_weights
        self.bundle = run.bundle
        self.lock = FolderLock(best_weights.path.parent)
        self.state = TrainingState(
            best_weights.path.with_name(f"{stage or 'training'}_state.safetensors"),
            network,
            {key: one for key, one in kept.items() if one is not None},
            resume,
            settings=partial(deciding_settings, parser, NOT_COMPARED) if parser else dict,
            run=run,
        )
        super().__init__(
            [
                _owner(run, [*run.configurations, str(best_weights.path), *artifacts]),
                DomainScheduleHandler(sampler, data_loader, optimizer, lr_scheduler, network, sampler.seed),
                *extra,
                GradientClipping(network, max_grad_norm),
                weight_averaging,
                _progress(f"training the {stage}" if stage else "training", hide_progress),
                _loss_log(f"{stage or 'train'}_loss"),
                None
                if val_interval is None
                else FinalValidation(interval=val_interval, validator=validator, epoch_level=True),
                early_stopping,
                LrScheduleHandler(lr_scheduler, print_lr=False),
                self.state,
            ]
        )

    def attach(self, engine: Engine) -> None:
        """Attach all of them to a trainer, whose folder is locked from its start to its end."""
        # Ahead of the others, so that a training that is refused leaves the tracked run of the first one alone.
        engine.add_event_handler(Events.STARTED, self.begin)
        engine.add_event_handler(Events.STARTED, self.state.take_up)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self.stop)
        LoaderLog().attach(engine)
        super().attach(engine)
        engine.add_event_handler(Events.STARTED, move_to_front, Events.EXCEPTION_RAISED, self.stop)
        engine.add_event_handler(Events.COMPLETED, self.end)

    def begin(self, _engine: Engine) -> None:
        """Lock the folder, for all processes of this training."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0:
            self.lock.acquire()

    def stop(self, engine: Engine, error: BaseException) -> None:
        """Release the folder, and log what is saved if a user stopped the training; the tracker raises then."""
        self.lock.release()
        if isinstance(error, Exception):
            return
        if self.state.epoch is None:
            logger.warning("the training stops in epoch %d, before anything was kept.", engine.state.epoch)
            return
        logger.warning(
            "the training stops in epoch %d; %s holds it after epoch %d. Continue with --resume True.",
            engine.state.epoch,
            self.state.path,
            self.state.epoch,
        )

    def end(self, engine: Engine) -> None:
        """Save weights if none were saved yet, log how to segment with them, and release the folder."""
        self.best_weights.save_last(engine)
        self.lock.release()
        weights = trained_weights(self.best_weights.path.parent)
        if weights is not None and self.bundle is not None:
            command = ["nucsam", "segment", "images", "--bundle", self.bundle, "--weights", str(weights)]
            logger.info("segment with these weights: %s", shlex.join(command))


class ValidationHandlers(_Handlers):
    """Attach all handlers of a validation: measure, log, track, save the best weights.

    Args:
        measure: handlers that turn outputs into metrics, in their order.
        run: MLflow run of the training.
        best_weights: save what was trained by the metrics.
        split: the part of the dataset.
    """

    def __init__(
        self,
        measure: Sequence[Handler | None],
        run: TrackedRun,
        best_weights: BestWeightsSaver | Sequence[BestWeightsSaver],
        split: str | None = None,
    ) -> None:
        tracker = MLflowTracker(
            run, dataset_dir=run.dataset_dir, split=split, split_protocol=run.split_protocol
        )
        savers = [best_weights] if isinstance(best_weights, BestWeightsSaver) else best_weights
        super().__init__([*measure, StatsHandler(iteration_log=False), tracker, *savers])


class EvaluationHandlers(_Handlers):
    """Attach all handlers of an evaluation: measure, report, show progress, track.

    Args:
        measure: handlers that turn outputs into metrics and tables, in their order.
        run: MLflow run of the evaluation.
        splits: the parts of the dataset.
        output_dir: folder with the tables, which are uploaded at the end; None for an evaluation without tables.
        hide_progress: True shows no progress bar.
        description: text in front of the progress bar.

    Raises:
        CheckpointError: an evaluation with tables of a network without any weights, trained ones or SAM's.
    """

    def __init__(
        self,
        measure: Sequence[Handler | None],
        run: TrackedRun,
        splits: str | Sequence[str],
        output_dir: str | Path | None = None,
        hide_progress: bool | None = None,
        description: str = "evaluating",
    ) -> None:
        if output_dir is not None and run.weights and not any(run.weights.values()):
            raise CheckpointError(
                "evaluation: found no weights, so that all of the network's would be random. Give trained weights "
                "(checkpoint)" + (", or those of SAM (sam_checkpoint)." if "sam" in run.weights else ".")
            )
        tables = [] if output_dir is None else [f"{output_dir}/{name}" for name in _TABLES]
        split = splits if isinstance(splits, str) else "+".join(splits)
        tracker = _owner(run, [*tables, *run.configurations] if tables else [], split)
        super().__init__(
            [
                *measure,
                _progress(description, hide_progress),
                StatsHandler(iteration_log=False),
                tracker,
            ]
        )


class InferenceHandlers(_Handlers):
    """Attach all handlers of an inference: write results, show progress, log.

    Args:
        results: folder of the results.
        overlay_px: longest side of the overlays in pixels; 0 writes no overlays.
        hide_progress: whether to hide the progress bar.
    """

    def __init__(self, results: ResultsFolder, overlay_px: int, hide_progress: bool | None = None) -> None:
        super().__init__(
            [
                PredictionWriter(results.folder, overlay_px, results),
                _progress("segmenting", hide_progress),
                StatsHandler(iteration_log=False),
            ]
        )


def _domain_sampler(data_loader: DataLoader) -> DomainBatchSampler:
    """Return the sampler of a training's batches."""
    sampler = data_loader.batch_sampler
    if not isinstance(sampler, DomainBatchSampler):
        raise ConfigurationError(
            f"data_loader: its batches come from {type(sampler).__name__}, expected a DomainBatchSampler."
        )
    return sampler


def _progress(description: str, hide: bool | None) -> ProgressBar:
    """Return a progress bar that stays when its engine has finished."""
    return ProgressBar(desc=description, persist=True, disable=hide)


def _loss_log(name: str) -> StatsHandler:
    """Return the log of an epoch's loss."""
    return StatsHandler(
        iteration_log=False, tag_name=name, output_transform=from_engine(["loss"], first=True)
    )


def _owner(run: TrackedRun, artifacts: Sequence[str | Path], split: str | None = None) -> MLflowTracker:
    """Return the tracker whose engine ends the run."""
    return MLflowTracker(
        run,
        owner=True,
        artifacts=artifacts,
        dataset_dir=run.dataset_dir,
        split=split,
        split_protocol=run.split_protocol,
    )


def evaluation_facts(
    bundle: str,
    checkpoint: Mapping[str, str | None] | str | None,
    settings: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the facts that ``summary.json`` holds besides the numbers of an evaluation.

    Args:
        bundle: name of the bundle.
        checkpoint: the evaluated weights, by name if there are several.
        settings: keys of the configuration whose values are listed, besides data, splits and seed.
    """
    always = ("dataset_dir", "splits", "split_protocol")
    values = settings_named([*always, *settings, "seed"])
    if "dataset_dir" in values:
        values["dataset_dir"] = str(values["dataset_dir"])
    return {"bundle": bundle, "checkpoint": checkpoint, "weights": header_of(checkpoint), **values}


def run_tags(
    bundle: str,
    domains: str | Sequence[str],
    protocol: str = "supervised",
    stage: str | None = None,
    split: str | None = None,
) -> dict[str, str | None]:
    """Return the tags of a tracked run; a tag of None is left out.

    Args:
        bundle: name of the bundle.
        domains: domains of the images.
        protocol: how the network was trained for them, for example ``"supervised"`` or ``"zero_shot"``.
        stage: which of several networks is trained.
        split: the part of the dataset that is evaluated.
    """
    dataset = domains if isinstance(domains, str) else "+".join(domains)
    return {"bundle": bundle, "stage": stage, "dataset": dataset, "split": split, "protocol": protocol}


def evaluation_tags(
    bundle: str,
    items: Iterable[Mapping[str, Any]],
    splits: str | Sequence[str],
    protocol: str,
    stage: str | None = None,
) -> dict[str, str | None]:
    """Return the tags of a tracked evaluation, see :func:`run_tags`.

    Args:
        bundle: name of the bundle.
        items: the images, with ``domain``.
        splits: the parts of the dataset.
        protocol: how the network was trained for them.
        stage: which of several networks is evaluated.
    """
    split = splits if isinstance(splits, str) else "+".join(splits)
    return run_tags(bundle, domains_of(items), protocol, stage, split)
