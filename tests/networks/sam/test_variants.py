import dataclasses

import pytest
import torch

from nucsam_monai.networks.sam import SAM, SAM_VARIANTS, build_sam, sam_variant
from nucsam_monai.utils.errors import ConfigurationError


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "encoder", "neck", "total"),
    [
        ("vit_b", 89_670_912, 787_456, 93_735_472),
        ("vit_l", 308_278_272, 852_992, 312_342_832),
        ("vit_h", 637_026_048, 918_528, 641_090_608),
    ],
)
def test_official_parameter_counts(name, encoder, neck, total):
    with torch.device("meta"):
        sam = SAM(sam_variant(name), (1024, 1024))
    assert count(sam.image_encoder) == encoder
    assert count(sam.image_encoder.neck) == neck
    assert count(sam.prompt_encoder) == 6_220
    assert count(sam.mask_decoder) == 4_058_340
    assert count(sam) == total


@pytest.mark.parametrize("variant", SAM_VARIANTS.values(), ids=lambda variant: variant.name)
def test_feature_blocks_are_the_quarters(variant):
    assert [block + 1 for block in variant.feature_blocks] == [
        variant.depth * quarter // 4 for quarter in (1, 2, 3, 4)
    ]


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_official_feature_blocks_are_the_global_blocks(name):
    assert sam_variant(name).feature_blocks == sam_variant(name).global_blocks


def test_unknown_name_is_answered_with_the_permitted_and_the_nearest():
    with pytest.raises(ConfigurationError, match=r"'vit_hh' is unknown\..*vit_b, vit_l.*'vit_h'\?"):
        sam_variant("vit_hh")
    with pytest.raises(ConfigurationError, match=r"Permitted: [a-z_, ]+\.$"):
        sam_variant("resnet50")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 6}, "multiple of 4"),
        ({"heads": 5}, "multiple of heads"),
        ({"global_blocks": (4,)}, r"0\.\.3"),
        ({"embed_channels": 36}, "embed_channels 36"),
        ({"stem": "mlp"}, "one of patch, conv, efficientnet_lite0"),
        ({"fine_channels": 8}, "fine_channels 8 must be"),
        ({"stem": "efficientnet_lite0"}, "fine_channels 0 must be"),
        ({"stem": "conv", "patch": 12}, "power of two"),
    ],
)
def test_impossible_sizes_are_refused(small, change, message):
    with pytest.raises(ConfigurationError, match=message):
        dataclasses.replace(small, **change)


@pytest.mark.parametrize("size", [(30, 32), (32, 30), (0, 32)])
def test_image_that_does_not_fit_the_patch_is_refused(small, size):
    with pytest.raises(ConfigurationError, match="multiples of 4 px"):
        small.grid(size)


@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_every_number_is_honoured(small, stem):
    sam = build_sam(dataclasses.replace(small, stem=stem), (32, 24))
    encoder, decoder = sam.image_encoder, sam.mask_decoder
    assert encoder.patch_embed(torch.zeros(1, 3, 32, 24)).shape == (1, 8, 6, 24)
    assert encoder.pos_embed.shape == (1, 6, 6, 24)
    assert [block.attn.window for block in encoder.blocks] == [5, 0, 5, 0]
    assert [len(block.attn.rel_pos_h) for block in encoder.blocks] == [9, 11, 9, 11]
    assert encoder.blocks[0].attn.rel_pos_w.shape[1] == 8
    assert encoder.blocks[0].mlp.lin1.out_features == 48
    assert sam.prompt_encoder.mask_downscaling[3].out_channels == 8
    assert len(decoder.transformer.layers) == 1
    assert decoder.transformer.layers[0].self_attn.num_heads == 4
    assert decoder.transformer.layers[0].mlp.lin1.out_features == 40
    assert [layer.out_features for layer in decoder.iou_prediction_head.layers] == [20, 4]
    masks = sam(torch.zeros(1, 3, 32, 24), torch.zeros(2, 1, 2), torch.ones(2, 1), torch.tensor([2]))
    assert masks.logits.shape == (2, 1, 32, 24)
