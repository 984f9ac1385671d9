"""SAC: SAM, adapted by LoRA and prompted by points that a small U-Net proposes."""

import copy
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nucsam_monai.networks.adapters import FineTuning, build_adapters, freeze_for
from nucsam_monai.networks.blocks.auto_prompter import AutoPrompter, GeneratorOptions, Stage
from nucsam_monai.networks.blocks.point_selection import PointPrompts
from nucsam_monai.networks.nucleus_prompts import MaskPrediction
from nucsam_monai.networks.options import read_options
from nucsam_monai.networks.sam import EncoderFeatures, build_sam, decode_prompts
from nucsam_monai.networks.sam import sam_variant as find_variant
from nucsam_monai.utils.errors import ConfigurationError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SAMOptions:
    """SAM itself; ``finetune: false`` is vanilla SAM, of which nothing learns.

    SAC freezes the prompt encoder by its text, but counts it as trained in its parameter table.
    """

    finetune: bool = True
    train_prompt_encoder: bool = False
    activation_checkpointing: bool = False


@dataclass(frozen=True)
class LoRAOptions:
    """LoRA: ``d/4`` is a quarter of the encoder's width, as SAC's parameter table implies; SAMed takes 4."""

    rank: int | Literal["d/4"] = "d/4"


@dataclass(frozen=True)
class MSAOptions:
    """Bottleneck adapters of Med-SA: hidden width, factor beside the MLP, and start."""

    ratio: float = 0.25
    scale: float = 0.5
    init: Literal["zero_last", "torch_default"] = "zero_last"


class SACOutput(NamedTuple):
    """What the losses need.

    Attributes:
        mask_logits: ``(B, outputs, 4g, 4g)``; None while the generator trains alone.
        generator_logits: ``(B, 1, H, W)``, or at ``generator.input_size``; None where the generator is not
            asked, or does not learn any more.
        prompts: the points that SAM was prompted with, those of the user first.
    """

    mask_logits: Tensor | None
    generator_logits: Tensor | None
    prompts: PointPrompts


