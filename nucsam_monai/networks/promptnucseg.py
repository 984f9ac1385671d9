"""Define PromptNucSeg: a prompter that finds one point per nucleus, and a SAM that segments the nucleus there."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from monai.networks.nets import HoVerNet
from torch import Tensor, nn

from nucsam_monai.networks.compilation import WHY_NO_EXPORT, refuse_export
from nucsam_monai.networks.fine_tuning import warn_of_frozen_encoder
from nucsam_monai.networks.nucleus_prompts import (
    MaskPrediction,
    NucleusPrompts,
    padding_prompt,
    prompts_of_one_image,
)
from nucsam_monai.networks.options import read_options
from nucsam_monai.networks.prompter import (
    EmbeddingShape,
    Prompter,
    PrompterOutput,
    any_nucleus_logits,
)
from nucsam_monai.networks.sam import (
    EncoderFeatures,
    build_sam,
    load_strictly,
    load_trained,
    read_header,
)
from nucsam_monai.networks.sam import sam_variant as find_variant
from nucsam_monai.networks.sam.decoder import start_localised
from nucsam_monai.networks.sam.weights import read_safetensors, trained_names
from nucsam_monai.utils.errors import CheckpointError, ConfigurationError
from nucsam_monai.utils.names import distinct_names

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FineTuneOptions:
    """Choose the parts of SAM that are fine-tuned (PromptNucSeg, ablation FT: ``none`` is vanilla SAM).

    Attributes:
        trainable: ``all`` parts, only the mask ``decoder``, or ``none``.
        train_prompt_encoder: whether the prompt encoder is trained too; useful without pretrained SAM weights.
        activation_checkpointing: recompute activations of the encoder, which saves memory and takes more time.
    """

    trainable: Literal["all", "decoder", "none"] = "all"
    train_prompt_encoder: bool = False
    activation_checkpointing: bool = False


class Segmentor(nn.Module):
    """Segment one nucleus per prompt with SAM (PromptNucSeg, section on the segmentor).

    An image is encoded once, and any number of points is decoded from it::

        features = segmentor.encode(image)
        masks = segmentor.decode(features, prompts).logits > 0

    Args:
        sam_variant: name of the SAM variant, for example ``"vit_h"`` or the compact ``"vit_tiny"``.
        image_size: side length of the tiles in pixels.
        finetune: values of :class:`FineTuneOptions`.
        classes: number of classes of a class head with its own token (the paper's ablation; the method itself takes
            classes from the prompter); 0 for no head.
        decode_window: side length in cells of the part of the embedding on which each prompt is decoded, see
            :func:`~nucsam_monai.networks.sam.decode_window.decode_in_windows`; 0 takes all cells, as in the paper.
        sam_checkpoint: SAM weights in the official layout to start from. Default: random weights, see
            :func:`~nucsam_monai.networks.sam.decoder.start_localised`.

    Raises:
        ConfigurationError: an option or its value is unknown.
        CheckpointError: the SAM weights are damaged or belong to another variant.

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
        decode_window: int = 0,
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
            decode_window=decode_window,
        )
        self.class_head = ClassHead(self.variant.embed_channels, classes) if classes else None
        if sam_checkpoint is None:
            start_localised(self.sam.mask_decoder)
        self._freeze(pretrained=sam_checkpoint is not None)

    def forward(self, image: Tensor, prompts: NucleusPrompts) -> MaskPrediction:
        """Segment the prompted nuclei of ``(B, 3, S, S)`` images, normalised with SAM's constants."""
        return self.decode(self.encode(image), prompts)

    def encode(self, image: Tensor) -> EncoderFeatures:
        """Encode ``(B, 3, S, S)`` images, normalised with SAM's constants."""
        return self.sam.encode(image)

    def decode(self, features: EncoderFeatures, prompts: NucleusPrompts) -> MaskPrediction:
        """Segment the prompted nuclei of encoded images, a bounded number of prompts at a time.

        Args:
            features: output of :meth:`encode`.
            prompts: prompts of the nuclei; may be empty. In training, all trained tensors then get a gradient of zero,
                so that several processes stay synchronised.

        Raises:
            ConfigurationError: the numbers of images and prompts do not fit each other.
        """
        if self.training and not len(prompts.points):
            logits, iou, classes = self.decode(features, padding_prompt(prompts))
            return MaskPrediction(logits[:0], iou[:0], None if classes is None else classes[:0])
        masks = self.sam.decode(
            features,
            prompts.points,
            prompts.labels,
            prompts.prompts_per_image,
            pad=not prompts.has_boxes,
            extra_tokens=None if self.class_head is None else self.class_head.token.weight,
        )
        classes = None if self.class_head is None else self.class_head(masks.extra)
        return MaskPrediction(masks.logits, masks.iou, classes)

    @property
    def header(self) -> dict[str, str]:
        """Return the header of a weights file, which must agree with the network that it is loaded into."""
        finetune = asdict(self.options)
        del finetune["activation_checkpointing"]  # costs time, changes nothing
        options = {"finetune": finetune, "classes": self.classes}
        return {
            "method": "segmentor",
            "sam_variant": self.variant.name,
            "options": json.dumps(options, sort_keys=True),
        }

    def _freeze(self, *, pretrained: bool) -> None:
        """Freeze the parameters that are not trained."""
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
            warn_of_frozen_encoder(f"finetune.trainable '{trainable}'", "train 'all'")


