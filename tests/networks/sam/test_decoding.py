import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nucsam_monai.networks.sam import build_mask_decoder, build_prompt_encoder, build_sam, decode_prompts
from nucsam_monai.utils.errors import ConfigurationError


@pytest.fixture
def decode(small, randomise):
    """Decode random prompts on random embeddings; the same seed gives the same tensors."""
    decoder = randomise(build_mask_decoder(small))
    prompt_encoder = randomise(build_prompt_encoder(small, (20, 16)))
    generator = torch.Generator().manual_seed(5)
    embeddings = torch.randn(4, 32, 5, 4, generator=generator)
    points = torch.rand(9, 2, 2, generator=generator) * 16

    def run(counts, images=None, prompts=None, **options):
        images = slice(0, len(counts)) if images is None else images
        prompts = slice(0, sum(counts)) if prompts is None else prompts
        chosen = points[prompts]
        sparse, dense = prompt_encoder((chosen, torch.ones(chosen.shape[:2])))
        code = prompt_encoder.position_code((5, 4))
        return decode_prompts(decoder, embeddings[images], code, sparse, dense, counts, **options)

    run.decoder, run.prompt_encoder, run.embeddings, run.points = decoder, prompt_encoder, embeddings, points
    return run


def assert_same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("multimask", [False, True])
def test_one_image_equals_the_official_decoder(decode, multimask):
    sparse, dense = decode.prompt_encoder((decode.points, torch.ones(9, 2)))
    expected = decode.decoder(
        image_embeddings=decode.embeddings[:1],
        image_pe=decode.prompt_encoder.position_code((5, 4)),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=multimask,
    )
    found = decode([9], multimask=multimask)
    assert found.logits.shape == (9, 3 if multimask else 1, 20, 16)
    assert found.upscaled is None
    assert_same((found.logits, found.iou), expected)


@pytest.mark.parametrize("counts", [(3, 0), (0, 2), (1, 1)])
def test_batch_of_two_images_equals_two_single_images(decode, counts):
    found = decode(torch.tensor(counts), return_upscaled=True)
    first = decode([counts[0]], slice(0, 1), slice(0, counts[0]), return_upscaled=True)
    second = decode([counts[1]], slice(1, 2), slice(counts[0], sum(counts)), return_upscaled=True)
    assert_same(found[:3], [torch.cat(parts) for parts in zip(first[:3], second[:3], strict=True)])


def test_as_many_prompts_as_images_are_not_paired_one_to_one(decode):
    found, paired = decode([0, 2]).logits, decode([1, 1]).logits
    assert not torch.allclose(found[0], paired[0], atol=1e-3)
    torch.testing.assert_close(found[1], paired[1], atol=1e-5, rtol=1e-4)


def test_any_counts_equal_prompts_decoded_one_by_one(decode):
    @settings(deadline=None, max_examples=10)
    @given(counts=st.lists(st.integers(0, 2), min_size=1, max_size=4), chunk=st.integers(1, 5))
    def check(counts, chunk):
        found = decode(counts, multimask=True, return_upscaled=True, chunk_size=chunk)
        owners = [image for image, count in enumerate(counts) for _ in range(count)]
        assert len(found.logits) == len(owners)
        for prompt, image in enumerate(owners):
            alone = decode(
                [1],
                slice(image, image + 1),
                slice(prompt, prompt + 1),
                multimask=True,
                return_upscaled=True,
            )
            assert_same([tensor[prompt : prompt + 1] for tensor in found[:3]], alone[:3])

    check()


@pytest.mark.parametrize("multimask", [False, True])
def test_no_prompts_give_empty_masks(decode, multimask):
    found = decode([0, 0], multimask=multimask, return_upscaled=True)
    masks = 3 if multimask else 1
    assert [tuple(tensor.shape) for tensor in found[:3]] == [(0, masks, 20, 16), (0, masks), (0, 4, 20, 16)]


def test_one_dense_embedding_serves_all_prompts(decode):
    sparse, dense = decode.prompt_encoder((decode.points[:3], torch.ones(3, 2)))
    code = decode.prompt_encoder.position_code((5, 4))
    arguments = (decode.decoder, decode.embeddings[:2], code, sparse)
    assert_same(
        decode_prompts(*arguments, dense[:1], [1, 2], chunk_size=2)[:2],
        decode_prompts(*arguments, dense, [1, 2])[:2],
    )


