"""An exponential moving average of the weights, which is what is evaluated and exported."""

from collections.abc import Mapping
from typing import Any

from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

ParamList = tuple[Tensor, ...] | list[Tensor]


class WeightAveraging:
    """Keep an average of a network's parameters and buffers beside it, updated after every step.

    Weights move far at first, and an average of few steps would still hold them: in the first epochs it may be a
    copy, or the share of what stays may grow with the steps. Name it among the parts of
    :class:`~nucsam_monai.handlers.TrainingState`, so that a resumed training goes on averaging.

    Args:
        network: what is trained, on its device and without a wrapper of distributed training.
        decay: share of the average that stays in every step; None keeps no average, and ``averaged`` is the network
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
        """Take the weights of this step into the average."""
        if self._average is None:
            return
        if engine.state.epoch <= self.copy_epochs:
            self._average.n_averaged.zero_()  # the model copies while it has averaged nothing
        self._average.update_parameters(self.network)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the average and how many steps are in it."""
        return {} if self._average is None else self._average.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the average of an interrupted training."""
        if self._average is not None:
            self._average.load_state_dict(state)

    def _mix(self, averaged: ParamList, current: ParamList, steps: Tensor | int) -> None:
        """Mix tensors of one type into their averages of so many steps."""
        share = float(self.decay or 0)
        if self.warm_up:
            share = min(share, (1 + int(steps)) / (10 + int(steps)))
        get_ema_multi_avg_fn(share)(averaged, current, steps)
