"""The U-Nets of :mod:`nucsam_monai.networks.dense`, in the paper's size and in a small one."""

from collections.abc import Mapping

from monai.losses import DeepSupervisionLoss
from torch import nn

from nucsam_monai.networks.baselines import Built
from nucsam_monai.networks.dense.ddu_net import DDUNet
from nucsam_monai.networks.dense.double_unet import DoubleUNet
from nucsam_monai.networks.dense.r2unet import R2UNet
from nucsam_monai.networks.dense.resunetpp import ResUNetPlusPlus
from nucsam_monai.networks.dense.transunet import SMALL_TRANSUNET, TransUNet, TransUNetSize
from nucsam_monai.networks.dense.unet import OriginalUNet
from nucsam_monai.networks.dense.unetpp import OriginalUNetPlusPlus
from nucsam_monai.systems.system import Order, System


def _supervised(dense: nn.Module) -> nn.Module:
    """Return the loss of a list of outputs, each of which counts the same."""
    return DeepSupervisionLoss(dense, weight_mode="same")


def _original_unet(order: Order) -> Built:
    return Built(OriginalUNet(outputs=order.outputs, channels=16 if order.small else 64), 16)


def _original_unetpp(order: Order) -> Built:
    filters = (8, 16, 32, 64, 128) if order.small else (32, 64, 128, 256, 512)
    return Built(OriginalUNetPlusPlus(order.outputs, filters), 16)


def _resunetpp(order: Order) -> Built:
    filters = (16, 32, 64, 128, 256) if order.small else (32, 64, 128, 256, 512)
    return Built(ResUNetPlusPlus(order.outputs, filters), 8)


def _r2unet(order: Order) -> Built:
    return Built(R2UNet(order.outputs, 16 if order.small else 64), 16)


def _double_unet(order: Order) -> Built:
    return Built(DoubleUNet(order.outputs, shrink=4 if order.small else 1), 16)


def _transunet(order: Order) -> Built:
    return Built(TransUNet(order.outputs, SMALL_TRANSUNET if order.small else TransUNetSize()), 16)


def _ddu_net(order: Order) -> Built:
    return Built(DDUNet(order.outputs, (16, 32, 64, 128) if order.small else (64, 128, 256, 512, 1024)), 16)


UNETS: Mapping[str, System] = {
    "original_unet": System(_original_unet),
    "original_unetpp": System(_original_unetpp, loss=_supervised),
    "resunetpp": System(_resunetpp),
    "r2unet": System(_r2unet),
    "double_unet": System(_double_unet, loss=_supervised),
    "transunet": System(_transunet),
    "ddu_net": System(_ddu_net),
}
