"""ConvNeXt (Liu et al., 2022) as a backbone: the feature maps of its four stages."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

from nucsam_monai.networks.sam.checkpoint import load_strictly
from nucsam_monai.networks.sam.tensor_files import read_tensors
from nucsam_monai.utils.errors import CheckpointError


@dataclass(frozen=True)
class ConvNeXtShape:
    """The size of a ConvNeXt.

    Attributes:
        depths: blocks of each stage.
        widths: channels of each stage.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]


CONVNEXT_SMALL = ConvNeXtShape((3, 3, 27, 3), (96, 192, 384, 768))
"""The backbone of PromptNucSeg's paper."""


class ConvNeXtBackbone(nn.Module):
    """The four stages of a ConvNeXt without its classifier and without stochastic depth.

    Args:
        shape: the size.

    Attributes:
        widths: channels of the four maps.

    Example:
        >>> import torch
        >>> maps = ConvNeXtBackbone(CONVNEXT_SMALL)(torch.zeros(1, 3, 64, 64))
        >>> [tuple(stage.shape[1:]) for stage in maps]
        [(96, 16, 16), (192, 8, 8), (384, 4, 4), (768, 2, 2)]
    """

    def __init__(self, shape: ConvNeXtShape) -> None:
        super().__init__()
        self.widths = shape.widths
        below = (*shape.widths[1:], None)
        stages = [CNBlockConfig(*stage) for stage in zip(shape.widths, below, shape.depths, strict=True)]
        self.features = ConvNeXt(stages).features

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the stages' maps at a 4th, 8th, 16th and 32nd of ``(B, 3, H, W)`` images, rounded down."""
        maps = []
        for number, layer in enumerate(self.features):
            image = layer(image)
            if number % 2:  # stem and down-samplings alternate with the stages
                maps.append(image)
        return maps

    def load_imagenet(self, path: Path | str) -> None:
        """Load torchvision's weights of the whole classifier; its last layers are left out.

        Args:
            path: ``.safetensors``, or any other suffix for a file written by ``torch.save``.

        Raises:
            CheckpointError: the file is missing, damaged, or of another network.
        """
        state = {name: tensor for name, tensor in read_tensors(path).items() if name.startswith("features.")}
        if not state:
            raise CheckpointError(
                f"{path}: found no tensor named 'features.*', expected torchvision's layout of ConvNeXt. "
                "Give torchvision's own file, for example convnext_small-0c510722.pth."
            )
        load_strictly(self, {name: tensor.float() for name, tensor in state.items()}, str(path))
