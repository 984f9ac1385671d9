"""Bound the gradient before every optimizer step."""

import torch
from ignite.engine import Engine
from monai.engines.utils import IterationEvents
from torch import nn


class GradientClipping:
    """Scale the gradient of a network down to a largest norm.

    For trainers without ``amp``: there the gradient still carries the scaler's factor when it is clipped.

    Args:
        network: whose gradient is bounded.
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
