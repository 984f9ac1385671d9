"""UN-SAM: prompt-free segmentation of nuclei in several domains (DT-Encoder, SPGen, DQ-Decoder)."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from nucsam_monai.networks.adapters.domain_bypass import DomainBypass
from nucsam_monai.networks.blocks.domain_query_decoder import DomainQueryDecoder
from nucsam_monai.networks.blocks.self_prompt_generator import (
    PyramidSelfPromptGenerator,
    ReleasedSelfPromptGenerator,
    binary_hint,
    thresholded_hint,
)
from nucsam_monai.networks.options import read_options
from nucsam_monai.networks.sam import (
    EmbeddingCache,
    EncoderFeatures,
    ImageEncoder,
    build_mask_decoder,
    build_prompt_encoder,
    encode_cached,
    load_official_checkpoint,
    load_strictly,
    read_header,
)
from nucsam_monai.networks.sam import sam_variant as find_variant
from nucsam_monai.utils.errors import CheckpointError, ConfigurationError
from nucsam_monai.utils.names import distinct_names

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncoderOptions:
    """DT-Encoder: which parts learn and how the bypass is built (ablation switch E is ``bypass``)."""

    bypass: bool = True
    trainable: Literal["bypass", "all"] = "bypass"
    common_ratio: float = 2.0
    specific_ratio: float = 0.25
    scale: float = 0.5
    init: Literal["zero_last", "torch_default"] = "zero_last"
    common_scope: Literal["shared", "per_domain"] = "shared"
    activation_checkpointing: bool = False


@dataclass(frozen=True)
class SelfPromptOptions:
    """SPGen: form of the generator and how its hint enters (ablation switch S is ``enabled``).

    ``mask_prompt`` sends the binary hint through SAM's mask-prompt convolutions, and a binary hint passes no
    gradient; ``detach`` therefore matters for ``add`` alone, which adds the thresholded logits themselves.
    """

    enabled: bool = True
    variant: Literal["pyramid", "released"] = "pyramid"
    inject: Literal["mask_prompt", "add"] = "mask_prompt"
    channels: int = 64
    tau: float = 0.95
    detach: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.tau <= 1:
            raise ConfigurationError(f"spgen.tau {self.tau}: expected a probability from 0 to 1.")


@dataclass(frozen=True)
class DecoderOptions:
    """DQ-Decoder: whose queries are asked (ablation switch D is ``domain_queries``).

    ``query_init: sam`` needs a SAM checkpoint to copy from. Domains that ``queries_per_domain`` does not name
    have one query. Without domain queries one set, started from SAM's mask token, serves all domains.
    """

    domain_queries: bool = True
    joint_queries: bool = False
    query_init: Literal["normal", "sam"] = "normal"
    queries_per_domain: int | Mapping[str, int] = 1


class UNSAMOutput(NamedTuple):
    """What the losses need.

    Attributes:
        mask_logits: ``(B, n_q, S, S)``, one channel per mask of the domain.
        hint_logits: ``(B, 1, 4g, 4g)``, or ``(B, 1, g, g)`` for ``inject: add``; None without SPGen.
    """

    mask_logits: Tensor
    hint_logits: Tensor | None


class UNSAM(nn.Module):
    """Universal prompt-free segmentation of nuclei (UN-SAM, section III).

    Args:
        sam_variant: name of the SAM variant, for example ``"vit_b"`` or the compact ``"vit_tiny"``.
        domains: names of the training domains, in the order of Algorithm 1.
        image_size: side of the working image in pixels.
        encoder: values of :class:`EncoderOptions`.
        spgen: values of :class:`SelfPromptOptions`.
        decoder: values of :class:`DecoderOptions`.
        sam_checkpoint: official SAM weights to start from; without them everything is random.
        embedding_cache: keeps what the frozen part of the encoder returns. With the bypass, which changes
            every block in training, it has no effect; it serves the ablation ``encoder.bypass: false``.

    Raises:
        ConfigurationError: no domain, a domain named twice, an unknown option or value.
        CheckpointError: the SAM weights are damaged or of another variant.

    Example:
        >>> network = UNSAM("vit_tiny", ["dsb2018", "monuseg"], image_size=256)
        >>> network.eval()(torch.zeros(1, 3, 256, 256), domain="monuseg").shape
        torch.Size([1, 1, 256, 256])
    """

    def __init__(
        self,
        sam_variant: str,
        domains: Sequence[str],
        image_size: int = 1024,
        *,
        encoder: Mapping[str, Any] | None = None,
        spgen: Mapping[str, Any] | None = None,
        decoder: Mapping[str, Any] | None = None,
        sam_checkpoint: str | None = None,
        embedding_cache: EmbeddingCache | None = None,
    ) -> None:
        super().__init__()
        self.domains = distinct_names(domains, "domains")
        self.encoder_options = read_options(EncoderOptions, encoder, "encoder")
        self.spgen_options = read_options(SelfPromptOptions, spgen, "spgen")
        self.decoder_options = read_options(DecoderOptions, decoder, "decoder")
        self.variant = find_variant(sam_variant)
        self.masks_per_domain = self._masks_per_domain()
        self.embedding_cache = embedding_cache
        self.image_encoder = ImageEncoder(
            self.variant, activation_checkpointing=self.encoder_options.activation_checkpointing
        )
        self.prompt_encoder = build_prompt_encoder(self.variant, (image_size, image_size))
        self.bypass = self._build_bypass()
        self.spgen = self._build_spgen()
        self.decoder = DomainQueryDecoder(
            self.variant,
            self.masks_per_domain if self.decoder_options.domain_queries else [max(self.masks_per_domain)],
            joint_queries=self.decoder_options.joint_queries,
        )
        if sam_checkpoint is not None:
            self._load_sam(sam_checkpoint)
        elif self.encoder_options.trainable == "bypass":
            logger.warning(
                "no SAM weights: the encoder is random and frozen, which teaches nothing. Give sam_checkpoint, or "
                "train everything with encoder.trainable 'all'."
            )
        self._freeze()

    def forward(
        self,
        image: Tensor,
        domain: str | None = None,
        points: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | UNSAMOutput:
        """Segment a batch of images of one domain.

        Args:
            image: ``(B, 3, S, S)``, normalised with SAM's constants.
            domain: one of ``domains``; the first where it is not given.
            points: coordinates ``(B, K, 2)`` in pixels (x, y) and labels ``(B, K)`` (1 nucleus,
                0 background, -1 padding) for the ablation that prompts by hand.

        Returns:
            Mask logits ``(B, n_q, S, S)``; in training mode :class:`UNSAMOutput`, as the hint is trained too.
        """
        k = self.domain_index(domain)
        features = encode_cached(
            self.image_encoder,
            image,
            self.embedding_cache,
            adapters=None if self.bypass is None else self.bypass.of_domain(k),
            return_levels=self.spgen_options.enabled and self.spgen_options.variant == "pyramid",
        )
        embedding, hint_logits = self._inject_hint(features)
        size = (image.shape[-2], image.shape[-1])
        masks = self.decoder(
            embedding,
            self.prompt_encoder.position_code((embedding.shape[-2], embedding.shape[-1])),
            k if self.decoder_options.domain_queries else 0,
            None if points is None else self.prompt_encoder(points=points, image_size=size)[0],
            features.fine,
        )
        masks = masks[:, : self.masks_per_domain[k]]
        masks = F.interpolate(masks.float(), size=size, mode="bilinear", align_corners=False)
        return UNSAMOutput(masks, hint_logits) if self.training else masks

    @property
    def header(self) -> dict[str, str]:
        """What a weights file says of this network and must say of the one it is loaded into."""
        options = {
            "encoder": asdict(self.encoder_options),
            "spgen": asdict(self.spgen_options),
            "decoder": asdict(self.decoder_options),
        }
        return {
            "method": "unsam",
            "sam_variant": self.variant.name,
            "domains": json.dumps(self.domains),
            "options": json.dumps(options, sort_keys=True),
        }

    def domain_index(self, domain: str | None) -> int:
        """Return the position of ``domain`` in ``domains``.

        Raises:
            ConfigurationError: the network has no such domain.
        """
        if domain is None:
            return 0
        if domain not in self.domains:
            raise ConfigurationError(
                f"domain '{domain}': this network knows {', '.join(self.domains)}. Name one of them."
            )
        return self.domains.index(domain)

    def _inject_hint(self, features: EncoderFeatures) -> tuple[Tensor, Tensor | None]:
        """Return the embedding with the hint added, and the hint's logits."""
        embedding, options = features.embedding, self.spgen_options
        if self.spgen is None:
            no_hint = self.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
            return embedding + no_hint, None
        logits = self.spgen(features.levels or (embedding,))
        if options.inject == "mask_prompt":
            hint = binary_hint(logits, options.tau)
            return embedding + self.prompt_encoder.mask_downscaling(hint), logits
        logits = F.avg_pool2d(logits, kernel_size=4)
        hint = thresholded_hint(logits.detach() if options.detach else logits, options.tau)
        return embedding + hint, logits

    def _build_bypass(self) -> DomainBypass | None:
        options = self.encoder_options
        if not options.bypass:
            return None
        return DomainBypass(
            self.variant.depth,
            self.variant.width,
            len(self.domains),
            common_ratio=options.common_ratio,
            specific_ratio=options.specific_ratio,
            scale=options.scale,
            init=options.init,
            common_scope=options.common_scope,
        )

    def _build_spgen(self) -> nn.Module | None:
        options = self.spgen_options
        if not options.enabled:
            return None
        if options.variant == "pyramid":
            return PyramidSelfPromptGenerator(self.variant.embed_channels, options.channels)
        return ReleasedSelfPromptGenerator(self.variant.embed_channels)

    def _masks_per_domain(self) -> list[int]:
        queries = self.decoder_options.queries_per_domain
        by_name = dict(queries) if isinstance(queries, Mapping) else dict.fromkeys(self.domains, queries)
        unknown = sorted(set(by_name) - set(self.domains))
        if unknown or any(type(count) is not int or count < 1 for count in by_name.values()):
            raise ConfigurationError(
                f"decoder.queries_per_domain: found {queries!r}, expected a number from 1 on, or such a "
                f"number for any of the domains {', '.join(self.domains)}."
            )
        return [by_name.get(name, 1) for name in self.domains]

    def _load_sam(self, path: str) -> None:
        """Start from official SAM weights; the decoder takes over all that it shares with SAM's."""
        weights = load_official_checkpoint(path, self.variant)
        load_strictly(self.image_encoder, weights.image_encoder, path)
        load_strictly(self.prompt_encoder, weights.prompt_encoder, path)
        sam_decoder = build_mask_decoder(self.variant)
        load_strictly(sam_decoder, weights.mask_decoder, path)
        self.decoder.start_from(
            sam_decoder,
            copy_token=self.decoder_options.query_init == "sam" or not self.decoder_options.domain_queries,
        )

    def _freeze(self) -> None:
        """Freeze SAM's encoder and prompt encoder, but for the bypass and the mask-prompt convolutions."""
        if self.encoder_options.trainable == "all":
            return
        self.image_encoder.requires_grad_(False)
        self.prompt_encoder.requires_grad_(False)
        if self.spgen is not None and self.spgen_options.inject == "mask_prompt":
            self.prompt_encoder.mask_downscaling.requires_grad_(True)