class SAC(nn.Module):
    """One mask of all nuclei from one prompt of many points ("Segment Any Cell", section on the method).

    Points are chosen from the generator's output without a gradient, and the generator sees nothing but the
    image: it learns from its own loss only, and SAM from that of the mask only.

    Args:
        sam_variant: name of the SAM variant, for example ``"vit_h"`` or the compact ``"vit_tiny"``.
        image_size: side of the working image in pixels.
        adapter: the way of fine-tuning, see :data:`~nucsam_monai.networks.adapters.FineTuning`.
        sam: values of :class:`SAMOptions`.
        lora: values of :class:`LoRAOptions`, for ``adapter: lora``.
        msa: values of :class:`MSAOptions`, for ``adapter: msa``.
        generator: values of :class:`~nucsam_monai.networks.blocks.auto_prompter.GeneratorOptions`.
        sam_checkpoint: SAM weights in the official layout to start from; without them everything is random.
        outputs: masks per image: 2 for learned instances, whose second one is the distance map. It has a token and a
            hyper-networks of its own beside those of SAM's mask, of which they start as copies.

    Raises:
        ConfigurationError: an unknown option or value.
        CheckpointError: the SAM weights are damaged or of another variant.

    Example:
        >>> network = SAC("vit_tiny", 256, adapter="full").eval()
        >>> network(torch.zeros(1, 3, 256, 256)).shape
        torch.Size([1, 1, 256, 256])
    """

    def __init__(
        self,
        sam_variant: str,
        image_size: int = 1024,
        *,
        adapter: FineTuning = "lora",
        sam: Mapping[str, Any] | None = None,
        lora: Mapping[str, Any] | None = None,
        msa: Mapping[str, Any] | None = None,
        generator: Mapping[str, Any] | None = None,
        sam_checkpoint: str | None = None,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        self.adapter = adapter
        self.outputs = outputs
        self.sam_options = read_options(SAMOptions, sam, "sam")
        self.lora_options = read_options(LoRAOptions, lora, "lora")
        self.msa_options = read_options(MSAOptions, msa, "msa")
        self.generator_options = read_options(GeneratorOptions, generator, "generator")
        self.variant = find_variant(sam_variant)
        rank = self.lora_options.rank
        self.adapters = build_adapters(
            adapter, self.variant, rank=None if rank == "d/4" else rank, **asdict(self.msa_options)
        )
        self.sam = build_sam(
            self.variant,
            image_size,
            sam_checkpoint,
            activation_checkpointing=self.sam_options.activation_checkpointing,
        )
        self.distance_token, self.distance_hypernetwork, self.distance_outline = self._build_distance()
        self.generator = AutoPrompter(self.generator_options) if self.generator_options.n_points else None
        self._freeze(pretrained=sam_checkpoint is not None)
        self.begin_epoch(0)

    def begin_epoch(self, epoch: int) -> None:
        """Train from now on what ``generator.training`` foresees for the 0-based ``epoch``."""
        self.stage: Stage = self.generator_options.stage(epoch)
        if self.generator is not None:
            self.generator.freeze(self.stage == "segmenter")

    def forward(
        self, image: Tensor, points: tuple[Tensor, Tensor] | None = None, truth: Tensor | None = None
    ) -> Tensor | SACOutput:
        """Segment a batch of images.

        Args:
            image: ``(B, 3, S, S)``, normalised with SAM's constants.
            points: coordinates ``(B, K, 2)`` in pixels (x, y) and labels ``(B, K)`` (1 nucleus,
                0 background, -1 padding): the clicks of an expert, simulated in training.
            truth: ``(B, 1, S, S)`` binary mask of all nuclei. Only the warm-up looks at it, in training.

        Returns:
            Mask logits ``(B, outputs, S, S)``; in training mode :class:`SACOutput`, as the generator is trained too.

        Raises:
            ConfigurationError: a warm-up without ``truth``.
        """
        if self.training:
            return self._train_stage(image, points, truth)
        prompts, _ = self.prompts(image, points)
        size = (image.shape[-2], image.shape[-1])
        return F.interpolate(
            self.decode(image, prompts).float(), size=size, mode="bilinear", align_corners=False
        )

    def prompts(
        self, image: Tensor, points: tuple[Tensor, Tensor] | None = None, truth: Tensor | None = None
    ) -> tuple[PointPrompts, Tensor | None]:
        """Return the user's and the automatic points of each image, and the generator's logits.

        Args:
            image: as in :meth:`forward`.
            points: as in :meth:`forward`.
            truth: choose the automatic points from this mask.
        """
        found = [] if points is None else [PointPrompts(points[0].float(), points[1].long())]
        logits = None
        if self.generator is not None and self.generator.count:
            logits = self.generator(image)
            probability = torch.sigmoid(logits.detach().float()) if truth is None else truth.float()
            found.append(self.generator.choose(probability, (image.shape[-2], image.shape[-1])))
        if not found:
            none = image.new_zeros((len(image), 0), dtype=torch.long)
            found.append(PointPrompts(image.new_zeros((len(image), 0, 2), dtype=torch.float32), none))
        joined = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        return PointPrompts(*joined), logits

    def decode(self, image: Tensor, prompts: PointPrompts) -> Tensor:
        """Return the mask logits of images that are prompted with all their points.

        They are ``(B, outputs, 4g, 4g)``, with a fine map ``(B, outputs, 8g, 8g)``.
        """
        features = self.encode(image)
        embedding = features.embedding
        encoder = self.sam.prompt_encoder
        sparse, dense = encoder(points=tuple(prompts), image_size=(image.shape[-2], image.shape[-1]))
        code = encoder.position_code((embedding.shape[-2], embedding.shape[-1]))
        one_each = [1] * len(image)
        decoder, token = self.sam.mask_decoder, self.distance_token
        found = decode_prompts(
            decoder,
            embedding,
            code,
            sparse,
            dense,
            one_each,
            return_upscaled=token is not None,
            extra_tokens=token,
            pyramid=features.pyramid,
        )
        if self.distance_hypernetwork is None or found.extra is None or found.upscaled is None:
            return found.logits
        # (B, 1, C / 8) with (B, C / 8, 4g, 4g)
        kernels = self.distance_hypernetwork(found.extra)
        distance = torch.einsum("bnc,bchw->bnhw", kernels, found.upscaled)
        if self.distance_outline is not None:
            # the same with a second kernel on the fine map (B, F, 8g, 8g)
            size = (found.logits.shape[-2], found.logits.shape[-1])
            distance = F.interpolate(distance.float(), size=size, mode="bilinear", align_corners=False)
            kernels = self.distance_outline(found.extra)
            distance = distance + torch.einsum("bnc,bchw->bnhw", kernels, features.pyramid[-1])
        return torch.cat([found.logits, distance], dim=1)

    def encode(self, image: Tensor) -> EncoderFeatures:
        """Return what the image encoder says of ``(B, 3, S, S)`` images."""
        return self.sam.image_encoder(image, adapters=self.adapters)

    def decode_clicks(self, features: EncoderFeatures, points: Tensor, labels: Tensor) -> MaskPrediction:
        """See :class:`~nucsam_monai.networks.nucleus_prompts.PromptableNetwork`."""
        masks = self.sam.decode_each(features, points=(points, labels))
        return MaskPrediction(masks.logits, masks.iou)

    def decode_boxes(self, features: EncoderFeatures, boxes: Tensor) -> MaskPrediction:
        """See :class:`~nucsam_monai.networks.nucleus_prompts.PromptableNetwork`."""
        masks = self.sam.decode_each(features, boxes=boxes)
        return MaskPrediction(masks.logits, masks.iou)

    @property
    def header(self) -> dict[str, str]:
        """What a weights file says of this network and must say of the one it is loaded into.

        Left out is what only training or only evaluation knows: the schedule and ``n_points_test``.
        """
        generator = self.generator_options
        options: dict[str, Any] = {
            "adapter": self.adapter,
            "finetune": self.sam_options.finetune,
            "train_prompt_encoder": self.sam_options.train_prompt_encoder,
            "n_points": generator.n_points,
        }
        if generator.n_points:
            options["selection"] = generator.selection
            options["tau"] = generator.threshold
            options["input_size"] = generator.input_size
        if self.outputs > 1:
            options["outputs"] = self.outputs
        if self.adapter == "lora":
            options["lora"] = asdict(self.lora_options)
        if self.adapter == "msa":
            options["msa"] = asdict(self.msa_options)
        return {
            "method": "sac",
            "sam_variant": self.variant.name,
            "options": json.dumps(options, sort_keys=True),
        }

    def _train_stage(
        self, image: Tensor, points: tuple[Tensor, Tensor] | None, truth: Tensor | None
    ) -> SACOutput:
        if self.stage == "truth" and truth is None:
            raise ConfigurationError(
                "generator.training 'warmup': found a batch without the ground truth, expected the binary mask "
                "as the network's argument 'truth', because the points of these epochs come from it."
            )
        prompts, logits = self.prompts(image, points, truth if self.stage == "truth" else None)
        return SACOutput(
            None if self.stage == "generator" else self.decode(image, prompts),
            None if self.stage == "segmenter" else logits,
            prompts,
        )

    def _build_distance(self) -> tuple[nn.Parameter | None, nn.Module | None, nn.Module | None]:
        """Build what draws the distance map, where it is wanted, as copies of what draws the mask.

        Returns:
            The token, its hyper-network for the up-scaled embedding, and that for the fine map of variants that have
            one.
        """
        if self.outputs not in (1, 2) or (self.outputs == 2 and not self.sam_options.finetune):
            raise ConfigurationError(
                f"outputs {self.outputs}: expected 1, the mask, or 2 with its distance map, which has to be learned "
                f"and needs sam.finetune true; found {self.sam_options.finetune}."
            )
        if self.outputs == 1:
            return None, None, None
        decoder = self.sam.mask_decoder
        token = nn.Parameter(decoder.mask_tokens.weight[:1].detach().clone())
        fine = decoder.fine_hypernetworks_mlps[0] if self.variant.fine_channels else None
        return token, copy.deepcopy(decoder.output_hypernetworks_mlps[0]), copy.deepcopy(fine)

    def _freeze(self, *, pretrained: bool) -> None:
        """Leave a gradient to what learns; the generator always counts as trained."""
        if not self.sam_options.finetune:
            if self.adapter != "none" or self.sam_options.train_prompt_encoder:
                raise ConfigurationError(
                    f"sam.finetune false: found adapter '{self.adapter}' and sam.train_prompt_encoder "
                    f"{self.sam_options.train_prompt_encoder}, expected 'none' and false, as nothing of vanilla "
                    "SAM learns."
                )
            if self.generator is not None and self.generator_options.training == "pretrain":
                raise ConfigurationError(
                    "sam.finetune false: found generator.training 'pretrain', expected 'joint' or 'warmup', as "
                    "nothing is left to learn once the generator is frozen."
                )
            self.sam.requires_grad_(False)
            return
        freeze_for(self.adapter, self.sam, train_prompt_encoder=self.sam_options.train_prompt_encoder)
        if not pretrained and self.adapter != "full":
            logger.warning(
                "no SAM weights: with adapter '%s' the encoder is random and stays so, which teaches nothing. "
                "Give sam_checkpoint, or train everything with adapter 'full'.",
                self.adapter,
            )
