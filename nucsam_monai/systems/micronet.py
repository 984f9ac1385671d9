"""Micro-Net (Raza et al., Medical Image Analysis 52, 2019): the class of each pixel, from several resolutions."""

from collections.abc import Sequence

import numpy as np
import torch
from monai.losses import DeepSupervisionLoss, DiceCELoss
from scipy.ndimage import binary_fill_holes, maximum_filter, minimum_filter
from torch import Tensor, nn

from nucsam_monai.networks.baselines import Built
from nucsam_monai.networks.dense.micronet import MicroNet
from nucsam_monai.systems.system import Order, System, require_maps
from nucsam_monai.systems.types import voted
from nucsam_monai.systems.unet_heads import logit_of_softmax
from nucsam_monai.utils.instances import connected_components, without_small
from nucsam_monai.utils.prediction import NucleiPrediction, prediction_from_instances

_MIN_AREA_PX = 10


class MicroNetClasses(nn.Module):
    """Micro-Net that tells background and classes apart by a softmax.

    Args:
        classes: number of classes of nuclei.
        channels: channels of the finest level, see :class:`~nucsam_monai.networks.dense.micronet.MicroNet`.
    """

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.network = MicroNet(classes + 1, channels)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Segment images ``(B, 3, H, W)``, sides multiples of 32.

        Returns:
            In training the logits ``(B, classes + 1, H, W)`` of each output. In evaluation logits whose sigmoid is the
            probability of nucleus, and with several classes that of each behind it.
        """
        found = self.network(image)
        if self.training:
            return found
        background, classes = found.float()[:, :1], found.float()[:, 1:]
        nucleus = torch.logsumexp(classes, dim=1, keepdim=True) - background
        return (
            nucleus
            if classes.shape[1] == 1
            else torch.cat([nucleus, logit_of_softmax(found.float())[:, 1:]], 1)
        )


def micronet_target(instances: np.ndarray, classes: np.ndarray | None) -> np.ndarray:
    """Return ``(1, H, W)`` float32: 0 in the background, k + 1 in a nucleus of class k.

    Pixels with another nucleus among their eight neighbours are background, so that touching nuclei come apart.
    """
    highest = np.iinfo(instances.dtype).max
    nearest = minimum_filter(np.where(instances > 0, instances, highest), size=3, mode="nearest")
    alone = (instances > 0) & (nearest == maximum_filter(instances, size=3, mode="nearest"))
    return (alone if classes is None else np.where(alone, classes, 0))[None].astype(np.float32)


def micronet_nuclei(maps: np.ndarray, threshold: float, class_names: Sequence[str]) -> NucleiPrediction:
    """Return the components of the foreground with their holes filled, of the class that most pixels name.

    Args:
        maps: ``(1, H, W)`` probability of nucleus, and with several classes that of each behind it.
        threshold: threshold of the nucleus probability.
        class_names: names of the classes.
    """
    classes = len(class_names) if len(class_names) > 1 else 0
    require_maps(maps, 1 + classes, "Micro-Net")
    filled = binary_fill_holes(maps[0] >= threshold)
    nuclei = prediction_from_instances(
        without_small(connected_components(filled), _MIN_AREA_PX), foreground=maps[0]
    )
    return voted(nuclei, maps[1:], class_names) if classes else nuclei


def _build(order: Order) -> Built:
    return Built(MicroNetClasses(order.classes, 8 if order.small else 64), 32)


MICRONET = System(
    build=_build,
    loss=lambda _dense: DeepSupervisionLoss(DiceCELoss(to_onehot_y=True, softmax=True), weight_mode="same"),
    target=micronet_target,
    rule=micronet_nuclei,
    knows_classes=True,
)
