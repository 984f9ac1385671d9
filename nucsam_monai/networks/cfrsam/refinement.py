"""Boundary-guided mask refinement: draw every coarse mask again at full resolution (BGMR of CFR-SAM)."""

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from nucsam_monai.utils.errors import ConfigurationError

_TAPS = 9


def _conv_bn_relu(inputs: int, outputs: int, side: int) -> nn.Sequential:
    """Return a convolution of odd kernel ``side`` without bias that keeps the size, BN and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def convolve_joined(conv: nn.Conv2d, shared: Tensor, own: Tensor, owners: Tensor) -> Tensor:
    """Return ``conv(cat([shared[owners], own]))`` and convolve what an image's prompts share only once.

    Args:
        conv: a plain convolution of ``A + C`` channels.
        shared: ``(B, A, h, w)`` of the images.
        own: ``(N, C, h, w)`` of the prompts.
        owners: ``(N,)`` int64, the image of each prompt.
    """
    ours, theirs = conv.weight.split([shared.shape[1], own.shape[1]], dim=1)
    once = F.conv2d(shared, ours, conv.bias, conv.stride, conv.padding)
    return once.index_select(0, owners) + F.conv2d(own, theirs, None, conv.stride, conv.padding)


class JoinedConv(nn.Module):
    """Apply convolution without bias, BN and ReLU to the maps of images next to the maps of their prompts.

    Args:
        inputs: channels of both together.
        outputs: channels of the result.
        side: odd kernel side; the size is kept.
    """

    def __init__(self, inputs: int, outputs: int, side: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, shared: Tensor, own: Tensor, owners: Tensor) -> Tensor:
        """Return ``(N, outputs, h, w)``; for the arguments see :func:`convolve_joined`."""
        return F.relu(self.norm(convolve_joined(self.conv, shared, own, owners)))


class ModulatedDeformConv(nn.Module):
    """3 x 3 convolution whose taps are moved and weighted at every pixel ("Deformable ConvNets v2", Zhu 2019).

    At first no tap is moved, and each has weight one half. Interpolation and the mixing of channels can change
    places; so the channels are mixed first, each tap for itself, which leaves fewer of them to interpolate and lets
    prompts share what belongs to their image. Both inputs of :meth:`forward` are the results of plain layers::

        layer(layer.taps(maps), layer.predict(maps))

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.predict = nn.Conv2d(inputs, 3 * _TAPS, 3, padding=1)
        for parameter in self.predict.parameters():
            nn.init.zeros_(parameter)
        self.taps = nn.Conv2d(inputs, _TAPS * outputs, 1, bias=False)
        nn.init.kaiming_normal_(self.taps.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, mixed: Tensor, prediction: Tensor) -> tuple[Tensor, Tensor]:
        """Convolve in float32.

        Args:
            mixed: ``(N, 9 * outputs, h, w)`` of :attr:`taps`, one tap after the other, row by row.
            prediction: ``(N, 27, h, w)`` of :attr:`predict`: the moves of each tap down and to the right in pixels,
                then the logits of their weights.

        Returns:
            ``(N, outputs, h, w)`` and the largest move of a tap along an axis, ``(N,)`` in pixels.
        """
        moves, weights = prediction.float().split([2 * _TAPS, _TAPS], dim=1)
        with torch.autocast(device_type=mixed.device.type, enabled=False):
            grid = _places(moves.unflatten(1, (_TAPS, 2)))
            maps = mixed.float().unflatten(1, (_TAPS, -1)).flatten(0, 1)
            sampled = F.grid_sample(maps, grid.flatten(0, 1), padding_mode="zeros", align_corners=False)
            weighted = sampled.unflatten(0, (-1, _TAPS)) * torch.sigmoid(weights).unsqueeze(2)
            convolved = weighted.sum(dim=1)
        return convolved.to(mixed.dtype), moves.detach().abs().amax(dim=(1, 2, 3))


def _places(moves: Tensor) -> Tensor:
    """Return where the taps look, as ``grid_sample`` wants it: ``(N, 9, h, w, 2)`` from ``(N, 9, 2, h, w)``."""
    height, width = moves.shape[-2:]
    tap = torch.arange(_TAPS, device=moves.device).view(_TAPS, 1, 1)
    rows = torch.arange(height, device=moves.device).view(height, 1) + tap // 3 - 1
    columns = torch.arange(width, device=moves.device) + tap % 3 - 1
    across = (2 * (columns + moves[:, :, 1]) + 1) / width - 1
    down = (2 * (rows + moves[:, :, 0]) + 1) / height - 1
    return torch.stack([across, down], dim=-1)


