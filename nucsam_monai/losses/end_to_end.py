"""The loss of PromptNucSeg with a shared encoder: that of the prompter and that of the segmentor."""

from typing import NamedTuple

from torch import Tensor, nn

from nucsam_monai.losses.prompter import PrompterLoss, PrompterTarget
from nucsam_monai.losses.segmentor import NucleusTargets, SegmentorLoss
from nucsam_monai.networks.promptnucseg import EndToEndOutput


class EndToEndTarget(NamedTuple):
    """The ground truth of both networks for one batch."""

    nuclei: PrompterTarget
    masks: NucleusTargets


class EndToEndLoss(nn.Module):
    """``prompter_weight * (L_reg + L_cls + L_aux) + L_segmentor`` (PromptNucSeg, supplement: shared encoder).

    Args:
        prompter: loss of the points.
        segmentor: loss of the masks.
        prompter_weight: of the former; the paper gives none.
    """

    def __init__(
        self, prompter: PrompterLoss, segmentor: SegmentorLoss, *, prompter_weight: float = 1.0
    ) -> None:
        super().__init__()
        self.prompter = prompter
        self.segmentor = segmentor
        self.prompter_weight = prompter_weight

    def forward(self, output: EndToEndOutput, target: EndToEndTarget) -> Tensor:
        """Return the scalar loss."""
        points = self.prompter(output.found, target.nuclei)
        return self.prompter_weight * points + self.segmentor(output.masks, target.masks)
