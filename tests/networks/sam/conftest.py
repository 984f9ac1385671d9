import pytest
import torch

from nucsam_monai.networks.sam.variants import SAMVariant


@pytest.fixture
def small():
    """A SAM in which every number differs from the official ones, with windows that need padding."""
    return SAMVariant(
        name="small",
        depth=4,
        width=24,
        heads=3,
        global_blocks=(1, 3),
        window=5,
        patch=4,
        mlp_ratio=2.0,
        embed_channels=32,
        pos_grid=6,
        mask_in_chans=8,
        decoder_depth=1,
        decoder_heads=4,
        decoder_mlp_width=40,
        iou_head_depth=2,
        iou_head_width=20,
    )


@pytest.fixture
def randomise():
    """Fill a network, also one on the meta device, with random values; no table or bias stays zero."""

    def fill(network, seed=0):
        torch.manual_seed(seed)
        if any(tensor.is_meta for tensor in network.state_dict().values()):
            network.to_empty(device="cpu")
        with torch.no_grad():
            for name, tensor in network.state_dict().items():
                spread = 0.3 if "pos" in name else 0.035
                tensor.uniform_(-spread, spread)
                if tensor.ndim == 1 and name.endswith("weight"):  # scale of a normalisation
                    tensor.add_(1)
        return network

    return fill
