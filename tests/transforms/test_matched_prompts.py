import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nucsam_monai.transforms import MatchedPromptsd, NucleusSizesd
from nucsam_monai.transforms.matched_prompts import match_found
from nucsam_monai.transforms.nucleus_prompts import own_boxes
from nucsam_monai.utils.errors import ConfigurationError
from tests.oracles.matched_prompts import best_point_of_each

INSTANCES = torch.zeros(1, 20, 24, dtype=torch.int32)
INSTANCES[0, 2:6, 3:9] = 4
INSTANCES[0, 2:6, 9:12] = 7  # touches the first one
INSTANCES[0, 12:18, 14:20] = 9
FOUND = torch.tensor([[[4.0, 3.0]], [[8.4, 4.0]], [[15.0, 13.5]], [[1.0, 1.0]], [[40.0, 4.0]]])
SCORES = torch.tensor([0.5, 0.9, 0.8, 0.99, 0.95])


def item(points=FOUND, scores=SCORES):
    return {"instances": INSTANCES, "found_points": points, "found_scores": scores}


def prompted(result):
    """Return ``{id of the nucleus: its points}``, read off the masks."""
    ids = [int(INSTANCES[0][mask.bool()].unique()) for mask in result["masks"]]
    return dict(zip(ids, result["points"].tolist(), strict=True))


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(0, 12))
def test_matching_equals_its_definition(seed, count):
    rng = np.random.default_rng(seed)
    instances = rng.integers(0, 4, (5, 7)) * rng.integers(1, 50)
    points = rng.uniform(-2, 8, (count, 1, 2)).astype(np.float32)
    scores = (rng.integers(0, 4, count) / 4).astype(np.float32)
    ids, rows = match_found(points, scores, instances)
    assert dict(zip(ids.tolist(), rows.tolist(), strict=True)) == best_point_of_each(
        points[:, 0].tolist(), scores.tolist(), instances.tolist()
    )
    assert (np.diff(ids) > 0).all()


def test_predicted_prompts_are_the_surest_points_and_others_are_left_out():
    result = MatchedPromptsd()(item())
    assert prompted(result) == {4: [[pytest.approx(8.4), 4.0]], 9: [[15.0, 13.5]]}
    assert result["points"].dtype == torch.float32
    assert result["point_labels"].tolist() == [[1], [1]]
    assert "found_points" not in result
    assert result["masks"].dtype == torch.uint8


def test_mixed_prompts_leave_no_nucleus_out():
    found = prompted(MatchedPromptsd(prompts="mixed").set_random_state(0)(item()))
    assert {number: found[number] for number in (4, 9)} == prompted(MatchedPromptsd()(item()))
    ((x, y),) = found[7]
    assert INSTANCES[0, int(y), int(x)] == 7


@pytest.mark.parametrize("prompts", ["gt_random", "gt_centroid"])
def test_prompts_of_the_truth_lie_in_their_nuclei(prompts):
    transform = MatchedPromptsd(prompts=prompts).set_random_state(0)
    drawn = [prompted(transform({"instances": INSTANCES})) for _ in range(5)]
    for found in drawn:
        assert set(found) == {4, 7, 9}
        assert all(INSTANCES[0, int(y), int(x)] == number for number, ((x, y),) in found.items())
    assert (drawn[0] == drawn[1]) == (prompts == "gt_centroid")


def test_at_most_so_many_nuclei_are_chosen_at_random():
    transform = MatchedPromptsd(max_nuclei=1, prompts="gt_centroid").set_random_state(0)
    chosen = {tuple(prompted(transform({"instances": INSTANCES}))) for _ in range(20)}
    assert chosen == {(4,), (7,), (9,)}


def test_no_nucleus_and_no_point_are_legal():
    nobody = MatchedPromptsd()(item(torch.zeros(0, 1, 2), torch.zeros(0)))
    empty = MatchedPromptsd(prompts="mixed")({**item(), "instances": torch.zeros(1, 20, 24)})
    for result in (nobody, empty):
        assert result["points"].shape == (0, 1, 2)
        assert result["point_labels"].shape == (0, 1)
        assert result["masks"].shape == (0, 20, 24)


def test_found_boxes_are_hulls_of_moved_corners_cut_to_the_crop():
    corners = torch.tensor([[[15.0, 13.0], [12.0, 30.0], [16.0, 29.0], [17.0, 11.0], [13.0, 12.0]]])
    result = MatchedPromptsd(prompt="box")(item(corners, torch.ones(1)))
    assert prompted(result) == {9: [[12.0, 11.0], [17.0, 19.5]]}
    assert result["point_labels"].tolist() == [[2, 3]]


def test_boxes_of_the_truth():
    exact = prompted(MatchedPromptsd(prompts="gt_centroid", prompt="box")({"instances": INSTANCES}))
    assert exact[4] == [[2.5, 1.5], [8.5, 5.5]]
    assert own_boxes(INSTANCES[0].numpy())[0].tolist() == exact[4]
    moved = MatchedPromptsd(prompts="gt_random", prompt="box").set_random_state(0)
    found = np.array(prompted(moved({"instances": INSTANCES}))[4]) - exact[4]
    assert (np.abs(found) <= 0.1 * np.array([6, 4]) + 1e-5).all()
    assert found.any()


def test_sizes_are_those_of_the_boxes():
    sizes = NucleusSizesd()({"instances": INSTANCES.float()})["point_sizes"]
    assert sizes.tolist() == [[6, 4], [3, 4], [6, 6]]
    assert NucleusSizesd()({"instances": torch.zeros(1, 3, 3)})["point_sizes"].shape == (0, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": "oracle"}, "train_prompts 'oracle': expected one of predicted"),
        ({"prompt": "mask"}, "expected 'point' or 'box'"),
        ({"max_nuclei": 0}, "and 1 or more"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        MatchedPromptsd(**options)


def test_missing_points_are_refused():
    with pytest.raises(ConfigurationError, match="expected found_points of the first stage"):
        MatchedPromptsd()({"instances": INSTANCES})
    with pytest.raises(ConfigurationError, match="found points without sizes"):
        MatchedPromptsd(prompt="box")(item())
