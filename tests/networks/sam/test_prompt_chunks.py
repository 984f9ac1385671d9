import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nucsam_monai.networks.sam import build_mask_decoder, decode_prompts, sam_variant
from nucsam_monai.networks.sam.decoder import bytes_per_prompt, prompts_per_chunk


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(0)
    return build_mask_decoder(sam_variant("vit_tiny")).eval()


class PeakBytes(TorchDispatchMode):
    """Follows the bytes of the results that are alive at the same time."""

    def __init__(self):
        super().__init__()
        self.alive, self.now, self.most = {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._follow(tensor.untyped_storage())
        return result

    def _follow(self, storage):
        address = storage.data_ptr()
        if address in self.alive or not address:
            return
        self.alive[address] = storage.nbytes()
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._forget, address)

    def _forget(self, address):
        self.now -= self.alive.pop(address)


@pytest.mark.parametrize(("side", "expected"), [(16, 32), (32, 8), (64, 2), (128, 1)])
def test_prompts_of_a_chunk_fit_the_caches_of_a_cpu(decoder, side, expected):
    assert prompts_per_chunk(decoder, torch.empty(1, 128, side, side), tokens=2) == expected


@pytest.mark.parametrize("free", [0, 2**28, 2**40])
def test_free_memory_of_a_gpu_bounds_the_chunk(decoder, monkeypatch, free):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free // 2, 2**41))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: free)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: free - free // 2)

    class OnGPU:
        shape, device = (1, 128, 32, 32), torch.device("cuda", 0)
        element_size = staticmethod(lambda: 4)

    with torch.no_grad():
        size = prompts_per_chunk(decoder, OnGPU(), tokens=2)
    needed = bytes_per_prompt(decoder, (32, 32), tokens=2)
    assert 1 <= size <= 256
    assert size == 1 or size * needed <= free / 2
    if free == 2**28:
        assert (size + 1) * needed > free / 2
    if free == 2**40:
        assert size == 256
    assert prompts_per_chunk(decoder, OnGPU(), tokens=2) == 256  # with gradients memory does not count


@pytest.mark.parametrize("upscaled", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_estimate_bounds_the_memory_that_prompts_take(decoder, monkeypatch, upscaled, shared):
    # As on a GPU: up-scale all prompts of a chunk together.
    monkeypatch.setattr("nucsam_monai.networks.sam.decoder.UPSCALED_CELLS", 2**30)
    embedding, code = torch.randn(1, 128, 16, 16), torch.randn(1, 128, 16, 16)

    @torch.no_grad()
    def peak(prompts):
        dense = torch.zeros(1 if shared else prompts, 128, 16, 16)
        sparse = torch.randn(prompts, 2, 128)
        with PeakBytes() as mode:
            decode_prompts(
                decoder, embedding, code, sparse, dense, [prompts], return_upscaled=upscaled, chunk_size=None
            )
        return mode.most

    taken = (peak(12) - peak(4)) / 8
    estimate = bytes_per_prompt(decoder, (16, 16), tokens=2, upscaled=upscaled)
    assert 0.6 * estimate < taken <= estimate
