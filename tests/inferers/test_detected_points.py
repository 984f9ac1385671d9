import numpy as np
import torch

from nucsam_monai.inferers.detected_points import DetectedPoints, check_points, oracle_prompts
from nucsam_monai.utils.prediction import prediction_from_instances


def test_points_of_any_kind_of_tensor_are_read():
    found = DetectedPoints(torch.tensor([[1.25, 2.5]]).bfloat16(), torch.ones(1).half(), torch.tensor([1]))
    points = check_points(found, (4, 4), ("a", "b"))
    assert points.xy.tolist() == [[1.25, 2.5]]
    assert points.pixels.tolist() == [[1, 3]]
    assert points.class_ids.tolist() == [1]


def test_points_in_the_outer_half_of_the_rim_move_to_its_pixels():
    found = DetectedPoints(np.array([[-0.5, 3.5], [4.5, -0.25]]), np.ones(2), np.zeros(2))
    assert check_points(found, (4, 5), ("a",)).xy.tolist() == [[0, 3], [4, 0]]


def test_no_points_may_come_as_an_empty_list():
    points = check_points(DetectedPoints(np.array([]), np.array([]), np.array([])), (0, 0), ("a",))
    assert points.xy.shape == points.pixels.shape == (0, 2)


def test_oracle_prompts_lie_in_their_nuclei():
    instances = np.zeros((20, 20), dtype=np.int32)
    instances[2:6, 3:6] = 7
    instances[10:19, 10:19] = 4
    instances[10:17, 13:16] = 0  # a horseshoe, whose centre is beside it
    prompts = oracle_prompts(prediction_from_instances(instances, class_ids=np.array([2, 1])))
    assert prompts.points[1].tolist() == [4, 3.5]
    columns, rows = np.floor(prompts.points + 0.5).astype(int).T
    assert instances[rows, columns].tolist() == [4, 7]
    assert prompts.class_ids.tolist() == [2, 1]
    assert prompts.scores.tolist() == [1, 1]


def test_no_nuclei_give_no_oracle_prompts():
    assert oracle_prompts(prediction_from_instances(np.zeros((3, 3), dtype=int))).points.shape == (0, 2)
