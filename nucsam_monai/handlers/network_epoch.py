"""What a network trains may depend on the epoch: tell it which one starts."""

from typing import Protocol

from ignite.engine import Engine, Events


class StagedNetwork(Protocol):
    """A network that trains in stages."""

    def begin_epoch(self, epoch: int) -> None:
        """Train from now on what the stage of the 0-based ``epoch`` foresees."""


class NetworkEpoch:
    """Call ``network.begin_epoch`` with the 0-based number of every epoch that starts.

    The number is the trainer's own, so that a resumed training goes on in the stage it was in.

    Args:
        network: the network itself, not what wraps it for several processes.
    """

    def __init__(self, network: StagedNetwork) -> None:
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.begin)

    def begin(self, engine: Engine) -> None:
        """Tell the network the epoch that ``engine.state.epoch`` counts from 1."""
        self.network.begin_epoch(engine.state.epoch - 1)
