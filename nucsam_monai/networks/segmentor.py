"""The segmentor of PromptNucSeg: SAM that turns each point into the mask of one nucleus."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nucsam_monai.networks.nucleus_prompts import MaskPrediction, NucleusPrompts, padding_prompt
from nucsam_monai.networks.options import read_options
from nucsam_monai.networks.sam import (
    EncoderFeatures,
    build_sam,
    decode_prompts,
    load_strictly,
    read_header,
)
from nucsam_monai.networks.sam import sam_variant as find_variant
from nucsam_monai.networks.sam.localised_start import start_localised
from nucsam_monai.networks.sam.tensor_files import read_safetensors
from nucsam_monai.utils.errors import CheckpointError, ConfigurationError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FineTuneOptions:
    """What of SAM learns (PromptNucSeg, ablation FT: ``none`` is vanilla SAM).

    The prompt encoder of a pretrained SAM stays as it is; from scratch its few tables may learn too.
    """

    trainable: Literal["all", "decoder", "none"] = "all"
    train_prompt_encoder: bool = False
    activation_checkpointing: bool = False


class Segmentor(nn.Module):
    """SAM for one prompt, one nucleus (PromptNucSeg, section on the segmentor).

    Encode an image once and ask for as many of its nuclei as there are points, at any time::

        features = segmentor.encode(image)
        masks = segmentor.decode(features, prompts).logits > 0

    Args:
        sam_variant: name of the SAM variant, for example ``"vit_h"`` or the compact ``"vit_tiny"``.
        image_size: side of the tiles in pixels.
        finetune: values of :class:`FineTuneOptions`.
        classes: number of classes that a head on a token of its own tells apart (the paper's ablation; the
            method takes classes from the prompter); 0 is no such head.
        sam_checkpoint: SAM weights in the official layout to start from; without them everything is random, see
            :func:`~nucsam_monai.networks.sam.localised_start.start_localised`.

    Raises:
        ConfigurationError: an unknown option or value.
        CheckpointError: the SAM weights are damaged or of another variant.

    Example:
        >>> import torch
        >>> segmentor = Segmentor("vit_tiny", 256).eval()
        >>> points, labels = torch.tensor([[[40.0, 60.0]]]), torch.tensor([[1]])
        >>> prompts = NucleusPrompts(points, labels, torch.tensor([1]))
        >>> segmentor(torch.zeros(1, 3, 256, 256), prompts).logits.shape
        torch.Size([1, 1, 128, 128])
    """

    def __init__(
        self,
        sam_variant: str,
        image_size: int = 256,
        *,
        finetune: Mapping[str, Any] | None = None,
        classes: int = 0,
        sam_checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        if type(classes) is not int or classes < 0:
            raise ConfigurationError(f"classes {classes!r}: expected 0 or a number of classes.")
        self.options = read_options(FineTuneOptions, finetune, "finetune")
        self.classes = classes
        self.image_size = image_size
        self.variant = find_variant(sam_variant)
        self.sam = build_sam(
            self.variant,
            image_size,
            sam_checkpoint,
            activation_checkpointing=self.options.activation_checkpointing,
        )
        self.class_head = ClassHead(self.variant.embed_channels, classes) if classes else None
        if sam_checkpoint is None:
            start_localised(self.sam.mask_decoder)
        self._freeze(pretrained=sam_checkpoint is not None)

    def forward(self, image: Tensor, prompts: NucleusPrompts) -> MaskPrediction:
        """Segment the prompted nuclei of ``(B, 3, S, S)`` images, normalised with SAM's constants."""
        return self.decode(self.encode(image), prompts)

    def encode(self, image: Tensor) -> EncoderFeatures:
        """Return what the encoder says of ``(B, 3, S, S)`` images."""
        return self.sam.image_encoder(image)

    def decode(self, features: EncoderFeatures, prompts: NucleusPrompts) -> MaskPrediction:
        """Segment the prompted nuclei of encoded images, a bounded number of prompts at a time.

        Args:
            features: of :meth:`encode`.
            prompts: the nuclei; none at all are allowed. In training every tensor that masks would train then
                gets a gradient of zero, so that several processes stay in step.

        Raises:
            ConfigurationError: the numbers of images and prompts do not fit together.
        """
        if self.training and not len(prompts.points):
            logits, iou, classes = self.decode(features, padding_prompt(prompts))
            return MaskPrediction(logits[:0], iou[:0], None if classes is None else classes[:0])
        rows, columns = features.embedding.shape[-2], features.embedding.shape[-1]
        encoder, patch = self.sam.prompt_encoder, self.variant.patch
        size = (rows * patch, columns * patch)
        sparse, dense = encoder(
            (prompts.points, prompts.labels),
            image_size=size,
            pad=not prompts.has_boxes,
        )
        masks = decode_prompts(
            self.sam.mask_decoder,
            features.embedding,
            encoder.position_code((rows, columns)),
            sparse,
            dense,
            prompts.prompts_per_image,
            pyramid=features.pyramid,
            places=encoder.places(prompts.points, prompts.labels, image_size=size),
            extra_tokens=None if self.class_head is None else self.class_head.token.weight,
        )
        classes = None if self.class_head is None else self.class_head(masks.extra)
        return MaskPrediction(masks.logits, masks.iou, classes)

    @property
    def header(self) -> dict[str, str]:
        """What a weights file says of this network and must say of the one it is loaded into."""
        finetune = asdict(self.options)
        del finetune["activation_checkpointing"]  # costs time, changes nothing
        options = {"finetune": finetune, "classes": self.classes}
        return {
            "method": "segmentor",
            "sam_variant": self.variant.name,
            "options": json.dumps(options, sort_keys=True),
        }

    def _freeze(self, *, pretrained: bool) -> None:
        """Leave a gradient to what learns."""
        trainable = self.options.trainable
        self.requires_grad_(trainable == "all")
        if trainable == "decoder":
            self.sam.mask_decoder.requires_grad_(True)
            if self.class_head is not None:
                self.class_head.requires_grad_(True)
        self.sam.prompt_encoder.requires_grad_(self.options.train_prompt_encoder)
        if trainable == "none" and self.options.train_prompt_encoder:
            raise ConfigurationError(
                "finetune: found trainable 'none' with train_prompt_encoder true, expected false, as nothing "
                "of vanilla SAM learns."
            )
        if not pretrained and trainable != "all":
            logger.warning(
                "no SAM weights: with finetune.trainable '%s' the encoder is random and stays so, which teaches "
                "nothing. Give sam_checkpoint, or train 'all'.",
                trainable,
            )


