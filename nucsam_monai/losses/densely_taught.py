"""The loss of a segmentor whose encoder is also taught at every pixel."""

from torch import Tensor, nn

from nucsam_monai.losses.hovernet import HoVerNetBranchLoss
from nucsam_monai.losses.segmentor import NucleusTargets, SegmentorLoss
from nucsam_monai.networks.promptnucseg import TaughtPrediction
from nucsam_monai.utils.errors import ConfigurationError


class DenselyTaughtLoss(nn.Module):
    """``masks + dense_weight * dense``: the loss of prompted masks, and HoVer-Net's of all pixels.

    Args:
        masks: of the prompted nuclei.
        dense_weight: of MONAI's loss of HoVer-Net's branches; with 0 the head learns nothing.

    Raises:
        ConfigurationError: a negative weight.
    """

    def __init__(self, masks: SegmentorLoss, dense_weight: float = 1.0) -> None:
        super().__init__()
        if dense_weight < 0:
            raise ConfigurationError(f"loss dense_weight {dense_weight}: expected 0 or more.")
        self.masks = masks
        self.dense = HoVerNetBranchLoss()
        self.dense_weight = dense_weight

    def forward(self, output: TaughtPrediction, target: NucleusTargets) -> Tensor:
        """Return the scalar loss.

        Raises:
            ConfigurationError: the target lacks the maps of all pixels.
        """
        if target.dense is None:
            raise ConfigurationError(
                "target: found no maps of all pixels, expected the item's 'dense' of DenseNucleid."
            )
        return self.masks(output.masks, target) + self.dense_weight * self.dense(output.dense, target.dense)
