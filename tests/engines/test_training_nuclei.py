import logging

import numpy as np
import torch
from torch import nn

from nucsam_monai.engines import FoundInTraining
from nucsam_monai.engines.training_nuclei import points_and_corners
from nucsam_monai.inferers import DetectedPoints


class Finder:
    """Finds as many nuclei as the image's first pixel says."""

    def __init__(self):
        self.prompter = nn.Linear(1, 1)
        self.modes = []

    def __call__(self, image):
        self.modes.append(self.prompter.training)
        count = int(image[0, 0, 0, 0])
        return DetectedPoints(np.full((count, 2), 3.0), np.ones(count), np.zeros(count))


def batches(*counts):
    return [
        {"image": torch.full((1, 3, 4, 4), float(count)), "image_path": [f"{number}.png"]}
        for number, count in enumerate(counts)
    ]


def test_every_image_is_searched_and_the_last_search_counts(caplog):
    found, finder = FoundInTraining(), Finder()
    assert not found
    found.find(batches(1, 5, 2), finder)
    with caplog.at_level(logging.INFO):
        found.find(batches(2, 0), finder)
    assert {name: len(nuclei.scores) for name, nuclei in found.items()} == {"0.png": 2, "1.png": 0}
    assert found["0.png"].points.shape == (2, 1, 2)
    assert found["1.png"].points.shape == (0, 1, 2)
    assert "found 2 nuclei in 2 training images" in caplog.text
    assert not any(finder.modes)
    assert finder.prompter.training


def test_a_first_stage_that_finds_nothing_is_announced(caplog):
    FoundInTraining().find(batches(0), Finder())
    assert "the first stage found no nucleus in 1 training image:" in caplog.text


def test_boxes_become_a_point_and_four_corners():
    detected = DetectedPoints(np.array([[10.0, 20.0]]), np.ones(1), np.zeros(1), np.array([[4.0, 6.0]]))
    (point, *corners) = points_and_corners(detected)[0].tolist()
    assert point == [10, 20]
    assert sorted(corners) == [[8, 17], [8, 23], [12, 17], [12, 23]]
