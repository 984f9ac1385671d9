"""CellViT ("CellViT: Vision Transformers for Precise Cell Segmentation and Classification", Hörst et al., 2023)."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from nucsam_monai.networks.baselines import maps_of_branches
from nucsam_monai.networks.sam.encoder import ImageEncoder
from nucsam_monai.networks.sam.variants import SAMVariant
from nucsam_monai.networks.sam.weights import load_official_checkpoint, load_strictly
from nucsam_monai.utils.errors import ConfigurationError


def _conv(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


def _enlarge(in_channels: int, out_channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(in_channels, out_channels, kernel_size=2, stride=2)


def _climb(*widths: int) -> nn.Sequential:
    """Double the size between one width and the next, each time with a convolution behind."""
    steps = [nn.Sequential(_enlarge(a, b), _conv(b, b)) for a, b in pairwise(widths)]
    return nn.Sequential(*steps)


class _Branch(nn.Module):
    """Join the maps of all depths, coarsest first, as UNETR does (Hatamizadeh et al., 2022)."""

    def __init__(self, in_channels: int, widths: Sequence[int], outputs: int) -> None:
        super().__init__()
        fine, middle, coarse, coarsest = widths
        self.begin = _enlarge(in_channels, coarsest)
        self.joins = nn.ModuleList(
            (
                nn.Sequential(
                    _conv(2 * coarsest, coarsest),
                    _conv(coarsest, coarsest),
                    _conv(coarsest, coarsest),
                    _enlarge(coarsest, coarse),
                ),
                nn.Sequential(_conv(2 * coarse, coarse), _conv(coarse, coarse), _enlarge(coarse, middle)),
                nn.Sequential(_conv(2 * middle, middle), _conv(middle, middle), _enlarge(middle, fine)),
                nn.Sequential(
                    _conv(2 * fine, fine), _conv(fine, fine), nn.Conv2d(fine, outputs, kernel_size=1)
                ),
            )
        )

    def forward(self, coarsest: Tensor, skips: list[Tensor]) -> Tensor:
        features = self.begin(coarsest)
        for join, skip in zip(self.joins, skips, strict=True):
            features = join(torch.cat([skip, features], dim=1))
        return features


class CellViT(nn.Module):
    """SAM's image encoder, and a decoder for each of HoVer-Net's maps.

    The branch for the tissue of a whole tile is left out, and with it SAM's neck.

    Args:
        variant: SAM variant with patches of 16 px and without a trunk.
        classes: number of classes of nuclei; 0 leaves out the branch for types.
        widths: channels of the decoder at the image's size, a half, a quarter and an eighth of it.

    Raises:
        ConfigurationError: another variant.

    Example:
        >>> from nucsam_monai.networks.sam.variants import sam_variant
        >>> with torch.device("meta"):
        ...     sum(parameter.numel() for parameter in CellViT(sam_variant("vit_b"), classes=5).parameters())
        145302218
    """

    def __init__(
        self, variant: SAMVariant, classes: int = 0, widths: Sequence[int] = (64, 128, 256, 512)
    ) -> None:
        super().__init__()
        if variant.patch != 16 or variant.fine_channels:
            raise ConfigurationError(
                f"cellvit: found SAM variant '{variant.name}', expected patches of 16 px and no trunk, as vit_b has it."
            )
        self.encoder = ImageEncoder(variant)
        self.encoder.neck = nn.Sequential()
        fine, middle, coarse, coarsest = widths
        self.skips = nn.ModuleList(
            (
                _climb(variant.width, coarsest),
                _climb(variant.width, coarsest, coarse),
                _climb(variant.width, coarsest, coarse, middle),
                nn.Sequential(_conv(3, fine // 2), _conv(fine // 2, fine)),
            )
        )
        outputs = {"nucleus_prediction": 2, "horizontal_vertical": 2} | (
            {"type_prediction": classes + 1} if classes else {}
        )
        self.branches = nn.ModuleDict(
            {name: _Branch(variant.width, widths, count) for name, count in outputs.items()}
        )

    def forward(self, image: Tensor) -> Tensor | dict[str, Tensor]:
        """Return the maps of HoVer-Net, see :class:`~nucsam_monai.networks.baselines.HoVerNetBranches`.

        Args:
            image: ``(B, 3, H, W)``, normalised by SAM's constants, sides multiples of 16.
        """
        kept = self.encoder.variant.feature_blocks
        tokens = self.encoder.run_blocks(self.encoder.embed(image), keep=kept)
        *others, coarsest = (tokens[block].permute(0, 3, 1, 2) for block in kept)
        skips = [skip(features) for skip, features in zip(self.skips, [*others[::-1], image], strict=True)]
        branches = {name: branch(coarsest, skips) for name, branch in self.branches.items()}
        return branches if self.training else maps_of_branches(branches)

    def load_encoder(self, path: Path | str) -> None:
        """Start from the image encoder of SAM's weights.

        Args:
            path: in the official layout.

        Raises:
            CheckpointError: the file is damaged or of another variant.
        """
        state = load_official_checkpoint(path, self.encoder.variant).image_encoder
        without_neck = {name: tensor for name, tensor in state.items() if not name.startswith("neck.")}
        load_strictly(self.encoder, without_neck, source=f"{path}")