_SCALES = 4


class BoundaryEvidence(nn.Module):
    """Contrast of the image at four scales (CFR-SAM, section on the boundary-guided refinement, MCBE).

    From ``F_0``, a convolution of the image, with BN in every convolution::

        E_1 = sigmoid(Conv1x1(F_0));  E_i = sigmoid(Conv1x1(AvgPool3(E_(i-1))))
        BE(E) = E + sigmoid(Conv1x1(E - AvgPool3(E)))
        E = F_0 + ReLU(Conv1x1(cat(E_1, BE(E_2), BE(E_3), BE(E_4))))

    Args:
        width: channels of the result, an even number.
        multiscale: without it the result is ``F_0`` (the paper's ablation "no MCBE").
    """

    def __init__(self, width: int, *, multiscale: bool = True) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.scales = nn.ModuleList()
        if multiscale:
            half = width // 2
            self.scales.extend(_conv_bn(width if scale == 0 else half, half) for scale in range(_SCALES))
            self.edges = nn.ModuleList(_conv_bn(half, half) for _ in range(_SCALES - 1))
            self.merge = nn.Sequential(*_conv_bn(_SCALES * half, width), nn.ReLU())

    def forward(self, image: Tensor) -> Tensor:
        """Turn normalised images ``(B, 3, H, W)`` into ``(B, width, H, W)``."""
        stem = self.stem(image)
        if not self.scales:
            return stem
        first, *smoother = self.scales
        evidence = torch.sigmoid(first(stem))
        found = [evidence]
        for scale, edge in zip(smoother, self.edges, strict=True):
            evidence = torch.sigmoid(scale(_smooth(evidence)))
            found.append(evidence + torch.sigmoid(edge(evidence - _smooth(evidence))))
        return stem + self.merge(torch.cat(found, dim=1))


def _smooth(maps: Tensor) -> Tensor:
    return F.avg_pool2d(maps, kernel_size=3, stride=1, padding=1)


def _conv_bn(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))


AttentionOrder = Literal["paper", "released"]


class SpatialAttention(nn.Module):
    """``x * A + x`` with an attention map ``A`` from the mean and the maximum over the channels.

    "CBAM" (Woo et al., 2018), section 3.2, whose sigmoid comes last: ``A = sigmoid(Conv7x7)``.

    Args:
        order: ``released`` takes the sigmoid before the convolution, like the authors' code, which leaves
            ``A`` unbounded.
    """

    def __init__(self, order: AttentionOrder = "paper") -> None:
        super().__init__()
        self.order = order
        self.conv = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, maps: Tensor) -> Tensor:
        """Weight ``(N, C, h, w)``."""
        pooled = torch.cat([maps.mean(dim=1, keepdim=True), maps.amax(dim=1, keepdim=True)], dim=1)
        if self.order == "released":
            return maps * self.conv(torch.sigmoid(pooled)) + maps
        return maps * torch.sigmoid(self.conv(pooled)) + maps


