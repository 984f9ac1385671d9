"""Define SAM-guided eU-Net3+: a U-Net 3+ whose coarsest features are gated by those of a frozen SAM."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nucsam_monai.networks.options import read_options
from nucsam_monai.networks.sam import EmbeddingCache, ImageEncoder, SAMVariant, build_sam, encode_cached
from nucsam_monai.networks.sam import sam_variant as find_variant
from nucsam_monai.networks.sam.layers import UnitRGB
from nucsam_monai.networks.unet3plus import Guide, MaxBlurPool, UNet3Plus, UNet3PlusOptions, initialise
from nucsam_monai.utils.errors import ConfigurationError

logger = logging.getLogger(__name__)


Gate = Literal["glu", "released"]


@dataclass(frozen=True)
class XGFBOptions:
    """Configure the X-gated fusion block.

    Attributes:
        gate: ``glu`` expands and gates as the paper says; ``released`` squeezes to a sixteenth with ReLU as
            the authors' code does.
        kv: keys and values of the attention: ``gated`` features as in the paper, ``ungated`` ones as in the
            authors' code, or SAM's through a linear layer (``sam``, ours).
        residual: add the gated features to what the attention returns.
    """

    gate: Gate = "glu"
    kv: Literal["gated", "ungated", "sam"] = "gated"
    residual: bool = False


class ChannelGate(nn.Module):
    """Weight the channels of a map by the spatial means of the map and of SAM's features.

    Args:
        channels: channels of the map.
        guide_channels: channels of SAM's features.
        kind: kind of gate, see :class:`XGFBOptions`.
    """

    def __init__(self, channels: int, guide_channels: int, kind: Gate) -> None:
        super().__init__()
        joint = channels + guide_channels
        squeezed = max(1, joint // 16)
        hidden: list[nn.Module] = (
            [nn.Conv2d(joint, 2 * joint, kernel_size=1), nn.GLU(dim=1)]
            if kind == "glu"
            else [nn.Conv2d(joint, squeezed, kernel_size=1), nn.ReLU(inplace=True)]
        )
        last = nn.Conv2d(joint if kind == "glu" else squeezed, channels, kernel_size=1)
        self.weights = nn.Sequential(nn.AdaptiveAvgPool2d(1), *hidden, last, nn.Sigmoid())

    def forward(self, features: Tensor, guide: Tensor) -> Tensor:
        """Return ``features`` ``(B, C, h, w)`` weighed, where ``guide`` is ``(B, C_s, h, w)``."""
        return self.weights(torch.cat([features, guide], dim=1)) * features


class XGatedFusionBlock(nn.Module):
    """Apply a channel gate, then attention between all positions (X-GFB; eU-Net3+, section on the fusion block).

    One head as wide as the map, neither positions nor normalisation: SAM contributes through the gate.

    Args:
        channels: channels of the map.
        guide_channels: channels of SAM's features.
        options: gate, keys and values, residual.

    Example:
        >>> block = XGatedFusionBlock(8, 4, XGFBOptions())
        >>> block(torch.zeros(1, 8, 4, 4), torch.zeros(1, 4, 4, 4)).shape
        torch.Size([1, 8, 4, 4])
    """

    def __init__(self, channels: int, guide_channels: int, options: XGFBOptions) -> None:
        super().__init__()
        self.options = options
        self.gate = ChannelGate(channels, guide_channels, options.gate)
        self.guide_tokens = nn.Linear(guide_channels, channels) if options.kv == "sam" else None
        self.attention = nn.MultiheadAttention(channels, num_heads=1, batch_first=True)

    def forward(self, features: Tensor, guide: Tensor) -> Tensor:
        """Return what replaces ``features`` ``(B, C, h, w)``; ``guide`` is ``(B, C_s, h, w)``."""
        gated = self.gate(features, guide)
        query = _tokens(gated)
        if self.guide_tokens is not None:
            context = self.guide_tokens(_tokens(guide))
        else:
            context = query if self.options.kv == "gated" else _tokens(features)
        attended, _ = self.attention(query, context, context, need_weights=False)
        fused = attended.transpose(1, 2).reshape(gated.shape)
        return fused + gated if self.options.residual else fused


class ConcatFusion(nn.Module):
    """Concatenate and convolve 1 x 1: the ablation of X-GFB.

    Args:
        channels: channels of the map.
        guide_channels: channels of SAM's features.
    """

    def __init__(self, channels: int, guide_channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels + guide_channels, channels, kernel_size=1)

    def forward(self, features: Tensor, guide: Tensor) -> Tensor:
        """Return what replaces ``features`` ``(B, C, h, w)``; ``guide`` is ``(B, C_s, h, w)``."""
        return self.mix(torch.cat([features, guide], dim=1))


def _tokens(features: Tensor) -> Tensor:
    return features.flatten(2).transpose(1, 2)


class SAMGuidance(nn.Module):
    """Fuse SAM's embedding into the coarsest level and, if ``advanced``, gate every other level with it.

    The gates of the other levels are those of the authors' code; the paper leaves them to future work.

    Args:
        filters: channels of the levels, finest first.
        embed_channels: channels of SAM's embedding.
        embedding_stride: pixels of the U-Net's image per pixel of the embedding.
        fusion: ``xgfb`` or ``concat``.
        xgfb: options of the X-gated fusion block.
        advanced: gate the other levels.

    Raises:
        ConfigurationError: an embedding that no doublings or halvings bring to the levels' resolutions.
    """

    def __init__(
        self,
        filters: Sequence[int],
        embed_channels: int,
        embedding_stride: int,
        *,
        fusion: Literal["xgfb", "concat"] = "xgfb",
        xgfb: XGFBOptions | None = None,
        advanced: bool = False,
    ) -> None:
        super().__init__()
        *inner, coarsest = filters
        coarsest_stride = 2 ** len(inner)
        if embedding_stride < 1 or coarsest_stride % embedding_stride:
            raise ConfigurationError(
                f"SAM's embedding has one pixel per {embedding_stride} px of the image, expected a power of two "
                f"up to {coarsest_stride} px, the coarsest level's. Change sam.input_scale."
            )
        self.to_coarsest = _halvings(coarsest_stride // embedding_stride)
        self.fusion: nn.Module = (
            XGatedFusionBlock(coarsest, embed_channels, xgfb or XGFBOptions())
            if fusion == "xgfb"
            else ConcatFusion(coarsest, embed_channels)
        )
        widths = [max(1, width // 2) for width in inner] if advanced else []
        self.to_level = nn.ModuleList(
            _to_level(embed_channels, width, embedding_stride, 2**level) for level, width in enumerate(widths)
        )
        self.gates = nn.ModuleList(
            ChannelGate(channels, width, "released") for channels, width in zip(inner, widths, strict=False)
        )
        self.levels = len(filters)
        initialise(self)

    def forward(self, level: int, features: Tensor, embedding: Tensor) -> Tensor:
        """Return the changed map of a level.

        Args:
            level: 0 is the finest.
            features: ``(B, C, h, w)``, the level's map.
            embedding: ``(B, embed_channels, g, g')``.
        """
        if level == self.levels - 1:
            return self.fusion(features, self.to_coarsest(embedding))
        if not self.gates:
            return features
        return self.gates[level](features, self.to_level[level](embedding))


def _halvings(factor: int) -> nn.Sequential:
    return nn.Sequential(*(MaxBlurPool() for _ in range(factor.bit_length() - 1)))


def _to_level(in_channels: int, out_channels: int, stride: int, level_stride: int) -> nn.Module:
    """Return what brings an embedding of ``stride`` px to a level of ``level_stride`` px."""
    factor = stride // level_stride
    if factor > 1:
        return nn.ConvTranspose2d(
            in_channels, out_channels, kernel_size=2 * factor, stride=factor, padding=factor // 2
        )
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=1), *_halvings(level_stride // stride)
    )


Fusion = Literal["xgfb", "concat", "none"]
"""How SAM's features enter: the X-gated fusion block, a concatenation, or not at all (eU-Net3+ alone)."""


@dataclass(frozen=True)
class SAMInputOptions:
    """Configure SAM's input: the U-Net's image enlarged ``input_scale`` times (from 256 to 1024 px in the paper)."""

    input_scale: int = 4

    def __post_init__(self) -> None:
        if self.input_scale < 1:
            raise ConfigurationError(f"sam.input_scale {self.input_scale}: expected 1 or more.")


class EUNet3POutput(NamedTuple):
    """Hold the outputs that the losses need.

    Attributes:
        logits: ``(B, 2, H, W)`` of background and nucleus, and the distance map's as a third where it is learned.
        side_logits: logits of each supervised level, finest first; empty without deep supervision.
    """

    logits: Tensor
    side_logits: tuple[Tensor, ...] = ()


class EUNet3P(nn.Module):
    """Segment nuclei with eU-Net3+ and X-gated fusion ("SAM Guided Task-Specific Enhanced Nuclei Segmentation").

    SAM is frozen; with the cache it runs once per image. Only the U-Net and the fusion are trained.
    The paper's numbers of parameters are those of the defaults with ``fusion: none``, and with the gate
    ``released``. U-Net 3+ itself is :data:`~nucsam_monai.networks.unet3plus.ORIGINAL_UNET3PLUS`.

    Args:
        sam_variant: name of the SAM variant, ``"vit_b"`` in the paper; unused with ``fusion: none``.
        fusion: kind of fusion, see :data:`Fusion`.
        advanced: let SAM gate every level of the encoder (authors' code).
        unet: values of :class:`~nucsam_monai.networks.unet3plus.UNet3PlusOptions`.
        xgfb: values of :class:`~nucsam_monai.networks.eunet3p.XGFBOptions`.
        sam: values of :class:`SAMInputOptions`.
        sam_checkpoint: SAM weights in the official layout; without them SAM is random, the same each time.
        embedding_cache: cache for SAM's features.
        outputs: logits per pixel in evaluation: 2 for learned instances, of nucleus and of the distance map.

    Raises:
        ConfigurationError: an option or its value is unknown, or a variant and an ``input_scale`` that do not fit.
        CheckpointError: the SAM weights are damaged or belong to another variant.

    Example:
        >>> network = EUNet3P("vit_tiny", unet={"filters": [8, 8, 16, 16, 32]}, sam={"input_scale": 1}).eval()
        >>> network(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 1, 64, 64])
    """

    def __init__(
        self,
        sam_variant: str = "vit_b",
        *,
        fusion: Fusion = "xgfb",
        advanced: bool = False,
        unet: Mapping[str, Any] | None = None,
        xgfb: Mapping[str, Any] | None = None,
        sam: Mapping[str, Any] | None = None,
        sam_checkpoint: str | None = None,
        embedding_cache: EmbeddingCache | None = None,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        if outputs not in (1, 2):
            raise ConfigurationError(f"outputs {outputs}: expected 1, or 2 with the distance map of nuclei.")
        self.outputs = outputs
        _require_fusion(fusion, advanced)
        self.fusion = fusion
        self.advanced = advanced
        self.unet_options = read_options(UNet3PlusOptions, unet, "unet")
        self.xgfb_options = read_options(XGFBOptions, xgfb, "xgfb")
        self.sam_options = read_options(SAMInputOptions, sam, "sam")
        self.embedding_cache = embedding_cache
        self.to_rgb = UnitRGB()
        self.unet = UNet3Plus(3, 1 + outputs, self.unet_options)
        self.variant: SAMVariant | None = None
        self.guidance: SAMGuidance | None = None
        self.image_encoder: ImageEncoder | None = None
        if fusion != "none":
            self.variant = find_variant(sam_variant)
            self.guidance = SAMGuidance(
                self.unet_options.filters,
                self.variant.embed_channels,
                self._embedding_stride(self.variant),
                fusion=fusion,
                xgfb=self.xgfb_options,
                advanced=advanced,
            )
            self.image_encoder = _frozen_encoder(self.variant, sam_checkpoint)

    def train(self, mode: bool = True) -> "EUNet3P":
        """Switch to training or evaluation; SAM stays in evaluation."""
        super().train(mode)
        if self.image_encoder is not None:
            self.image_encoder.eval()
        return self

    def forward(self, image: Tensor, features: Tensor | None = None) -> Tensor | EUNet3POutput:
        """Segment a batch of images.

        Args:
            image: ``(B, 3, H, W)``, sides multiples of 16 px with five levels, normalised with SAM's constants.
            features: output of :meth:`sam_features` for the images, if already computed.

        Returns:
            Logits of nucleus ``(B, outputs, H, W)``, positive where the nucleus's channel is the greater, and of
            the distance map; in training mode :class:`EUNet3POutput`.

        Raises:
            ConfigurationError: images of other sides, or features that do not belong to them.
        """
        maps = self.unet.encode(self.to_rgb(image), self._guide(image, features))
        logits, *side_logits = self.unet.decode(maps)
        if self.training:
            return EUNet3POutput(logits, tuple(side_logits))
        return torch.cat([logits[:, 1:2] - logits[:, :1], logits[:, 2:]], dim=1).float()

    @torch.no_grad()
    def sam_features(self, image: Tensor) -> Tensor:
        """Return SAM's embedding ``(B, embed_channels, g, g')`` of normalised images, from the cache if there.

        Raises:
            ConfigurationError: a network without SAM, or images whose sides do not fit.
        """
        if self.image_encoder is None:
            raise ConfigurationError("fusion 'none': this network has no SAM that could give features.")
        self.unet.require_size(image)
        # Normalising is affine, so it does not matter that it came before the enlargement.
        scale = self.sam_options.input_scale
        if scale > 1:
            image = F.interpolate(image.float(), scale_factor=scale, mode="bilinear", align_corners=False)
        return encode_cached(self.image_encoder, image, self.embedding_cache).embedding

    @property
    def header(self) -> dict[str, str]:
        """Return the header of a weights file, which must agree with the network that it is loaded into.

        Dropout is left out, as only training uses it.
        """
        unet = asdict(self.unet_options)
        del unet["dropout"]
        options: dict[str, Any] = {"fusion": self.fusion, "unet": unet}
        if self.outputs > 1:
            options["outputs"] = self.outputs
        if self.variant is not None:
            options |= {"advanced": self.advanced, "sam": asdict(self.sam_options)}
        if self.fusion == "xgfb":
            options["xgfb"] = asdict(self.xgfb_options)
        return {
            "method": "eunet3p",
            "sam_variant": "none" if self.variant is None else self.variant.name,
            "options": json.dumps(options, sort_keys=True),
        }

    def _guide(self, image: Tensor, features: Tensor | None) -> Guide | None:
        guidance = self.guidance
        if guidance is None:
            if features is not None:
                raise ConfigurationError("fusion 'none': found features of SAM, expected none.")
            return None
        known = self.sam_features(image) if features is None else self._require_features(features, image)
        return lambda level, level_map: guidance(level, level_map, known)

    def _embedding_stride(self, variant: SAMVariant) -> int:
        scale = self.sam_options.input_scale
        if variant.patch % scale:
            raise ConfigurationError(
                f"sam.input_scale {scale}: expected a divisor of the {variant.patch} px of a patch of "
                f"'{variant.name}'."
            )
        return variant.patch // scale

    def _require_features(self, features: Tensor, image: Tensor) -> Tensor:
        """Return features that were handed in, if they can be those of the images."""
        variant = cast(SAMVariant, self.variant)
        stride = self._embedding_stride(variant)
        height, width = image.shape[-2:]
        expected = (len(image), variant.embed_channels, height // stride, width // stride)
        if tuple(features.shape) != expected:
            raise ConfigurationError(
                f"features: found shape {tuple(features.shape)}, expected {expected} for images of {height} x "
                f"{width} px. Give what sam_features returns for these images."
            )
        return features


def default_fusion(sam_checkpoint: str | None) -> Fusion:
    """Return the paper's fusion if there are SAM weights, else ``none``.

    Features of a random SAM would cost time and give no guidance.
    """
    if sam_checkpoint is not None:
        return "xgfb"
    logger.info(
        "no SAM weights: eU-Net3+ without SAM's guidance (fusion 'none'). For guidance give sam_checkpoint, for "
        "example what the bundle compact_sam writes."
    )
    return "none"


def _require_fusion(fusion: str, advanced: bool) -> None:
    if fusion not in get_args(Fusion):
        raise ConfigurationError(f"fusion '{fusion}': expected one of {', '.join(get_args(Fusion))}.")
    if advanced and fusion == "none":
        raise ConfigurationError("advanced true: found fusion 'none', expected one that has SAM's features.")


def _frozen_encoder(variant: SAMVariant, checkpoint: str | None) -> ImageEncoder:
    """Build SAM's image encoder, frozen; without weights from a fixed seed.

    Trained weights belong to one frozen encoder, so a random one has to be the same in every process.
    """
    if checkpoint is None:
        logger.warning(
            "no SAM weights: a random SAM guides the network, which knows nothing of images. Give sam_checkpoint, "
            "or do without it by fusion 'none'."
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        encoder = build_sam(variant, checkpoint=checkpoint).image_encoder
    return encoder.requires_grad_(False).eval()
