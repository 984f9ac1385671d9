"""The Ignite side of the metrics: one handler, several named scalars."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine
from monai.handlers import IgniteMetricHandler, from_engine
from torch import Tensor

from nucsam_monai.metrics.cumulative import LabelMapMetric
from nucsam_monai.utils.errors import ConfigurationError


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
    ) -> None:
        default = _label_maps if keys is None else from_engine(keys)
        super().__init__(metric_fn=metric_fn, output_transform=output_transform or default)
        self.prefix = prefix

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


def _label_maps(outputs: Sequence[Mapping[str, Any]]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the predicted and the true label maps ``(1, H, W)`` of decollated outputs."""
    predicted = [torch.from_numpy(output["pred"].instances)[None] for output in outputs]
    return predicted, [output["label_instances"] for output in outputs]
