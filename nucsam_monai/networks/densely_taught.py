"""A segmentor whose encoder is also taught at every pixel, for trainings from random weights."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from monai.networks.nets import HoVerNet
from torch import Tensor, nn

from nucsam_monai.networks.nucleus_prompts import MaskPrediction, NucleusPrompts
from nucsam_monai.networks.segmentor import Segmentor


class TaughtPrediction(NamedTuple):
    """What the network says in training.

    Attributes:
        masks: of the prompted nuclei.
        dense: of every pixel, see :class:`DenseNucleiHead`.
    """

    masks: MaskPrediction
    dense: dict[str, Tensor]


class DenseNucleiHead(nn.Module):
    """Nucleus or not, and where in its nucleus a pixel lies, from an embedding.

    What HoVer-Net's two branches say (Graham et al., 2019, section 3.1), read from SAM's embedding by transposed
    convolutions like those of SAM's mask decoder.

    Args:
        channels: C of the embedding.

    Example:
        >>> import torch
        >>> found = DenseNucleiHead(64)(torch.zeros(1, 64, 32, 32))
        >>> {name: tuple(maps.shape) for name, maps in found.items()}
        {'nucleus_prediction': (1, 2, 128, 128), 'horizontal_vertical': (1, 2, 128, 128)}
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.upscaling = nn.Sequential(
            nn.ConvTranspose2d(channels, channels // 4, kernel_size=2, stride=2),
            nn.GroupNorm(1, channels // 4),
            nn.GELU(),
            nn.ConvTranspose2d(channels // 4, channels // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.branches = nn.Conv2d(channels // 8, 4, kernel_size=3, padding=1)

    def forward(self, embedding: Tensor) -> dict[str, Tensor]:
        """Return logits of background and nucleus, and horizontal and vertical distances, ``(B, 2, 4h, 4w)`` each."""
        nucleus, distances = self.branches(self.upscaling(embedding)).chunk(2, dim=1)
        return {HoVerNet.Branch.NP.value: nucleus, HoVerNet.Branch.HV.value: distances}


class DenselyTaughtSegmentor(Segmentor):
    """A segmentor with a head that a training from random weights adds to its encoder.

    Of an image only the prompted nuclei teach the encoder; with this head every pixel does. In evaluation it is left
    out, and SAM's file does not contain it.

    Args:
        sam_variant: as in :class:`~nucsam_monai.networks.segmentor.Segmentor`, like all others.
        image_size: side of the tiles in pixels.
        options: further arguments of the segmentor.

    Source: ours.
    """

    def __init__(self, sam_variant: str, image_size: int = 256, **options: Any) -> None:
        super().__init__(sam_variant, image_size, **options)
        self.dense_head = DenseNucleiHead(self.variant.embed_channels)

    def forward(self, image: Tensor, prompts: NucleusPrompts) -> MaskPrediction | TaughtPrediction:  # type: ignore[override]
        """Segment the prompted nuclei of ``(B, 3, S, S)`` images; in training with the maps of all pixels."""
        features = self.encode(image)
        masks = self.decode(features, prompts)
        return TaughtPrediction(masks, self.dense_head(features.embedding)) if self.training else masks

    @property
    def header(self) -> Mapping[str, str]:  # type: ignore[override]
        """What a weights file says of this network and must say of the one it is loaded into."""
        return {**super().header, "method": "compact_sam"}
