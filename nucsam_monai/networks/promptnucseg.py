"""PromptNucSeg: a prompter that finds one point per nucleus, and a segmentor that turns points into masks."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from nucsam_monai.networks.any_nucleus import any_nucleus_logits
from nucsam_monai.networks.nucleus_prompts import MaskPrediction, NucleusPrompts, prompts_of_one_image
from nucsam_monai.networks.prompter import EmbeddingShape, Prompter, PrompterOutput
from nucsam_monai.networks.sam import EncoderFeatures, load_trained, read_header
from nucsam_monai.networks.segmentor import Segmentor
from nucsam_monai.utils.errors import CheckpointError, ConfigurationError
from nucsam_monai.utils.names import distinct_names

PARTS = ("prompter", "segmentor")
"""Names of both networks, and of their weights files where each has one."""


class PromptNucSeg(nn.Module):
    """Both networks of the method, which share nothing and are trained one after the other (PromptNucSeg, 3.1).

    With the prompter's backbone ``shared`` the prompter reads the embedding of the segmentor's encoder, and both are
    trained together (the paper's supplement); see :class:`EndToEnd`.

    As one module they are moved, switched to evaluation and exported together. Inference on whole images runs
    :class:`~nucsam_monai.inferers.PromptedInferer` on this network, with the points of a
    :func:`~nucsam_monai.inferers.point_finder`.

    Args:
        class_names: of the nuclei; one name where they have no classes.
        sam_variant: of the segmentor.
        image_size: side of the segmentor's tiles in pixels.
        prompter: values of :class:`~nucsam_monai.networks.prompter.PrompterOptions`.
        finetune: values of :class:`~nucsam_monai.networks.segmentor.FineTuneOptions`.
        segmentor_classifies: give the segmentor a class head (the paper's ablation).
        backbone_checkpoint: ImageNet weights of the prompter's backbone.
        sam_checkpoint: weights of SAM.

    Raises:
        ConfigurationError: no class or one named twice, an unknown option or value.
        CheckpointError: a file of weights is missing, damaged or of another network.

    Example:
        >>> network = PromptNucSeg(["nucleus"], "vit_tiny", prompter={"backbone": "compact"}).eval()
        >>> network(torch.zeros(1, 3, 256, 256)).shape
        torch.Size([1, 1, 256, 256])
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
        """
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
        masks = self.segmentor.sam.decode_each(features, boxes=boxes)
        return MaskPrediction(masks.logits, masks.iou)

    def propose(self, features: EncoderFeatures, *, with_mask: bool = True) -> PrompterOutput:
        """Return the points that a prompter with a shared encoder proposes for encoded images.

        Args:
            features: of :meth:`encode`.
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
    """What both networks say of one batch."""

    found: PrompterOutput
    masks: MaskPrediction


class EndToEnd(nn.Module):
    """A network with a shared encoder as what is trained: the encoder runs once for points and masks.

    Args:
        network: its tensors are trained.

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
        default: what to return where there is no such file; tools that only look at a bundle have no weights.

    Raises:
        CheckpointError: the file is damaged, or names no classes.
    """
    if checkpoint is None or not Path(checkpoint).is_file():
        return list(default)
    try:
        names = json.loads(read_header(checkpoint)["class_names"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"{checkpoint}: its header names no classes, expected those of a PromptNucSeg prompter."
        ) from error
    return [str(name) for name in names]
