"""ConvNeXt (Liu et al., 2022) as a backbone: the feature maps of its four stages."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models.convnext import CNBlock, CNBlockConfig, ConvNeXt

from nucsam_monai.networks.sam.checkpoint import load_strictly
from nucsam_monai.networks.sam.tensor_files import read_tensors
from nucsam_monai.utils.errors import CheckpointError

BackboneName = Literal["convnext_small", "compact"]


@dataclass(frozen=True)
class ConvNeXtShape:
    """The size of a ConvNeXt.

    Attributes:
        depths: blocks of each stage.
        widths: channels of each stage.
        neck_channels: width of what is built on the backbone.
        from_scratch: start with random weights of which few steps make something, see
            :func:`start_from_scratch`.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    neck_channels: int
    from_scratch: bool = False


BACKBONES: dict[BackboneName, ConvNeXtShape] = {
    "convnext_small": ConvNeXtShape((3, 3, 27, 3), (96, 192, 384, 768), 256),
    "compact": ConvNeXtShape((2, 2, 2, 1), (32, 64, 128, 192), 64, from_scratch=True),
}
"""The paper's backbone, and a narrow one that learns from scratch on a CPU."""


class ConvNeXtBackbone(nn.Module):
    """The four stages of a ConvNeXt without its classifier and without stochastic depth.

    Args:
        shape: the size.

    Attributes:
        widths: channels of the four maps.

    Example:
        >>> import torch
        >>> maps = ConvNeXtBackbone(BACKBONES["compact"])(torch.zeros(1, 3, 64, 64))
        >>> [tuple(stage.shape[1:]) for stage in maps]
        [(32, 16, 16), (64, 8, 8), (128, 4, 4), (192, 2, 2)]
    """

    def __init__(self, shape: ConvNeXtShape) -> None:
        super().__init__()
        self.widths = shape.widths
        below = (*shape.widths[1:], None)
        stages = [CNBlockConfig(*stage) for stage in zip(shape.widths, below, shape.depths, strict=True)]
        self.features = ConvNeXt(stages).features
        if shape.from_scratch:
            start_from_scratch(self.features)

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


@torch.no_grad()
def start_from_scratch(features: nn.Module) -> None:
    """Draw weights that let every block of a small ConvNeXt take part from the first step on.

    ConvNeXt starts each block as good as absent: its layer scale is 1e-6, and weights of a standard deviation of 0.02
    shrink what passes through few channels. That is for long trainings of deep networks; with it a training of some
    hundred steps ends before the blocks have grown. Here the scale is 1, and weights keep the size of their input
    (LeCun et al., 1998).

    Args:
        features: changed in place; names and shapes of its weights stay.
    """
    for module in features.modules():
        if isinstance(module, CNBlock):
            module.layer_scale.fill_(1.0)
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.trunc_normal_(module.weight, std=module.weight[0].numel() ** -0.5)
