"""Define CFR-SAM: frozen SAM with local adapters, fused levels, and masks refined along their boundaries."""

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nucsam_monai.networks.cfrsam.refinement import (
    BGMROptions,
    BoundaryRefinement,
    ImageGuides,
    PixelRefinement,
    build_refinement,
    fixed_statistics,
    refine_in_boxes,
    refine_in_chunks,
)
from nucsam_monai.networks.compilation import WHY_NO_EXPORT, refuse_export
from nucsam_monai.networks.fine_tuning import (
    FineTuning,
    LoRAOptions,
    MALAOptions,
    MSAOptions,
    build_adapters,
    freeze_for,
)
from nucsam_monai.networks.nucleus_prompts import (
    MaskPrediction,
    NucleusPrompts,
    boxes_of,
    padding_prompt,
    prompts_of_one_image,
)
from nucsam_monai.networks.options import read_options
from nucsam_monai.networks.prompter import Prompter, any_nucleus_logits
from nucsam_monai.networks.sam import DecodedMasks, EncoderFeatures, build_sam
from nucsam_monai.networks.sam import sam_variant as find_variant
from nucsam_monai.networks.sam.decoder import start_localised
from nucsam_monai.networks.sam.prompt_encoder import corners_of_boxes
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.names import distinct_names

logger = logging.getLogger(__name__)


LEVELS = 4


@dataclass(frozen=True)
class HMFMOptions:
    """Configure the fusion of levels; all except ``modulated`` are the paper's ablation, ``none`` takes the last level.

    ``reduce`` says what becomes of the modulated levels. Their sum, as in the paper, is about four times as
    large as the embedding that SAM's decoder was trained on, and the decoder has to get used to it.
    """

    fusion: Literal["modulated", "add", "average", "concat", "none"] = "modulated"
    reduce: Literal["sum", "mean"] = "sum"


