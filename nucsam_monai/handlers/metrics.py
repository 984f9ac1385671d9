"""Attach metrics and validation losses to Ignite engines, several named scalars per handler."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.handlers import IgniteMetricHandler, from_engine
from monai.utils import string_list_all_gather
from torch import Tensor, nn

from nucsam_monai.metrics.cumulative import (
    ClassForegroundMetric,
    FiveThresholdsMetric,
    ForegroundMetric,
    InstanceSegmentationMetric,
    LabelMapMetric,
    PointDetectionMetric,
    PromptedMaskMetric,
    WeightedForegroundMetric,
    WorkingSizeMetric,
)
from nucsam_monai.metrics.statistics import nan_mean
from nucsam_monai.utils.errors import ConfigurationError


def dice_metric(
    by_domain: bool = False, classes: Mapping[str, Sequence[str]] | None = None
) -> dict[str, "NamedMetricsHandler"]:
    """Return the key metric of semantic networks: Dice, ``val_dice``, and the others of the foreground.

    Args:
        by_domain: report ``val_dice_<domain>`` as well.
        classes: the names of the classes of domains with one mask per class, whose images count by the mean of their
            classes, for example ``val_dice_nucleus`` and ``val_dice_cytoplasm``.
    """
    names = list(dict.fromkeys(name for names in (classes or {}).values() for name in names))
    if not names:
        return {"val_dice": NamedMetricsHandler(ForegroundMetric(), by_domain=by_domain)}
    metric, maps = ClassForegroundMetric(names), partial(_class_maps, names)
    return {"val_dice": NamedMetricsHandler(metric, output_transform=maps, by_domain=by_domain)}


def instance_metrics() -> "NamedMetricsHandler":
    """Return the handler of the instance metrics, for example ``val_aji`` and ``val_pq``."""
    return NamedMetricsHandler(InstanceSegmentationMetric())


def weighted_metrics() -> "NamedMetricsHandler":
    """Return the handler of the foreground metrics weighted by image size."""
    return NamedMetricsHandler(WeightedForegroundMetric())


def five_thresholds_metrics() -> "NamedMetricsHandler":
    """Return the handler of Dice and IoU averaged over five thresholds of the probability (SAC)."""
    return NamedMetricsHandler(FiveThresholdsMetric(), output_transform=_probabilities)


def working_size_metrics(
    size_px: int | None, smooth: float | None, threshold: float = 0.5
) -> "NamedMetricsHandler | None":
    """Return the handler of the foreground's metrics at a working size, with smoothed overlaps (UN-SAM).

    Args:
        size_px: size of the metric, see :class:`~nucsam_monai.metrics.cumulative.WorkingSizeMetric`.
        smooth: smoothing constant, see there; with neither ``size_px`` nor ``smooth`` no handler is made.
        threshold: threshold of the probability.
    """
    if size_px is None and smooth is None:
        return None
    metric = WorkingSizeMetric(size_px, smooth, threshold)
    return NamedMetricsHandler(metric, output_transform=_probabilities)


def mask_metric() -> dict[str, "NamedMetricsHandler"]:
    """Return the key metric of prompted networks: the IoU of each mask with its nucleus, ``val_mask_iou``."""
    return {"val_mask_iou": NamedMetricsHandler(PromptedMaskMetric(), keys=["pred", "label"])}


def point_metric(class_names: Sequence[str], radius_px: float) -> dict[str, "NamedMetricsHandler"]:
    """Return the key metric of nuclei prompters: the F1 of points within ``radius_px`` of a centroid, ``val_f1``."""
    metric = PointDetectionMetric(class_count=len(class_names), radius_px=radius_px)
    return {"val_f1": NamedMetricsHandler(metric, keys=["pred", "label"])}


class NamedMetricsHandler(IgniteMetricHandler):
    """Measure label maps after every iteration and report each named mean at the end of the epoch.

    After the epoch ``engine.state.metrics`` holds one float per name of the metric, for example ``val_aji``
    and ``val_pq``, and ``engine.state.metric_details`` one ``(images,)`` tensor per column under the same
    key, in the order of the images. All of them come from one computation per image.

    The handler fits both places where MONAI's engines take metrics. In ``key_val_metric`` its key must be
    one of the names, which then selects the best model; in ``val_handlers`` it needs no name.

    Args:
        metric_fn: the metric that collects one row per image.
        keys: keys of what is predicted and what is true in the engine's output; by default the label maps of the
            ``NucleiPrediction`` under ``pred`` and those under ``label_instances``.
        output_transform: returns ``(y_pred, y)`` from the engine's output, in place of ``keys``.
        prefix: put before every name.
        by_domain: also report the mean of the first column over the images of each domain, as
            ``<prefix><column>_<domain>``; the engine's items then hold ``domain``.

    Example::

        evaluator = SupervisedEvaluator(
            ...,
            key_val_metric={"val_aji": NamedMetricsHandler(InstanceSegmentationMetric())},
            val_handlers=[NamedMetricsHandler(ForegroundMetric())],
        )
    """

    def __init__(
        self,
        metric_fn: LabelMapMetric,
        keys: Sequence[str] | None = None,
        output_transform: Callable[[Any], Any] | None = None,
        prefix: str = "val_",
        *,
        by_domain: bool = False,
    ) -> None:
        default = _label_maps if keys is None else from_engine(keys)
        super().__init__(metric_fn=metric_fn, output_transform=output_transform or default)
        self.prefix = prefix
        self.by_domain = by_domain
        self._domains: list[str] = []

    def attach(self, engine: Engine, name: str | None = None) -> None:
        """Attach to an engine, as its handler or as its metric.

        Args:
            engine: the evaluator.
            name: the prefixed name that the engine knows this metric by, if it is one of the engine's
                metrics.

        Raises:
            ConfigurationError: the metric has no value of that name.
        """
        names = [f"{self.prefix}{value}" for value in self.metric_fn.names]
        if name is not None and name not in names:
            raise ConfigurationError(
                f"{type(self.metric_fn).__name__}: asked for '{name}', reports {', '.join(names)}. "
                "Use one of these names or change the prefix."
            )
        super().attach(engine, name or names[0])

    def reset(self) -> None:
        """Forget the last epoch."""
        super().reset()
        self._domains = []

    def iteration_completed(self, engine: Engine) -> None:
        """Measure the images of one iteration."""
        super().iteration_completed(engine)
        if self.by_domain:
            self._domains += [item["domain"] for item in engine.state.batch]

    def compute(self) -> dict[str, float]:
        """Return the mean of every name, prefixed, over the images of all processes."""
        return {f"{self.prefix}{name}": value for name, value in self.metric_fn.aggregate().items()}

    def completed(self, engine: Engine, name: str) -> None:
        """Put the means and the rows into the engine's state.

        Args:
            engine: the engine whose epoch ended.
            name: unused: every value has its own name.
        """
        engine.state.metrics.update(self.compute())
        rows = torch.as_tensor(self.metric_fn.rows())
        for index, column in enumerate(self.metric_fn.columns):
            engine.state.metric_details[f"{self.prefix}{column}"] = rows[:, index]
        domains = np.array(string_list_all_gather(self._domains) if self.by_domain else [])
        for domain in np.unique(domains):
            name = f"{self.prefix}{self.metric_fn.columns[0]}_{domain}"
            engine.state.metrics[name] = nan_mean(rows[domains == domain, 0])


def _label_maps(outputs: Sequence[Mapping[str, Any]]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the predicted and the true label maps ``(1, H, W)`` of decollated outputs."""
    predicted = [torch.from_numpy(output["pred"].instances)[None] for output in outputs]
    return predicted, [output["label_instances"] for output in outputs]


