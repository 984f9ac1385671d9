import json

import pytest
import torch

from nucsam_monai.networks import Prompter, PromptNucSeg, start_from_other_classes
from nucsam_monai.networks.sam import save_trained
from nucsam_monai.utils.errors import CheckpointError

IMAGE = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def build(micro):
    def build_for(class_names, seed=0, **options):
        torch.manual_seed(seed)
        return PromptNucSeg(class_names, micro.name, 64, prompter={"backbone": "compact", **options}).eval()

    return build_for


@pytest.fixture
def transfer(tmp_path):
    def run(trained, other):
        path = tmp_path / "prompter.safetensors"
        save_trained(path, trained.prompter, trained.prompter_header)
        start_from_other_classes(path, other.prompter, other.prompter_header)
        with torch.no_grad():
            before, after = trained.prompter(IMAGE), other.prompter(IMAGE)
        torch.testing.assert_close(after.points, before.points)
        torch.testing.assert_close(after.mask_logits, before.mask_logits)
        return before.class_logits.softmax(dim=-1)[0], after.class_logits.softmax(dim=-1)[0]

    return run


def test_one_class_becomes_several_that_are_together_as_probable(build, transfer):
    before, after = transfer(build(["nucleus"]), build(["tumour", "stroma", "immune"], seed=1))
    torch.testing.assert_close(after[:, -1], before[:, -1])
    torch.testing.assert_close(after[:, :-1], before[:, :1].expand(-1, 3) / 3)


def test_classes_of_the_same_name_stay_themselves(build, transfer):
    before, after = transfer(
        build(["tumour", "stroma", "other"]), build(["stroma", "immune", "tumour"], seed=1)
    )
    torch.testing.assert_close(after, before[:, [1, 2, 0, 3]])


def test_classes_that_are_joined_begin_between_the_old_ones(build, transfer):
    before, after = transfer(build(["tumour", "stroma"]), build(["nucleus"], seed=1))
    old, new = before.log(), after.log()
    middle = (old[:, 0] + old[:, 1]) / 2 - old[:, 2] + torch.tensor(2.0).log()
    torch.testing.assert_close(new[:, 0] - new[:, 1], middle, atol=1e-4, rtol=1e-4)


def test_other_options_are_refused_and_nothing_is_changed(build, transfer):
    other = build(["tumour", "stroma"], levels=2)
    before = {name: tensor.clone() for name, tensor in other.prompter.state_dict().items()}
    with pytest.raises(CheckpointError, match="Only the classes may differ"):
        transfer(build(["nucleus"], levels=3), other)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.prompter.state_dict().items())


def test_a_file_without_classes_is_refused(build, tmp_path):
    network = build(["nucleus"])
    save_trained(tmp_path / "other.safetensors", network.prompter, network.prompter.header)
    with pytest.raises(CheckpointError, match="names no classes"):
        start_from_other_classes(tmp_path / "other.safetensors", network.prompter, network.prompter_header)


def test_a_file_with_tensors_of_another_network_is_refused(build, tmp_path):
    network = build(["nucleus"])
    header = {**network.prompter_header, "class_names": json.dumps(["a", "b"]), "n_classes": "2"}
    wrong = Prompter(4, options={"backbone": "compact"})
    save_trained(tmp_path / "other.safetensors", wrong, header)
    with pytest.raises(CheckpointError, match="Its options differ"):
        start_from_other_classes(tmp_path / "other.safetensors", network.prompter, network.prompter_header)
