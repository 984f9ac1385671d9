"""Define Mask R-CNN for nuclei: torchvision's network with small anchors ("Mask R-CNN", He et al., 2017)."""

import json
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import masks_to_boxes

from nucsam_monai.networks.compilation import WHY_NO_EXPORT, refuse_export

Encoder = Literal["resnet18", "resnet34", "resnet50", "resnet101"]

_ANCHORS_PX = (8, 16, 32, 64, 128)
"""Side of the anchors on each level of the pyramid; the paper's begin at 32, above most nuclei."""


class Detections(NamedTuple):
    """The objects that were found in one image, the best first.

    Attributes:
        masks: ``(n, 1, S, S)`` probabilities.
        scores: ``(n,)``.
        class_ids: ``(n,)`` int64 from 0.
    """

    masks: Tensor
    scores: Tensor
    class_ids: Tensor


class MaskRCNN(nn.Module):
    """Find nuclei as boxes, and draw the mask of each.

    Images are taken as they are: normalised before, and of the size that the network was trained on.

    Args:
        class_names: of the nuclei.
        encoder: with a feature pyramid of five levels.
        rois_per_image: regions that the heads learn from in an image, a quarter of them nuclei if there are as many.
        most: objects per image that are kept.
        min_score: objects below it are dropped.
        overlap: intersection over union of boxes of one class above which the worse one is dropped.

    Example:
        >>> sum(p.numel() for p in MaskRCNN().parameters())
        43975515
    """

    def __init__(
        self,
        class_names: Sequence[str] = ("nucleus",),
        encoder: Encoder = "resnet50",
        rois_per_image: int = 512,
        most: int = 500,
        min_score: float = 0.05,
        overlap: float = 0.5,
    ) -> None:
        super().__init__()
        self.class_names = tuple(class_names)
        self.encoder = encoder
        self.network = TorchvisionMaskRCNN(
            resnet_fpn_backbone(
                backbone_name=encoder, weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
            ),
            num_classes=1 + len(class_names),
            rpn_anchor_generator=AnchorGenerator(
                tuple((side,) for side in _ANCHORS_PX), ((0.5, 1.0, 2.0),) * len(_ANCHORS_PX)
            ),
            image_mean=[0.0] * 3,
            image_std=[1.0] * 3,
            min_size=1,
            max_size=1 << 20,
            box_batch_size_per_image=rois_per_image,
            box_score_thresh=min_score,
            box_nms_thresh=overlap,
            box_detections_per_img=most,
        )
        self.network.transform._skip_resize = True

    def forward(
        self, image: Tensor, masks: Sequence[Tensor] = (), class_ids: Sequence[Tensor] = ()
    ) -> dict[str, Tensor] | list[Detections]:
        """Return the losses in training, and what was found in evaluation.

        Args:
            image: ``(B, 3, S, S)``, normalised.
            masks: in training ``(n, S, S)`` of each image; n may be 0.
            class_ids: in training ``(n,)`` of each image.

        Raises:
            ConfigurationError: the network is exported.
        """
        refuse_export(WHY_NO_EXPORT)
        images = list(image)
        if self.training:
            losses: dict[str, Tensor] = self.network(images, list(map(_target, masks, class_ids)))
            return losses
        return [
            Detections(found["masks"].float(), found["scores"].float(), found["labels"] - 1)
            for found in self.network(images)
        ]

    @property
    def header(self) -> dict[str, str]:
        """Header of a weights file, which must agree with the network it is loaded into."""
        options = {"encoder": self.encoder}
        return {
            "method": "maskrcnn",
            "sam_variant": "none",
            "options": json.dumps(options),
            "class_names": json.dumps(self.class_names),
        }


def _target(masks: Tensor, class_ids: Tensor) -> dict[str, Tensor]:
    boxes = masks_to_boxes(masks) if len(masks) else masks.new_zeros((0, 4))
    # The last pixel belongs to the box, so that a nucleus of one pixel has one.
    boxes = boxes.float() + boxes.new_tensor([0, 0, 1, 1])
    return {"boxes": boxes, "labels": class_ids + 1, "masks": masks.to(torch.uint8)}
