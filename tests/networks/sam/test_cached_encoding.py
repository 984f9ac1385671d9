import copy
import logging

import pytest
import torch
from torch import nn

from nucsam_monai.networks.sam import (
    BlockAdapter,
    EmbeddingCache,
    ImageEncoder,
    build_embedding_cache,
    encode_cached,
)
from nucsam_monai.utils.errors import ConfigurationError

IMAGES = torch.randn(6, 3, 28, 24, generator=torch.Generator().manual_seed(3))


class Scale(BlockAdapter):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(24))

    def after_attention(self, attended):
        return attended * self.scale


@pytest.fixture
def encoder(small, randomise):
    return randomise(ImageEncoder(small)).requires_grad_(False)


@pytest.fixture
def cache(tmp_path):
    return EmbeddingCache(tmp_path / "cache", storage="fp32")


def counts(cache):
    return cache.hits, cache.misses


def assert_features_equal(found, expected, tolerance=1e-6):
    assert len(found.levels) == len(expected.levels)
    for a, b in zip((found.embedding, *found.levels), (expected.embedding, *expected.levels), strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def scales_from(block):
    return nn.ModuleList(BlockAdapter() if index < block else Scale() for index in range(4))


def unfreeze(encoder, trained):
    """Return adapters; ``trained`` names the first part that learns."""
    if isinstance(trained, int):
        return scales_from(trained)
    if trained == "neck":
        encoder.neck.requires_grad_(True)
    return None


def train(encoder, adapters, cache, return_levels, steps=4):
    torch.manual_seed(5)
    head = nn.Conv2d(32, 1, 1)
    learned = [p for m in (encoder, adapters or encoder, head) for p in m.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(list(dict.fromkeys(learned)), lr=0.05)
    losses = []
    for step in range(steps):
        image = IMAGES[2 * step % 6 :][:2]
        features = encode_cached(encoder, image, cache, adapters=adapters, return_levels=return_levels)
        loss = sum(head(level).square().mean() for level in features.levels or (features.embedding,))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses)


@pytest.mark.parametrize(
    ("trained", "return_levels", "storage", "tolerance"),
    [
        (1, False, "fp32", 1e-6),
        (2, True, "fp32", 1e-6),
        (3, True, "fp32", 1e-6),
        ("neck", False, "fp32", 1e-6),
        ("neck", True, "fp32", 1e-6),
        ("head", False, "fp32", 1e-6),
        ("head", True, "fp32", 1e-6),
        (2, True, "fp16", 2e-3),
        ("head", False, "fp16", 2e-3),
        (2, True, "bf16", 2e-2),
        ("head", False, "bf16", 2e-2),
    ],
)
def test_training_from_a_warm_cache_gives_the_same_losses(
    encoder, tmp_path, trained, return_levels, storage, tolerance
):
    adapters = unfreeze(encoder, trained)
    networks = [(copy.deepcopy(encoder), copy.deepcopy(adapters)) for _ in range(3)]
    cache = EmbeddingCache(tmp_path, storage=storage)
    expected = train(*networks[0], None, return_levels)
    cold = train(*networks[1], cache, return_levels)
    assert counts(cache) == (2, 6)  # the fourth step sees the first one's images again
    again = EmbeddingCache(tmp_path, storage=storage)
    warm = train(*networks[2], again, return_levels)
    assert counts(again) == (8, 0)
    torch.testing.assert_close(warm, cold, atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(warm, expected, atol=tolerance, rtol=tolerance)
    assert expected[3] != expected[0]  # something was learned


def test_gradients_flow_in_the_trained_rest_alone(encoder, cache):
    encoder.blocks[3].requires_grad_(True)
    adapters = scales_from(2)
    for _ in range(2):
        encode_cached(encoder, IMAGES, cache, adapters=adapters).embedding.square().sum().backward()
    assert counts(cache) == (6, 6)
    assert all(parameter.grad.abs().sum() > 0 for parameter in adapters.parameters())
    assert all(parameter.grad is not None for parameter in encoder.blocks[3].parameters())
    assert all(parameter.grad is None for block in encoder.blocks[:3] for parameter in block.parameters())


def test_only_new_images_pass_the_frozen_blocks(encoder, cache):
    batches = []
    encoder.blocks[0].register_forward_hook(lambda module, inputs, output: batches.append(len(output)))
    encode_cached(encoder, IMAGES[[1, 4]], cache)
    mixed = [4, 0, 1, 0, 2, 4]
    found = encode_cached(encoder, IMAGES[mixed], cache)
    assert batches == [2, 2]
    encode_cached(encoder, IMAGES[mixed], cache)
    assert batches == [2, 2]
    assert_features_equal(found, encoder(IMAGES[mixed]))


@pytest.mark.parametrize("return_levels", [False, True])
def test_each_request_gets_what_it_asks_for(encoder, cache, return_levels):
    for levels in (not return_levels, return_levels, return_levels):
        found = encode_cached(encoder, IMAGES, cache, return_levels=levels)
        assert_features_equal(found, encoder(IMAGES, return_levels=levels))
    assert counts(cache) == (6, 12)


def test_changed_weights_images_and_sizes_miss(encoder, cache):
    encode_cached(encoder, IMAGES, cache)
    with torch.no_grad():
        encoder.blocks[1].mlp.lin1.bias[0] += 0.1
    assert_features_equal(encode_cached(encoder, IMAGES, cache), encoder(IMAGES))
    assert counts(cache) == (0, 12)
    changed = IMAGES.clone()
    changed[2, 1, 5, 5] += 1e-3
    assert_features_equal(encode_cached(encoder, changed, cache), encoder(changed))
    assert counts(cache) == (5, 13)
    reshaped = IMAGES.reshape(6, 3, 24, 28)
    assert_features_equal(encode_cached(encoder, reshaped, cache), encoder(reshaped))
    assert counts(cache) == (5, 19)


def test_memory_layout_of_the_image_does_not_matter(encoder, cache):
    encode_cached(encoder, IMAGES, cache)
    encode_cached(encoder, IMAGES.to(memory_format=torch.channels_last), cache)
    assert counts(cache) == (6, 6)


def test_precision_storage_and_transform_are_in_the_key(encoder, tmp_path):
    def misses(autocast=False, **options):
        cache = EmbeddingCache(tmp_path, **options)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = encode_cached(encoder, IMAGES, cache).embedding
            assert found.dtype == encoder(IMAGES).embedding.dtype
        return cache.misses

    assert misses() == 6
    assert misses() == 0
    assert misses(autocast=True) == 6
    assert misses(autocast=True) == 0
    assert misses(storage="bf16") == 6
    assert misses(transform_key="stain normalised 2") == 6
    assert misses() == 0


def test_unfreezing_shortens_the_cached_part_and_says_so(encoder, cache, caplog):
    caplog.set_level(logging.INFO)
    encode_cached(encoder, IMAGES, cache)
    encoder.blocks[2].requires_grad_(True)
    encoder.blocks[3].requires_grad_(True)
    for _ in range(2):
        encode_cached(encoder, IMAGES, cache).embedding.sum().backward()
    assert counts(cache) == (6, 12)
    assert encoder.blocks[2].mlp.lin1.weight.grad is not None
    encoder.requires_grad_(True)
    encode_cached(encoder, IMAGES, cache).embedding.sum().backward()
    assert counts(cache) == (6, 12)
    assert encoder.patch_embed.proj.weight.grad is not None
    messages = [record.message for record in caplog.records]
    assert [("everything" in m, "first 2 blocks" in m, "not used" in m) for m in messages] == [
        (True, False, False),
        (False, True, False),
        (False, False, True),
    ]


def test_dropout_in_a_frozen_adapter_is_redrawn(encoder, cache):
    class Dropping(BlockAdapter):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def after_attention(self, attended):
            return self.drop(attended)

    adapters = nn.ModuleList([*scales_from(4)[:3], Dropping()])
    first, second = (encode_cached(encoder, IMAGES, cache, adapters=adapters).embedding for _ in range(2))
    assert not torch.equal(first, second)
    first, second = (
        encode_cached(encoder, IMAGES, cache, adapters=adapters.eval()).embedding for _ in range(2)
    )
    assert torch.equal(first, second)
    assert_features_equal(
        encode_cached(encoder, IMAGES, cache, adapters=adapters), encoder(IMAGES, adapters=adapters)
    )


def test_entries_of_inference_serve_training(encoder):
    cache = EmbeddingCache(None, max_memory_bytes=10**7, storage="fp32")
    adapters = scales_from(3)
    with torch.inference_mode():
        encode_cached(encoder, IMAGES, cache, adapters=adapters)
    encode_cached(encoder, IMAGES, cache, adapters=adapters).embedding.sum().backward()
    assert counts(cache) == (6, 6)
    assert adapters[3].scale.grad.abs().sum() > 0


def test_image_that_needs_a_gradient_passes_by_the_cache(encoder, cache):
    image = IMAGES.clone().requires_grad_(True)
    encode_cached(encoder, image, cache).embedding.sum().backward()
    assert image.grad.abs().sum() > 0
    assert counts(cache) == (0, 0)


def test_trace_does_not_remember_the_images(encoder, cache):
    class Embed(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = encoder

        def forward(self, image):
            return encode_cached(self.encoder, image, cache).embedding

    network = Embed()
    network(IMAGES[:1])
    traced = torch.jit.trace(network, IMAGES[:1])
    torch.testing.assert_close(traced(IMAGES[2:4]), encoder(IMAGES[2:4]).embedding, atol=1e-5, rtol=1e-5)


def test_compiled_network_uses_the_cache(encoder, cache):
    head = nn.Conv2d(32, 1, 1)
    compiled = torch.compile(
        lambda image: head(encode_cached(encoder, image, cache).embedding), backend="eager"
    )
    for _ in range(2):
        torch.testing.assert_close(compiled(IMAGES), head(encoder(IMAGES).embedding))
    assert counts(cache) == (6, 6)


def test_damaged_file_is_computed_again(encoder, cache, tmp_path):
    expected = encode_cached(encoder, IMAGES, cache)
    for path in tmp_path.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:50])
    for hits, misses in ((0, 12), (6, 12)):
        assert_features_equal(encode_cached(encoder, IMAGES, cache), expected)
        assert counts(cache) == (hits, misses)


def test_numbers_beyond_half_precision_are_not_rounded_to_infinity(encoder, tmp_path, caplog):
    cache = EmbeddingCache(tmp_path, storage="fp16")
    with torch.no_grad():
        encoder.neck[3].bias.fill_(1e6)
    for _ in range(2):
        assert_features_equal(encode_cached(encoder, IMAGES[:2], cache), encoder(IMAGES[:2]))
    assert counts(cache) == (0, 4)
    assert caplog.text.count("storage bf16") == 1


def test_stored_numbers_are_never_wider_than_computed_ones(tmp_path):
    cache = EmbeddingCache(tmp_path, storage="fp32")
    cache.put("ab" * 32, {"a": torch.ones(1000, dtype=torch.bfloat16)}, {})
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors")) < 3000
    assert cache.get("ab" * 32)["a"].dtype == torch.bfloat16


def test_memory_serves_before_the_files(encoder, tmp_path):
    cache = EmbeddingCache(tmp_path, max_memory_bytes=10**7)
    encode_cached(encoder, IMAGES, cache)
    for path in tmp_path.rglob("*.safetensors"):
        path.unlink()
    encode_cached(encoder, IMAGES, cache)
    assert counts(cache) == (6, 6)


def test_without_a_cache_the_encoder_runs_as_it_is(encoder):
    found = encode_cached(encoder, IMAGES, None, return_levels=True)
    for level, expected in zip(found.levels, encoder(IMAGES, return_levels=True).levels, strict=True):
        assert torch.equal(level, expected)


def test_wrong_number_of_adapters_is_refused_also_when_everything_is_cached(encoder, cache):
    encode_cached(encoder, IMAGES, cache)
    with pytest.raises(ConfigurationError, match="found 3"):
        encode_cached(encoder, IMAGES, cache, adapters=[BlockAdapter()] * 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"storage": "int8"}, "fp32, fp16, bf16"),
        ({"size_gb": 0}, "max_bytes 0"),
        ({"memory_gb": -1}, "max_memory_bytes"),
    ],
)
def test_configuration_is_checked(tmp_path, options, message):
    with pytest.raises(ConfigurationError, match=message):
        build_embedding_cache(str(tmp_path), **options)


def test_configuration_builds_a_cache_or_none(encoder, tmp_path):
    assert build_embedding_cache(None) is None
    in_memory = build_embedding_cache(None, memory_gb=0.001)
    on_disk = build_embedding_cache(str(tmp_path / "cache"), size_gb=0.001)
    for cache in (in_memory, on_disk):
        encode_cached(encoder, IMAGES, cache)
        encode_cached(encoder, IMAGES, cache)
        assert counts(cache) == (6, 6)
