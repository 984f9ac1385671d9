"""HoVer-Net (Graham et al., Medical Image Analysis 58, 2019): MONAI's network, loss and post-processing."""

from collections.abc import Sequence

import numpy as np
from monai.transforms import ComputeHoVerMaps
from torch import nn

from nucsam_monai.losses.common import HoVerNetBranchLoss
from nucsam_monai.networks.baselines import Built, build_hovernet
from nucsam_monai.systems.system import Order, System
from nucsam_monai.transforms.instances import HoVerNetInstancesd
from nucsam_monai.utils.prediction import NucleiPrediction


def hovernet_target(instances: np.ndarray, _classes: np.ndarray) -> np.ndarray:
    """Return ``(3, H, W)`` float32: nucleus, and horizontal and vertical distance to its centre in -1..1."""
    distances = np.asarray(ComputeHoVerMaps()(instances[None]), dtype=np.float32)
    return np.concatenate([(instances > 0)[None].astype(np.float32), distances])


def hovernet_nuclei(maps: np.ndarray, threshold: float, _class_names: Sequence[str]) -> NucleiPrediction:
    """Return the nuclei of ``(3, H, W)`` maps, see :class:`~nucsam_monai.transforms.HoVerNetInstancesd`."""
    nuclei: NucleiPrediction = HoVerNetInstancesd("pred", threshold=threshold)({"pred": maps})["pred"]
    return nuclei


def _build(order: Order) -> Built:
    return build_hovernet(order.small)


def _loss(_dense: nn.Module) -> nn.Module:
    return HoVerNetBranchLoss()


HOVERNET = System(build=_build, loss=_loss, target=hovernet_target, rule=hovernet_nuclei)
