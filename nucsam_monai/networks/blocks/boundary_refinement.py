"""Boundary-guided mask refinement: every coarse mask is drawn again at full resolution (BGMR of CFR-SAM)."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nucsam_monai.networks.blocks.boundary_evidence import BoundaryEvidence
from nucsam_monai.networks.blocks.boundary_fusion import AttentionOrder, BoundaryFusion
from nucsam_monai.networks.blocks.convolutions import JoinedConv, ModulatedDeformConv, conv_bn_relu
from nucsam_monai.utils.errors import ConfigurationError


@dataclass(frozen=True)
class BGMROptions:
    """The refinement and the paper's ablation of it.

    Attributes:
        kind: ``mlp`` puts a per-pixel network of equal size in its place, ``none`` leaves it out.
        mcbe: boundary evidence of the image at several scales; else that of one convolution.
        bgff: fuse evidence and mask features by plain and deformable convolutions; else by a 1 x 1
            convolution of both.
        boundary_sup: predict the boundary, so that the loss can supervise it.
        attention: see :class:`~nucsam_monai.networks.blocks.boundary_fusion.SpatialAttention`.
        plain_side: see :class:`~nucsam_monai.networks.blocks.boundary_fusion.BoundaryFusion`.
        start: ``coarse`` adds what the refinement draws to the coarse logits, and its last layer starts at zero, so
            that training starts from the coarse masks; ``scratch`` takes it alone, as the paper does.
    """

    kind: Literal["full", "mlp", "none"] = "full"
    mcbe: bool = True
    bgff: bool = True
    boundary_sup: bool = True
    attention: AttentionOrder = "paper"
    plain_side: Literal[1, 3] = 1
    start: Literal["coarse", "scratch"] = "coarse"


class ImageGuides(NamedTuple):
    """What all masks of an image share.

    Attributes:
        semantic: ``(B, w, 4g, 4g)`` features of the embedding.
        evidence: ``(B, w, S, S)`` boundary evidence of the image.
    """

    semantic: Tensor
    evidence: Tensor


class RefinedMasks(NamedTuple):
    """The masks of N prompts.

    Attributes:
        logits: ``(N, 1, S, S)``.
        boundary: ``(N, 1, S, S)`` logits of each nucleus' boundary; None without that head.
        reach_px: ``(N,)`` how far the taps of the deformable convolutions were moved, in pixels, one after
            the other.
    """

    logits: Tensor
    boundary: Tensor | None
    reach_px: Tensor


class BoundaryRefinement(nn.Module):
    """BGMR with MCBE and BGFF (CFR-SAM, section on the boundary-guided refinement).

    Args:
        channels: C of the embedding; all inside is ``w = C / 8`` channels wide, as SAM's up-scaled features.
        pixels_per_logit: side in pixels of a coarse logit: 4 in the official SAMs, 2 in the compact one.
        options: see :class:`BGMROptions`, of kind ``full``.

    Raises:
        ConfigurationError: the embedding's channels are no multiple of 16, or ``pixels_per_logit`` is none of
            1, 2 and 4.

    Example:
        >>> sum(parameter.numel() for parameter in BoundaryRefinement(256).parameters())
        251086
    """

    def __init__(self, channels: int, pixels_per_logit: int = 4, options: BGMROptions | None = None) -> None:
        super().__init__()
        options = options or BGMROptions()
        if channels % 16:
            raise ConfigurationError(f"BGMR: embedding of {channels} channels, expected a multiple of 16.")
        if pixels_per_logit not in (1, 2, 4):
            raise ConfigurationError(f"BGMR: {pixels_per_logit} px per logit, expected 1, 2 or 4.")
        width = channels // 8
        half = width // 2
        self.steps = (min(2, pixels_per_logit), pixels_per_logit // min(2, pixels_per_logit))
        self.semantic = nn.ModuleList(
            [conv_bn_relu(channels, channels // 4, 3), conv_bn_relu(channels // 4, width, 3)]
        )
        self.join = JoinedConv(2 * width, width, 3)
        self.upscale = nn.ModuleList(conv_bn_relu(width, width, 3) for _ in self.steps)
        self.evidence = BoundaryEvidence(width, multiscale=options.mcbe)
        self.fusion = (
            BoundaryFusion(width, options.attention, options.plain_side)
            if options.bgff
            else JoinedConv(2 * width, width, 1)
        )
        self.boundary = None
        if options.boundary_sup:
            # BN and ReLU twice, as the authors have it.
            self.boundary = nn.Sequential(
                *conv_bn_relu(width, half, 1), nn.BatchNorm2d(half), nn.ReLU(), nn.Conv2d(half, 1, 1)
            )
        self.reduce = nn.Conv2d(width, half, 1)
        self.deformable = ModulatedDeformConv(half, half)
        self.expand = nn.Sequential(
            nn.BatchNorm2d(half), nn.ReLU(), nn.Conv2d(half, width, 1), nn.BatchNorm2d(width)
        )
        self.mask = nn.Sequential(
            conv_bn_relu(width, width, 3), conv_bn_relu(width, half, 3), nn.Conv2d(half, 1, 1)
        )

    def guides(self, embedding: Tensor, image: Tensor) -> ImageGuides:
        """Return what the masks of ``(B, C, g, g)`` embeddings and their images ``(B, 3, S, S)`` share."""
        semantic = embedding
        for conv in self.semantic:
            semantic = conv(_enlarged(semantic, 2))
        return ImageGuides(semantic, self.evidence(image))

    def forward(self, guides: ImageGuides, upscaled: Tensor, owners: Tensor) -> RefinedMasks:
        """Draw masks at full resolution.

        Args:
            guides: of the images.
            upscaled: ``(N, w, 4g, 4g)`` up-scaled features of the mask decoder.
            owners: ``(N,)`` int64, the image of each prompt.
        """
        features = self._upscaled(guides.semantic, upscaled, owners)
        fused, fusion_reach = self._fused(guides.evidence, features, owners)
        weighted = self.reduce(torch.sigmoid(fused) * features)
        moved, reach = self.deformable(self.deformable.taps(weighted), self.deformable.predict(weighted))
        logits = self.mask(features + self.expand(moved))
        boundary = None if self.boundary is None else self.boundary(fused)
        return RefinedMasks(logits, boundary, reach + fusion_reach)

    def _upscaled(self, semantic: Tensor, upscaled: Tensor, owners: Tensor) -> Tensor:
        """Return the features ``(N, w, S, S)`` of each mask."""
        features = self.join(semantic, upscaled, owners)
        for step, conv in zip(self.steps, self.upscale, strict=True):
            features = conv(_enlarged(features, step))
        return features

    def _fused(self, evidence: Tensor, features: Tensor, owners: Tensor) -> tuple[Tensor, Tensor]:
        """Return evidence and features in one, ``(N, w, S, S)``, and the moves of taps ``(N,)``."""
        if isinstance(self.fusion, BoundaryFusion):
            return self.fusion(evidence, features, owners)
        fused = self.fusion(evidence, features, owners)
        return fused, fused.new_zeros(len(fused), dtype=torch.float32)


class PixelRefinement(nn.Module):
    """A network with about as many parameters that sees one pixel of the up-scaled features at a time.

    The paper's control for the number of parameters (CFR-SAM, ablation "BGMR -> MLP").

    Args:
        channels: C of the embedding.
        pixels_per_logit: side in pixels of a coarse logit; the result is enlarged by it.
    """

    def __init__(self, channels: int, pixels_per_logit: int = 4) -> None:
        super().__init__()
        with torch.device("meta"):
            wanted = sum(p.numel() for p in BoundaryRefinement(channels, pixels_per_logit).parameters())
        width = channels // 8
        # Three layers have h * h + (width + 3) * h + 1 parameters.
        hidden = round((math.sqrt((width + 3) ** 2 + 4 * (wanted - 1)) - (width + 3)) / 2)
        self.pixels_per_logit = pixels_per_logit
        self.layers = nn.Sequential(
            nn.Conv2d(width, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, 1, 1),
        )

    def forward(self, upscaled: Tensor) -> Tensor:
        """Turn up-scaled features ``(N, w, 4g, 4g)`` into logits ``(N, 1, S, S)``."""
        return _enlarged(self.layers(upscaled), self.pixels_per_logit)


def build_refinement(
    channels: int, pixels_per_logit: int, options: BGMROptions
) -> BoundaryRefinement | PixelRefinement | None:
    """Build the refinement that the options name; see its class for the arguments."""
    if options.kind == "none":
        return None
    refinement: BoundaryRefinement | PixelRefinement
    if options.kind == "mlp":
        refinement = PixelRefinement(channels, pixels_per_logit)
        last = refinement.layers[-1]
    else:
        refinement = BoundaryRefinement(channels, pixels_per_logit, options)
        last = refinement.mask[-1]
    if options.start == "coarse":
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
    return refinement


def _enlarged(maps: Tensor, factor: int) -> Tensor:
    if factor == 1:
        return maps
    return F.interpolate(maps, scale_factor=factor, mode="bilinear", align_corners=False)
