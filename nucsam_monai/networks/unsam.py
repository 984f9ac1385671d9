"""Define UN-SAM: prompt-free segmentation of nuclei in several domains."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from segment_anything.modeling.mask_decoder import MLP, MaskDecoder
from torch import Tensor, nn
from torch.nn import functional as F

from nucsam_monai.networks.fine_tuning import bottleneck, warn_of_frozen_encoder
from nucsam_monai.networks.options import read_options
from nucsam_monai.networks.sam import (
    BlockAdapter,
    EmbeddingCache,
    EncoderFeatures,
    ImageEncoder,
    LayerNorm2d,
    SAMVariant,
    build_mask_decoder,
    build_prompt_encoder,
    encode_cached,
    load_official_checkpoint,
    load_strictly,
    read_header,
)
from nucsam_monai.networks.sam import sam_variant as find_variant
from nucsam_monai.networks.sam.decoder import pixels_to_maps, run_two_way, upscale_cells
from nucsam_monai.networks.sam.weights import trained_names
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.names import distinct_names

logger = logging.getLogger(__name__)


class BlockBypass(BlockAdapter):
    """Add one domain's bypass to a block: ``scale * specific(common(LN(x)))`` parallel to the MLP."""

    def __init__(self, common: nn.Module, specific: nn.Module, scale: float) -> None:
        super().__init__()
        self.common = common
        self.specific = specific
        self.scale = scale

    def beside_mlp(self, normed: Tensor) -> Tensor:
        """Return what is added parallel to the MLP; ``normed`` is ``(B, h, w, d)`` after the block's LN2."""
        return self.scale * self.specific(self.common(normed))


