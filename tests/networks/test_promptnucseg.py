import json

import pytest
import torch

from nucsam_monai.networks import MaskPrediction, PromptNucSeg, load_networks, trained_classes, weights_file
from nucsam_monai.networks.prompter import PrompterOutput
from nucsam_monai.networks.promptnucseg import PARTS
from nucsam_monai.networks.sam import save_trained
from nucsam_monai.utils.errors import CheckpointError, ConfigurationError

COMPACT = {"backbone": "compact", "levels": 1}


@pytest.fixture
def network(micro):
    torch.manual_seed(0)
    return PromptNucSeg(["a", "b"], micro.name, 64, prompter=COMPACT).eval()


def test_the_foreground_is_the_highest_mask_of_each_images_points(network, monkeypatch):
    points = torch.tensor([[[5.0, 6], [99, 9]], [[1, 1], [2, 2]]])
    logits = torch.tensor([[[2.0, 0, 1], [0, 2, 1]], [[0, 0, 1], [0, 0, 1]]])
    monkeypatch.setattr(
        network.prompter, "forward", lambda image, with_mask: PrompterOutput(points, logits, None)
    )
    seen = []

    def decode(embedding, prompts):
        seen.append(prompts)
        values = torch.tensor([3.0, -2.0])[:, None, None, None]
        return MaskPrediction(values.expand(2, 1, 16, 16), torch.zeros(2, 1))

    monkeypatch.setattr(network.segmentor, "decode", decode)
    foreground = network(torch.zeros(2, 3, 64, 64))
    assert foreground.shape == (2, 1, 64, 64)
    assert torch.all(foreground[0] == 3)
    assert torch.all(foreground[1] < -10)
    (prompts,) = seen
    assert prompts.points.tolist() == [[[5, 6]], [[63, 9]]]
    assert prompts.prompts_per_image.tolist() == [2, 0]
    assert torch.all(prompts.labels == 1)


def test_images_do_not_influence_each_other(network):
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            network(images), torch.cat([network(one[None]) for one in images]), rtol=1e-4, atol=1e-4
        )


def test_the_parts_are_built_for_the_classes(micro):
    assert PromptNucSeg(["a"], micro.name, 64, prompter=COMPACT).segmentor.classes == 0
    both = PromptNucSeg(["a", "b"], micro.name, 64, prompter=COMPACT, segmentor_classifies=True)
    assert (both.prompter.n_classes, both.segmentor.classes) == (2, 2)


@pytest.mark.parametrize("names", [[], ["a", "a"], "ab"])
def test_class_names_are_different_names(names):
    with pytest.raises(ConfigurationError, match="class_names"):
        PromptNucSeg(names, "vit_tiny")


def test_the_names_of_the_classes_are_in_the_prompters_weights(network, tmp_path):
    path = tmp_path / "prompter.safetensors"
    assert trained_classes(str(path), ["x"]) == trained_classes(None, ["x"]) == ["x"]
    save_trained(path, network.prompter, network.prompter_header)
    assert trained_classes(str(path), ["x"]) == ["a", "b"]
    save_trained(path, network.segmentor, network.segmentor.header)
    with pytest.raises(CheckpointError, match="names no classes"):
        trained_classes(str(path), ["x"])
    assert json.loads(network.prompter_header["class_names"]) == ["a", "b"]


@pytest.fixture
def compact(micro_trunk):
    """Build both networks on one encoder with a trunk."""

    def build(seed=0):
        torch.manual_seed(seed)
        options = {"backbone": "shared", "levels": 2}
        learns = {"train_prompt_encoder": True}
        return PromptNucSeg(["a", "b"], micro_trunk.name, 64, prompter=options, finetune=learns)

    return build


def test_a_shared_prompter_reads_the_maps_of_the_trunk(compact):
    network = compact().eval()
    image = torch.randn(1, 3, 64, 64)
    features = network.encode(image)
    found = network.propose(features)
    assert (found.points.shape, found.mask_logits.shape) == ((1, 64, 2), (1, 1, 64, 64))
    finest = features.pyramid[1]
    changed = features._replace(pyramid=(features.pyramid[0], finest + 1, features.pyramid[2]))
    assert not torch.equal(network.propose(changed).class_logits, found.class_logits)
    assert network(image).shape == (1, 1, 64, 64)


@pytest.mark.parametrize("given", ["both", "prompter", "segmentor"])
def test_one_file_holds_both_networks(compact, tmp_path, given):
    trained, network = compact(1), compact(2)
    path = str(tmp_path / "model.safetensors")
    save_trained(path, trained, trained.header)
    assert trained_classes(path, ["x"]) == ["a", "b"]
    parts = [weights_file(path, part) if given in ("both", part) else None for part in PARTS]
    load_networks(network, *parts)
    expected = trained.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())


def test_each_network_may_come_from_a_file_of_its_own(compact, tmp_path):
    trained, network = compact(1), compact(2)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    save_trained(tmp_path / "prompter.safetensors", trained.prompter, trained.prompter_header)
    save_trained(tmp_path / "segmentor.safetensors", trained.segmentor, trained.segmentor.header)
    load_networks(network, weights_file(str(tmp_path), "prompter"), None)
    assert torch.equal(network.prompter.fusion.weight, trained.prompter.fusion.weight)
    pos_embed = "segmentor.sam.image_encoder.pos_embed"
    assert torch.equal(network.state_dict()[pos_embed], before[pos_embed])
    load_networks(network, None, weights_file(str(tmp_path), "segmentor"))
    assert torch.equal(network.state_dict()[pos_embed], trained.state_dict()[pos_embed])
