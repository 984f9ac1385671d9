"""Before any training, a point and the cells around it attend to each other."""

import torch

from nucsam_monai.networks.sam import build_sam
from nucsam_monai.networks.sam.decoder import start_localised


def test_a_point_attends_to_the_cell_it_lies_in() -> None:
    torch.manual_seed(0)
    sam = build_sam("vit_tiny", 256)
    start_localised(sam.mask_decoder)
    cells = torch.tensor([[5, 20], [30, 2], [16, 16]])  # (column, row) of cells of 8 px
    tokens, _ = sam.prompt_encoder((cells[:, None] * 8.0 + 3.5, torch.ones(3, 1)))
    code = sam.prompt_encoder.position_code((32, 32)).flatten(2)[0].T
    for layer in sam.mask_decoder.transformer.layers:
        attention = layer.cross_attn_image_to_token
        scores = attention.k_proj(tokens[:, 0]) @ attention.q_proj(code).T
        own = scores[torch.arange(3), cells[:, 1] * 32 + cells[:, 0]]
        assert ((own - scores.mean(dim=1)) / scores.std(dim=1) > 2).all()


def test_names_and_shapes_stay() -> None:
    sam = build_sam("vit_tiny", 256)
    shapes = {name: tensor.shape for name, tensor in sam.mask_decoder.state_dict().items()}
    start_localised(sam.mask_decoder)
    assert {name: tensor.shape for name, tensor in sam.mask_decoder.state_dict().items()} == shapes