class DomainBypass(nn.Module):
    """Hold the bypasses of all blocks and domains; :meth:`of_domain` returns those of one domain.

    Args:
        depth: number of encoder blocks.
        width: encoder width d.
        domains: number of domains K.
        common_ratio: hidden width of the common embedding as a multiple of ``width``.
        specific_ratio: reduction ratio of each domain-specific embedding.
        scale: factor of the bypass.
        init: ``zero_last`` starts from plain SAM (last specific layer zero), ``torch_default`` does not.
        common_scope: ``shared`` keeps one common embedding that trains on through all domains;
            ``per_domain`` stores one copy per domain, which :meth:`inherit` passes on.

    Raises:
        ConfigurationError: ``init`` or ``common_scope`` is unknown.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        domains: int,
        *,
        common_ratio: float = 2.0,
        specific_ratio: float = 0.25,
        scale: float = 0.5,
        init: Literal["zero_last", "torch_default"] = "zero_last",
        common_scope: Literal["shared", "per_domain"] = "shared",
    ) -> None:
        super().__init__()
        if init not in ("zero_last", "torch_default"):
            raise ConfigurationError(f"bypass init '{init}': expected 'zero_last' or 'torch_default'.")
        if common_scope not in ("shared", "per_domain"):
            raise ConfigurationError(
                f"bypass common_scope '{common_scope}': expected 'shared' or 'per_domain'."
            )
        self.scale = scale
        self.common_scope = common_scope
        copies = domains if common_scope == "per_domain" else 1
        self.common = nn.ModuleList(
            nn.ModuleList(bottleneck(width, common_ratio) for _ in range(depth)) for _ in range(copies)
        )
        specific = [[bottleneck(width, specific_ratio) for _ in range(depth)] for _ in range(domains)]
        if init == "zero_last":
            for block in (block for blocks in specific for block in blocks):
                for parameter in block[-1].parameters():
                    nn.init.zeros_(parameter)
        self.specific = nn.ModuleList(nn.ModuleList(blocks) for blocks in specific)
        for domain in range(1, copies):
            self.inherit(domain)

    def of_domain(self, domain: int) -> list[BlockBypass]:
        """Return one adapter per block for domain index ``domain``."""
        common = self.common[domain if self.common_scope == "per_domain" else 0]
        return [
            BlockBypass(shared, specific, self.scale)
            for shared, specific in zip(common.children(), self.specific[domain].children(), strict=True)
        ]

    def inherit(self, domain: int) -> None:
        """Copy the common embedding of domain ``domain - 1`` to ``domain`` (UN-SAM, Algorithm 1).

        With one shared embedding nothing is copied.
        """
        if self.common_scope == "per_domain" and domain > 0:
            self.common[domain].load_state_dict(self.common[domain - 1].state_dict())


class PatchConvTranspose2d(nn.ConvTranspose2d):
    """Turn every cell into a patch of ``side`` x ``side`` pixels: ``nn.ConvTranspose2d`` with that stride.

    The weights, their initialisation and the numbers are those of ``nn.ConvTranspose2d``. On a CPU PyTorch's
    own layer works image by image with the channels first, between normalisations that want them last.

    Args:
        in_channels: channels of a cell.
        out_channels: channels of a pixel.
        side: side of the patch in pixels, kernel and stride of the convolution.

    Example:
        >>> PatchConvTranspose2d(8, 3, side=2)(torch.zeros(1, 8, 5, 4)).shape
        torch.Size([1, 3, 10, 8])
    """

    def __init__(self, in_channels: int, out_channels: int, side: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=side, stride=side)
        self.side = side

    def forward(self, cells: Tensor) -> Tensor:  # type: ignore[override]  # the output has one size only
        """Return ``(B, C', side * h, side * w)`` of ``(B, C, h, w)``, channels last in memory."""
        # (C, C', side, side) -> (side * side * C', C)
        weight = self.weight.permute(2, 3, 1, 0).flatten(0, 2)
        bias = None if self.bias is None else self.bias.repeat(self.side**2)
        patches = F.linear(cells.permute(0, 2, 3, 1), weight, bias)
        # (B, h, w, side, side, C') -> (B, h, side, w, side, C')
        pixels = patches.unflatten(3, (self.side, self.side, -1)).transpose(2, 3)
        return pixels.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


class PyramidSelfPromptGenerator(nn.Module):
    """Predict hint logits from four encoder levels, joined top-down as in the paper's text.

    The shallow levels are brought to the fine scales by a transposed convolution x4, x2, identity and stride 2. A
    feature pyramid then adds each finer map to the upsampled coarser map.

    Args:
        in_channels: channels of each level.
        channels: channels of the pyramid.
    """

    def __init__(self, in_channels: int, channels: int = 64) -> None:
        super().__init__()
        heads: list[nn.Module] = [
            PatchConvTranspose2d(in_channels, channels, side=4),
            PatchConvTranspose2d(in_channels, channels, side=2),
            nn.Conv2d(in_channels, channels, kernel_size=1),
            nn.Conv2d(in_channels, channels, kernel_size=2, stride=2),
        ]
        self.heads = nn.ModuleList(nn.Sequential(head, LayerNorm2d(channels), nn.GELU()) for head in heads)
        self.laterals = nn.ModuleList(nn.Conv2d(channels, channels, kernel_size=1) for _ in range(3))
        self.smooths = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, kernel_size=3, padding=1), LayerNorm2d(channels), nn.GELU()
            )
            for _ in range(3)
        )
        self.head = nn.Conv2d(channels, 1, kernel_size=1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Return hint logits ``(B, 1, 4h, 4w)`` from four levels ``(B, C, h, w)``, shallow to deep."""
        scales = [head(level) for head, level in zip(self.heads, levels, strict=True)]
        joined = scales.pop()
        for fine, lateral, smooth in zip(reversed(scales), self.laterals, self.smooths, strict=True):
            up = F.interpolate(joined, size=fine.shape[-2:], mode="bilinear", align_corners=False)
            joined = smooth(up + lateral(fine))
        return self.head(joined)


class ReleasedSelfPromptGenerator(nn.Module):
    """Predict hint logits from the last embedding alone, as the sum of four single-channel branches.

    This is the form of the authors' published weights; the paper's text describes
    :class:`PyramidSelfPromptGenerator`.

    Args:
        in_channels: channels of the embedding.
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        middle, thin = in_channels // 4, in_channels // 16
        self.coarse = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(in_channels, 1, kernel_size=1))
        self.identity = nn.Conv2d(in_channels, 1, kernel_size=1)
        self.twice = nn.Sequential(
            PatchConvTranspose2d(in_channels, middle, side=2),
            nn.Conv2d(middle, 1, kernel_size=1),
        )
        self.fourfold = nn.Sequential(
            PatchConvTranspose2d(in_channels, middle, side=2),
            LayerNorm2d(middle),
            nn.GELU(),
            PatchConvTranspose2d(middle, thin, side=2),
            nn.Conv2d(thin, 1, kernel_size=1),
        )

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Return hint logits ``(B, 1, 4h, 4w)``; only the last level ``(B, C, h, w)`` is used."""
        embedding = levels[-1]
        size = [4 * side for side in embedding.shape[-2:]]
        logits = self.fourfold(embedding)
        for branch in (self.coarse, self.identity, self.twice):
            logits = logits + F.interpolate(branch(embedding), size=size, mode="bilinear", align_corners=True)
        return logits


def binary_hint(logits: Tensor, tau: float) -> Tensor:
    """Return 1 where ``sigmoid(logits) >= tau`` and 0 elsewhere, without a gradient."""
    return (torch.sigmoid(logits.detach().float()) >= tau).to(logits.dtype)


def thresholded_hint(logits: Tensor, tau: float) -> Tensor:
    """Return the logits where ``sigmoid(logits) >= tau`` and 0 elsewhere (UN-SAM, hint of SPGen)."""
    return logits * (torch.sigmoid(logits.detach().float()) >= tau)


class DomainQueryDecoder(nn.Module):
    """Decode masks with SAM's two-way transformer and upscaling from the queries of one domain.

    Instead of SAM's IoU token, IoU head and mask tokens, every query has its own hyper-network. The queries of each
    domain are a separate parameter: in a common table, the momentum or weight decay of an optimizer would change the
    rows of one domain while another one is trained.

    Args:
        variant: sizes of SAM's decoder.
        queries_per_domain: number of queries (masks) of each domain.
        joint_queries: let the queries of all domains attend to each other and pick the domain's masks at
            the end, as the authors' code does; otherwise the domain's queries are picked first, so that
            domains cannot interfere.
    """

    def __init__(
        self, variant: SAMVariant, queries_per_domain: Sequence[int], *, joint_queries: bool = False
    ) -> None:
        super().__init__()
        self.joint_queries = joint_queries
        channels = variant.embed_channels
        self.queries = nn.ParameterList(torch.randn(count, channels) for count in queries_per_domain)
        sam_decoder = build_mask_decoder(variant)
        self.transformer = sam_decoder.transformer
        self.output_upscaling = sam_decoder.output_upscaling
        self.output_hypernetworks_mlps = nn.ModuleList(
            nn.ModuleList(MLP(channels, channels, channels // 8, 3) for _ in range(count))
            for count in queries_per_domain
        )
        self.fine_hypernetworks_mlps = nn.ModuleList(
            nn.ModuleList(MLP(channels, channels, variant.fine_channels, 3) for _ in range(count))
            for count in (queries_per_domain if variant.fine_channels else ())
        )

    def forward(
        self,
        embedding: Tensor,
        image_pe: Tensor,
        domain: int,
        prompt_tokens: Tensor | None = None,
        fine: Tensor | None = None,
    ) -> Tensor:
        """Decode the masks of one domain.

        Args:
            embedding: ``(B, C, h, w)``, the image embedding with the hint added.
            image_pe: ``(1, C, h, w)``, SAM's dense positional code.
            domain: index of the domain.
            prompt_tokens: ``(B, K, C)`` point tokens, where points prompt the decoder.
            fine: ``(B, fine_channels, 8h, 8w)`` fine map, for variants with a trunk.

        Returns:
            Mask logits ``(B, n_q, 4h, 4w)`` with one channel per query of the domain, or twice as large with
            ``fine``.
        """
        batch, _, *grid = embedding.shape
        asked = list(self.queries) if self.joint_queries else [self.queries[domain]]
        first = sum(len(queries) for queries in self.queries[:domain]) if self.joint_queries else 0
        queries = torch.cat(asked)
        tokens = queries.expand(batch, -1, -1)
        if prompt_tokens is not None:
            tokens = torch.cat([tokens, prompt_tokens.to(tokens.dtype)], dim=1)
        # Each image is decoded once, so it counts as a prompt with a dense embedding of its own.
        tokens, cells = run_two_way(
            self.transformer,
            embedding.flatten(2).mT.contiguous(),
            image_pe.flatten(2).mT,
            tokens,
            counts=[1] * batch,
            answers=queries.shape[0],
        )
        tokens = tokens[:, first:]
        pixels = upscale_cells(self, cells)
        # (B, h * w, 16, C / 8) @ (B, 1, C / 8, n_q)
        kernels = _kernels(self.output_hypernetworks_mlps[domain], tokens)
        masks = pixels_to_maps(pixels @ kernels.unsqueeze(1), (grid[0], grid[1]))
        if fine is None:
            return masks
        # (B, n_q, fine_channels) @ (B, fine_channels, 8h * 8w)
        outline = (_kernels(self.fine_hypernetworks_mlps[domain], tokens).mT @ fine.flatten(2)).unflatten(
            2, fine.shape[-2:]
        )
        masks = F.interpolate(masks.float(), size=fine.shape[-2:], mode="bilinear", align_corners=False)
        return masks + outline

    @torch.no_grad()
    def start_from(self, sam_decoder: MaskDecoder, *, copy_token: bool) -> None:
        """Copy SAM's transformer, upscaling and the hyper-network of its single-mask token.

        Args:
            sam_decoder: SAM's mask decoder with its official weights.
            copy_token: start every query from SAM's single-mask token instead of a normal draw.
        """
        self.transformer.load_state_dict(sam_decoder.transformer.state_dict())
        self.output_upscaling.load_state_dict(sam_decoder.output_upscaling.state_dict())
        for mlps in self.output_hypernetworks_mlps:
            for mlp in mlps.children():
                mlp.load_state_dict(sam_decoder.output_hypernetworks_mlps[0].state_dict())
        if copy_token:
            for queries in self.queries:
                queries.copy_(sam_decoder.mask_tokens.weight[:1].expand_as(queries))


def _kernels(mlps: nn.Module, tokens: Tensor) -> Tensor:
    """Return the kernels ``(B, channels, n_q)`` of the first n_q of ``(B, T, C)`` tokens."""
    return torch.stack([mlp(tokens[:, i]) for i, mlp in enumerate(mlps.children())], dim=2)


@dataclass(frozen=True)
class EncoderOptions:
    """Configure the DT-Encoder: trained parts and form of the bypass (ablation switch E is ``bypass``).

    Attributes:
        bypass: whether each block has the domain-specific bypass; without it the encoder is SAM's.
        trainable: train only the ``bypass``, or ``all`` of the encoder.
        common_ratio: see :class:`DomainBypass`, also for the next four.
        specific_ratio: reduction ratio of each domain-specific embedding.
        scale: factor of the bypass.
        init: initialisation of the last specific layer.
        common_scope: whether the domains share the common embedding.
        activation_checkpointing: recompute activations of the encoder, which saves memory and takes more time.
    """

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
    """Configure SPGen: form of the generator and how its hint is used (ablation switch S is ``enabled``).

    Attributes:
        enabled: whether there is a hint.
        variant: ``pyramid`` of four levels as in the paper's text, or as in the ``released`` weights.
        inject: ``mask_prompt`` sends the binary hint through SAM's mask-prompt convolutions; ``add`` adds the
            thresholded logits to the embedding.
        channels: channels of the pyramid.
        tau: probability from which a pixel belongs to the hint.
        detach: stop the gradient of the hint; only relevant for ``add``, because a binary hint has no gradient.
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
    """Configure the DQ-Decoder: which domain's queries are used (ablation switch D is ``domain_queries``).

    Attributes:
        domain_queries: whether each domain has its own queries; otherwise all domains share one set, which starts from
            SAM's mask token.
        joint_queries: see :class:`DomainQueryDecoder`.
        query_init: ``normal`` random values, or a copy of SAM's mask token (``sam``, needs SAM weights).
        queries_per_domain: number of queries (masks) of each domain, or ``{domain: number}``; 1 for other domains.
    """

    domain_queries: bool = True
    joint_queries: bool = False
    query_init: Literal["normal", "sam"] = "normal"
    queries_per_domain: int | Mapping[str, int] = 1


