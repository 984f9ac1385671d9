"""Refining many masks in a bounded amount of memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nucsam_monai.networks.blocks.boundary_refinement import BoundaryRefinement, ImageGuides, RefinedMasks

USED_SHARE = 0.5
"""Part of a device's free memory that a chunk may take."""

DEVICE_PROMPTS = 64
"""Most prompts of 256 x 256 px that a device refines together; more would not be faster."""


def bytes_per_refinement(width: int, pixels: int, element_bytes: int = 4) -> int:
    """Estimate the memory that refining one more mask takes at the peak of inference.

    The peak lies in a deformable convolution, which has nine taps of w / 2 channels each before and after they are
    moved and once more weighted, beside about eight maps of w channels.

    Args:
        width: channels w.
        pixels: of a mask at full resolution.
        element_bytes: bytes of one number.
    """
    return (9 * 3 * width // 2 + 8 * width) * pixels * element_bytes


def refine_in_chunks(
    refinement: BoundaryRefinement, guides: ImageGuides, upscaled: Tensor, owners: Tensor
) -> RefinedMasks:
    """Refine N masks, as many at a time as fit; in training all at once, for the statistics of their BN.

    On a CPU masks are refined one by one: their maps have left the caches anyway.

    Args:
        refinement: the network.
        guides: of the images.
        upscaled: ``(N, w, 4g, 4g)`` up-scaled features of the mask decoder, N > 0.
        owners: ``(N,)`` int64, the image of each mask.
    """
    whole = (guides.evidence.shape[2], guides.evidence.shape[3])
    size = len(upscaled) if refinement.training else prompts_per_chunk(guides.evidence, whole)
    if len(upscaled) <= size:
        return refinement(guides, upscaled, owners)
    parts = [
        refinement(guides, some, theirs)
        for some, theirs in zip(upscaled.split(size), owners.split(size), strict=True)
    ]
    boundary = [part.boundary for part in parts if part.boundary is not None]
    return RefinedMasks(
        torch.cat([part.logits for part in parts]),
        torch.cat(boundary) if boundary else None,
        torch.cat([part.reach_px for part in parts]),
    )


@contextmanager
def fixed_statistics(module: nn.Module) -> Iterator[None]:
    """Let batch normalisation use its running statistics, and not change them, inside the ``with`` block."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.training]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()


def prompts_per_chunk(evidence: Tensor, size: tuple[int, int]) -> int:
    """Choose how many masks to refine at a time, at least one.

    Args:
        evidence: ``(B, w, S, S)``; its device and channels count.
        size: height and width in pixels of what is refined of each mask.
    """
    if evidence.device.type == "cpu":
        return 1
    width, pixels = evidence.shape[1], size[0] * size[1]
    most = max(1, DEVICE_PROMPTS * 256 * 256 // pixels)
    if evidence.device.type != "cuda" or torch.is_grad_enabled():
        return most
    # What PyTorch holds without using it counts as free.
    free, _ = torch.cuda.mem_get_info(evidence.device)
    free += torch.cuda.memory_reserved(evidence.device) - torch.cuda.memory_allocated(evidence.device)
    return max(1, min(most, int(USED_SHARE * free) // bytes_per_refinement(width, pixels)))
