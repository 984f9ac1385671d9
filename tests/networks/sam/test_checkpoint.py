import dataclasses
import os

import pytest
import safetensors.torch
import torch

from nucsam_monai.networks.sam import (
    ImageEncoder,
    build_sam,
    load_official_checkpoint,
    load_strictly,
    sam_variant,
    save_sam,
    save_trained,
)
from nucsam_monai.utils.errors import CheckpointError


@pytest.fixture
def sam(small, randomise):
    return randomise(build_sam(small, 24), seed=7)


@pytest.fixture
def checkpoint(sam, tmp_path):
    path = tmp_path / "sam_small.pth"
    torch.save(sam.state_dict(), path)
    return path


def save(state, path):
    if path.suffix == ".pth":
        torch.save(state, path)
    else:
        safetensors.torch.save_file(state, path)


def save_changed(sam, path, change):
    state = dict(sam.state_dict())
    change(state)
    torch.save(state, path)
    return path


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_official_layout_loads_every_tensor(small, sam, tmp_path, suffix, caplog):
    path = tmp_path / f"weights{suffix}"
    save(sam.state_dict(), path)
    with caplog.at_level("INFO"):
        loaded = build_sam(small, 28, checkpoint=path)
    for name, tensor in sam.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix" in loaded.state_dict()
    assert [record.args[2] for record in caplog.records] == ["ImageEncoder", "PromptEncoder", "MaskDecoder"]
    inputs = (torch.randn(1, 3, 24, 24), torch.ones(1, 1, 2), torch.ones(1, 1), torch.tensor([1]))
    torch.testing.assert_close(loaded(*inputs).logits, sam(*inputs).logits)


def test_one_part_loads_into_an_existing_module(small, sam, checkpoint):
    encoder = ImageEncoder(small)
    parameter = encoder.pos_embed
    load_strictly(encoder, load_official_checkpoint(checkpoint, small).image_encoder, source="file")
    assert encoder.pos_embed is parameter  # an optimizer made before still holds it
    assert torch.equal(parameter, sam.image_encoder.pos_embed)


def test_half_precision_files_become_float32(small, sam, tmp_path):
    path = tmp_path / "half.pth"
    torch.save({name: tensor.half() for name, tensor in sam.state_dict().items()}, path)
    loaded = build_sam(small, 24, checkpoint=path)
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32}


def test_another_variant_is_named_in_one_sentence(tmp_path, checkpoint):
    tiny = tmp_path / "tiny.pth"
    torch.save(build_sam("vit_tiny", 64).state_dict(), tiny)
    with pytest.raises(
        CheckpointError, match=r"of SAM variant 'vit_tiny', but 'vit_b' was asked for"
    ) as error:
        load_official_checkpoint(tiny, sam_variant("vit_b"))
    assert "sam_vit_b_01ec64.pth" in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(CheckpointError, match=r"unknown to this package \(depth 4, width 24\)"):
        load_official_checkpoint(checkpoint, sam_variant("vit_h"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("mask_decoder.iou_token.weight"), r"1 missing \(first: iou_token.weight\)"),
        (
            lambda state: state.pop("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
            "positional_encoding_gaussian_matrix",
        ),
        (
            lambda state: state.update({"image_encoder.blocks.0.lora": torch.zeros(1)}),
            r"1 unexpected \(first: blocks.0.lora\)",
        ),
        (
            lambda state: state.update({"mask_decoder.iou_token.weight": torch.zeros(2, 32)}),
            r"1 of another shape \(first: iou_token.weight, found \(2, 32\), expected \(1, 32\)\)",
        ),
        (lambda state: state.update({"head.weight": torch.zeros(1)}), "not a plain SAM"),
        (lambda state: state.pop("image_encoder.pos_embed"), "not a SAM checkpoint"),
        (lambda state: state.update({"epoch": 3}), "state dict of tensors only"),
    ],
)
def test_anything_but_that_sam_is_refused(small, sam, tmp_path, change, message):
    path = save_changed(sam, tmp_path / "changed.pth", change)
    with pytest.raises(CheckpointError, match=message):
        build_sam(small, 24, checkpoint=path)


def test_a_refused_part_changes_nothing(small, sam):
    encoder = ImageEncoder(small)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    state = sam.image_encoder.state_dict()
    del state["neck.3.bias"]
    with pytest.raises(CheckpointError, match=r"neck\.3\.bias"):
        load_strictly(encoder, state, source="file")
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_other_relative_tables_are_not_taken_silently(small, sam, checkpoint):
    wider = dataclasses.replace(small, window=7)
    with pytest.raises(CheckpointError, match="rel_pos_h"):
        build_sam(wider, 24, checkpoint=checkpoint)


