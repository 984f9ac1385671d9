import copy
import json

import pytest
import safetensors.torch
import torch
from torch import nn

import nucsam_monai
from nucsam_monai.networks.sam import (
    build_sam,
    frozen_digest,
    load_trained,
    read_header,
    save_trained,
    trained_setting,
    with_settings,
)
from nucsam_monai.networks.sam.weights import digest_of_tensors
from nucsam_monai.utils.errors import CheckpointError, ConfigurationError

HEADER = {"method": "headed", "sam_variant": "small", "domains": "dsb, monuseg"}
EXPECTED = {"method": "headed", "sam_variant": "small"}


class Headed(nn.Module):
    """A frozen encoder, a trained decoder and a trained head with batch normalisation."""

    def __init__(self, sam, channels=3):
        super().__init__()
        self.sam = sam.requires_grad_(False)
        self.sam.mask_decoder.requires_grad_(True)
        self.head = nn.Sequential(nn.Conv2d(32, channels, 1), nn.BatchNorm2d(channels, affine=False))

    def forward(self, image):
        return self.head(self.sam.image_encoder(image).embedding)


@pytest.fixture
def base(small, randomise):
    return randomise(build_sam(small, 24), seed=11)


@pytest.fixture
def trained(base):
    torch.manual_seed(1)
    network = Headed(copy.deepcopy(base))
    network(torch.randn(4, 3, 24, 24))  # moves the statistics of batch normalisation
    return network.eval()


@pytest.fixture
def fresh(base, randomise, small):
    torch.manual_seed(2)
    network = Headed(copy.deepcopy(base))
    network.sam.mask_decoder.load_state_dict(
        randomise(build_sam(small, 24), seed=12).mask_decoder.state_dict()
    )
    return network.eval()


@pytest.fixture
def path(trained, tmp_path):
    save_trained(tmp_path / "model.safetensors", trained, HEADER)
    return tmp_path / "model.safetensors"


def rewrite(path, change_tensors=None, change_header=None):
    with safetensors.safe_open(path, framework="pt") as file:
        tensors, header = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    if change_tensors:
        change_tensors(tensors)
        header.pop("tensors_sha256")  # as in files that were written without it
    if change_header:
        change_header(header)
    safetensors.torch.save_file(tensors, path, metadata=header)


def assert_refused_without_change(path, network, message, expected=None):
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(CheckpointError, match=message) as error:
        load_trained(path, network, expected or EXPECTED)
    assert "\n" not in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_round_trip_gives_the_same_network(trained, fresh, path):
    header = load_trained(path, fresh, EXPECTED)
    for name, tensor in trained.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], tensor), name
    image = torch.randn(1, 3, 24, 24)
    assert torch.equal(fresh(image), trained(image))
    assert header == read_header(path)


def test_file_holds_what_was_trained_and_nothing_else(path):
    names = set(safetensors.torch.load_file(path))
    assert {"head.0.weight", "head.1.running_mean", "head.1.num_batches_tracked"} <= names
    assert "sam.mask_decoder.iou_token.weight" in names
    assert not any(name.startswith(("sam.image_encoder", "sam.prompt_encoder")) for name in names)


def test_a_trained_prompt_encoder_keeps_its_gaussian_matrix(trained, tmp_path):
    trained.sam.prompt_encoder.requires_grad_(True)
    save_trained(tmp_path / "model.safetensors", trained, HEADER)
    names = set(safetensors.torch.load_file(tmp_path / "model.safetensors"))
    assert "sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix" in names


def test_header_says_where_the_weights_come_from(trained, path):
    header = read_header(path)
    assert header == {
        **HEADER,
        "format": "nucsam_monai.trained.1",
        "frozen_sha256": frozen_digest(trained),
        "tensors_sha256": digest_of_tensors(safetensors.torch.load_file(path)),
        "nucsam_monai_version": nucsam_monai.__version__,
        "torch_version": torch.__version__,
    }


def test_equal_weights_are_equal_bytes_in_every_process(trained, path, tmp_path):
    save_trained(tmp_path / "again.safetensors", trained, dict(reversed(HEADER.items())))
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert list(header["__metadata__"]) == sorted(header["__metadata__"])


def test_overwritten_bytes_are_noticed(path, fresh):
    with path.open("r+b") as file:
        file.seek(-300, 2)
        file.write(bytes(100))
    assert_refused_without_change(path, fresh, "damaged, its tensors are not what was written")


