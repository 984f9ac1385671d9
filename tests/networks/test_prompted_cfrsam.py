import dataclasses

import pytest
import torch

from nucsam_monai.networks import NucleusPrompts, PromptedCFRSAM
from nucsam_monai.networks.sam import SAM_VARIANTS
from nucsam_monai.utils.errors import ConfigurationError
from tests.networks.conftest import MICRO

WIDE = dataclasses.replace(MICRO, name="wide", window=4)


@pytest.fixture
def build(monkeypatch):
    monkeypatch.setitem(SAM_VARIANTS, WIDE.name, WIDE)

    def build(**options):
        torch.manual_seed(0)
        segmentor = {"mala": {"rank": 4}, "train_sam": True, **options}
        prompter = {"backbone": "compact", "channels": 16}
        return PromptedCFRSAM(["a", "b"], WIDE.name, 64, prompter=prompter, segmentor=segmentor).eval()

    return build


@pytest.mark.parametrize("prompt", ["point", "box"])
def test_any_nucleus_is_the_highest_of_all_refined_masks(build, images, prompt):
    network = build(prompt=prompt)
    with torch.no_grad():
        logits = network.prompter(images).class_logits[1]
        some_are_background = (logits[:, :2].amax(dim=1) - logits[:, 2]).median()
        network.prompter.classification[-1].bias[2] += some_are_background
        found = network.prompter(images)
        logits = network(images)
    assert logits.shape == (2, 1, 64, 64)
    nuclei = found.class_logits[1].argmax(dim=-1) < 2
    assert 0 < nuclei.sum() < len(nuclei)
    points = found.points[1, nuclei].clamp(0, 63)[:, None]
    if prompt == "box":
        half = found.sizes[1, nuclei][:, None] / 2
        points = torch.cat([points - half, points + half], dim=1).clamp(0, 63)
    labels = torch.ones(points.shape[:2], dtype=torch.long)
    asked = NucleusPrompts(points, labels, torch.tensor([len(points)]))
    with torch.no_grad():
        masks = network.decode(network.encode(images[1:]), asked).logits
    torch.testing.assert_close(logits[1], masks.amax(dim=0).clamp_min(-20), rtol=1e-4, atol=1e-4)


def test_the_prompter_predicts_sizes_for_boxes_alone(build):
    assert build().prompter.sizes is None
    assert build(prompt="box").prompter.sizes is not None
    assert "sizes" not in build().prompter_header["options"]
    assert '"sizes": true' in build(prompt="box").prompter_header["options"]
    assert build().prompter_header["class_names"] == '["a", "b"]'


def test_all_of_sam_learns_from_scratch(build):
    network = build().segmentor
    assert all(parameter.requires_grad for parameter in network.parameters())
    frozen = build(train_sam=False).segmentor
    assert not any(parameter.requires_grad for parameter in frozen.sam.image_encoder.parameters())


@pytest.mark.parametrize("names", ["ab", [], ["a", "a"]])
def test_wrong_class_names_are_refused(names):
    with pytest.raises(ConfigurationError, match="expected a list of different names"):
        PromptedCFRSAM(names, "vit_tiny")
