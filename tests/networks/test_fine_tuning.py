import copy

import pytest
import torch

from nucsam_monai.networks.fine_tuning import LoRA, LoRAOptions, MSAOptions, build_adapters, freeze_for
from nucsam_monai.networks.sam import SAM, SAM_VARIANTS
from nucsam_monai.utils.errors import ConfigurationError

KINDS = ["none", "lora", "msa", "head", "full"]


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def randomised(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return module


@pytest.mark.parametrize(
    ("variant", "quarter", "four"),
    [("vit_b", 7_077_888, 147_456), ("vit_l", 25_165_824, 393_216), ("vit_h", 52_428_800, 655_360)],
)
def test_lora_has_the_published_numbers_of_parameters(variant, quarter, four):
    with torch.device("meta"):
        assert count(build_adapters("lora", SAM_VARIANTS[variant])) == quarter
        assert count(build_adapters("lora", SAM_VARIANTS[variant], LoRAOptions(rank=4))) == four


def test_bottleneck_adapters_have_the_published_number_of_parameters():
    with torch.device("meta"):
        assert count(build_adapters("msa", SAM_VARIANTS["vit_h"])) == 52_531_200


@pytest.mark.parametrize("kind", ["none", "head", "full"])
def test_other_ways_add_nothing(micro, kind):
    assert build_adapters(kind, micro) is None


def test_lora_updates_queries_and_values_by_its_definition():
    torch.manual_seed(0)
    adapter = randomised(LoRA(8, 3))
    tokens, qkv = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 4, 24)
    before = qkv.clone()
    found = adapter.qkv(tokens, qkv)
    down_q, up_q = (layer.weight for layer in adapter.query)
    down_v, up_v = (layer.weight for layer in adapter.value)
    assert (down_q.shape, up_q.shape) == ((3, 8), (8, 3))
    torch.testing.assert_close(found[..., :8] - qkv[..., :8], tokens @ down_q.T @ up_q.T)
    assert torch.equal(found[..., 8:16], qkv[..., 8:16])
    torch.testing.assert_close(found[..., 16:] - qkv[..., 16:], tokens @ down_v.T @ up_v.T)
    assert torch.equal(qkv, before)


def test_bottleneck_adapters_follow_the_attention_and_are_parallel_to_the_mlp(micro):
    torch.manual_seed(0)
    adapter = randomised(build_adapters("msa", micro, MSAOptions(ratio=0.5, scale=0.7))[0])
    tokens = torch.randn(2, 3, 4, micro.width)

    def mlp(layers):
        down, gelu, up = layers
        assert down.weight.shape == (micro.width // 2, micro.width)
        return gelu(tokens @ down.weight.T + down.bias) @ up.weight.T + up.bias

    torch.testing.assert_close(adapter.after_attention(tokens), tokens + mlp(adapter.attention))
    torch.testing.assert_close(adapter.beside_mlp(tokens), 0.7 * mlp(adapter.mlp))


@pytest.mark.parametrize("kind", ["lora", "msa"])
def test_adapters_start_from_plain_sam_and_then_change_every_block(micro, images, kind):
    torch.manual_seed(0)
    encoder = SAM(micro, (64, 64)).image_encoder
    adapters = build_adapters(kind, micro)
    plain = encoder(images).embedding
    adapted = encoder(images, adapters=adapters).embedding
    torch.testing.assert_close(adapted, plain)
    for block in range(micro.depth):
        changed = copy.deepcopy(adapters)
        randomised(changed[block])
        assert not torch.allclose(encoder(images, adapters=changed).embedding, plain)


def test_bottleneck_adapters_can_start_like_pytorch_s_layers(micro):
    adapters = build_adapters("msa", micro, MSAOptions(init="torch_default"))
    tokens = torch.randn(1, 2, 2, micro.width)
    assert not torch.equal(adapters[0].beside_mlp(tokens), torch.zeros_like(tokens))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompts", [False, True])
def test_each_way_trains_its_parts_and_nothing_else(micro, kind, prompts):
    sam = SAM(micro, (64, 64))
    freeze_for(kind, sam, train_prompt_encoder=prompts)
    trained = {name for name, parameter in sam.named_parameters() if parameter.requires_grad}
    parts = ["mask_decoder."]
    parts += ["prompt_encoder."] if prompts or kind == "full" else []
    parts += {"none": ["image_encoder.neck."], "full": ["image_encoder."]}.get(kind, [])
    assert trained == {name for name, _ in sam.named_parameters() if name.startswith(tuple(parts))}


def test_unknown_ways_and_values_are_refused(micro):
    with pytest.raises(
        ConfigurationError, match=r"adapter 'qlora': expected one of none, lora, msa, head, full"
    ):
        build_adapters("qlora", micro)
    with pytest.raises(ConfigurationError, match="adapter 'all'"):
        freeze_for("all", SAM(micro, (64, 64)))
    with pytest.raises(ConfigurationError, match="LoRA rank 0: expected a number from 1 on"):
        build_adapters("lora", micro, LoRAOptions(rank=0))
    with pytest.raises(ConfigurationError, match="adapter init 'zero': expected 'zero_last'"):
        build_adapters("msa", micro, MSAOptions(init="zero"))