@pytest.mark.parametrize("counts", [[2], [1, 2, 0], [2, 2], [4, -1]])
def test_counts_that_do_not_fit_are_refused(decode, counts):
    with pytest.raises(ConfigurationError, match=r"one count for each of 2 images, with sum 3"):
        decode(counts, slice(0, 2), slice(0, 3))


def test_chunks_and_dense_that_do_not_fit_are_refused(decode):
    with pytest.raises(ConfigurationError, match="chunk_size 0"):
        decode([2], chunk_size=0)
    sparse, dense = decode.prompt_encoder((decode.points[:3], torch.ones(3, 2)))
    with pytest.raises(ConfigurationError, match="expected 1 or 3 prompts, found 2"):
        decode_prompts(decode.decoder, decode.embeddings[:1], dense[:1], sparse, dense[:2], [3])


def test_gradients_reach_decoder_and_embedding(decode):
    decode.embeddings.requires_grad_()
    masks = decode([2, 0, 1])
    (masks.logits.square().sum() + masks.iou.square().sum()).backward()
    assert decode.embeddings.grad[0].abs().sum() > 0
    assert decode.embeddings.grad[1].abs().sum() == 0
    used = [name for name, p in decode.decoder.named_parameters() if p.grad is not None and p.grad.any()]
    assert "output_hypernetworks_mlps.0.layers.0.weight" in used
    assert "output_hypernetworks_mlps.1.layers.0.weight" not in used  # belongs to the ambiguity masks


def test_autocast_stays_near_float32():
    torch.manual_seed(0)
    sam = build_sam("vit_tiny", 64).eval()
    inputs = (torch.randn(2, 3, 64, 64), torch.rand(3, 1, 2) * 64, torch.ones(3, 1), torch.tensor([1, 2]))
    with torch.no_grad():
        expected = sam(*inputs).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = sam(*inputs).logits
    assert (half.float() - expected).abs().mean() < 0.1 * expected.abs().mean()


def test_batch_of_images_through_the_whole_sam(small, randomise):
    sam = randomise(build_sam(small, 20))
    images, points = torch.randn(2, 3, 24, 28), torch.rand(3, 2, 2) * 24
    labels = torch.tensor([[1, 0], [1, -1], [1, 1]])
    together = sam(images, points, labels, torch.tensor([1, 2]), multimask=True)
    first = sam(images[:1], points[:1], labels[:1], torch.tensor([1]), multimask=True)
    second = sam(images[1:], points[1:], labels[1:], torch.tensor([2]), multimask=True)
    assert together.logits.shape == (3, 3, 24, 28)
    assert_same(together[:2], [torch.cat([first[i], second[i]]) for i in range(2)])


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_extra_tokens_act_like_prompt_tokens_and_are_answered(decode, chunk_size):
    extra = torch.randn(2, 32, generator=torch.Generator().manual_seed(8))
    found = decode([3, 2], extra_tokens=extra, chunk_size=chunk_size, return_upscaled=True)
    sparse, dense = decode.prompt_encoder((decode.points[:5], torch.ones(5, 2)))
    code = decode.prompt_encoder.position_code((5, 4))
    as_prompts = torch.cat([extra.expand(5, -1, -1), sparse], dim=1)
    expected = decode_prompts(decode.decoder, decode.embeddings[:2], code, as_prompts, dense, [3, 2])
    assert_same((found.logits, found.iou), (expected.logits, expected.iou))
    assert found.extra.shape == (5, 2, 32)
    assert decode([3, 2]).extra is None
    assert decode([0, 0], extra_tokens=extra).extra.shape == (0, 2, 32)


def test_extra_tokens_are_answered_for_their_own_prompt(decode):
    extra = torch.randn(1, 32, generator=torch.Generator().manual_seed(8))
    together = decode([2, 1], extra_tokens=extra).extra
    alone = decode([1], slice(1, 2), slice(2, 3), extra_tokens=extra).extra
    torch.testing.assert_close(together[2:], alone, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(together[0], together[1])
