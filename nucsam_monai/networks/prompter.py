"""Define the nuclei prompter of PromptNucSeg and CFR-SAM: one point and one class per nucleus, from anchor points."""

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

from nucsam_monai.networks.nucleus_prompts import MaskPrediction, NucleusPrompts
from nucsam_monai.networks.options import read_options
from nucsam_monai.networks.sam.layers import LayerNorm2d
from nucsam_monai.networks.sam.prompt_encoder import BOX_LABELS
from nucsam_monai.networks.sam.weights import (
    load_strictly,
    read_header,
    read_safetensors,
    read_tensors,
    require_same_tensors,
    trained_names,
)
from nucsam_monai.utils.errors import CheckpointError, ConfigurationError

logger = logging.getLogger(__name__)


SampleAlignment = Literal["corrected", "released"]


def anchor_grid(height: int, width: int, step: int, device: torch.device | None = None) -> Tensor:
    """Return the centres of the cells of a grid (PromptNucSeg, section on the nuclei prompter).

    Args:
        height: rows of the grid.
        width: columns of the grid.
        step: side length of a cell in pixels.
        device: device of the result.

    Returns:
        ``(height, width, 2)`` float32 as (x, y) in pixels.

    Example:
        >>> anchor_grid(1, 2, step=8)
        tensor([[[ 4.,  4.],
                 [12.,  4.]]])
    """
    x = step / 2 + step * torch.arange(width, dtype=torch.float32, device=device)
    y = step / 2 + step * torch.arange(height, dtype=torch.float32, device=device)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def sample_at(
    features: Tensor, points: Tensor, stride: int, alignment: SampleAlignment = "corrected"
) -> Tensor:
    """Interpolate a feature map bilinearly at points of the image.

    Args:
        features: ``(B, C, h, w)``, each cell standing for ``stride`` x ``stride`` pixels.
        points: ``(B, n, m, 2)`` float32 as (x, y) in pixels of the image.
        stride: side length of a cell in pixels.
        alignment: ``corrected`` reads the value of a cell at the cell's centre, and at the border of the map
            that of the outermost cells. ``released`` is the authors' code, for their published weights: it
            stretches the centres of the outermost cells to the border of the image, which shifts samples by
            up to half a cell.

    Returns:
        ``(B, C, n, m)`` in the type of ``features``.
    """
    height, width = stride * features.shape[-2], stride * features.shape[-1]
    grid = torch.stack([points[..., 0] * (2 / width) - 1, points[..., 1] * (2 / height) - 1], dim=-1)
    released = alignment == "released"
    # half precision would round coordinates to whole cells
    sampled = F.grid_sample(
        features.float(),
        grid.float(),
        mode="bilinear",
        padding_mode="zeros" if released else "border",
        align_corners=released,
    )
    return sampled.to(features.dtype)


_WIDTHS = (32, 64, 128, 192)
"""Channels of the four maps."""

_GROUPS = 8


