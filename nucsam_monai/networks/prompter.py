"""The nuclei prompter of PromptNucSeg: one point and one class per nucleus, from anchor points."""

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nucsam_monai.networks.blocks.anchor_points import SampleAlignment, anchor_grid, sample_at
from nucsam_monai.networks.blocks.compact_backbone import CompactBackbone
from nucsam_monai.networks.blocks.convnext import CONVNEXT_SMALL, ConvNeXtBackbone
from nucsam_monai.networks.blocks.embedding_pyramid import EmbeddingPyramid
from nucsam_monai.networks.blocks.feature_pyramid import FeaturePyramid
from nucsam_monai.networks.blocks.prompter_heads import NucleiMaskHead, point_head
from nucsam_monai.networks.options import read_options
from nucsam_monai.utils.errors import ConfigurationError

logger = logging.getLogger(__name__)

Backbone = Literal["convnext_small", "compact", "shared"]

_FINEST_STRIDE = 4
_SMALLEST_SIDE = 32  # the coarsest stage has one cell then


@dataclass(frozen=True)
class PrompterOptions:
    """What the prompter is made of; the defaults are the paper's for PanNuke.

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
        sample_align: see :func:`~nucsam_monai.networks.blocks.anchor_points.sample_at`.
        aux_mask: the auxiliary mask of all nuclei.
        dropout: share of the heads' hidden values that is dropped in training.
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
        """Refuse numbers without a meaning.

        Raises:
            ConfigurationError: one is outside of what is permitted.
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
    """The M anchor points of each image after their moves.

    Attributes:
        points: ``(B, M, 2)`` float32 as (x, y) in pixels; they may lie outside of the image.
        class_logits: ``(B, M, C + 1)`` float32; the last class is background.
        mask_logits: ``(B, 1, H, W)`` float32 of "any nucleus"; None where it was not asked for.
        sizes: ``(B, M, 2)`` float32 width and height in pixels; None without that head.
    """

    points: Tensor
    class_logits: Tensor
    mask_logits: Tensor | None
    sizes: Tensor | None = None


class EmbeddingShape(NamedTuple):
    """The embedding that a prompter without a backbone reads.

    Attributes:
        channels: of the embedding.
        patch: pixels per cell.
        finer: channels of finer maps, see :class:`~nucsam_monai.networks.blocks.embedding_pyramid.EmbeddingPyramid`.
    """

    channels: int
    patch: int
    finer: tuple[int, ...] = ()


class AnchorFeatures(NamedTuple):
    """What the heads are given.

    Attributes:
        points: ``(B, M, 2)`` float32, the anchors after the first offset, as (x, y) in pixels.
        vectors: ``(B, M, channels)``, what the image says there.
    """

    points: Tensor
    vectors: Tensor


class Prompter(nn.Module):
    """One point and class per nucleus (PromptNucSeg, section on the nuclei prompter; CFR-SAM, stage 1).

    A grid of anchor points covers the image. Each is moved by a first offset, described by samples of the
    feature pyramid, moved by a second offset and classified. Offsets are plain pixels. In distributed
    training, :meth:`torch.nn.SyncBatchNorm.convert_sync_batchnorm` makes the mask head's statistics common.

    A method that predicts more for each point builds on :meth:`describe_anchors`.

    Args:
        n_classes: classes C of nuclei, without the background; 1 where nuclei have no classes.
        options: values of :class:`PrompterOptions`.
        embedding: what a prompter with the backbone ``shared`` reads in place of an image.
        backbone_checkpoint: ImageNet weights of ``convnext_small`` in torchvision's layout; without them
            everything is random.

    Raises:
        ConfigurationError: an unknown option or value, the backbone ``shared`` without an embedding, or weights for
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
        self.deformation = point_head(channels, 2, dropout) if self.options.deform_step else None
        self.fusion = nn.Conv2d(levels * channels, channels, kernel_size=3, padding=1)
        self.regression = point_head(channels, 2, dropout)
        self.sizes = point_head(channels, 2, dropout) if self.options.sizes else None
        self.classification = point_head(channels, n_classes + 1, dropout)
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
        """What a weights file says of this network and must say of the one it is loaded into."""
        # Weights of a network without sizes do not say so: that option came later.
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