def _class_maps(
    names: Sequence[str], outputs: Sequence[Mapping[str, Any]]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return predicted and true maps ``(1 + C, H, W)``: of all nuclei and of each class, -1 where an image lacks it."""
    predicted, true = _label_maps(outputs)
    for index, output in enumerate(outputs):
        prediction, label = output["pred"], output["label"]
        planes = [torch.full((len(names), *prediction.instances.shape), -1) for _ in range(2)]
        if 1 < len(label) == len(prediction.class_names):
            class_of_id = np.full(prediction.table["id"].max(initial=0) + 1, -1)
            class_of_id[prediction.table["id"]] = prediction.table["class_id"]
            class_map = torch.from_numpy(class_of_id[prediction.instances])
            for number, name in enumerate(prediction.class_names):
                planes[0][names.index(name)] = class_map == number
                planes[1][names.index(name)] = label[number].cpu() > 0
        predicted[index] = torch.cat([predicted[index], planes[0]])
        true[index] = torch.cat([torch.as_tensor(true[index]).cpu(), planes[1]])
    return predicted, true


def _probabilities(outputs: Sequence[Mapping[str, Any]]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the probability of the foreground and the true label map, ``(1, H, W)``, of decollated outputs."""
    predicted = [torch.from_numpy(output["pred"].foreground)[None] for output in outputs]
    return predicted, [output["label_instances"] for output in outputs]


class ValidationLoss:
    """Compute the mean mask loss of each domain, and the mean of the domains, from probabilities.

    After the epoch ``engine.state.metrics`` holds ``val_loss`` and ``val_loss_<domain>``. Every domain counts
    alike, however many images it has.

    Args:
        loss: loss of logits against a binary target, for example :class:`nucsam_monai.losses.MaskLoss`.
        domains: the domains of the validation images.
    """

    def __init__(self, loss: nn.Module, domains: Sequence[str]) -> None:
        self.loss = loss
        self.domains = tuple(domains)
        self._sums = torch.zeros(2, len(self.domains), dtype=torch.float64)

    def attach(self, engine: Engine) -> None:
        """Attach to a validator whose outputs hold ``label`` and ``pred``, with its foreground.

        With one channel per class, they hold each one's ``probability`` as well.
        """
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.finish)

    def start(self, _engine: Engine) -> None:
        """Forget the last epoch."""
        self._sums = torch.zeros_like(self._sums)

    def add(self, engine: Engine) -> None:
        """Add the images of one iteration.

        Raises:
            ConfigurationError: an image of a domain that was not announced.
        """
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            if item["domain"] not in self.domains:
                raise ConfigurationError(
                    f"validation image '{item['id']}': domain '{item['domain']}' is not one of {self.domains}."
                )
            label = output["label"]
            found = output["probability"] if len(label) > 1 else output["pred"].foreground[None]
            probability = torch.as_tensor(found).to(label.device)
            value = self.loss(logit(probability)[None], label[None])
            self._sums[:, self.domains.index(item["domain"])] += torch.tensor([float(value), 1.0])

    def finish(self, engine: Engine) -> None:
        """Store the means over the images of all processes in the engine's metrics."""
        sums = self._sums.clone()
        if dist.is_available() and dist.is_initialized():
            sums = sums.to(engine.state.device)
            dist.all_reduce(sums)
            sums = sums.cpu()
        means = sums[0] / sums[1]
        for domain, mean in zip(self.domains, means.tolist(), strict=True):
            engine.state.metrics[f"val_loss_{domain}"] = mean
        engine.state.metrics["val_loss"] = float(means.nanmean())


def logit(probability: Tensor) -> Tensor:
    """Return the logit of a probability, kept finite."""
    return torch.logit(probability.float(), eps=1e-6)
