import dataclasses
import functools

import pytest
import torch

from nucsam_monai.networks import SAC, UNSAM, sac
from nucsam_monai.networks.sac import UNetGenerator
from nucsam_monai.networks.sam import SAM, SAM_VARIANTS, SAMVariant

MICRO = SAMVariant(
    name="micro",
    depth=4,
    width=32,
    heads=2,
    global_blocks=(1, 3),
    window=3,
    patch=16,
    embed_channels=32,
    pos_grid=4,
    mask_in_chans=4,
    decoder_heads=4,
    decoder_mlp_width=64,
    iou_head_width=16,
)

MICRO_TRUNK = dataclasses.replace(MICRO, name="micro_trunk", stem="efficientnet_lite0", fine_channels=4)


@pytest.fixture
def micro_trunk(monkeypatch):
    """The micro variant with a trunk and a fine map."""
    monkeypatch.setitem(SAM_VARIANTS, MICRO_TRUNK.name, MICRO_TRUNK)
    return MICRO_TRUNK


@pytest.fixture
def micro(monkeypatch):
    """A registered SAM variant whose 64 px images become a grid of 4 x 4 tokens."""
    monkeypatch.setitem(SAM_VARIANTS, MICRO.name, MICRO)
    return MICRO


@pytest.fixture
def micro_unsam(micro):
    """Build a micro UN-SAM for 64 px images of the domains ``a``, ``b`` and ``c``, the same one each time."""

    def build(**options):
        torch.manual_seed(0)
        return UNSAM(micro.name, ["a", "b", "c"], image_size=64, **options)

    return build


@pytest.fixture
def thin_generator(monkeypatch):
    """Build SAC's generator with an eighth of its channels."""
    monkeypatch.setattr(sac, "UNetGenerator", functools.partial(UNetGenerator, channels=4))


@pytest.fixture
def micro_sac(micro, thin_generator):
    """Build a micro SAC with a thin generator for 64 px images, the same one each time."""

    def build(**options):
        torch.manual_seed(0)
        return SAC(micro.name, image_size=64, **options)

    return build


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def official_variant(micro):
    """The variant of ``official``; a module may name another."""
    return micro


@pytest.fixture
def official(official_variant, tmp_path):
    """A SAM without zeros, and the path of its checkpoint in the official layout."""
    torch.manual_seed(7)
    sam = SAM(official_variant, (64, 64))
    with torch.no_grad():
        for parameter in sam.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    path = tmp_path / "sam.pth"
    torch.save(sam.state_dict(), path)
    return sam, str(path)