@torch.no_grad()
def start_from_unsam(path: str, segmentor: Segmentor) -> None:
    """Start from the weights of a UN-SAM training: its encoder, and the parts of its decoder that SAM also has.

    UN-SAM's bypass is left out. Each mask token starts as UN-SAM's foreground query with its kernels, so that masks
    start as the foreground and only have to learn where each nucleus ends.

    Args:
        path: weights file of UN-SAM, all of which was trained.
        segmentor: segmentor with the same SAM variant; modified in place.

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
    """Return the parameters to be passed to the optimizer.

    Args:
        network: segmentor, or a network that contains one.

    Raises:
        ConfigurationError: all parameters are frozen.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not parameters:
        raise ConfigurationError(
            "finetune 'none': nothing of the segmentor learns, so it has no stage to train. Run the stage "
            "'prompter' alone and evaluate with finetune 'none', or train with 'all' or 'decoder'."
        )
    return parameters


class ClassHead(nn.Module):
    """Predict a class with an additional learned token of the mask decoder and an MLP on its output.

    Args:
        channels: channels of a token.
        classes: number of classes.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.token = nn.Embedding(1, channels)
        self.mlp = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, classes))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the class logits ``(N, classes)`` of the decoded tokens ``(N, 1, channels)``."""
        return self.mlp(tokens[:, 0])


class TaughtPrediction(NamedTuple):
    """Hold the network's output in training.

    Attributes:
        masks: masks of the prompted nuclei.
        dense: dense prediction of every pixel, see :class:`DenseNucleiHead`.
    """

    masks: MaskPrediction
    dense: dict[str, Tensor]


