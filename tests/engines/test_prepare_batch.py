import pytest
import torch
from monai.data import list_data_collate
from monai.engines import SupervisedEvaluator

from nucsam_monai.engines.prepare_batch import PrepareDomainBatch, PreparePointsBatch, PrepareTruthBatch
from nucsam_monai.utils.errors import ConfigurationError


def collated(domains, **more):
    return list_data_collate(
        [{"image": torch.full((3, 4, 4), i), "domain": name, **more} for i, name in enumerate(domains)]
    )


def test_image_label_and_domain_are_handed_over():
    batch = collated(["a", "a"], label=torch.ones(1, 4, 4))
    image, label, positional, named = PrepareDomainBatch()(batch)
    assert image.shape == (2, 3, 4, 4)
    assert label.shape == (2, 1, 4, 4)
    assert positional == ()
    assert named == {"domain": "a"}


def test_label_domain_and_points_may_be_absent():
    image, label, positional, named = PrepareDomainBatch()({"image": torch.zeros(1, 3, 4, 4)})
    assert (label, positional, named) == (None, (), {})
    assert image.shape == (1, 3, 4, 4)


def test_points_are_handed_over_with_their_labels():
    batch = collated(["b"], points=torch.ones(5, 2), point_labels=torch.zeros(5))
    coordinates, labels = PrepareDomainBatch()(batch)[3]["points"]
    assert coordinates.shape == (1, 5, 2)
    assert labels.shape == (1, 5)


def test_everything_goes_to_the_device_in_the_type_asked_for():
    batch = collated(["b"], label=torch.ones(1, 4, 4), points=torch.ones(5, 2), point_labels=torch.zeros(5))
    image, label, _, named = PrepareDomainBatch()(batch, device="meta", dtype=torch.float16)
    for tensor in (image, label, *named["points"]):
        assert tensor.is_meta
        assert tensor.dtype == torch.float16


def test_batches_of_several_domains_are_refused():
    with pytest.raises(ConfigurationError, match=r"images of one domain, found \['a', 'b'\]"):
        PrepareDomainBatch()(collated(["b", "a"]))


def test_networks_without_domains_are_not_told_of_any():
    _, _, _, named = PreparePointsBatch()(
        collated(["a", "b"], points=torch.ones(5, 2), point_labels=torch.ones(5))
    )
    assert list(named) == ["points"]


@pytest.mark.parametrize("channels", [1, 2])
def test_the_mask_of_the_ground_truth_is_handed_over_beside_the_label(channels):
    batch = collated(["a", "b"], label=torch.arange(channels).view(-1, 1, 1).expand(channels, 4, 4))
    _, label, _, named = PrepareTruthBatch()(batch)
    assert list(named) == ["truth"]
    assert label.shape == (2, channels, 4, 4)
    assert torch.equal(named["truth"], label[:, :1])
    assert PrepareTruthBatch()(batch, device="meta")[3]["truth"].is_meta


def test_monai_s_engines_call_the_network_with_it():
    seen = []

    class Network(torch.nn.Module):
        def forward(self, image, domain=None, points=None):
            seen.append((image.shape[0], domain, points))
            return image

    batches = [collated(["a", "a"]), collated(["b"])]
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=batches,
        network=Network(),
        prepare_batch=PrepareDomainBatch(),
        decollate=False,
    )
    evaluator.run()
    assert seen == [(2, "a", None), (1, "b", None)]
