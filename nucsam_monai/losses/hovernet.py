"""The loss of HoVer-Net on a target that MONAI's transforms can make."""

from collections.abc import Mapping

import torch
from monai.apps.pathology.losses import HoVerNetLoss
from monai.networks.nets import HoVerNet
from torch import Tensor, nn

from nucsam_monai.utils.errors import ConfigurationError


class HoVerNetBranchLoss(nn.Module):
    """MONAI's loss of the nucleus and distance branches (HoVer-Net, section 3.1), from one target tensor.

    The target is the mask followed by the maps: ``ComputeHoVerMapsd(keys="instances")`` and
    ``ConcatItemsd(keys=["label", "hover_instances"], name="label")``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.branches = HoVerNetLoss()

    def forward(self, output: Mapping[str, Tensor], target: Tensor) -> Tensor:
        """Return the scalar loss.

        Args:
            output: of :class:`~nucsam_monai.networks.baselines.HoVerNetBranches` in training mode.
            target: ``(B, 3, H, W)`` of mask, horizontal and vertical distance in -1..1.

        Raises:
            ConfigurationError: not three channels.
        """
        if target.ndim != 4 or target.shape[1] != 3:
            raise ConfigurationError(
                f"target: found shape {tuple(target.shape)}, expected (B, 3, H, W) of mask and distances. "
                "Join the label with what ComputeHoVerMapsd returns."
            )
        nucleus = target[:, :1].float()
        nucleus_key, distance_key = HoVerNet.Branch.NP.value, HoVerNet.Branch.HV.value
        found = {key: output[key].float() for key in (nucleus_key, distance_key)}
        expected = {
            nucleus_key: torch.cat([1 - nucleus, nucleus], dim=1),
            distance_key: target[:, 1:].float(),
        }
        return self.branches(found, expected)