class HMFM(nn.Module):
    """Weight the channels of each level by its content, and add the levels.

    ``a_l = sigmoid(GAP(ReLU(BN(Conv1x1(F_l)))))`` and ``F = sum_l (a_l * F_l + F_l)``.

    Args:
        channels: channels of an embedding.
        options: see :class:`HMFMOptions`; ``none`` has no module.

    Example:
        >>> sum(parameter.numel() for parameter in HMFM(256, HMFMOptions()).parameters())
        264192
    """

    def __init__(self, channels: int, options: HMFMOptions) -> None:
        super().__init__()
        self.options = options
        if options.fusion == "modulated":
            self.gates = nn.ModuleList(
                nn.Sequential(
                    nn.Conv2d(channels, channels, kernel_size=1, bias=False),
                    nn.BatchNorm2d(channels),
                    nn.ReLU(),
                    nn.AdaptiveAvgPool2d(1),
                    nn.Sigmoid(),
                )
                for _ in range(LEVELS)
            )
        elif options.fusion == "concat":
            self.project = nn.Conv2d(LEVELS * channels, channels, kernel_size=1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Fuse four maps ``(B, C, h, w)`` into one of the same shape."""
        if self.options.fusion == "concat":
            return self.project(torch.cat(list(levels), dim=1))
        if self.options.fusion == "modulated":
            pairs = zip(self.gates, levels, strict=True)
            levels = [level * (1 + gate(level)) for gate, level in pairs]
        stacked = torch.stack(list(levels))
        averages = self.options.fusion == "average" or (
            self.options.fusion == "modulated" and self.options.reduce == "mean"
        )
        return stacked.mean(dim=0) if averages else stacked.sum(dim=0)


_FEWEST_FOR_STATISTICS = 2
"""Prompts from which batch normalisation takes the statistics of the batch."""

PromptKind = Literal["point", "box"]


class EncodedImages(NamedTuple):
    """Hold the encoder's output for B images, from which all prompts are decoded.

    Attributes:
        embedding: ``(B, C, g, g)`` fused levels of the encoder.
        guides: image features for the refinement; None without refinement.
        pyramid: finer maps of the encoder, of SAM variants that have such; else empty.
    """

    embedding: Tensor
    guides: ImageGuides | None
    pyramid: tuple[Tensor, ...] = ()

    def features(self) -> EncoderFeatures:
        """Return what SAM's own decoder takes."""
        return EncoderFeatures(self.embedding, pyramid=self.pyramid)


class CFRSAMOutput(NamedTuple):
    """Hold the masks of N prompts in both stages, as the loss needs them.

    Attributes:
        coarse: ``(N, 1, 4g, 4g)`` logits of the mask decoder, with a fine map ``(N, 1, 8g, 8g)``.
        refined: ``(N, 1, S, S)`` logits after the refinement; None without one.
        iou: ``(N, 1)`` predicted intersection over union.
        boundary: ``(N, 1, S, S)`` logits of each nucleus's boundary; None without boundary supervision.
    """

    coarse: Tensor
    refined: Tensor | None
    iou: Tensor
    boundary: Tensor | None

    @property
    def logits(self) -> Tensor:
        """The final masks ``(N, 1, s, s)``: the refined ones, or the coarse ones where none are refined."""
        return self.coarse if self.refined is None else self.refined


class CFRSAM(nn.Module):
    """Segment one nucleus per prompt with SAM and fine-grained refinement (CFR-SAM, section on the method).

    An image is encoded once, and any number of prompts is decoded from it::

        encoded = network.encode(image)
        masks = network.decode(encoded, prompts).logits > 0

    The rows of the paper's comparison of fine-tuning methods have neither HMFM nor BGMR; those of its ablation
    "no MALA" are ``adapter: head``.

    Args:
        sam_variant: name of the SAM variant, for example ``"vit_b"`` or the compact ``"vit_tiny"``.
        image_size: side length of the tiles in pixels.
        adapter: kind of fine-tuning, see :data:`~nucsam_monai.networks.fine_tuning.FineTuning`.
        mala: values of :class:`~nucsam_monai.networks.fine_tuning.MALAOptions`, for ``adapter: mala``.
        lora: values of :class:`~nucsam_monai.networks.fine_tuning.LoRAOptions`, for ``adapter: lora``.
        msa: values of :class:`~nucsam_monai.networks.fine_tuning.MSAOptions`, for ``adapter: msa``.
        hmfm: values of :class:`~nucsam_monai.networks.cfrsam.network.HMFMOptions`.
        bgmr: values of :class:`~nucsam_monai.networks.cfrsam.refinement.BGMROptions`.
        prompt: ``point``, or ``box`` (the paper's ablation): the two points of a prompt are then opposite
            corners of a box, and the labels do not matter.
        refine_margin_px: in evaluation :meth:`decode` refines each mask only in the box around its coarse mask
            and this far beyond it, which saves most of the work, see
            :func:`~nucsam_monai.networks.cfrsam.refinement.refine_in_boxes`; None refines the whole image,
            as the paper does.
        refine_halo_px: width of what is computed around each of these boxes; None for all that the masks in them
            depend on.
        train_sam: train all of SAM in addition to the adapters, for random weights.
        activation_checkpointing: recompute the encoder's blocks in the backward pass to save memory.
        sam_checkpoint: SAM weights in the official layout to start from. Default: random weights, see
            :func:`~nucsam_monai.networks.sam.decoder.start_localised`.

    Raises:
        ConfigurationError: an option or its value is unknown.
        CheckpointError: the SAM weights are damaged or belong to another variant.

    Example:
        >>> network = CFRSAM("vit_tiny", 64, adapter="full").eval()
        >>> points, labels = torch.tensor([[[40.0, 60.0]]]), torch.tensor([[1]])
        >>> prompts = NucleusPrompts(points, labels, torch.tensor([1]))
        >>> network.decode(network.encode(torch.zeros(1, 3, 64, 64)), prompts).logits.shape
        torch.Size([1, 1, 64, 64])
    """

    def __init__(
        self,
        sam_variant: str,
        image_size: int = 256,
        *,
        adapter: FineTuning = "mala",
        mala: Mapping[str, Any] | None = None,
        lora: Mapping[str, Any] | None = None,
        msa: Mapping[str, Any] | None = None,
        hmfm: Mapping[str, Any] | None = None,
        bgmr: Mapping[str, Any] | None = None,
        prompt: PromptKind = "point",
        refine_margin_px: int | None = None,
        refine_halo_px: int | None = None,
        train_sam: bool = False,
        activation_checkpointing: bool = False,
        sam_checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        if prompt not in get_args(PromptKind):
            raise ConfigurationError(f"prompt '{prompt}': expected 'point' or 'box'.")
        for name, pixels in (("refine_margin_px", refine_margin_px), ("refine_halo_px", refine_halo_px)):
            if pixels is not None and (type(pixels) is not int or pixels < 0):
                raise ConfigurationError(f"{name} {pixels!r}: expected null or a number of pixels from 0 on.")
        self.adapter = adapter
        self.prompt = prompt
        self.train_sam = train_sam
        self.refine_margin_px = refine_margin_px
        self.refine_halo_px = refine_halo_px
        self.image_size = image_size
        adapter_options: dict[str, MALAOptions | LoRAOptions | MSAOptions] = {
            "mala": read_options(MALAOptions, mala, "mala"),
            "lora": read_options(LoRAOptions, lora, "lora"),
            "msa": read_options(MSAOptions, msa, "msa"),
        }
        self.adapter_options = adapter_options.get(adapter)
        self.hmfm_options = read_options(HMFMOptions, hmfm, "hmfm")
        self.bgmr_options = read_options(BGMROptions, bgmr, "bgmr")
        self.variant = find_variant(sam_variant)
        self.adapters = build_adapters(adapter, self.variant, self.adapter_options)
        self.sam = build_sam(
            self.variant, image_size, sam_checkpoint, activation_checkpointing=activation_checkpointing
        )
        channels = self.variant.embed_channels
        self.hmfm = HMFM(channels, self.hmfm_options) if self.hmfm_options.fusion != "none" else None
        self.bgmr = build_refinement(channels, self.variant.patch // 4, self.bgmr_options)
        freeze_for(adapter, self.sam, pretrained=train_sam or sam_checkpoint is not None)
        if train_sam:
            self.sam.requires_grad_(True)
        if sam_checkpoint is None:
            start_localised(self.sam.mask_decoder)

    def forward(self, image: Tensor, prompts: NucleusPrompts) -> CFRSAMOutput:
        """Segment the prompted nuclei of ``(B, 3, S, S)`` images, normalised with SAM's constants."""
        return self.decode_stages(self.encode(image), prompts)

    def encode(self, image: Tensor) -> EncodedImages:
        """Encode ``(B, 3, S, S)`` images, normalised with SAM's constants."""
        features = self.sam.encode(image, adapters=self.adapters, return_levels=self.hmfm is not None)
        embedding = features.embedding if self.hmfm is None else self.hmfm(features.levels)
        if not isinstance(self.bgmr, BoundaryRefinement):
            return EncodedImages(embedding, None, features.pyramid)
        return EncodedImages(embedding, self.bgmr.guides(embedding, image), features.pyramid)

    def decode(self, encoded: EncodedImages, prompts: NucleusPrompts) -> MaskPrediction:
        """Return the final masks of the prompts: the refined ones, or the coarse ones where none are refined.

        Raises:
            ConfigurationError: the numbers of images and prompts do not fit each other.
        """
        margin = None if self.training else self.refine_margin_px
        if margin is not None and len(prompts.points) and isinstance(self.bgmr, BoundaryRefinement):
            decoded = self._decoded(encoded, prompts)
            inputs = _refinement_inputs(encoded, decoded, prompts)
            add = self.bgmr_options.start == "coarse"
            refined = refine_in_boxes(
                self.bgmr, *inputs, decoded.logits, margin, halo_px=self.refine_halo_px, add=add
            )
            return MaskPrediction(refined, decoded.iou)
        output = self.decode_stages(encoded, prompts)
        return MaskPrediction(output.logits, output.iou)

    def decode_clicks(self, embedding: EncodedImages, points: Tensor, labels: Tensor) -> MaskPrediction:
        """See :class:`~nucsam_monai.networks.nucleus_prompts.PromptableNetwork`."""
        if self.prompt == "point":
            return self.decode(embedding, prompts_of_one_image(points, labels))
        # Trained with boxes alone, so that the refinement has never seen the mask of a point.
        masks = self.sam.decode_points(embedding.features(), points, labels)
        return MaskPrediction(masks.logits, masks.iou)

    def decode_boxes(self, embedding: EncodedImages, boxes: Tensor) -> MaskPrediction:
        """See :class:`~nucsam_monai.networks.nucleus_prompts.PromptableNetwork`."""
        if self.prompt == "point":
            masks = self.sam.decode_boxes(embedding.features(), boxes)
            return MaskPrediction(masks.logits, masks.iou)
        return self.decode(embedding, prompts_of_one_image(*corners_of_boxes(boxes)))

    def decode_stages(self, encoded: EncodedImages, prompts: NucleusPrompts) -> CFRSAMOutput:
        """Return the masks of the prompts before and after the refinement.

        Args:
            encoded: output of :meth:`encode`.
            prompts: the nuclei of all images; none at all are allowed. In training every tensor that masks
                would train then gets a gradient of zero, so that several processes stay in step. One prompt
                alone is too few for statistics: batch normalisation then uses its running ones.

        Raises:
            ConfigurationError: the numbers of images and prompts do not fit each other.
        """
        if not len(prompts.points):
            some = self.decode_stages(encoded, padding_prompt(prompts))
            return CFRSAMOutput(
                some.coarse[:0],
                None if some.refined is None else some.refined[:0],
                some.iou[:0],
                None if some.boundary is None else some.boundary[:0],
            )
        decoded = self._decoded(encoded, prompts)
        if self.bgmr is None or decoded.upscaled is None:
            return CFRSAMOutput(decoded.logits, None, decoded.iou, None)
        if isinstance(self.bgmr, PixelRefinement):
            drawn = self.bgmr(decoded.upscaled)
            return CFRSAMOutput(decoded.logits, self._refined(decoded.logits, drawn), decoded.iou, None)
        too_few = self.training and len(prompts.points) < _FEWEST_FOR_STATISTICS
        with fixed_statistics(self.bgmr) if too_few else nullcontext():
            drawn = refine_in_chunks(self.bgmr, *_refinement_inputs(encoded, decoded, prompts))
        refined = self._refined(decoded.logits, drawn.logits)
        return CFRSAMOutput(decoded.logits, refined, decoded.iou, drawn.boundary)

    def _refined(self, coarse: Tensor, drawn: Tensor) -> Tensor:
        """Return the refined logits ``(N, 1, S, S)``: drawn on the coarse ones, or in their place."""
        if self.bgmr_options.start == "scratch":
            return drawn
        return drawn + F.interpolate(coarse, size=drawn.shape[-2:], mode="bilinear", align_corners=False)

    @property
    def header(self) -> dict[str, str]:
        """Return the header of a weights file, which must agree with the network that it is loaded into."""
        options: dict[str, Any] = {
            "adapter": self.adapter,
            "hmfm": asdict(self.hmfm_options),
            "bgmr": asdict(self.bgmr_options),
            "prompt": self.prompt,
            "train_sam": self.train_sam,
        }
        if self.adapter_options is not None:
            options[self.adapter] = asdict(self.adapter_options)
        return {
            "method": "cfrsam",
            "sam_variant": self.variant.name,
            "options": json.dumps(options, sort_keys=True),
        }

    def _decoded(self, encoded: EncodedImages, prompts: NucleusPrompts) -> DecodedMasks:
        points, labels = prompts.points, prompts.labels
        if self.prompt == "box":
            points, labels = corners_of_boxes(boxes_of(prompts))
        return self.sam.decode(
            encoded.features(),
            points,
            labels,
            prompts.prompts_per_image,
            pad=self.prompt == "point",
            return_upscaled=self.bgmr is not None,
        )


def _refinement_inputs(
    encoded: EncodedImages, decoded: DecodedMasks, prompts: NucleusPrompts
) -> tuple[ImageGuides, Tensor, Tensor]:
    """Return what the images share, the upscaled features of the prompts, and the image of each prompt.

    Raises:
        ConfigurationError: the images were encoded by a network without refinement.
    """
    if encoded.guides is None or decoded.upscaled is None:
        raise ConfigurationError(
            "encoded: found no guides of the refinement, expected what the encode of this network returns."
        )
    counts = prompts.prompts_per_image.cpu()
    owners = torch.arange(len(counts)).repeat_interleave(counts)
    return encoded.guides, decoded.upscaled, owners.to(decoded.logits.device)


class PromptedCFRSAM(nn.Module):
    """Combine both stages, which share no parameters and are trained one after the other (CFR-SAM, overview).

    The first stage is PromptNucSeg's prompter; with prompts that are boxes it predicts sizes as well. As one module
    both are moved, switched to evaluation and exported together. Inference on whole images runs
    :class:`~nucsam_monai.inferers.PromptedInferer` on this network, with the points of a
    :class:`~nucsam_monai.inferers.PointFinder` around its ``prompter``.

    Args:
        class_names: names of the classes of nuclei; one name without classes.
        sam_variant: SAM variant of the second stage.
        image_size: side length of its tiles in pixels.
        prompter: values of :class:`~nucsam_monai.networks.prompter.PrompterOptions`, without ``sizes``.
        backbone_checkpoint: ImageNet weights of the prompter's backbone.
        segmentor: further arguments of :class:`~nucsam_monai.networks.cfrsam.network.CFRSAM`.

    Raises:
        ConfigurationError: there is no class, a class occurs twice, or an option or its value is unknown.
        CheckpointError: a file of weights is missing, damaged or of another network.

    Example:
        >>> import torch
        >>> options = {"adapter": "mala", "train_sam": True}
        >>> network = PromptedCFRSAM(["nucleus"], "vit_tiny", prompter={"backbone": "compact"}, segmentor=options)
        >>> network.eval()(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 1, 64, 64])
    """

    def __init__(
        self,
        class_names: Sequence[str],
        sam_variant: str,
        image_size: int = 256,
        *,
        prompter: Mapping[str, Any] | None = None,
        backbone_checkpoint: str | None = None,
        segmentor: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.class_names = distinct_names(class_names, "class_names")
        self.segmentor = CFRSAM(sam_variant, image_size, **(segmentor or {}))
        self.prompter = Prompter(
            len(class_names),
            options={**(prompter or {}), "sizes": self.segmentor.prompt == "box"},
            backbone_checkpoint=backbone_checkpoint,
        )

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits ``(B, 1, S, S)`` of "any nucleus" of images, normalised with SAM's constants.

        See :func:`~nucsam_monai.networks.prompter.any_nucleus_logits`.

        Raises:
            ConfigurationError: the network is traced or exported.
        """
        refuse_export(WHY_NO_EXPORT)
        found = self.prompter(image, with_mask=False)
        return any_nucleus_logits(found, image.shape[-1], partial(self.decode, self.encode(image)))

    def encode(self, image: Tensor) -> EncodedImages:
        """Return what ``(B, 3, S, S)`` images are decoded from."""
        return self.segmentor.encode(image)

    def decode(self, embedding: EncodedImages, prompts: NucleusPrompts) -> MaskPrediction:
        """Return the final masks of the prompted nuclei of encoded images."""
        return self.segmentor.decode(embedding, prompts)

    def decode_clicks(self, embedding: EncodedImages, points: Tensor, labels: Tensor) -> MaskPrediction:
        """See :class:`~nucsam_monai.networks.nucleus_prompts.PromptableNetwork`."""
        return self.segmentor.decode_clicks(embedding, points, labels)

    def decode_boxes(self, embedding: EncodedImages, boxes: Tensor) -> MaskPrediction:
        """See :class:`~nucsam_monai.networks.nucleus_prompts.PromptableNetwork`."""
        return self.segmentor.decode_boxes(embedding, boxes)

    @property
    def prompter_header(self) -> dict[str, str]:
        """What the prompter's weights file says of it: its options and the names of the classes."""
        return {**self.prompter.header, "class_names": json.dumps(self.class_names)}
