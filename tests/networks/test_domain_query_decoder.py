import pytest
import torch

from nucsam_monai.networks.sam import build_mask_decoder
from nucsam_monai.networks.unsam import DomainQueryDecoder
from tests.oracles.domain_query_decoder import decode_with_official_layers

COUNTS = (1, 2, 1)


@pytest.fixture
def build(micro):
    def build(**options):
        torch.manual_seed(0)
        return DomainQueryDecoder(micro, COUNTS, **options).eval()

    return build


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(2, 32, 4, 3, generator=generator), torch.randn(1, 32, 4, 3, generator=generator)


@pytest.mark.parametrize("joint", [False, True])
def test_every_domain_gets_a_mask_per_query(build, inputs, joint):
    decoder = build(joint_queries=joint)
    assert [decoder(*inputs, domain).shape for domain in range(3)] == [(2, count, 16, 12) for count in COUNTS]


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("other", [0, 2])
def test_other_domains_interfere_only_when_queries_are_joint(build, inputs, joint, other):
    decoder = build(joint_queries=joint)
    before = decoder(*inputs, 1)
    with torch.no_grad():
        decoder.queries[other].add_(torch.randn(1, 32))
    assert torch.equal(decoder(*inputs, 1), before) != joint


@pytest.mark.parametrize("joint", [False, True])
def test_the_queries_and_networks_of_a_domain_matter(build, inputs, joint):
    decoder = build(joint_queries=joint)
    for change in (decoder.queries[1], decoder.output_hypernetworks_mlps[1][1].layers[-1].weight):
        before = decoder(*inputs, 1)
        with torch.no_grad():
            change.add_(torch.randn_like(change))
        assert not torch.allclose(decoder(*inputs, 1), before)


@pytest.mark.parametrize("joint", [False, True])
def test_networks_of_other_domains_do_not_matter(build, inputs, joint):
    decoder = build(joint_queries=joint)
    before = decoder(*inputs, 1)
    with torch.no_grad():
        for other in (0, 2):
            decoder.output_hypernetworks_mlps[other][0].layers[-1].weight.zero_()
    assert torch.equal(decoder(*inputs, 1), before)


@pytest.mark.parametrize("joint", [False, True])
def test_masks_follow_the_definition_query_by_query(build, inputs, joint):
    decoder = build(joint_queries=joint)
    embedding, code = inputs
    position = {(domain, i): sum(COUNTS[:domain]) + i for domain in range(3) for i in range(COUNTS[domain])}
    for domain, count in enumerate(COUNTS):
        masks = decoder(embedding, code, domain)
        for image in range(2):
            asked = torch.cat(list(decoder.queries)) if joint else decoder.queries[domain]
            tokens, keys = decoder.transformer(embedding[image : image + 1], code, asked[None])
            pixels = decoder.output_upscaling(keys.mT.reshape(1, 32, 4, 3))[0]
            for i in range(count):
                token = tokens[0, position[domain, i] if joint else i]
                kernel = decoder.output_hypernetworks_mlps[domain][i](token)
                expected = (kernel[:, None, None] * pixels).sum(0)
                torch.testing.assert_close(masks[image, i], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("points", [0, 5])
def test_masks_and_gradients_are_those_of_the_official_layers(build, inputs, joint, points):
    generator = torch.Generator().manual_seed(7)
    embedding, code = inputs
    prompts = torch.randn(2, points, 32, generator=generator) if points else None
    seen = torch.randn(2, COUNTS[1], 16, 12, generator=generator)
    masks, gradients = [], []
    for decode in (DomainQueryDecoder.forward, decode_with_official_layers):
        decoder, leaf = build(joint_queries=joint), embedding.clone().requires_grad_()
        masks.append(decode(decoder, leaf, code, 1, prompts))
        masks[-1].backward(seen)
        found = {name: weight.grad for name, weight in decoder.named_parameters()}
        gradients.append({"embedding": leaf.grad, **found})
    torch.testing.assert_close(*masks, atol=1e-5, rtol=1e-4)
    fast, official = gradients
    assert [name for name in fast if fast[name] is None] == [name for name in fast if official[name] is None]
    for name, gradient in official.items():
        if gradient is not None:
            torch.testing.assert_close(fast[name], gradient, atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("joint", [False, True])
def test_prompt_tokens_change_the_masks_and_not_their_number(build, inputs, joint):
    decoder = build(joint_queries=joint)
    prompted = decoder(*inputs, 1, torch.randn(2, 5, 32))
    assert prompted.shape == (2, 2, 16, 12)
    assert not torch.allclose(prompted, decoder(*inputs, 1))


def test_inactive_domains_get_no_gradient(build, inputs):
    decoder = build()
    decoder(*inputs, 1).square().sum().backward()
    assert [queries.grad is not None for queries in decoder.queries] == [False, True, False]
    used = [all(p.grad is not None for p in mlps.parameters()) for mlps in decoder.output_hypernetworks_mlps]
    assert used == [False, True, False]


def test_iou_and_mask_tokens_are_gone(build):
    parts = {name.split(".")[0] for name in build().state_dict()}
    assert parts == {"queries", "transformer", "output_upscaling", "output_hypernetworks_mlps"}


def test_with_sam_s_weights_and_token_masks_are_those_of_sam(build, micro, inputs):
    torch.manual_seed(3)
    sam = build_mask_decoder(micro).eval()
    decoder = build()
    decoder.start_from(sam, copy_token=True)
    embedding, code = inputs
    tokens = sam.mask_tokens.weight[:1].expand(2, -1, -1)
    answers, keys = sam.transformer(embedding, code.expand(2, -1, -1, -1), tokens)
    pixels = sam.output_upscaling(keys.mT.reshape(2, 32, 4, 3))
    expected = torch.einsum("bc,bchw->bhw", sam.output_hypernetworks_mlps[0](answers[:, 0]), pixels)
    torch.testing.assert_close(decoder(*inputs, 2)[:, 0], expected)
    assert all(not parameter.grad_fn for parameter in decoder.parameters())
