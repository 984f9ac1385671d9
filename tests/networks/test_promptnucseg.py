import json

import pytest
import torch

from nucsam_monai.networks import MaskPrediction, PromptNucSeg, trained_classes
from nucsam_monai.networks.prompter import PrompterOutput
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
