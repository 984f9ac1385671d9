import torch
from segment_anything.modeling.common import LayerNorm2d as OfficialLayerNorm2d
from torch import nn

from nucsam_monai.networks.sam.layers import LayerNorm2d, use_float32_norms


def test_norm_equals_the_official_one_and_survives_half_precision(randomise):
    official, ours = randomise(OfficialLayerNorm2d(6)), LayerNorm2d(6)
    ours.load_state_dict(official.state_dict())
    x = 500 * torch.randn(2, 6, 3, 4)  # its square does not fit into float16
    torch.testing.assert_close(ours(x), official(x))
    assert not (x.half() ** 2).isfinite().all()
    half = ours(x.half())
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), ours(x), atol=5e-3, rtol=5e-3)


def test_official_norms_are_replaced_with_their_weights():
    network = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.Sequential(OfficialLayerNorm2d(2, eps=1e-3)), nn.LayerNorm(2)
    )
    before = dict(network.named_parameters())
    use_float32_norms(network)
    assert isinstance(network[1][0], LayerNorm2d)
    assert network[1][0].eps == 1e-3
    assert type(network[2]) is nn.LayerNorm
    assert all(parameter is before[name] for name, parameter in network.named_parameters())