class CompactBackbone(nn.Module):
    """Compute four maps with one residual block each (He et al., 2016), with group normalisation (Wu and He, 2018).

    Trained from random weights for some hundred steps it finds more nuclei than a ConvNeXt of the same cost, which
    is meant for long trainings. Batches may be small, and images do not influence each other. All reductions take whole
    pairs of pixels, so that a cell of a map lies in the middle of the pixels that it stands for.

    Attributes:
        widths: channels of the four maps.

    Example:
        >>> maps = CompactBackbone()(torch.zeros(1, 3, 64, 64))
        >>> [tuple(stage.shape[1:]) for stage in maps]
        [(32, 16, 16), (64, 8, 8), (128, 4, 4), (192, 2, 2)]
    """

    def __init__(self) -> None:
        super().__init__()
        self.widths = _WIDTHS
        self.stem = nn.Sequential(*_convolution(3, 16, kernel=4), *_convolution(16, _WIDTHS[0], kernel=4))
        self.stages = nn.ModuleList(
            ResidualBlock(before, after, halve=level > 0)
            for level, (before, after) in enumerate(zip((_WIDTHS[0], *_WIDTHS), _WIDTHS, strict=False))
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return maps at a 4th, 8th, 16th and 32nd of ``(B, 3, H, W)`` images, rounded down."""
        image = self.stem(image)
        maps = []
        for stage in self.stages:
            image = stage(image)
            maps.append(image)
        return maps


class ResidualBlock(nn.Module):
    """Apply two convolutions and add the shortcut.

    Args:
        before: channels of the input.
        after: channels of the output.
        halve: halve the map first.
    """

    def __init__(self, before: int, after: int, *, halve: bool) -> None:
        super().__init__()
        self.reduce = nn.AvgPool2d(2) if halve else nn.Identity()
        self.body = nn.Sequential(
            *_convolution(before, after, kernel=3),
            nn.Conv2d(after, after, kernel_size=3, padding=1, bias=False),
            nn.GroupNorm(_GROUPS, after),
        )
        self.shortcut: nn.Module = nn.Identity()
        if before != after:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, kernel_size=1, bias=False), nn.GroupNorm(_GROUPS, after)
            )

    def forward(self, maps: Tensor) -> Tensor:
        """Transform ``(B, before, h, w)`` into ``(B, after, h, w)``, halved where asked for."""
        maps = self.reduce(maps)
        return torch.relu(self.body(maps) + self.shortcut(maps))


def _convolution(before: int, after: int, kernel: int) -> list[nn.Module]:
    """Return a convolution of kernel 3, or a halving one of kernel 4, with its normalisation and activation."""
    stride = 2 if kernel == 4 else 1
    return [
        nn.Conv2d(before, after, kernel, stride, padding=1, bias=False),
        nn.GroupNorm(_GROUPS, after),
        nn.ReLU(inplace=True),
    ]


@dataclass(frozen=True)
class ConvNeXtShape:
    """Define the size of a ConvNeXt.

    Attributes:
        depths: blocks of each stage.
        widths: channels of each stage.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]


CONVNEXT_SMALL = ConvNeXtShape((3, 3, 27, 3), (96, 192, 384, 768))
"""The backbone of PromptNucSeg's paper."""


class ConvNeXtBackbone(nn.Module):
    """Compute the four stages of a ConvNeXt, without its classifier and without stochastic depth.

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


_STRIDES = (4, 8, 16, 32)
"""Pixels per cell of the maps, as those of a convolutional backbone's stages."""