class UNSAMOutput(NamedTuple):
    """Hold the outputs that the losses need.

    Attributes:
        mask_logits: ``(B, n_q, S, S)``, one channel per mask of the domain.
        hint_logits: ``(B, 1, 4g, 4g)``, or ``(B, 1, g, g)`` for ``inject: add``; None without SPGen.
    """

    mask_logits: Tensor
    hint_logits: Tensor | None


class UNSAM(nn.Module):
    """Segment the nuclei of several domains without prompts (UN-SAM, section III).

    Args:
        sam_variant: name of the SAM variant, for example ``"vit_b"`` or the compact ``"vit_tiny"``.
        domains: names of the training domains, in the order of Algorithm 1.
        image_size: side length of the input image in pixels.
        encoder: values of :class:`EncoderOptions`.
        spgen: values of :class:`SelfPromptOptions`.
        decoder: values of :class:`DecoderOptions`.
        sam_checkpoint: official SAM weights to start from. Default: random weights.
        embedding_cache: cache for the outputs of the encoder's frozen part. It has no effect with the bypass, which
            changes every block in training; it serves the ablation ``encoder.bypass: false``.

    Raises:
        ConfigurationError: there is no domain, a domain occurs twice, or an option or its value is unknown.
        CheckpointError: the SAM weights are damaged or belong to another variant.

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
            warn_of_frozen_encoder(
                "encoder.trainable 'bypass'", "train everything with encoder.trainable 'all'"
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
            domain: one of ``domains``. Default: the first.
            points: coordinates ``(B, K, 2)`` in pixels (x, y) and labels ``(B, K)`` (1 nucleus, 0 background,
                -1 padding), for the ablation with the user's points.

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
        """Return the header of a weights file, which must agree with the network that it is loaded into."""
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
    """Build the network of a weights file, without loading the weights.

    Args:
        checkpoint: weights file. If it does not exist, as for tools that only inspect a bundle, the network is the
            small one of the bundle's ``train.json``.
        domains: names of the training domains.
        image_size: side length of the input image in pixels.
        sam_variant: SAM variant. Default: that of the weights.
        sam_checkpoint: official SAM weights that the training started from, if they stayed frozen.
        encoder: values of :class:`EncoderOptions` that replace those of the weights.
        spgen: values of :class:`SelfPromptOptions` that replace those of the weights.
        decoder: values of :class:`DecoderOptions` that replace those of the weights.

    Raises:
        ConfigurationError: an option or its value is unknown.
        CheckpointError: the file or the SAM weights are damaged, or the file is not of UN-SAM.
    """
    trained, variant = _SMALL, "vit_tiny"
    if Path(checkpoint).is_file():
        header = read_header(checkpoint, method="unsam")
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
        checkpoint: path of the file.
        default: returned if there is no such file; tools that only inspect a bundle have no weights.

    Raises:
        CheckpointError: the file is missing and there is no default, or it is damaged or not of UN-SAM.
    """
    return trained_names(checkpoint, "domains", default, method="unsam")