def test_files_without_a_digest_load(trained, path, fresh):
    rewrite(path, change_header=lambda header: header.pop("tensors_sha256"))
    load_trained(path, fresh, EXPECTED)
    assert torch.equal(fresh.head[0].weight, trained.head[0].weight)


def test_digest_sees_the_frozen_tensors_only(trained):
    digest = frozen_digest(trained)
    with torch.no_grad():
        trained.head[0].weight.add_(1)
        trained.head[1].running_mean.add_(1)
        assert frozen_digest(trained) == digest
        trained.sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix[0, 0] += 1e-3
    assert frozen_digest(trained) != digest


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({**EXPECTED, "method": "other"}, "its method is 'headed', but this network's is 'other'"),
        ({**EXPECTED, "sam_variant": "vit_b"}, "its sam_variant is 'small'"),
        ({**EXPECTED, "classes": "5"}, "its classes is 'not named'"),
    ],
)
def test_another_network_is_refused(fresh, path, expected, message):
    assert_refused_without_change(path, fresh, message, expected)


def test_another_frozen_base_is_refused(fresh, path):
    with torch.no_grad():
        fresh.sam.image_encoder.pos_embed[0, 0, 0, 0] += 1e-3
    assert_refused_without_change(path, fresh, "trained on other frozen weights")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("head.1.running_var"), r"1 missing \(first: head.1.running_var\)"),
        (lambda tensors: tensors.update(extra=torch.ones(1)), r"1 unexpected \(first: extra\)"),
        (lambda tensors: tensors.update({"head.0.bias": torch.ones(4)}), r"found \(4,\), expected \(3,\)"),
    ],
)
def test_other_tensors_are_refused(fresh, path, change, message):
    rewrite(path, change_tensors=change)
    assert_refused_without_change(path, fresh, message)


def test_network_with_another_head_is_refused(base, path):
    assert_refused_without_change(path, Headed(base, channels=5), "of another shape")


def test_network_with_another_trained_part_is_refused(fresh, path):
    fresh.sam.mask_decoder.requires_grad_(False)
    assert_refused_without_change(path, fresh, r"unexpected \(first: sam.mask_decoder")


def test_damaged_foreign_and_missing_files_are_refused(fresh, path, tmp_path):
    content = path.read_bytes()
    for kept in (0, 5, 400, len(content) - 1):
        path.write_bytes(content[:kept])
        assert_refused_without_change(path, fresh, "damaged")
    torch.save({"a": torch.ones(1)}, path)
    assert_refused_without_change(path, fresh, "written by torch.save, expected a safetensors file")
    safetensors.torch.save_file({"a": torch.ones(1)}, path)
    assert_refused_without_change(path, fresh, "its format is 'not named'")
    assert_refused_without_change(tmp_path / "none.safetensors", fresh, "no such file")


@pytest.mark.parametrize(
    "header",
    [{"method": "headed"}, {}, {**HEADER, "frozen_sha256": "0"}, {**HEADER, "epochs": 3}],
)
def test_bad_header_is_refused_and_leaves_no_file(trained, tmp_path, header):
    with pytest.raises(ConfigurationError, match="header"):
        save_trained(tmp_path / "model.safetensors", trained, header)
    assert list(tmp_path.iterdir()) == []


def test_failed_writing_keeps_the_old_file(trained, path, monkeypatch):
    content = path.read_bytes()

    def fail(tensors, filename, metadata):
        filename.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_trained(path, trained, HEADER)
    assert path.read_bytes() == content
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_loading_needs_to_know_what_it_expects(fresh, path):
    with pytest.raises(ConfigurationError, match="method, sam_variant are required"):
        load_trained(path, fresh, {})


def test_weights_say_how_inference_has_to_treat_images(tmp_path):
    network, told = (
        nn.Linear(2, 2),
        {"pixel_std": "image", "distance_rule": {"min_area_px": 9}, "points": None},
    )
    save_trained(tmp_path / "told.safetensors", network, with_settings(EXPECTED, told))
    save_trained(tmp_path / "silent.safetensors", network, EXPECTED)
    for name, value in told.items():
        assert trained_setting(tmp_path / "told.safetensors", name, "default") == value
    for path in (tmp_path / "silent.safetensors", tmp_path / "missing.safetensors", None):
        assert trained_setting(path, "pixel_std", "default") == "default"
    assert trained_setting(tmp_path / "told.safetensors", "threshold", 0.5) == 0.5
    assert load_trained(tmp_path / "told.safetensors", network, EXPECTED)["method"] == "headed"
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError):
        trained_setting(tmp_path / "broken.safetensors", "pixel_std", "default")