class DenseNucleiHead(nn.Module):
    """Predict the nucleus mask and each pixel's position in its nucleus from an embedding.

    These are the outputs of HoVer-Net's two branches (Graham et al., 2019, section 3.1), predicted from SAM's
    embedding by transposed convolutions like those of SAM's mask decoder.

    Args:
        channels: C of the embedding.

    Example:
        >>> import torch
        >>> found = DenseNucleiHead(64)(torch.zeros(1, 64, 32, 32))
        >>> {name: tuple(maps.shape) for name, maps in found.items()}
        {'nucleus_prediction': (1, 2, 128, 128), 'horizontal_vertical': (1, 2, 128, 128)}
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.upscaling = nn.Sequential(
            nn.ConvTranspose2d(channels, channels // 4, kernel_size=2, stride=2),
            nn.GroupNorm(1, channels // 4),
            nn.GELU(),
            nn.ConvTranspose2d(channels // 4, channels // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.branches = nn.Conv2d(channels // 8, 4, kernel_size=3, padding=1)

    def forward(self, embedding: Tensor) -> dict[str, Tensor]:
        """Return logits of background and nucleus, and horizontal and vertical distances, ``(B, 2, 4h, 4w)`` each."""
        nucleus, distances = self.branches(self.upscaling(embedding)).chunk(2, dim=1)
        return {HoVerNet.Branch.NP.value: nucleus, HoVerNet.Branch.HV.value: distances}


class DenselyTaughtSegmentor(Segmentor):
    """Add an auxiliary head to the encoder of a segmentor, for training from random weights.

    Without it the encoder learns only from the prompted nuclei of an image; with it, from every pixel. The head is not
    used in evaluation and not saved with SAM's weights.

    Args:
        sam_variant: see :class:`~nucsam_monai.networks.promptnucseg.Segmentor`, also for the other arguments.
        image_size: side length of the tiles in pixels.
        options: further arguments of the segmentor.

    Source: ours.
    """

    def __init__(self, sam_variant: str, image_size: int = 256, **options: Any) -> None:
        super().__init__(sam_variant, image_size, **options)
        self.dense_head = DenseNucleiHead(self.variant.embed_channels)

    def forward(  # type: ignore[override]
        self, image: Tensor, prompts: NucleusPrompts | None = None
    ) -> MaskPrediction | TaughtPrediction:
        """Segment the prompted nuclei of ``(B, 3, S, S)`` images; in training with the maps of all pixels.

        Raises:
            ConfigurationError: there are no prompts, as in tools that export networks.
        """
        if prompts is None:
            raise ConfigurationError(
                "compact_sam: found an image without prompts, expected one prompt per nucleus, as every mask answers "
                "one. To export it use sam.safetensors, which a training writes and all bundles read."
            )
        features = self.encode(image)
        masks = self.decode(features, prompts)
        return TaughtPrediction(masks, self.dense_head(features.embedding)) if self.training else masks

    @property
    def header(self) -> Mapping[str, str]:  # type: ignore[override]
        """Return the header of a weights file, which must agree with the network that it is loaded into."""
        return {**super().header, "method": "compact_sam"}


PARTS = ("prompter", "segmentor")
"""Names of both networks, and of their weights files where each has one."""


class PromptNucSeg(nn.Module):
    """Combine both networks, which share no parameters and are trained one after the other (PromptNucSeg, 3.1).

    With the prompter's backbone ``shared`` the prompter reads the embedding of the segmentor's encoder, and both are
    trained together (the paper's supplement); see :class:`EndToEnd`.

    As one module they are moved, switched to evaluation and exported together. Inference on whole images runs
    :class:`~nucsam_monai.inferers.PromptedInferer` on this network, with the points of a
    :func:`~nucsam_monai.inferers.point_finder`.

    Args:
        class_names: names of the classes of nuclei; one name without classes.
        sam_variant: SAM variant of the segmentor.
        image_size: side of the segmentor's tiles in pixels.
        prompter: values of :class:`~nucsam_monai.networks.prompter.PrompterOptions`.
        finetune: values of :class:`~nucsam_monai.networks.promptnucseg.FineTuneOptions`.
        segmentor_classifies: give the segmentor a class head (the paper's ablation).
        decode_window: window of the segmentor's decoder in cells.
        backbone_checkpoint: ImageNet weights of the prompter's backbone.
        sam_checkpoint: weights of SAM.

    Raises:
        ConfigurationError: there is no class, a class occurs twice, or an option or its value is unknown.
        CheckpointError: a file of weights is missing, damaged or of another network.

    Example:
        >>> network = PromptNucSeg(["nucleus"], "vit_tiny", prompter={"backbone": "compact"}).eval()
        >>> network(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 1, 64, 64])
    """

    def __init__(
        self,
        class_names: Sequence[str],
        sam_variant: str,
        image_size: int = 256,
        *,
        prompter: Mapping[str, Any] | None = None,
        finetune: Mapping[str, Any] | None = None,
        segmentor_classifies: bool = False,
        decode_window: int = 0,
        backbone_checkpoint: str | None = None,
        sam_checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        self.class_names = distinct_names(class_names, "class_names")
        self.segmentor = Segmentor(
            sam_variant,
            image_size,
            finetune=finetune,
            classes=len(class_names) if segmentor_classifies else 0,
            decode_window=decode_window,
            sam_checkpoint=sam_checkpoint,
        )
        variant = self.segmentor.variant
        self.prompter = Prompter(
            len(class_names),
            options=prompter,
            embedding=EmbeddingShape(variant.embed_channels, variant.patch, variant.pyramid_channels[:-1]),
            backbone_checkpoint=backbone_checkpoint,
        )

    @property
    def shares_encoder(self) -> bool:
        """Whether the prompter reads the segmentor's embedding."""
        return self.prompter.options.backbone == "shared"

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits ``(B, 1, S, S)`` of "any nucleus": at each pixel the highest of all masks.

        Args:
            image: ``(B, 3, S, S)``, normalised with SAM's constants.

        Raises:
            ConfigurationError: the network is traced or exported.
        """
        refuse_export(WHY_NO_EXPORT)
        features = self.encode(image)
        if self.shares_encoder:
            found = self.propose(features, with_mask=False)
        else:
            found = self.prompter(image, with_mask=False)
        return any_nucleus_logits(found, image.shape[-1], partial(self.decode, features))

    def encode(self, image: Tensor) -> EncoderFeatures:
        """Return what the segmentor's encoder says of ``(B, 3, S, S)`` images."""
        return self.segmentor.encode(image)

    def decode(self, features: EncoderFeatures, prompts: NucleusPrompts) -> MaskPrediction:
        """Return the segmentor's masks of the prompted nuclei of encoded images."""
        return self.segmentor.decode(features, prompts)

    def decode_clicks(self, features: EncoderFeatures, points: Tensor, labels: Tensor) -> MaskPrediction:
        """See :class:`~nucsam_monai.networks.nucleus_prompts.PromptableNetwork`."""
        return self.decode(features, prompts_of_one_image(points, labels))

    def decode_boxes(self, features: EncoderFeatures, boxes: Tensor) -> MaskPrediction:
        """See :class:`~nucsam_monai.networks.nucleus_prompts.PromptableNetwork`."""
        masks = self.segmentor.sam.decode_boxes(features, boxes)
        return MaskPrediction(masks.logits, masks.iou)

    def propose(self, features: EncoderFeatures, *, with_mask: bool = True) -> PrompterOutput:
        """Return the points that a prompter with a shared encoder proposes for encoded images.

        Args:
            features: output of :meth:`encode`.
            with_mask: compute the auxiliary mask.

        Raises:
            ConfigurationError: the prompter has a backbone of its own.
        """
        if not self.shares_encoder:
            raise ConfigurationError(
                f"prompter: its backbone is '{self.prompter.options.backbone}', expected 'shared' to read an embedding."
            )
        patch = self.segmentor.variant.patch
        height, width = features.embedding.shape[-2:]
        stages = self.prompter.backbone(features.embedding, features.pyramid[:-1])
        return self.prompter.propose(stages, (patch * height, patch * width), with_mask=with_mask)

    @property
    def header(self) -> dict[str, str]:
        """What a weights file of both networks says of them."""
        options = {part: json.loads(getattr(self, part).header["options"]) for part in PARTS}
        return {
            "method": "promptnucseg",
            "sam_variant": self.segmentor.variant.name,
            "class_names": json.dumps(self.class_names),
            "options": json.dumps(options, sort_keys=True),
        }

    @property
    def prompter_header(self) -> dict[str, str]:
        """What the prompter's weights file says of it: its options and the names of the classes."""
        return {**self.prompter.header, "class_names": json.dumps(self.class_names)}


class EndToEndOutput(NamedTuple):
    """Hold the outputs of both networks for one batch."""

    found: PrompterOutput
    masks: MaskPrediction


class EndToEnd(nn.Module):
    """Train both networks end to end with a shared encoder that runs once for points and masks.

    Args:
        network: network whose tensors are trained.

    Raises:
        ConfigurationError: the prompter has a backbone of its own.

    Example:
        >>> network = EndToEnd(PromptNucSeg(["nucleus"], "vit_tiny", prompter={"backbone": "shared"}))
        >>> points, labels = torch.tensor([[[40.0, 60.0]]]), torch.tensor([[1]])
        >>> prompts = NucleusPrompts(points, labels, torch.tensor([1]))
        >>> network(torch.zeros(1, 3, 256, 256), prompts).found.points.shape
        torch.Size([1, 1024, 2])
    """

    def __init__(self, network: PromptNucSeg) -> None:
        super().__init__()
        if not network.shares_encoder:
            raise ConfigurationError(
                f"network: the prompter's backbone is '{network.prompter.options.backbone}', expected 'shared' to "
                "train both networks together."
            )
        self.network = network

    def forward(self, image: Tensor, prompts: NucleusPrompts) -> EndToEndOutput:
        """Return points and masks of ``(B, 3, S, S)`` images, normalised with SAM's constants."""
        features = self.network.encode(image)
        return EndToEndOutput(self.network.propose(features), self.network.decode(features, prompts))


def weights_file(checkpoint: str | None, part: str) -> str | None:
    """Return the file with the weights of a part.

    Args:
        checkpoint: one file with the weights of both networks, or a folder with a file of each; or None.
        part: one of :data:`PARTS`.

    Example:
        >>> weights_file("trained", "prompter"), weights_file("compact.safetensors", "prompter")
        ('trained/prompter.safetensors', 'compact.safetensors')
    """
    if checkpoint is None or checkpoint.endswith(".safetensors"):
        return checkpoint
    return f"{checkpoint}/{part}.safetensors"


def load_networks(network: PromptNucSeg, prompter: str | None, segmentor: str | None) -> None:
    """Load the weights of both networks, from one file or from a file of each.

    Args:
        network: changed in place.
        prompter: file of the prompter or of both; None leaves the prompter as it is.
        segmentor: file of the segmentor or of both; None leaves the segmentor as it is.

    Raises:
        CheckpointError: a file is missing, damaged or of another network.
    """
    method = network.header["method"]
    files = [path for path in dict.fromkeys((prompter, segmentor)) if path is not None]
    of_both = [path for path in files if read_header(path)["method"] == method]
    for path in of_both:
        load_trained(path, network, network.header)
    if prompter is not None and prompter not in of_both:
        load_trained(prompter, network.prompter, network.prompter_header)
    if segmentor is not None and segmentor not in of_both:
        load_trained(segmentor, network.segmentor, network.segmentor.header)


def trained_classes(checkpoint: str | None, default: Sequence[str]) -> list[str]:
    """Return the names of the classes that a prompter was trained for.

    Args:
        checkpoint: the prompter's weights file of a PromptNucSeg training.
        default: value if there is no such file, because tools that only inspect a bundle have no weights.

    Raises:
        CheckpointError: the file is damaged, or names no classes.
    """
    return trained_names(checkpoint, "class_names", default)
