"""CFR-SAM as a whole: the prompter finds the nuclei, the refined SAM draws them."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from nucsam_monai.networks.any_nucleus import any_nucleus_logits
from nucsam_monai.networks.cfrsam import CFRSAM, EncodedImages
from nucsam_monai.networks.nucleus_prompts import MaskPrediction, NucleusPrompts
from nucsam_monai.networks.prompter import Prompter
from nucsam_monai.utils.names import distinct_names


class PromptedCFRSAM(nn.Module):
    """Both stages of the method, which share nothing and are trained one after the other (CFR-SAM, overview).

    The first stage is PromptNucSeg's prompter; with prompts that are boxes it predicts sizes as well. As one module
    both are moved, switched to evaluation and exported together. Inference on whole images runs
    :class:`~nucsam_monai.inferers.PromptedInferer` on this network, with the points of a
    :class:`~nucsam_monai.inferers.PointFinder` around its ``prompter``.

    Args:
        class_names: of the nuclei; one name where they have no classes.
        sam_variant: of the second stage.
        image_size: side of its tiles in pixels.
        prompter: values of :class:`~nucsam_monai.networks.prompter.PrompterOptions`, without ``sizes``.
        backbone_checkpoint: ImageNet weights of the prompter's backbone.
        segmentor: further arguments of :class:`~nucsam_monai.networks.cfrsam.CFRSAM`.

    Raises:
        ConfigurationError: no class or one named twice, an unknown option or value.
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

        See :func:`~nucsam_monai.networks.any_nucleus.any_nucleus_logits`.
        """
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
