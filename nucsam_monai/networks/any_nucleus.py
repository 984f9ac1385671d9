"""One map of all nuclei from the masks of single ones."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from nucsam_monai.networks.nucleus_prompts import MaskPrediction, NucleusPrompts
from nucsam_monai.networks.prompter import PrompterOutput
from nucsam_monai.networks.sam.prompt_encoder import BOX_LABELS

_CERTAINLY_BACKGROUND = -20.0


def any_nucleus_logits(
    found: PrompterOutput, side_px: int, decode: Callable[[NucleusPrompts], MaskPrediction]
) -> Tensor:
    """Return the logits ``(B, 1, S, S)`` of "any nucleus": at each pixel the highest of all masks.

    Every anchor point that is likelier a nucleus than background is a prompt; points of the same nucleus are not
    merged, as that changes nothing here.

    Args:
        found: the anchor points of the images; with sizes prompts are boxes.
        side_px: S, the side of the images.
        decode: returns the masks of prompts on the same images.
    """
    last = side_px - 1
    nuclei = found.class_logits.argmax(dim=-1) < found.class_logits.shape[-1] - 1
    counts = nuclei.sum(dim=1).cpu()
    points = found.points[nuclei].clamp(0, last)[:, None]
    labels = torch.ones(points.shape[:2], dtype=torch.int64, device=points.device)
    if found.sizes is not None:
        half = found.sizes[nuclei][:, None] / 2
        points = torch.cat([points - half, points + half], dim=1).clamp(0, last)
        labels = torch.tensor(BOX_LABELS, device=points.device).expand(len(points), -1)
    logits = decode(NucleusPrompts(points, labels, counts)).logits.float()
    without = logits.new_full((1, *logits.shape[1:]), _CERTAINLY_BACKGROUND)
    highest = [torch.cat([without, own]).amax(dim=0) for own in logits.split(counts.tolist())]
    return F.interpolate(torch.stack(highest), size=(side_px, side_px), mode="bilinear", align_corners=False)