class EmbeddingPyramid(nn.Module):
    """Enlarge and reduce one map: the simple feature pyramid of ViTDet (Li et al., 2022).

    Transposed convolutions enlarge, each halving the channels; maximum pooling reduces.

    With an encoder that also returns finer maps the convolutions are not needed.

    Args:
        channels: channels of the embedding, a multiple of 4.
        patch: pixels per cell of the embedding, a power of two from 4 to 16.
        finer: channels of the encoder's maps that are finer than the embedding, at half its pixels per cell, a
            quarter and so on down to 4; empty where it has none.

    Attributes:
        widths: channels of the four maps.

    Raises:
        ConfigurationError: another ``patch``, or another number of finer maps.

    Example:
        >>> import torch
        >>> maps = EmbeddingPyramid(channels=128, patch=8)(torch.zeros(1, 128, 32, 32))
        >>> [tuple(stage.shape[1:]) for stage in maps]
        [(64, 64, 64), (128, 32, 32), (128, 16, 16), (128, 8, 8)]
    """

    def __init__(self, channels: int, patch: int, finer: Sequence[int] = ()) -> None:
        super().__init__()
        if patch not in _STRIDES[:3]:
            raise ConfigurationError(f"patch {patch}: expected an embedding of one cell per 4, 8 or 16 px.")
        if len(finer) not in (0, _STRIDES.index(patch)):
            raise ConfigurationError(
                f"finer maps: found {len(finer)}, expected none or {_STRIDES.index(patch)} for an embedding of one "
                f"cell per {patch} px."
            )
        built = _STRIDES[len(finer) :]
        self.stages = nn.ModuleList(_stage(channels, patch, stride) for stride in built)
        self.widths = (*reversed(finer), *(channels * min(stride, patch) // patch for stride in built))

    def forward(self, embedding: Tensor, finer: Sequence[Tensor] = ()) -> list[Tensor]:
        """Return maps at a 4th, 8th, 16th and 32nd of the image.

        Args:
            embedding: ``(B, channels, h, w)``.
            finer: the encoder's finer maps, coarse to fine.
        """
        return [*reversed(finer), *(stage(embedding) for stage in self.stages)]


def _stage(channels: int, patch: int, stride: int) -> nn.Module:
    if stride >= patch:
        return nn.MaxPool2d(stride // patch) if stride > patch else nn.Identity()
    layers: list[nn.Module] = []
    for _ in range(int(math.log2(patch // stride))):
        layers += [
            nn.ConvTranspose2d(channels, channels // 2, 2, stride=2),
            LayerNorm2d(channels // 2),
            nn.GELU(),
        ]
        channels //= 2
    return nn.Sequential(*layers)


class FeaturePyramid(nn.Module):
    """Combine the detail of fine stages with the context of coarse stages in maps of one width.

    All stages take part in the top-down path, even where only the finest are returned. There is neither
    normalisation nor activation.

    Args:
        in_channels: channels of the backbone's stages, finest first.
        channels: channels of the result.
        levels: number of maps that are returned, finest first.

    Example:
        >>> import torch
        >>> stages = [torch.zeros(1, 8, 16, 16), torch.zeros(1, 16, 8, 8)]
        >>> FeaturePyramid([8, 16], channels=4, levels=1)(stages)[0].shape
        torch.Size([1, 4, 16, 16])
    """

    def __init__(self, in_channels: Sequence[int], channels: int, levels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, kernel_size=1) for width in in_channels)
        self.output = nn.ModuleList(
            nn.Conv2d(channels, channels, kernel_size=3, padding=1) for _ in range(levels)
        )
        for convolution in self.modules():
            if isinstance(convolution, nn.Conv2d) and convolution.bias is not None:
                nn.init.xavier_uniform_(convolution.weight)
                nn.init.zeros_(convolution.bias)

    def forward(self, stages: Sequence[Tensor]) -> list[Tensor]:
        """Return ``levels`` maps ``(B, channels, h_j, w_j)`` of the finest stages' sizes."""
        maps = [lateral(stage) for lateral, stage in zip(self.lateral, stages, strict=True)]
        for level in range(len(maps) - 1, 0, -1):
            # the size is named because rounding down makes coarse maps smaller than half of the finer one
            finer = maps[level - 1]
            maps[level - 1] = finer + F.interpolate(maps[level], size=finer.shape[-2:], mode="nearest")
        return [output(feature) for output, feature in zip(self.output, maps, strict=False)]


def _point_head(channels: int, out_channels: int, dropout: float) -> nn.Sequential:
    """Return a two-layer perceptron on the vector of an anchor point, shared over all positions."""
    return nn.Sequential(
        nn.Linear(channels, channels),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(channels, out_channels),
    )


class NucleiMaskHead(nn.Module):
    """Predict a mask of all nuclei from a separate feature pyramid (PromptNucSeg, auxiliary task).

    The authors' code pads the last 1 x 1 convolution and stretches the larger map, which displaces the mask
    by up to a few pixels; here nothing is padded.

    Args:
        in_channels: channels of the backbone's stages, finest first.
        channels: channels of the pyramid.
    """

    def __init__(self, in_channels: tuple[int, ...], channels: int) -> None:
        super().__init__()
        self.pyramid = FeaturePyramid(in_channels, channels, levels=1)
        self.head = nn.Sequential(
            nn.Conv2d(channels, channels, kernel_size=3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, 1, kernel_size=1),
        )

    def forward(self, stages: list[Tensor]) -> Tensor:
        """Return logits ``(B, 1, h, w)`` of the finest stage's size."""
        (finest,) = self.pyramid(stages)
        return self.head(finest)


Backbone = Literal["convnext_small", "compact", "shared"]

_FINEST_STRIDE = 4
_SMALLEST_SIDE = 32  # the coarsest stage has one cell then


@dataclass(frozen=True)
class PrompterOptions:
    """Configure the prompter; the defaults are the paper's for PanNuke.

    Attributes:
        backbone: ``convnext_small``; ``compact``, a small residual network for training from scratch on a CPU; or
            ``shared``, no backbone of its own, but a pyramid on the embedding of the segmentor's encoder (the
            paper's supplement), with the finer maps of SAM variants that have such.
        levels: levels of the feature pyramid that anchor points are sampled from, 1 to 4.
        step: distance of the anchor points in pixels, a multiple of 4.
        channels: width of everything behind the backbone; None takes 256 for ``convnext_small``, as the
            paper, 64 for ``compact`` and half of the embedding's for ``shared``.
        deform_step: move each anchor by a first offset before it is sampled (in the authors' code and in
            CFR-SAM's text, but not in PromptNucSeg's).
        sample_align: how pixels are sampled, see :func:`~nucsam_monai.networks.prompter.sample_at`.
        aux_mask: the auxiliary mask of all nuclei.
        dropout: fraction of the heads' hidden values that is dropped in training.
        sizes: predict width and height of each nucleus too, for prompts that are boxes (CFR-SAM, ablation of
            the prompt).
    """

    backbone: Backbone = "convnext_small"
    levels: int = 3
    step: int = 8
    channels: int | None = None
    deform_step: bool = True
    sample_align: SampleAlignment = "corrected"
    aux_mask: bool = True
    dropout: float = 0.1
    sizes: bool = False

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigurationError: a value is out of range.
        """
        if not 1 <= self.levels <= 4:
            raise ConfigurationError(f"options.levels {self.levels}: expected 1 to 4 levels of the pyramid.")
        if self.step < 1 or self.step % _FINEST_STRIDE:
            raise ConfigurationError(f"options.step {self.step}: expected 4, 8, 12 or so on, in pixels.")
        if self.channels is not None and self.channels < 1:
            raise ConfigurationError(f"options.channels {self.channels}: expected 1 or more, or null.")
        if not 0 <= self.dropout < 1:
            raise ConfigurationError(f"options.dropout {self.dropout}: expected a share from 0 to below 1.")


class PrompterOutput(NamedTuple):
    """Hold the M anchor points of each image after regression.

    Attributes:
        points: ``(B, M, 2)`` float32 as (x, y) in pixels; they may lie outside of the image.
        class_logits: ``(B, M, C + 1)`` float32; the last class is background.
        mask_logits: ``(B, 1, H, W)`` float32 of "any nucleus"; None if not requested.
        sizes: ``(B, M, 2)`` float32 width and height in pixels; None without that head.
    """

    points: Tensor
    class_logits: Tensor
    mask_logits: Tensor | None
    sizes: Tensor | None = None


class EmbeddingShape(NamedTuple):
    """Describe the embedding that a prompter without a backbone reads.

    Attributes:
        channels: channels of the embedding.
        patch: pixels per cell.
        finer: channels of finer maps, see :class:`~nucsam_monai.networks.prompter.EmbeddingPyramid`.
    """

    channels: int
    patch: int
    finer: tuple[int, ...] = ()


class AnchorFeatures(NamedTuple):
    """Hold the inputs of the heads.

    Attributes:
        points: ``(B, M, 2)`` float32, the anchors after the first offset, as (x, y) in pixels.
        vectors: ``(B, M, channels)``, the image features there.
    """

    points: Tensor
    vectors: Tensor


class Prompter(nn.Module):
    """Predict one point and class per nucleus (PromptNucSeg, section on the nuclei prompter; CFR-SAM, stage 1).

    A grid of anchor points covers the image. Each is moved by a first offset, described by samples of the
    feature pyramid, moved by a second offset and classified. Offsets are plain pixels. In distributed
    training, :meth:`torch.nn.SyncBatchNorm.convert_sync_batchnorm` makes the mask head's statistics common.

    A method that predicts more for each point builds on :meth:`describe_anchors`.

    Args:
        n_classes: classes C of nuclei, without the background; 1 where nuclei have no classes.
        options: values of :class:`PrompterOptions`.
        embedding: SAM's embedding, which a prompter with the backbone ``shared`` takes instead of an image.
        backbone_checkpoint: ImageNet weights of ``convnext_small`` in torchvision's layout; without them
            everything is random.

    Raises:
        ConfigurationError: an option or its value is unknown, ``shared`` has no embedding, or there are weights for
            another backbone than ``convnext_small``.
        CheckpointError: the weights are missing, damaged or of another network.

    Example:
        >>> network = Prompter(5, options={"backbone": "compact"}).eval()
        >>> network(torch.zeros(1, 3, 256, 256)).class_logits.shape
        torch.Size([1, 1024, 6])
    """

    def __init__(
        self,
        n_classes: int,
        *,
        options: Mapping[str, Any] | None = None,
        embedding: EmbeddingShape | None = None,
        backbone_checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        if n_classes < 1:
            raise ConfigurationError(
                f"n_classes {n_classes}: expected 1 or more, not counting the background."
            )
        self.n_classes = n_classes
        self.options = read_options(PrompterOptions, options, "options")
        self.backbone, neck_channels = _build_backbone(self.options.backbone, embedding, backbone_checkpoint)
        widths = self.backbone.widths
        channels = self.options.channels or neck_channels
        levels, dropout = self.options.levels, self.options.dropout
        self.pyramid = FeaturePyramid(widths, channels, levels)
        self.deformation = _point_head(channels, 2, dropout) if self.options.deform_step else None
        self.fusion = nn.Conv2d(levels * channels, channels, kernel_size=3, padding=1)
        self.regression = _point_head(channels, 2, dropout)
        self.sizes = _point_head(channels, 2, dropout) if self.options.sizes else None
        self.classification = _point_head(channels, n_classes + 1, dropout)
        self.mask_head = NucleiMaskHead(widths, channels) if self.options.aux_mask else None

    def forward(self, image: Tensor, *, with_mask: bool = True) -> PrompterOutput:
        """Propose a point per anchor.

        Args:
            image: ``(B, 3, H, W)`` of any size, normalised with SAM's constants, which are ImageNet's.
            with_mask: compute the auxiliary mask; inference without mask filter does not need it.

        Raises:
            ConfigurationError: the prompter reads the embedding of a shared encoder.
        """
        if isinstance(self.backbone, EmbeddingPyramid):
            raise ConfigurationError(
                "prompter: its backbone is 'shared', so it reads an embedding and no image. Call PromptNucSeg.propose."
            )
        padded = pad_to_multiple(image, self.options.step)
        found = self.propose(self.backbone(padded), (padded.shape[-2], padded.shape[-1]), with_mask=with_mask)
        if found.mask_logits is None:
            return found
        height, width = image.shape[-2:]
        return found._replace(mask_logits=found.mask_logits[..., :height, :width])

    def propose(
        self, stages: list[Tensor], image_size: tuple[int, int], *, with_mask: bool = True
    ) -> PrompterOutput:
        """Propose a point per anchor from what the backbone returns.

        Args:
            stages: four maps at a 4th to a 32nd of the image.
            image_size: height and width of the image, multiples of the anchors' step.
            with_mask: compute the auxiliary mask.
        """
        points, vectors = self.describe_anchors(stages, image_size)
        mask_logits = None
        if self.mask_head is not None and with_mask:
            mask_logits = F.interpolate(
                self.mask_head(stages).float(), size=image_size, mode="bilinear", align_corners=False
            )
        return PrompterOutput(
            points + self.regression(vectors).float(),
            self.classification(vectors).float(),
            mask_logits,
            None if self.sizes is None else self.options.step * F.softplus(self.sizes(vectors).float()),
        )

    def describe_anchors(self, stages: list[Tensor], image_size: tuple[int, int]) -> AnchorFeatures:
        """Move the anchors by the first offset and describe them.

        Args:
            stages: maps of the backbone.
            image_size: height and width of the padded image.
        """
        step = self.options.step
        maps = self.pyramid(stages)
        anchors = anchor_grid(image_size[0] // step, image_size[1] // step, step, maps[0].device)
        points = anchors.expand(len(maps[0]), -1, -1, -1)
        if self.deformation is not None:
            finest = sample_at(maps[0], points, _FINEST_STRIDE, self.options.sample_align)
            points = points + self.deformation(finest.permute(0, 2, 3, 1)).float()
        samples = [
            sample_at(feature, points, _FINEST_STRIDE * 2**level, self.options.sample_align)
            for level, feature in enumerate(maps)
        ]
        fused = self.fusion(torch.cat(samples, dim=1))
        return AnchorFeatures(points.flatten(1, 2), fused.flatten(2).transpose(1, 2))

    @property
    def header(self) -> dict[str, str]:
        """Return the header of a weights file, which must agree with the network that it is loaded into."""
        # Weights of a network without sizes lack the entry: that option came later.
        left_out = {"dropout"} if self.options.sizes else {"dropout", "sizes"}
        options = {name: value for name, value in asdict(self.options).items() if name not in left_out}
        return {
            "method": "prompter",
            "sam_variant": "none",
            "n_classes": str(self.n_classes),
            "options": json.dumps(options, sort_keys=True),
        }


def _build_backbone(
    name: Backbone, embedding: EmbeddingShape | None, checkpoint: str | None
) -> tuple[ConvNeXtBackbone | CompactBackbone | EmbeddingPyramid, int]:
    """Return the backbone and the width of what is built on it."""
    if name == "convnext_small":
        backbone = ConvNeXtBackbone(CONVNEXT_SMALL)
        if checkpoint is not None:
            backbone.load_imagenet(checkpoint)
        else:
            logger.warning(
                "no ImageNet weights: the backbone is random and needs a far longer training than the paper's. "
                "Give backbone_checkpoint, or take the backbone 'compact'."
            )
        return backbone, 256
    if checkpoint is not None:
        raise ConfigurationError(
            f"backbone_checkpoint {checkpoint}: the backbone '{name}' has no weights of its own to start from. Leave "
            "it out, or take the backbone 'convnext_small'."
        )
    if name == "compact":
        return CompactBackbone(), 64
    if embedding is None:
        raise ConfigurationError(
            "options.backbone 'shared': found no embedding, expected that of a segmentor. Build both networks as "
            "PromptNucSeg."
        )
    return EmbeddingPyramid(*embedding), embedding.channels // 2


def pad_to_multiple(image: Tensor, step: int) -> Tensor:
    """Pad ``(B, 3, H, W)`` with zeros at the bottom and right to multiples of ``step``, at least 32 px.

    Zero is the mean colour of a normalised image.
    """
    height, width = image.shape[-2:]
    bottom, right = (step * math.ceil(max(side, _SMALLEST_SIDE) / step) - side for side in (height, width))
    return F.pad(image, (0, right, 0, bottom)) if bottom or right else image


_CERTAINLY_BACKGROUND = -20.0


def any_nucleus_logits(
    found: PrompterOutput, side_px: int, decode: Callable[[NucleusPrompts], MaskPrediction]
) -> Tensor:
    """Return the logits ``(B, 1, S, S)`` of "any nucleus": at each pixel the highest of all masks.

    Every anchor point that is more likely a nucleus than background is a prompt; points of the same nucleus are not
    merged, as that changes nothing here.

    Args:
        found: the anchor points of the images; with sizes prompts are boxes.
        side_px: S, the side of the images.
        decode: returns the masks of prompts on the same images.
    """
    last = side_px - 1
    nuclei = found.class_logits.argmax(dim=-1) < found.class_logits.shape[-1] - 1
    counts = nuclei.sum(dim=1).cpu()
    points = found.points[nuclei].clamp(0, last)[:, None]
    labels = torch.ones(points.shape[:2], dtype=torch.int64, device=points.device)
    if found.sizes is not None:
        half = found.sizes[nuclei][:, None] / 2
        points = torch.cat([points - half, points + half], dim=1).clamp(0, last)
        labels = torch.tensor(BOX_LABELS, device=points.device).expand(len(points), -1)
    logits = decode(NucleusPrompts(points, labels, counts)).logits.float()
    without = logits.new_full((1, *logits.shape[1:]), _CERTAINLY_BACKGROUND)
    highest = [torch.cat([without, own]).amax(dim=0) for own in logits.split(counts.tolist())]
    return F.interpolate(torch.stack(highest), size=(side_px, side_px), mode="bilinear", align_corners=False)


_CLASS_LAYER = "classification.3."


def start_from_other_classes(path: Path | str, prompter: Prompter, header: Mapping[str, str]) -> None:
    """Load a prompter's weights into one of other classes.

    Everything but the last layer of the classification is taken over as it is. In that layer background stays
    background, classes of the same name stay themselves, and every other class begins as the mean of the trained
    ones, its bias lowered so that together they are as probable as the trained ones were: nuclei are found from the
    first step on, and only their classes remain to be learned.

    Args:
        path: ``prompter.safetensors`` of a training.
        prompter: prompter with the options of that training.
        header: header of ``prompter``, with its ``class_names``.

    Raises:
        CheckpointError: the file is missing or damaged, names no classes, or is of a prompter of other options.

    Source: ours; the paper trains each dataset by itself.
    """
    found = read_header(path)
    trained = trained_names(path, "class_names")
    for name in sorted(set(header) - {"n_classes", "class_names"}):
        if found.get(name) != header[name]:
            raise CheckpointError(
                f"{path}: its {name} is '{found.get(name, 'not named')}', but this prompter's is '{header[name]}'. "
                "Only the classes may differ."
            )
    tensors = read_safetensors(path)
    wanted = json.loads(header["class_names"])
    for part, shift in (("weight", 0.0), ("bias", 1.0)):
        rows = tensors.get(_CLASS_LAYER + part)
        if rows is not None and len(rows) == len(trained) + 1:
            tensors[_CLASS_LAYER + part] = _rows_for(wanted, trained, rows, shift)
    own = prompter.state_dict()
    require_same_tensors(
        {name: tensor.shape for name, tensor in own.items()},
        {name: tensor.shape for name, tensor in tensors.items()},
        str(path),
        hint="Its options differ from those of this prompter.",
    )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
    logger.info("%s: trained for %s, taken as the start for %s.", path, trained, wanted)


def _rows_for(wanted: Sequence[str], trained: Sequence[str], rows: Tensor, shift: float) -> Tensor:
    new = [name for name in wanted if name not in trained]
    replaced = [number for number, name in enumerate(trained) if name not in wanted] or range(len(trained))
    start = rows[list(replaced)].mean(dim=0)
    if new:
        start = start - shift * math.log(len(new) / len(replaced))
    chosen = [rows[trained.index(name)] if name in trained else start for name in wanted]
    return torch.stack([*chosen, rows[-1]])
