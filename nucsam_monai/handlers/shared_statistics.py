"""The same running statistics in every process that validates."""

import torch.distributed as dist
from ignite.engine import Engine, Events
from torch import nn


class SharedStatistics:
    """Give every process the first one's buffers before it validates.

    Batch normalisation collects its running statistics from each process's own images. The first process
    saves the weights, so all of them have to validate with its statistics. Alone, there is nothing to share.

    Args:
        network: the network itself, not what wraps it for several processes.
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
