import copy

import pytest
import torch
from safetensors import safe_open

from nucsam_monai.networks import SAC
from nucsam_monai.networks.sam import load_trained, save_trained
from nucsam_monai.utils.errors import CheckpointError

CLICKS = (torch.tensor([[[10.0, 20.0]], [[30.0, 8.0]]]), torch.ones(2, 1, dtype=torch.long))


def parts(path):
    with safe_open(path, framework="pt") as file:
        return {".".join(name.split(".")[:2]) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("adapter", ["none", "lora", "msa", "head", "full"])
def test_vanilla_sam_gives_sam_s_masks_whatever_the_adapter_at_its_start(
    micro_sac, official, images, adapter
):
    sam, path = official
    network = micro_sac(adapter=adapter, generator={"n_points": 0}, sam_checkpoint=path).eval()
    expected = sam(images, *CLICKS, [1, 1]).logits
    prompts, _ = network.prompts(images, CLICKS)
    torch.testing.assert_close(network.decode(images, prompts), expected)


@pytest.mark.parametrize("adapter", ["none", "lora", "msa", "head", "full", "samus"])
def test_trained_weights_survive_a_round_trip(micro_sac, official, images, tmp_path, adapter):
    options = {"adapter": adapter, "sam_checkpoint": official[1], "generator": {"tau": 0.5}}
    trained = micro_sac(**options)
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    trained.train()(images)  # moves the statistics of the generator and of SAMUS's branch
    file = tmp_path / "sac.safetensors"
    save_trained(file, trained, trained.header)
    restored = micro_sac(**options)
    assert not torch.allclose(restored.eval()(images), trained.eval()(images))
    load_trained(file, restored, restored.header)
    assert torch.equal(restored(images), trained(images))
    frozen = {"none": "neck", "full": "blocks"}.get(adapter, "")
    expected = {"generator.unet", "sam.mask_decoder"}
    expected |= {f"adapters.{block}" for block in range(4)} if adapter in ("lora", "msa") else set()
    expected |= {"sam.image_encoder"} if frozen else set()
    expected |= {f"samus.{name}" for name, _ in trained.samus.named_children()} if trained.samus else set()
    expected |= {"sam.prompt_encoder"} if adapter == "full" else set()
    assert parts(file) == expected


def test_frozen_generator_is_saved_as_well(micro_sac, official, tmp_path):
    network = micro_sac(sam_checkpoint=official[1], generator={"training": "pretrain", "pretrain_epochs": 1})
    network.begin_epoch(1)
    save_trained(tmp_path / "sac.safetensors", network, network.header)
    assert "generator.unet" in parts(tmp_path / "sac.safetensors")


@pytest.mark.parametrize(
    "other",
    [
        {"adapter": "msa"},
        {"lora": {"rank": 4}},
        {"generator": {"n_points": 3}},
        {"generator": {"selection": "R"}},
        {"sam": {"train_prompt_encoder": True}},
    ],
)
def test_weights_of_other_options_are_refused(micro_sac, official, tmp_path, other):
    network = micro_sac(sam_checkpoint=official[1])
    save_trained(tmp_path / "sac.safetensors", network, network.header)
    changed = micro_sac(sam_checkpoint=official[1], **other)
    before = copy.deepcopy(changed.state_dict())
    with pytest.raises(CheckpointError, match=r"its options is .* but this network's is"):
        load_trained(tmp_path / "sac.safetensors", changed, changed.header)
    assert all(torch.equal(tensor, before[name]) for name, tensor in changed.state_dict().items())


def test_weights_of_another_base_are_refused(micro_sac, official, tmp_path):
    network = micro_sac(sam_checkpoint=official[1])
    save_trained(tmp_path / "sac.safetensors", network, network.header)
    with pytest.raises(CheckpointError, match="trained on other frozen weights"):
        load_trained(tmp_path / "sac.safetensors", micro_sac(), network.header)


def test_checkpoint_of_another_variant_is_refused(official):
    with pytest.raises(CheckpointError, match=r"'micro', but 'vit_tiny' was asked for"):
        SAC("vit_tiny", 64, sam_checkpoint=official[1])
