"""The loss of learned instances: foreground, and the distance map that parts touching nuclei."""

from monai.losses import DiceCELoss
from torch import Tensor, nn
from torch.nn import functional

from nucsam_monai.losses.sac import target_at
from nucsam_monai.utils.errors import ConfigurationError


class DistanceInstanceLoss(nn.Module):
    """A loss of the foreground plus cross-entropy and smooth L1 of the distance map.

    The distance is a target between 0 and 1 of a sigmoid. Its cross-entropy pulls hard where the answer is far off,
    its smooth L1 makes the values right, on which the markers' threshold relies.

    Args:
        mask: the loss of the foreground's logits against a binary target ``(B, 1, H, W)``; Dice + cross-entropy where
            none is given.
        distance_weight: weight of the distance map's part.
        l1_weight: weight of smooth L1 in it.
        beta: of smooth L1: below this error it is quadratic.

    Source: ours; the map is that of :func:`~nucsam_monai.transforms.nucleus_distance`.
    """

    def __init__(
        self,
        mask: nn.Module | None = None,
        distance_weight: float = 1.0,
        l1_weight: float = 2.0,
        beta: float = 0.1,
    ) -> None:
        super().__init__()
        self.mask = mask if mask is not None else DiceCELoss(sigmoid=True, smooth_nr=1.0, smooth_dr=1.0)
        self.distance_weight = distance_weight
        self.l1_weight = l1_weight
        self.beta = beta

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the scalar loss.

        Args:
            logits: ``(B, n + 1, h, w)``: the n channels that ``mask`` takes, then the distance map's.
            target: ``(B, 2, H, W)``, foreground and distance map.

        Raises:
            ConfigurationError: the target has not two channels, or other images or sides than the logits.
        """
        height, width = logits.shape[-2:]
        if (
            (target.ndim, target.shape[:2]) != (4, (len(logits), 2))
            or logits.shape[1] < 2
            or target.shape[-2] % height
            or target.shape[-1] % width
        ):
            raise ConfigurationError(
                f"logits {tuple(logits.shape)} and target {tuple(target.shape)}: expected logits (B, 2, H, W) or "
                "more channels, and a target (B, 2, H, W) of foreground and distance map, as large or a multiple. "
                "Build the network and the targets with the same setting of instances."
            )
        logits, target = logits.float(), target.float()
        foreground = self.mask(logits[:, :-1], target[:, :1])
        return foreground + self.distance_weight * self.of_distance(logits[:, -1:], target[:, 1:])

    def of_distance(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the part of the distance map alone: its logits ``(B, 1, h, w)`` against ``(B, 1, H, W)``."""
        target = target_at(logits, target)
        depth = functional.smooth_l1_loss(logits.sigmoid(), target, beta=self.beta)
        return functional.binary_cross_entropy_with_logits(logits, target) + self.l1_weight * depth
