"""CPP-Net (Chen et al., IEEE Transactions on Image Processing 32, 2023): StarDist whose rays ask the pixels on them."""

import torch
from torch import Tensor
from torch.nn import functional as F

from nucsam_monai.networks.baselines import Built, Size
from nucsam_monai.systems.stardist import RAYS, StarDistLoss, rays_to_logits, stardist_nuclei, stardist_target
from nucsam_monai.systems.system import Order, System
from nucsam_monai.systems.unet_heads import SIZES, Maps, UNetHeads

SAMPLES = 6
"""Points that are sampled between a pixel and the end of each of its rays (section III-C)."""


class CPPNet(UNetHeads):
    """StarDist's network with a confidence for each ray, by which sampled points vote on its length.

    Args:
        size: size of the network, see :class:`~nucsam_monai.systems.unet_heads.UNetHeads`.
        classes: number of classes of nuclei, see there.
    """

    def __init__(self, size: Size = "standard", classes: int = 1) -> None:
        heads = {"probability": 1, "rays": RAYS, "confidence": RAYS}
        super().__init__(heads, rays_to_logits("refined"), size, classes)

    def maps(self, image: Tensor) -> Maps:
        """Return the maps of images ``(B, 3, H, W)``, among them the ``refined`` rays."""
        maps = super().maps(image)
        refined = refined_rays(maps["rays"] / self.stride, maps["confidence"])
        return {**maps, "refined": self.stride * refined}


def refined_rays(rays: Tensor, confidence: Tensor, samples: int = SAMPLES) -> Tensor:
    """Return rays that are the mean of what the points along them say, weighted by a softmax of their confidences.

    A point n/N of the way along a ray says: as far as I am, and from here as far as my own ray in this direction. The
    pixel itself is one of the points (section III-C and III-D). Beyond the image the nearest pixel answers.

    Args:
        rays: ``(B, 32, H, W)`` in pixels.
        confidence: ``(B, 32, H, W)`` logits.
        samples: N.
    """
    batch, count, height, width = rays.shape
    angles = 2 * torch.pi * torch.arange(count, device=rays.device) / count
    # Points go where the first rays point; as in the paper these are not moved by what is found there.
    reach = rays.detach().clamp_min(0)
    ys = torch.arange(height, device=rays.device).view(1, 1, height, 1)
    xs = torch.arange(width, device=rays.device).view(1, 1, 1, width)
    towards_y, towards_x = (reach * part(angles).view(1, count, 1, 1) for part in (torch.sin, torch.cos))
    source = torch.stack([rays, confidence], dim=2).flatten(0, 1)
    lengths, confidences = [rays], [confidence]
    for share in (n / samples for n in range(1, samples + 1)):
        x, y = xs + share * towards_x, ys + share * towards_y
        grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1).flatten(0, 1)
        found = F.grid_sample(source, grid, padding_mode="border", align_corners=False)
        length, weight = found.view(batch, count, 2, height, width).unbind(dim=2)
        lengths.append(share * reach + length)
        confidences.append(weight)
    return (torch.stack(confidences).softmax(dim=0) * torch.stack(lengths)).sum(dim=0)


def _build(order: Order) -> Built:
    network = CPPNet(order.size, order.classes)
    return Built(network, network.side_multiple)


CPPNET = System(
    build=_build,
    loss=lambda _dense: StarDistLoss(),
    target=stardist_target,
    rule=stardist_nuclei,
    has_foreground=False,
    sizes=SIZES,
)
