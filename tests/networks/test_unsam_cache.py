import pytest
import torch

from nucsam_monai.networks.sam import EmbeddingCache
from nucsam_monai.networks.unsam import UNSAM

IMAGE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("bypass", "hits", "misses"), [(False, 2, 2), (True, 0, 0)])
def test_frozen_encoder_is_cached_and_one_with_a_bypass_is_not(tmp_path, bypass, hits, misses):
    cache = EmbeddingCache(tmp_path, storage="fp32")
    networks = []
    for used in (None, cache):
        torch.manual_seed(1)
        network = UNSAM("vit_tiny", ["a"], 64, encoder={"bypass": bypass}, embedding_cache=used)
        networks.append(network.train())
    plain, cached = networks
    assert cached.state_dict().keys() == plain.state_dict().keys()
    assert cached.header == plain.header
    for _ in range(2):
        found, expected = cached(IMAGE), plain(IMAGE)
        torch.testing.assert_close(found.mask_logits, expected.mask_logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.hint_logits, expected.hint_logits, atol=1e-5, rtol=1e-5)
    found.mask_logits.sum().backward()
    assert any(parameter.grad is not None for parameter in cached.decoder.parameters())
    assert (cache.hits, cache.misses) == (hits, misses)