@torch.no_grad()
def start_from_unsam(path: str, segmentor: Segmentor) -> None:
    """Start from the weights of a UN-SAM training: its encoder, and of its decoder what SAM has as well.

    UN-SAM's bypass has no place in a segmentor and is left out. Each mask token starts as UN-SAM's first query, the
    foreground's, with its kernels: masks are foreground then, and are left to learn where each nucleus ends.

    Args:
        path: weights file of UN-SAM, all of which was trained.
        segmentor: of the same SAM variant; changed in place.

    Raises:
        CheckpointError: the file is missing or damaged, is not UN-SAM's or of another variant, or lacks tensors.
    """
    header, sam = read_header(path), segmentor.sam
    found, expected = (header["method"], header["sam_variant"]), ("unsam", segmentor.variant.name)
    if found != expected:
        raise CheckpointError(
            f"{path}: found weights of method '{found[0]}' with SAM variant '{found[1]}', expected '{expected[0]}' "
            f"with '{expected[1]}'. Give a file of the bundle unsam trained with that variant."
        )
    tensors = read_safetensors(path)

    def load(module: nn.Module, start: str) -> None:
        own = {name[len(start) :]: tensor for name, tensor in tensors.items() if name.startswith(start)}
        load_strictly(module, own, f"{path}, {start}*")

    load(sam.image_encoder, "image_encoder.")
    load(sam.prompt_encoder, "prompt_encoder.")
    for part in ("transformer", "output_upscaling"):
        load(sam.mask_decoder.get_submodule(part), f"decoder.{part}.")
    sam.mask_decoder.mask_tokens.weight.copy_(tensors["decoder.queries.0"][:1].expand(4, -1))
    for part in ("output_hypernetworks_mlps", "fine_hypernetworks_mlps"):
        for mlp in getattr(sam.mask_decoder, part, ()):
            load(mlp, f"decoder.{part}.0.0.")


def learning_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that an optimizer is given.

    Args:
        network: a segmentor, or what contains one, frozen by its options.

    Raises:
        ConfigurationError: none learns, so that there is nothing to train.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not parameters:
        raise ConfigurationError(
            "finetune 'none': nothing of the segmentor learns, so it has no stage to train. Run the stage "
            "'prompter' alone and evaluate with finetune 'none', or train with 'all' or 'decoder'."
        )
    return parameters


class ClassHead(nn.Module):
    """A learned token among those of the mask decoder, and the MLP that reads a class off its result.

    Args:
        channels: of a token.
        classes: number of classes.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.token = nn.Embedding(1, channels)
        self.mlp = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, classes))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the class logits ``(N, classes)`` of the decoded tokens ``(N, 1, channels)``."""
        return self.mlp(tokens[:, 0])
