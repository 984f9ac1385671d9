"""The loss on the validation images, by which checkpoints are selected."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from torch import Tensor, nn

from nucsam_monai.utils.errors import ConfigurationError


class ValidationLoss:
    """Mean mask loss of each domain and the mean of the domains, computed from probabilities.

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
        """Attach to a validator whose outputs hold ``pred``, with its foreground, and ``label``."""
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
                    f"validation image '{item['id']}': domain '{item['domain']}' is none of {self.domains}."
                )
            label = output["label"]
            probability = torch.from_numpy(output["pred"].foreground)[None].to(label.device)
            value = self.loss(logit(probability)[None], label[None])
            self._sums[:, self.domains.index(item["domain"])] += torch.tensor([float(value), 1.0])

    def finish(self, engine: Engine) -> None:
        """Put the means over the images of all processes into the engine's metrics."""
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
