"""The loss of learned instances: foreground, and the distance map that parts touching nuclei."""

from monai.losses import DiceLoss
from torch import Tensor, nn
from torch.nn import functional


class DistanceInstanceLoss(nn.Module):
    """Dice + cross-entropy on the foreground, cross-entropy + smooth L1 on the distance map.

    The distance is a target between 0 and 1 of a sigmoid. Its cross-entropy pulls hard where the answer is far off,
    its smooth L1 makes the values right, on which the markers' threshold relies.

    Args:
        distance_weight: weight of the distance map's part.
        l1_weight: weight of smooth L1 in it.
        beta: of smooth L1: below this error it is quadratic.

    Source: ours; the map is that of :func:`~nucsam_monai.transforms.nucleus_distance`.
    """

    def __init__(self, distance_weight: float = 1.0, l1_weight: float = 2.0, beta: float = 0.1) -> None:
        super().__init__()
        self.distance_weight = distance_weight
        self.l1_weight = l1_weight
        self.beta = beta
        self.dice = DiceLoss(sigmoid=True, smooth_nr=1.0, smooth_dr=1.0)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the scalar loss of ``(B, 2, H, W)`` logits against foreground and distance of that shape."""
        logits, target = logits.float(), target.float()
        nucleus, distance = logits[:, :1], logits[:, 1:]
        entropy = functional.binary_cross_entropy_with_logits
        depth = functional.smooth_l1_loss(distance.sigmoid(), target[:, 1:], beta=self.beta)
        return (
            self.dice(nucleus, target[:, :1])
            + entropy(nucleus, target[:, :1])
            + self.distance_weight * (entropy(distance, target[:, 1:]) + self.l1_weight * depth)
        )
