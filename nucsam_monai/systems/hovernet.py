"""HoVer-Net (Graham et al., Medical Image Analysis 58, 2019): MONAI's network, loss and post-processing."""

from collections.abc import Sequence

import numpy as np
from monai.networks.nets import HoVerNet
from monai.transforms import ComputeHoVerMaps
from torch import nn

from nucsam_monai.losses.common import HoVerNetBranchLoss
from nucsam_monai.networks.baselines import Built, build_hovernet, maps_of_branches
from nucsam_monai.systems.system import Order, System, class_votes, require_maps
from nucsam_monai.systems.unet_heads import builder
from nucsam_monai.transforms.instances import HoVerNetInstancesd
from nucsam_monai.utils.prediction import NucleiPrediction, prediction_from_instances


def hovernet_target(instances: np.ndarray, classes: np.ndarray | None) -> np.ndarray:
    """Return ``(3, H, W)`` float32: nucleus, and horizontal and vertical distance to its centre in -1..1.

    With classes there is a fourth channel, see :func:`~nucsam_monai.systems.class_map`.
    """
    maps = [(instances > 0)[None], ComputeHoVerMaps()(instances[None])]
    if classes is not None:
        maps.append(classes[None])
    return np.concatenate([np.asarray(one, dtype=np.float32) for one in maps])


def hovernet_nuclei(maps: np.ndarray, threshold: float, class_names: Sequence[str]) -> NucleiPrediction:
    """Return the nuclei of :class:`~nucsam_monai.transforms.HoVerNetInstancesd`, of the class that most pixels name.

    Section 3.2. The background has no vote, so a nucleus always has a class.

    Args:
        maps: ``(3, H, W)``, and with several classes the probability of each behind them.
        threshold: threshold of the nucleus probability.
        class_names: names of the classes.
    """
    classes = len(class_names) if len(class_names) > 1 else 0
    require_maps(maps, 3 + classes, "HoVer-Net")
    nuclei: NucleiPrediction = HoVerNetInstancesd("pred", threshold=threshold)({"pred": maps[:3]})["pred"]
    if not classes:
        return nuclei
    return prediction_from_instances(
        nuclei.instances,
        foreground=nuclei.foreground,
        class_ids=class_votes(nuclei.instances, maps[3:]),
        class_names=class_names,
    )


def _build(order: Order) -> Built:
    if order.size != "compact":
        return build_hovernet(order.small, classes=order.classes)
    heads = {HoVerNet.Branch.NP.value: 2, HoVerNet.Branch.HV.value: 2}
    types = {HoVerNet.Branch.NC.value: order.classes + 1} if order.classes > 1 else {}
    return builder({**heads, **types}, maps_of_branches)(order._replace(classes=1))


def _loss(_dense: nn.Module) -> nn.Module:
    return HoVerNetBranchLoss()


HOVERNET = System(
    build=_build,
    loss=_loss,
    target=hovernet_target,
    rule=hovernet_nuclei,
    knows_classes=True,
    sizes=("standard", "compact"),
)