_SMALL: Mapping[str, Mapping[str, Any]] = {
    "encoder": {"trainable": "all", "common_ratio": 0.25},
    "spgen": {"channels": 32},
    "decoder": {},
}


def trained_unsam(
    checkpoint: str | Path,
    domains: Sequence[str],
    image_size: int,
    *,
    sam_variant: str | None = None,
    sam_checkpoint: str | None = None,
    encoder: Mapping[str, Any] | None = None,
    spgen: Mapping[str, Any] | None = None,
    decoder: Mapping[str, Any] | None = None,
) -> UNSAM:
    """Build the network that a weights file belongs to, without loading its weights.

    Args:
        checkpoint: the file. Where there is none, as for tools that only look at a bundle, the network is the small one
            of the bundle's ``train.json``.
        domains: names of the training domains.
        image_size: side of the working image in pixels.
        sam_variant: None for that of the weights.
        sam_checkpoint: official SAM weights that the training started from, where these stayed frozen.
        encoder: values of :class:`EncoderOptions` in place of those of the weights.
        spgen: values of :class:`SelfPromptOptions` in place of those of the weights.
        decoder: values of :class:`DecoderOptions` in place of those of the weights.

    Raises:
        ConfigurationError: an unknown option or value.
        CheckpointError: the file is damaged or not of UN-SAM, or the SAM weights are.
    """
    trained, variant = _SMALL, "vit_tiny"
    if Path(checkpoint).is_file():
        header = _unsam_header(checkpoint)
        trained, variant = json.loads(header["options"]), header["sam_variant"]
    return UNSAM(
        sam_variant or variant,
        domains,
        image_size,
        encoder={**trained["encoder"], **(encoder or {})},
        spgen={**trained["spgen"], **(spgen or {})},
        decoder={**trained["decoder"], **(decoder or {})},
        sam_checkpoint=sam_checkpoint,
    )


def trained_domains(checkpoint: str | Path, default: Sequence[str] | None = None) -> list[str]:
    """Return the domains of a UN-SAM weights file, in the order of its queries.

    Args:
        checkpoint: the file.
        default: what to return where there is no such file; tools that only look at a bundle have no weights.

    Raises:
        CheckpointError: the file is missing and there is no default, or it is damaged or not of UN-SAM.
    """
    if default is not None and not Path(checkpoint).is_file():
        return list(default)
    return list(json.loads(_unsam_header(checkpoint)["domains"]))


def _unsam_header(checkpoint: str | Path) -> dict[str, str]:
    header = read_header(checkpoint)
    if header.get("method") != "unsam":
        raise CheckpointError(
            f"{checkpoint}: weights of '{header.get('method')}', expected those of 'unsam'."
        )
    return header
