"""SAM-guided eU-Net3+: a U-Net 3+ whose coarsest features SAM's frozen ones gate."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nucsam_monai.networks.blocks.sam_guidance import SAMGuidance
from nucsam_monai.networks.blocks.unet3plus import Guide, UNet3Plus, UNet3PlusOptions
from nucsam_monai.networks.blocks.unit_rgb import UnitRGB
from nucsam_monai.networks.blocks.x_gated_fusion import XGFBOptions
from nucsam_monai.networks.options import read_options
from nucsam_monai.networks.sam import EmbeddingCache, ImageEncoder, SAMVariant, build_sam, encode_cached
from nucsam_monai.networks.sam import sam_variant as find_variant
from nucsam_monai.utils.errors import ConfigurationError

logger = logging.getLogger(__name__)

Fusion = Literal["xgfb", "concat", "none"]
"""How SAM's features enter: the X-gated fusion block, a concatenation, or not at all (eU-Net3+ alone)."""


@dataclass(frozen=True)
class SAMInputOptions:
    """What SAM sees: the U-Net's image, enlarged ``input_scale`` times (from 256 to 1024 px in the paper)."""

    input_scale: int = 4

    def __post_init__(self) -> None:
        if self.input_scale < 1:
            raise ConfigurationError(f"sam.input_scale {self.input_scale}: expected 1 or more.")


class EUNet3POutput(NamedTuple):
    """What the losses need.

    Attributes:
        logits: ``(B, 2, H, W)`` of background and nucleus, and the distance map's as a third where it is learned.
        side_logits: the same of each supervised level, the finer first; empty without deep supervision.
    """

    logits: Tensor
    side_logits: tuple[Tensor, ...] = ()


class EUNet3P(nn.Module):
    """eU-Net3+ with the X-gated fusion block ("SAM Guided Task-Specific Enhanced Nuclei Segmentation").

    SAM is frozen: without a gradient, and with the cache once per image. Only the U-Net and the fusion learn.
    The paper's numbers of parameters are those of the defaults with ``fusion: none``, and with the gate
    ``released``. U-Net 3+ itself is :data:`~nucsam_monai.networks.blocks.unet3plus.ORIGINAL_UNET3PLUS`.

    Args:
        sam_variant: name of the SAM variant, ``"vit_b"`` in the paper; not looked at with ``fusion: none``.
        fusion: see :data:`Fusion`.
        advanced: let SAM gate every level of the encoder (authors' code).
        unet: values of :class:`~nucsam_monai.networks.blocks.unet3plus.UNet3PlusOptions`.
        xgfb: values of :class:`~nucsam_monai.networks.blocks.x_gated_fusion.XGFBOptions`.
        sam: values of :class:`SAMInputOptions`.
        sam_checkpoint: SAM weights in the official layout; without them SAM is random, the same each time.
        embedding_cache: keeps SAM's features of images that come again.
        outputs: logits per pixel in evaluation: 2 for learned instances, of nucleus and of the distance map.

    Raises:
        ConfigurationError: an unknown option or value, or a variant and an ``input_scale`` that do not fit.
        CheckpointError: the SAM weights are damaged or of another variant.

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
            features: what :meth:`sam_features` returns for them, where it is known.

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
        """What a weights file says of this network and must say of the one it is loaded into.

        Left out is the dropout, which only training knows.
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
    """Return the paper's fusion where there are SAM weights, and ``none`` where there are none.

    A random SAM knows nothing of images: it would cost time and guide nobody.
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
