"""What goes into a segmenter that is prompted nucleus by nucleus, and what comes out."""

from typing import NamedTuple

from torch import Tensor

from nucsam_monai.networks.sam.prompt_encoder import PADDING_LABEL


class NucleusPrompts(NamedTuple):
    """N nuclei of B images, each with its positive point and K negative ones (PromptNucSeg, negative prompts).

    Attributes:
        points: ``(N, 1 + K, 2)`` float as (x, y) in pixels of the image, pixel centres at integers. The nuclei
            of all images are concatenated in the order of the images.
        labels: ``(N, 1 + K)`` int64: 1 this nucleus, 0 another nucleus, -1 padding.
        prompts_per_image: ``(B,)`` int64 with sum N; an image may have none.
    """

    points: Tensor
    labels: Tensor
    prompts_per_image: Tensor


class MaskPrediction(NamedTuple):
    """The masks of N nuclei.

    Attributes:
        logits: ``(N, 1, 4h, 4w)`` mask logits for an embedding of ``h x w`` cells; a pixel is foreground
            above 0.
        iou: ``(N, 1)`` predicted intersection over union.
        class_logits: ``(N, C)``, from a segmenter that also classifies.
    """

    logits: Tensor
    iou: Tensor
    class_logits: Tensor | None = None


def padding_prompt(prompts: NucleusPrompts) -> NucleusPrompts:
    """Return one prompt of padding on the first image in place of none.

    Decoding it and dropping the result keeps every trained tensor in the graph of a batch without nuclei.
    """
    points = prompts.points.new_zeros((1, *prompts.points.shape[1:]))
    labels = prompts.labels.new_full((1, *prompts.labels.shape[1:]), PADDING_LABEL)
    counts = prompts.prompts_per_image.clone()
    counts[0] = 1
    return NucleusPrompts(points, labels, counts)
