"""Define Mask R-CNN for nuclei: torchvision's network with small anchors ("Mask R-CNN", He et al., 2017)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, masks_to_boxes
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from nucsam_monai.networks.detector import COMPACT_ENCODER, Detections, Detector, TrunkLevels
from nucsam_monai.utils.errors import ConfigurationError

_ENCODERS = ("resnet18", "resnet34", "resnet50", "resnet101", COMPACT_ENCODER)

_ANCHORS_PX = (8, 16, 32, 64, 128)
"""Side of the anchors on each level of the pyramid; the paper's begin at 32, above most nuclei."""


_COMPACT_CHANNELS, _COMPACT_HIDDEN = 64, 256
_BOX_CELLS = 7
"""Side of the map of a region that its box is learned from."""


class TrunkPyramid(nn.Module):
    """A feature pyramid of five levels on EfficientNet-Lite0, strides 4 to 64.

    Attributes:
        out_channels: channels of each level.
    """

    out_channels = _COMPACT_CHANNELS

    def __init__(self) -> None:
        super().__init__()
        self.trunk = TrunkLevels()
        self.pyramid = FeaturePyramidNetwork(list(self.trunk.channels), self.out_channels, LastLevelMaxPool())

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return the levels ``(B, 64, ...)`` by number, finest first, of ``(B, 3, H, W)``."""
        return self.pyramid({str(number): one for number, one in enumerate(self.trunk(image))})


class MaskRCNN(Detector):
    """Find nuclei as boxes and segment the mask in each box.

    Images are taken as they are: normalised before, and of the size that the network was trained on.

    Args:
        class_names: names of the classes of nuclei.
        encoder: ``resnet18``, ``resnet34``, ``resnet50``, ``resnet101`` or ``lite0``, with a feature pyramid of five
            levels; on ``lite0`` pyramid and masks have 64 channels instead of 256, and boxes 256 instead of 1024.
        rois_per_image: regions that the heads learn from in an image, a quarter of them nuclei if there are as many.
        most: objects per image that are kept.
        min_score: objects below it are dropped.
        overlap: intersection over union of boxes of one class above which the worse one is dropped.

    Raises:
        ConfigurationError: the encoder is unknown.

    Example:
        >>> sum(p.numel() for p in MaskRCNN().parameters())
        43975515
    """

    method = "maskrcnn"
    paper_encoder = "resnet50"

    def __init__(
        self,
        class_names: Sequence[str] = ("nucleus",),
        encoder: str = "resnet50",
        rois_per_image: int = 512,
        most: int = 500,
        min_score: float = 0.05,
        overlap: float = 0.5,
    ) -> None:
        if encoder not in _ENCODERS:
            raise ConfigurationError(f"encoder '{encoder}': expected one of {', '.join(_ENCODERS)}.")
        super().__init__(class_names, encoder)
        self.network = TorchvisionMaskRCNN(
            **_parts(encoder, 1 + len(class_names)),
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
        for part in (self.network.backbone, self.network.rpn.head, self.network.roi_heads.box_predictor):
            part.register_forward_hook(_in_float32)

    @property
    def backbone(self) -> nn.Module:
        """The encoder with its pyramid."""
        return self.network.backbone

    def learn(self, image: Tensor, masks: Sequence[Tensor], class_ids: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return torchvision's losses."""
        losses: dict[str, Tensor] = self.network(list(image), list(map(_target, masks, class_ids)))
        return losses

    def find(self, image: Tensor) -> list[Detections]:
        """Return what is found in each image."""
        return [
            Detections(found["masks"].float(), found["scores"].float(), found["labels"] - 1)
            for found in self.network(list(image))
        ]


def _parts(encoder: str, classes: int) -> dict[str, Any]:
    """Return what torchvision's Mask R-CNN takes of an encoder and the heads on it."""
    if encoder != COMPACT_ENCODER:
        backbone = resnet_fpn_backbone(
            backbone_name=encoder, weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
        )
        return {"backbone": backbone, "num_classes": classes}
    width = _COMPACT_CHANNELS
    return {
        "backbone": TrunkPyramid(),
        "box_head": TwoMLPHead(width * _BOX_CELLS**2, _COMPACT_HIDDEN),
        "box_predictor": FastRCNNPredictor(_COMPACT_HIDDEN, classes),
        "mask_head": MaskRCNNHeads(width, (width,) * 4, dilation=1),
        "mask_predictor": MaskRCNNPredictor(width, width, classes),
    }


def _in_float32(_part: nn.Module, _inputs: Any, outputs: Any) -> Any:
    """Return what places boxes in float32: bfloat16 has no pixels beyond 256, and torchvision decodes in its type."""
    if isinstance(outputs, Tensor):
        return outputs.float()
    if isinstance(outputs, dict):
        return {name: one.float() for name, one in outputs.items()}
    return tuple(_in_float32(_part, _inputs, one) for one in outputs)


def _target(masks: Tensor, class_ids: Tensor) -> dict[str, Tensor]:
    boxes = masks_to_boxes(masks) if len(masks) else masks.new_zeros((0, 4))
    # The last pixel belongs to the box, so that a nucleus of one pixel has one.
    boxes = boxes.float() + boxes.new_tensor([0, 0, 1, 1])
    return {"boxes": boxes, "labels": class_ids + 1, "masks": masks.to(torch.uint8)}
