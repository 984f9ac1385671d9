import pytest
import torch

from nucsam_monai.losses import DenselyTaughtLoss, NucleusTargets, SegmentorLoss
from nucsam_monai.networks import DenselyTaughtSegmentor, NucleusPrompts, Segmentor, TaughtPrediction
from nucsam_monai.utils.errors import ConfigurationError

PROMPTS = NucleusPrompts(torch.tensor([[[20.0, 30.0]]]), torch.tensor([[1]]), torch.tensor([1, 0]))


@pytest.fixture
def network(micro):
    torch.manual_seed(0)
    return DenselyTaughtSegmentor(micro.name, 64, finetune={"train_prompt_encoder": True})


def target():
    mask = torch.zeros(1, 64, 64)
    mask[:, 20:40, 10:30] = 1
    dense = torch.zeros(2, 3, 16, 16)
    dense[0, 0, 5:10, 3:8] = 1
    return NucleusTargets(mask, None, dense)


def test_in_evaluation_it_is_the_segmentor(network, micro, images):
    plain = Segmentor(micro.name, 64, finetune={"train_prompt_encoder": True}).eval()
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("dense_head.")})
    found, expected = network.eval()(images, PROMPTS), plain(images, PROMPTS)
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.iou, expected.iou)


def test_an_image_alone_is_refused_as_in_an_export(network, images):
    with pytest.raises(ConfigurationError, match=r"without prompts.* To export it use sam.safetensors"):
        torch.jit.trace(network.eval(), images)


def test_in_training_every_pixel_teaches_the_encoder(network, images):
    nothing = NucleusPrompts(torch.zeros(0, 1, 2), torch.zeros(0, 1, dtype=torch.long), torch.tensor([0, 0]))
    found = network.train()(images, nothing)
    assert isinstance(found, TaughtPrediction)
    assert {tuple(maps.shape) for maps in found.dense.values()} == {(2, 2, 16, 16)}
    truth = target()._replace(masks=torch.zeros(0, 64, 64))
    DenselyTaughtLoss(SegmentorLoss())(found, truth).backward()
    assert network.sam.image_encoder.patch_embed.proj.weight.grad.abs().max() > 0
    assert all(parameter.grad is not None for parameter in network.dense_head.parameters())


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_loss_is_the_weighted_sum(network, images, weight):
    output, truth = network.train()(images, PROMPTS), target()
    loss = DenselyTaughtLoss(SegmentorLoss(), weight)
    expected = SegmentorLoss()(output.masks, truth) + weight * loss.dense(output.dense, truth.dense)
    torch.testing.assert_close(loss(output, truth), expected)


def test_a_target_without_maps_and_a_negative_weight_are_refused(network, images):
    output = network.train()(images, PROMPTS)
    with pytest.raises(ConfigurationError, match="expected the item's 'dense'"):
        DenselyTaughtLoss(SegmentorLoss())(output, target()._replace(dense=None))
    with pytest.raises(ConfigurationError, match="dense_weight -1"):
        DenselyTaughtLoss(SegmentorLoss(), -1)


def test_its_weights_are_not_taken_for_a_segmentors(network, micro):
    assert network.header["method"] != Segmentor(micro.name, 64).header["method"]