class BoundaryFusion(nn.Module):
    """BGFF: one half of the mask's features meets the evidence in a plain convolution, one in a deformable one.

    CFR-SAM, section on the boundary-guided refinement; each half passes a :class:`SpatialAttention` of its
    own, and a 1 x 1 convolution merges them.

    Args:
        width: channels of the evidence, of the mask's features and of the result, an even number.
        order: order of the operations, see :class:`SpatialAttention`.
        side: kernel side of the plain convolution, 1 in the authors' code; the paper does not tell.
    """

    def __init__(self, width: int, order: AttentionOrder = "paper", side: Literal[1, 3] = 1) -> None:
        super().__init__()
        half = width // 2
        self.plain = JoinedConv(width + half, half, side)
        self.plain_attention = SpatialAttention(order)
        self.deformable = ModulatedDeformConv(width + half, half)
        self.deformable_norm = nn.BatchNorm2d(half)
        self.deformable_attention = SpatialAttention(order)
        self.merge = nn.Sequential(
            nn.Conv2d(2 * half, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )

    def forward(self, evidence: Tensor, features: Tensor, owners: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse.

        Args:
            evidence: ``(B, width, H, W)`` of the images.
            features: ``(N, width, H, W)`` of the masks.
            owners: ``(N,)`` int64, the image of each mask.

        Returns:
            ``(N, width, H, W)``, and the largest move of a tap ``(N,)`` in pixels.
        """
        first, second = features.chunk(2, dim=1)
        plain = self.plain(evidence, first, owners)
        prediction = convolve_joined(self.deformable.predict, evidence, second, owners)
        mixed = convolve_joined(self.deformable.taps, evidence, second, owners)
        moved, reach = self.deformable(mixed, prediction)
        moved = F.relu(self.deformable_norm(moved))
        both = torch.cat([self.plain_attention(plain), self.deformable_attention(moved)], dim=1)
        return self.merge(both), reach


@dataclass(frozen=True)
class BGMROptions:
    """The refinement and the paper's ablation of it.

    Attributes:
        kind: ``mlp`` puts a per-pixel network of equal size in its place, ``none`` leaves it out.
        mcbe: boundary evidence of the image at several scales; else that of one convolution.
        bgff: fuse evidence and mask features by plain and deformable convolutions; else by a 1 x 1
            convolution of both.
        boundary_sup: predict the boundary, so that the loss can supervise it.
        attention: see :class:`~nucsam_monai.networks.cfrsam.refinement.SpatialAttention`.
        plain_side: see :class:`~nucsam_monai.networks.cfrsam.refinement.BoundaryFusion`.
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
    """Hold the masks of N prompts.

    Attributes:
        logits: ``(N, 1, S, S)``.
        boundary: ``(N, 1, S, S)`` logits of each nucleus's boundary; None without that head.
        reach_px: ``(N,)`` how far the taps of the deformable convolutions were moved, in pixels, one after
            the other.
    """

    logits: Tensor
    boundary: Tensor | None
    reach_px: Tensor


class BoundaryRefinement(nn.Module):
    """BGMR with MCBE and BGFF (CFR-SAM, section on the boundary-guided refinement).

    Args:
        channels: C of the embedding; all inside is ``w = C / 8`` channels wide, as SAM's upscaled features.
        pixels_per_logit: side in pixels of a coarse logit: 4 in the official SAMs, 2 in the compact one.
        options: see :class:`BGMROptions`; the kind is ``full``.

    Raises:
        ConfigurationError: the embedding's channels are not a multiple of 16, or ``pixels_per_logit`` is none of
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
            [_conv_bn_relu(channels, channels // 4, 3), _conv_bn_relu(channels // 4, width, 3)]
        )
        self.join = JoinedConv(2 * width, width, 3)
        self.upscale = nn.ModuleList(_conv_bn_relu(width, width, 3) for _ in self.steps)
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
                *_conv_bn_relu(width, half, 1), nn.BatchNorm2d(half), nn.ReLU(), nn.Conv2d(half, 1, 1)
            )
        self.reduce = nn.Conv2d(width, half, 1)
        self.deformable = ModulatedDeformConv(half, half)
        self.expand = nn.Sequential(
            nn.BatchNorm2d(half), nn.ReLU(), nn.Conv2d(half, width, 1), nn.BatchNorm2d(width)
        )
        self.mask = nn.Sequential(
            _conv_bn_relu(width, width, 3), _conv_bn_relu(width, half, 3), nn.Conv2d(half, 1, 1)
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
            guides: guides of the images.
            upscaled: ``(N, w, 4g, 4g)`` upscaled features of the mask decoder.
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
    """A network with about as many parameters that sees one pixel of the upscaled features at a time.

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
        """Turn upscaled features ``(N, w, 4g, 4g)`` into logits ``(N, 1, S, S)``."""
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


_USED_SHARE = 0.5
"""Part of a device's free memory that a chunk may take."""

_DEVICE_PROMPTS = 64
"""Most prompts of 256 x 256 px that a device refines together; more would not be faster."""


def _bytes_per_refinement(width: int, pixels: int, element_bytes: int = 4) -> int:
    """Estimate the memory that refining one more mask takes at the peak of inference.

    The peak lies in a deformable convolution, which has nine taps of w / 2 channels each before and after they are
    moved and once more weighted, beside about eight maps of w channels.

    Args:
        width: channels w.
        pixels: number of pixels of a mask at full resolution.
        element_bytes: bytes of one number.
    """
    return (9 * 3 * width // 2 + 8 * width) * pixels * element_bytes


def refine_in_chunks(
    refinement: BoundaryRefinement, guides: ImageGuides, upscaled: Tensor, owners: Tensor
) -> RefinedMasks:
    """Refine N masks, as many at a time as fit; in training all at once, for the statistics of their BN.

    On a CPU masks are refined one by one: their maps have left the caches anyway.

    Args:
        refinement: the network.
        guides: guides of the images.
        upscaled: ``(N, w, 4g, 4g)`` upscaled features of the mask decoder, N > 0.
        owners: ``(N,)`` int64, the image of each mask.
    """
    whole = (guides.evidence.shape[2], guides.evidence.shape[3])
    size = len(upscaled) if refinement.training else prompts_per_chunk(guides.evidence, whole)
    if len(upscaled) <= size:
        return refinement(guides, upscaled, owners)
    parts = [
        refinement(guides, some, theirs)
        for some, theirs in zip(upscaled.split(size), owners.split(size), strict=True)
    ]
    boundary = [part.boundary for part in parts if part.boundary is not None]
    return RefinedMasks(
        torch.cat([part.logits for part in parts]),
        torch.cat(boundary) if boundary else None,
        torch.cat([part.reach_px for part in parts]),
    )


@contextmanager
def fixed_statistics(module: nn.Module) -> Iterator[None]:
    """Let batch normalisation use its running statistics, and not change them, inside the ``with`` block."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.training]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()


def prompts_per_chunk(evidence: Tensor, size: tuple[int, int]) -> int:
    """Choose how many masks to refine at a time, at least one.

    Args:
        evidence: ``(B, w, S, S)``; its device and channels count.
        size: height and width in pixels of what is refined of each mask.
    """
    if evidence.device.type == "cpu":
        return 1
    width, pixels = evidence.shape[1], size[0] * size[1]
    most = max(1, _DEVICE_PROMPTS * 256 * 256 // pixels)
    if evidence.device.type != "cuda" or torch.is_grad_enabled():
        return most
    # What PyTorch holds without using it counts as free.
    free, _ = torch.cuda.mem_get_info(evidence.device)
    free += torch.cuda.memory_reserved(evidence.device) - torch.cuda.memory_allocated(evidence.device)
    return max(1, min(most, int(_USED_SHARE * free) // _bytes_per_refinement(width, pixels)))


REACH_PX = 4
"""Moves of the deformable convolutions' taps, in pixels and both together, that a window has room for."""

HALO_PX = 22 + REACH_PX
"""How far from a pixel the refinement looks at coarse logits of 4 px, where taps move by ``REACH_PX``.

Pixels: two 3 x 3 convolutions of the mask 2, two deformable ones 1 each and 2 for rounded moves, attention 3, last
convolution of the features 1; then enlarging and convolving at half 2 + 2 and at a fourth of the size 4 + 4.
"""

_WINDOW_STEP_PX = 16  # few different window sizes, so that many windows can be refined together


Span = tuple[int, int]
"""Start and exclusive end along one axis in pixels."""


class Window(NamedTuple):
    """A part of an image, and its core: the part of it that counts."""

    rows: Span
    columns: Span
    core_rows: Span
    core_columns: Span

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.rows[1] - self.rows[0], self.columns[1] - self.columns[0]

    def place(self, refined: Tensor, logits: Tensor, *, add: bool) -> None:
        """Write the core of a refined window ``(1, h, w)`` into the logits ``(1, S, S)`` of its mask, or add it."""
        top, left = self.rows[0], self.columns[0]
        core = refined[
            :,
            self.core_rows[0] - top : self.core_rows[1] - top,
            self.core_columns[0] - left : self.core_columns[1] - left,
        ]
        place = logits[:, slice(*self.core_rows), slice(*self.core_columns)]
        place.copy_(place + core if add else core)


@torch.no_grad()
def refine_in_boxes(
    refinement: BoundaryRefinement,
    guides: ImageGuides,
    upscaled: Tensor,
    owners: Tensor,
    coarse: Tensor,
    margin_px: int,
    *,
    halo_px: int | None = None,
    add: bool = False,
) -> Tensor:
    """Refine each mask in the box around its coarse mask, for inference.

    Without ``halo_px`` the logits in the boxes are those of refining the whole image but for rounding: all that they
    depend on is computed, and a mask whose deformable convolutions look farther than their window has room for is
    refined on the whole image. A smaller halo is faster and changes logits near the edges of the boxes most, which
    the margin keeps away from the nucleus. Masks that are empty so far are refined on the whole image. Outside of the
    boxes the coarse logits stand, which are negative there; so the final masks are the same where the refinement moves
    no boundary by more than the margin and draws nothing far from the nucleus.

    Args:
        refinement: the network in evaluation mode.
        guides: guides of the images.
        upscaled: ``(N, w, 4g, 4g)`` upscaled features of the mask decoder.
        owners: ``(N,)`` int64, the image of each mask.
        coarse: ``(N, 1, 4g, 4g)`` coarse logits, or larger ones.
        margin_px: how far beyond the coarse mask a box goes, at least the pixels of one logit.
        halo_px: width of what is computed around a box; None for all that the box depends on.
        add: the refinement draws on the coarse logits instead of in their place.

    Returns:
        ``(N, 1, S, S)`` logits.
    """
    size = (guides.evidence.shape[-2], guides.evidence.shape[-1])
    scale = size[1] // upscaled.shape[-1]
    logits = F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
    masks = F.adaptive_max_pool2d(coarse[:, 0], upscaled.shape[-2:]) > 0
    halo = HALO_PX if halo_px is None else halo_px
    windows = _windows(masks, scale, max(margin_px, scale), halo, size)
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, window in enumerate(windows):
        alike[window.size].append(index)
    on_whole_image = alike.pop(size, [])
    images = owners.tolist()
    for window_size, members in alike.items():
        together = prompts_per_chunk(guides.evidence, window_size)
        for start in range(0, len(members), together):
            chosen = members[start : start + together]
            cut = [_cut(guides, upscaled, windows[n], n, images[n], scale) for n in chosen]
            semantic, evidence, features = (torch.stack(parts) for parts in zip(*cut, strict=True))
            each_its_own = torch.arange(len(chosen), device=owners.device)
            refined = refinement(ImageGuides(semantic, evidence), features, each_its_own)
            for n, result, reach in zip(chosen, refined.logits, refined.reach_px.tolist(), strict=True):
                if halo_px is None and reach > REACH_PX:
                    on_whole_image.append(n)
                else:
                    windows[n].place(result, logits[n], add=add)
    if on_whole_image:
        rest = torch.tensor(on_whole_image, device=owners.device)
        drawn = refine_in_chunks(refinement, guides, upscaled[rest], owners[rest]).logits
        logits[rest] = (logits[rest] + drawn if add else drawn).to(logits.dtype)
    return logits


def _windows(masks: Tensor, scale: int, margin_px: int, halo_px: int, size: tuple[int, int]) -> list[Window]:
    """Place a window around each of the coarse masks ``(N, h, w)``; one of the whole image around none."""
    found = []
    rows, columns = masks.any(dim=2).cpu(), masks.any(dim=1).cpu()
    for occupied in zip(rows, columns, strict=True):
        spans = [
            _span(line.nonzero().flatten().tolist(), scale, margin_px, halo_px, length)
            for line, length in zip(occupied, size, strict=True)
        ]
        (outer_rows, core_rows), (outer_columns, core_columns) = spans
        found.append(Window(outer_rows, outer_columns, core_rows, core_columns))
    return found


def _span(cells: list[int], scale: int, margin_px: int, halo_px: int, length: int) -> tuple[Span, Span]:
    """Return the window's and the core's extent along one axis of ``length`` pixels."""
    if not cells:
        return (0, length), (0, length)
    core = (max(0, cells[0] * scale - margin_px), min(length, (cells[-1] + 1) * scale + margin_px))
    needed = core[1] - core[0] + 2 * halo_px + scale
    extent = min(length, -(-needed // _WINDOW_STEP_PX) * _WINDOW_STEP_PX)
    first = min(max(0, core[0] - halo_px), length - extent)
    first -= first % scale  # logits are not cut
    return (first, first + extent), core


def _cut(
    guides: ImageGuides, upscaled: Tensor, window: Window, prompt: int, image: int, scale: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a window of the semantic features, the evidence and the mask's features."""
    pixels = (..., slice(*window.rows), slice(*window.columns))
    cells = (
        ...,
        slice(window.rows[0] // scale, window.rows[1] // scale),
        slice(window.columns[0] // scale, window.columns[1] // scale),
    )
    return guides.semantic[image][cells], guides.evidence[image][pixels], upscaled[prompt][cells]
