"""SAMUS starts as SAM with overlapping patches, and its branch attends as the paper says."""

import pytest
import torch
from torch.nn import functional as F

from nucsam_monai.networks import CFRSAM, SAC
from nucsam_monai.networks.sam.encoder import relative_positions
from nucsam_monai.networks.samus import CrossBranchAttention
from nucsam_monai.utils.errors import ConfigurationError


def randomise(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.2)
    return module.eval()


def test_it_starts_as_sam_with_overlapping_patches(micro_sac, images):
    network = micro_sac(adapter="samus", generator={"n_points": 0}).eval()
    encoder, projection = network.sam.image_encoder, network.sam.image_encoder.patch_embed.proj
    wide = F.pad(images, [4] * 4)
    cells = [[wide[..., y : y + 16, x : x + 16] for x in range(0, 64, 8)] for y in range(0, 64, 8)]
    tokens = torch.stack([torch.stack([projection(cell)[..., 0, 0] for cell in row], 1) for row in cells], 1)
    table = F.adaptive_max_pool2d(encoder.pos_embed.permute(0, 3, 1, 2), 8).permute(0, 2, 3, 1)
    expected = encoder.apply_neck(encoder.run_blocks(tokens + table, keep=(3,))[3])
    torch.testing.assert_close(network.encode(images).embedding, expected)


def test_the_table_of_sam_is_pooled_by_two_at_256_px(micro_sac):
    position = micro_sac(adapter="samus").samus.position
    table = torch.randn(1, 64, 64, 32)
    pooled = F.max_pool2d(table.permute(0, 3, 1, 2), kernel_size=2, stride=2).permute(0, 2, 3, 1)
    torch.testing.assert_close(position(table, (32, 32)), pooled)


def test_tokens_attend_to_the_other_branch_by_the_equation():
    torch.manual_seed(0)
    attention = randomise(CrossBranchAttention(16, table_side=3))
    tokens, local = torch.randn(2, 3, 4, 16), torch.randn(2, 3, 4, 16)
    query = attention.query(attention.norm(tokens)).flatten(1, 2)
    key, value = attention.key(local).flatten(1, 2), attention.value(local).flatten(1, 2)
    rows, columns = relative_positions(attention.rows, 3), relative_positions(attention.columns, 4)
    heads = []
    for head in range(4):
        part = slice(2 * head, 2 * head + 2)
        scores = query[..., part] @ key[..., part].transpose(1, 2) / 2**0.5
        for one in range(12):
            for other in range(12):
                scores[:, one, other] += rows[one // 4, other // 4, head] + columns[one % 4, other % 4, head]
        heads.append(scores.softmax(dim=-1) @ value[..., part])
    expected = attention.combine(torch.cat(heads, dim=-1)).unflatten(1, (3, 4))
    torch.testing.assert_close(attention(tokens, local), expected)


def test_points_and_boxes_lie_where_the_image_has_them(micro_sac, images):
    network = randomise(micro_sac(adapter="samus", generator={"n_points": 0}))
    features = network.encode(images[:1])
    assert features.embedding.shape == (1, 32, 8, 8)
    points, labels = torch.tensor([[[10.0, 20.0]], [[63.0, 0.0]]]), torch.ones(2, 1, dtype=torch.long)
    doubled = network.sam.decode_points(features, 2 * points + 0.5, labels)
    torch.testing.assert_close(network.decode_clicks(features, points, labels).logits, doubled.logits)
    boxes = torch.tensor([[4.0, 6.0, 20.0, 30.0]])
    doubled = network.sam.decode_boxes(features, 2 * boxes + 0.5)
    torch.testing.assert_close(network.decode_boxes(features, boxes).logits, doubled.logits)


def test_where_it_does_not_fit_it_is_refused(micro_trunk):
    with torch.device("meta"):
        with pytest.raises(ConfigurationError, match="branch of its own"):
            SAC("micro_trunk", 64, adapter="samus")
        with pytest.raises(ConfigurationError, match=r"expected SAC \(bundle sac\)"):
            CFRSAM("vit_tiny", 64, adapter="samus")