class Hostile:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_hostile_file_is_refused_and_not_run(small, tmp_path):
    target, path = tmp_path / "made_by_the_file", tmp_path / "hostile.pth"
    torch.save({"image_encoder.pos_embed": Hostile(target)}, path)
    with pytest.raises(CheckpointError, match="more than tensors") as caught:
        load_official_checkpoint(path, small)
    assert "weights_only" not in str(caught.value)  # PyTorch's advice is to switch the refusal off
    assert not target.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
def test_wrappers_of_trainings_are_taken_off(small, sam, tmp_path, suffix, wrapper):
    state = {f"module.{name}": tensor for name, tensor in sam.state_dict().items()}
    if suffix == ".pth" and wrapper:
        state = {wrapper: state, "optimizer": {"lr": 1e-3}, "epoch": 3}
    path = tmp_path / f"weights{suffix}"
    save(state, path)
    loaded = build_sam(small, 24, checkpoint=path).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in sam.state_dict().items())


def test_a_dictionary_without_a_state_dict_is_refused(small, tmp_path):
    torch.save({"epoch": 3}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="by itself or under model, state_dict"):
        load_official_checkpoint(tmp_path / "weights.pth", small)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 7, 2000])
def test_damaged_file_is_refused(small, sam, tmp_path, suffix, kept):
    path = tmp_path / f"damaged{suffix}"
    save(sam.state_dict(), path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="damaged"):
        load_official_checkpoint(path, small)


@pytest.mark.parametrize("name", ["none.pth", "none.safetensors"])
def test_missing_file_is_refused(small, tmp_path, name):
    with pytest.raises(CheckpointError, match=f"{name}: no such file"):
        build_sam(small, 24, checkpoint=tmp_path / name)


@pytest.fixture
def own_file(small, sam, tmp_path):
    path = tmp_path / "sam.safetensors"
    save_sam(path, sam.state_dict(), small, 24, {"epoch": "7"})
    return path


def with_header(path, change):
    with safetensors.safe_open(path, framework="pt") as file:
        header = dict(file.metadata())
    tensors = safetensors.torch.load_file(path)
    change(header, tensors)
    safetensors.torch.save_file(tensors, path, metadata=header)


def test_a_saved_sam_is_a_checkpoint_that_names_what_it_is(small, sam, own_file):
    loaded = build_sam(small, 28, checkpoint=own_file).state_dict()
    assert loaded.keys() == sam.state_dict().keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in sam.state_dict().items())
    with safetensors.safe_open(own_file, framework="pt") as file:
        header = file.metadata()
    assert (header["sam_variant"], header["image_size"], header["epoch"]) == (small.name, "24", "7")
    assert len(header["tensors_sha256"]) == 64


def change_a_tensor(_header, tensors):
    tensors["mask_decoder.iou_token.weight"] += 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_a_tensor, "its tensors are not what was written"),
        (lambda header, _: header.update(sam_variant="vit_x"), "of SAM variant 'vit_x', but"),
        (lambda header, _: header.pop("tensors_sha256"), "its tensors are not what was written"),
    ],
)
def test_a_saved_sam_that_is_not_what_it_says_is_refused(small, own_file, change, message):
    with_header(own_file, change)
    with pytest.raises(CheckpointError, match=message):
        build_sam(small, 24, checkpoint=own_file)


def test_a_saved_sam_of_another_variant_is_refused(own_file):
    with pytest.raises(CheckpointError, match="'vit_tiny' was asked for"):
        build_sam("vit_tiny", 64, checkpoint=own_file)


def test_trained_weights_of_a_method_are_not_a_sam(small, sam, tmp_path):
    path = tmp_path / "model.safetensors"
    save_trained(path, sam, {"method": "segmentor", "sam_variant": small.name})
    with pytest.raises(CheckpointError, match="trained of 'segmentor', not a whole SAM"):
        build_sam(small, 24, checkpoint=path)


def test_only_a_sam_of_the_variant_is_saved_and_only_as_safetensors(small, sam, tmp_path):
    state = sam.state_dict()
    with pytest.raises(CheckpointError, match="not of SAM variant 'vit_tiny'"):
        save_sam(tmp_path / "sam.safetensors", state, sam_variant("vit_tiny"), 24)
    with pytest.raises(CheckpointError, match=r"ends with \.safetensors"):
        save_sam(tmp_path / "sam.pth", state, small, 24)
    assert list(tmp_path.iterdir()) == []
