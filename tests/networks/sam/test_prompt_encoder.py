import pytest
import torch
from segment_anything.modeling import PromptEncoder as OfficialPromptEncoder

from nucsam_monai.networks.sam import build_prompt_encoder

POINTS = torch.tensor([[[3.0, 5.0], [23.0, 1.5], [0.0, 0.0]], [[9.0, 2.0], [4.0, 31.0], [7.0, 8.0]]])
LABELS = torch.tensor([[1, 0, -1], [1, 1, 0]])
BOXES = torch.tensor([[1.0, 2.0, 9.0, 12.0], [0.0, 0.0, 23.0, 31.0]])


@pytest.fixture
def encoder(small, randomise):
    return randomise(build_prompt_encoder(small, (32, 24)))


def official(encoder, image_size=(32, 24)):
    reference = OfficialPromptEncoder(
        embed_dim=32,
        image_embedding_size=(image_size[0] // 4, image_size[1] // 4),
        input_image_size=image_size,
        mask_in_chans=8,
    )
    reference.load_state_dict(encoder.state_dict())
    return reference


def assert_same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("points", [None, (POINTS, LABELS), (POINTS[:, :1], LABELS[:, :1])])
@pytest.mark.parametrize("boxes", [None, BOXES])
@pytest.mark.parametrize("masks", [None, torch.randn(2, 1, 32, 24)])
def test_equals_the_official_encoder(encoder, points, boxes, masks):
    assert_same(encoder(points, boxes, masks), official(encoder)(points=points, boxes=boxes, masks=masks))


def test_coordinates_are_normalised_by_the_actual_image_size(encoder):
    expected = official(encoder, (16, 48))(points=(POINTS, LABELS), boxes=BOXES, masks=None)
    assert_same(encoder((POINTS, LABELS), BOXES, image_size=(16, 48)), expected)


def test_position_code_at_any_grid(encoder):
    torch.testing.assert_close(encoder.position_code((8, 6)), official(encoder).get_dense_pe())
    torch.testing.assert_close(encoder.position_code((4, 12)), official(encoder, (16, 48)).get_dense_pe())


def test_no_prompts_give_empty_tokens(encoder):
    sparse, dense = encoder((torch.zeros(0, 3, 2), torch.zeros(0, 3)))
    assert sparse.shape == (0, 4, 32)
    assert dense.shape == (0, 32, 8, 6)


@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.float32, torch.int32])
def test_type_of_the_labels_does_not_matter(encoder, kind):
    labels = LABELS.clamp(min=0)
    assert_same(encoder((POINTS, labels.to(kind))), encoder((POINTS, labels)))


def test_autocast_does_not_blur_positions(encoder):
    expected = encoder((POINTS, LABELS), None, torch.ones(2, 1, 32, 24))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = encoder((POINTS, LABELS), None, torch.ones(2, 1, 32, 24))
        code = encoder.position_code((8, 6))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(code, encoder.position_code((8, 6)))


def test_inputs_stay_as_they_are(encoder):
    points, boxes = POINTS.clone(), BOXES.clone()
    encoder((points, LABELS), boxes)
    assert torch.equal(points, POINTS)
    assert torch.equal(boxes, BOXES)


def test_prompts_pass_gradients_to_coordinates(encoder):
    points = POINTS.clone().requires_grad_()
    encoder((points, LABELS))[0].sum().backward()
    assert points.grad[1].abs().min() > 0
    assert points.grad[0, 2].abs().max() == 0  # padding has no position


def test_boxes_may_be_points_with_labels_of_their_own(encoder):
    """A batch of a point and a box, filled up to one length, has the tokens of both."""
    points = torch.stack([torch.stack([POINTS[0, 0], torch.zeros(2)]), BOXES[0].reshape(2, 2)])
    sparse, _ = encoder((points, torch.tensor([[1, -1], [2, 3]])), pad=False)
    torch.testing.assert_close(sparse[:1], encoder((POINTS[:1, :1], LABELS[:1, :1]))[0])
    torch.testing.assert_close(sparse[1:], encoder(boxes=BOXES[:1])[0])


def test_a_prompt_is_in_the_middle_of_its_points_or_its_box(encoder):
    labels = torch.tensor([[1, 0, -1], [1, 1, 0]])
    expected = torch.tensor([[3.5 / 24, 5.5 / 32], [7.0 / 24, 17.0 / 32]])
    torch.testing.assert_close(encoder.places(POINTS, labels), expected)
    corners = BOXES.reshape(2, 2, 2)
    middle = encoder.places(corners, torch.tensor([[2, 3], [2, 3]]), image_size=(64, 48))
    torch.testing.assert_close(middle[0], torch.tensor([5.5 / 48, 7.5 / 64]))
    assert encoder.places(POINTS, torch.full((2, 3), -1)).tolist() == [[0, 0], [0, 0]]
