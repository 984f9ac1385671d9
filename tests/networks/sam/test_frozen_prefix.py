import copy
import pickle

import pytest
import torch
from torch import nn

from nucsam_monai.networks.sam import BlockAdapter, ImageEncoder, first_trained_block
from nucsam_monai.networks.sam.cache import FrozenPrefix, PrefixDigests, frozen_prefix
from nucsam_monai.utils.errors import ConfigurationError


class Scaled(BlockAdapter):
    def __init__(self, layer=None, factor=0.5):
        super().__init__()
        self.layer = layer or nn.Linear(24, 24)
        self.factor = factor
        self.register_buffer("kernel", torch.ones(3), persistent=False)

    def beside_mlp(self, normed):
        return self.factor * self.layer(normed)


@pytest.fixture
def encoder(small, randomise):
    return randomise(ImageEncoder(small)).requires_grad_(False)


def adapters_with(adapter, at):
    adapters = [BlockAdapter() for _ in range(4)]
    adapters[at] = adapter
    return adapters


@pytest.mark.parametrize("name", ["pos_embed", "patch_embed.proj.bias", "blocks.0.norm1.weight"])
def test_what_comes_first_ends_the_prefix_at_once(encoder, name):
    encoder.get_parameter(name).requires_grad_(True)
    assert frozen_prefix(encoder) == FrozenPrefix(0, neck=False)


@pytest.mark.parametrize("block", [0, 1, 2, 3])
def test_prefix_ends_at_the_first_trained_block_or_adapter(encoder, block):
    assert first_trained_block(encoder, adapters_with(Scaled(), block)) == block
    encoder.blocks[block].attn.rel_pos_h.requires_grad_(True)
    encoder.blocks[3].requires_grad_(True)
    assert first_trained_block(encoder) == block


def test_trained_neck_is_not_in_the_prefix(encoder):
    assert frozen_prefix(encoder) == FrozenPrefix(4, neck=True)
    encoder.neck[2].weight.requires_grad_(True)
    assert frozen_prefix(encoder) == FrozenPrefix(4, neck=False)


def test_frozen_adapters_belong_to_the_prefix(encoder):
    adapters = nn.ModuleList(Scaled() for _ in range(4)).requires_grad_(False)
    assert first_trained_block(encoder, adapters) == 4


@pytest.mark.parametrize(
    ("layer", "in_training", "in_evaluation"),
    [
        (nn.Dropout(0.1), 1, 4),
        (nn.BatchNorm1d(24, affine=False), 1, 4),
        (nn.BatchNorm1d(24, affine=False, track_running_stats=False), 1, 1),
        (nn.InstanceNorm1d(24), 4, 4),
        (nn.InstanceNorm1d(24, track_running_stats=True), 1, 4),
        (nn.LayerNorm(24), 4, 4),
    ],
)
def test_layers_that_act_differently_in_training_end_the_prefix(encoder, layer, in_training, in_evaluation):
    adapters = nn.ModuleList(adapters_with(Scaled(nn.Sequential(layer)), 1)).requires_grad_(False)
    assert first_trained_block(encoder, adapters.train()) == in_training
    assert first_trained_block(encoder, adapters.eval()) == in_evaluation


def test_wrong_number_of_adapters_is_refused(encoder):
    with pytest.raises(ConfigurationError, match="found 3"):
        first_trained_block(encoder, [BlockAdapter()] * 3)


@pytest.mark.parametrize(
    ("prefix", "name", "belongs"),
    [
        (FrozenPrefix(2, neck=False), "pos_embed", True),
        (FrozenPrefix(2, neck=False), "patch_embed.proj.weight", True),
        (FrozenPrefix(2, neck=False), "blocks.1.attn.rel_pos_w", True),
        (FrozenPrefix(2, neck=False), "blocks.2.norm1.weight", False),
        (FrozenPrefix(4, neck=False), "neck.0.weight", False),
        (FrozenPrefix(4, neck=True), "neck.0.weight", True),
    ],
)
def test_digest_depends_on_the_weights_of_the_prefix_alone(encoder, prefix, name, belongs):
    digests = PrefixDigests()
    before = digests.digest(encoder, prefix)
    with torch.no_grad():
        encoder.get_parameter(name).view(-1)[0] += 1e-3
    assert (digests.digest(encoder, prefix) != before) is belongs
    assert digests.digest(encoder, prefix) == PrefixDigests().digest(encoder, prefix)


def test_digest_depends_on_the_depth_and_on_options_without_tensors(encoder, small):
    digests = PrefixDigests()
    bilinear = ImageEncoder(small, pos_embed_mode="bilinear")
    bilinear.load_state_dict(encoder.state_dict())
    seen = {
        digests.digest(encoder, FrozenPrefix(2, neck=False)),
        digests.digest(encoder, FrozenPrefix(4, neck=False)),
        digests.digest(encoder, FrozenPrefix(4, neck=True)),
        digests.digest(bilinear, FrozenPrefix(4, neck=True)),
    }
    assert len(seen) == 4


def test_digest_depends_on_adapters_of_the_prefix_and_their_options(encoder):
    torch.manual_seed(0)
    digests, prefix = PrefixDigests(), FrozenPrefix(2, neck=False)
    adapter = Scaled()

    def digest(changed, at=1):
        return digests.digest(encoder, prefix, adapters_with(changed, at))

    copied, other_factor, other_weight, other_buffer = (copy.deepcopy(adapter) for _ in range(4))
    other_factor.factor = 0.25
    with torch.no_grad():
        other_weight.layer.weight += 1e-3
    other_buffer.kernel += 1
    assert digest(copied) == digest(adapter)
    assert len({digest(a) for a in (adapter, other_factor, other_weight, other_buffer)}) == 4
    assert digest(adapter, at=0) != digest(adapter)
    assert digest(adapter, at=2) == digests.digest(encoder, prefix)


def test_unchanged_weights_are_read_once(encoder, monkeypatch):
    read = []
    module = "nucsam_monai.networks.sam.cache.digest_of_tensors"
    monkeypatch.setattr(module, lambda tensors: read.append(len(tensors)) or str(len(read)))
    digests, prefix = PrefixDigests(), FrozenPrefix(4, neck=True)
    assert [digests.digest(encoder, prefix) for _ in range(3)] == [digests.digest(encoder, prefix)] * 3
    assert len(read) == 1
    encoder.load_state_dict(encoder.state_dict())
    digests.digest(encoder, prefix)
    assert len(read) == 2
    encoder.load_state_dict({n: t.clone() for n, t in encoder.state_dict().items()}, assign=True)
    digests.digest(encoder, prefix)
    assert len(read) == 3


def test_digests_travel_to_other_processes(encoder):
    digests, prefix = PrefixDigests(), FrozenPrefix(1, neck=False)
    before = digests.digest(encoder, prefix)
    assert pickle.loads(pickle.dumps(digests)).digest(encoder, prefix) == before
    assert copy.deepcopy(digests).digest(encoder, prefix) == before
