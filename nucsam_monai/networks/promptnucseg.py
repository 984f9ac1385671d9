"""PromptNucSeg: a prompter that finds one point per nucleus, and a segmentor that turns points into masks."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nucsam_monai.networks.nucleus_prompts import MaskPrediction, NucleusPrompts
from nucsam_monai.networks.prompter import Prompter
from nucsam_monai.networks.sam.trained_weights import read_header
from nucsam_monai.networks.segmentor import Segmentor
from nucsam_monai.utils.errors import CheckpointError, ConfigurationError

_CERTAINLY_BACKGROUND = -20.0


class PromptNucSeg(nn.Module):
    """Both networks of the method, which share nothing and are trained one after the other (PromptNucSeg, 3.1).

    As one module they are moved, switched to evaluation and exported together. Inference on whole images runs
    :class:`~nucsam_monai.inferers.PromptedInferer` on this network, with the points of a
    :class:`~nucsam_monai.inferers.PointFinder` around its ``prompter``.

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
        if isinstance(class_names, str) or not class_names or len(set(class_names)) < len(class_names):
            raise ConfigurationError(f"class_names {class_names!r}: expected a list of different names.")
        self.class_names = tuple(class_names)
        self.prompter = Prompter(len(class_names), options=prompter, backbone_checkpoint=backbone_checkpoint)
        self.segmentor = Segmentor(
            sam_variant,
            image_size,
            finetune=finetune,
            classes=len(class_names) if segmentor_classifies else 0,
            sam_checkpoint=sam_checkpoint,
        )

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits ``(B, 1, S, S)`` of "any nucleus": at each pixel the highest of all masks.

        Every anchor point that is likelier a nucleus than background is a prompt; points of the same nucleus
        are not merged, as that changes nothing here.

        Args:
            image: ``(B, 3, S, S)``, normalised with SAM's constants.
        """
        found = self.prompter(image, with_mask=False)
        nuclei = found.class_logits.argmax(dim=-1) < self.prompter.n_classes
        points = found.points[nuclei].clamp(0, image.shape[-1] - 1)[:, None]
        counts = nuclei.sum(dim=1).cpu()
        labels = torch.ones(points.shape[:2], dtype=torch.int64, device=points.device)
        embedding = self.encode(image)
        logits = self.decode(embedding, NucleusPrompts(points, labels, counts)).logits.float()
        without = logits.new_full((1, *logits.shape[1:]), _CERTAINLY_BACKGROUND)
        highest = [torch.cat([without, own]).amax(dim=0) for own in logits.split(counts.tolist())]
        return nn.functional.interpolate(
            torch.stack(highest), size=image.shape[-2:], mode="bilinear", align_corners=False
        )

    def encode(self, image: Tensor) -> Tensor:
        """Return the segmentor's embeddings of ``(B, 3, S, S)`` images."""
        return self.segmentor.encode(image)

    def decode(self, embedding: Tensor, prompts: NucleusPrompts) -> MaskPrediction:
        """Return the segmentor's masks of the prompted nuclei of encoded images."""
        return self.segmentor.decode(embedding, prompts)

    @property
    def prompter_header(self) -> dict[str, str]:
        """What the prompter's weights file says of it: its options and the names of the classes."""
        return {**self.prompter.header, "class_names": json.dumps(self.class_names)}


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
