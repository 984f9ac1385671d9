"""Clicks and boxes as requests bring them."""

import numpy as np
import pytest

from nucsam_monai.apps.monailabel.answers import MOST_PROMPTS, clicks_of_request
from nucsam_monai.utils.errors import NucSAMError
from nucsam_monai.utils.image_source import ArrayImage


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"foreground": []},
        {"foreground": "5,5"},
        {"foreground": [[5]]},
        {"foreground": [[5, "5"]]},
        {"foreground": [[5, float("nan")]]},
        {"foreground": [[40, 5]]},
        {"foreground": [[-1, 5]]},
        {"foreground": [[5, 5, 0, 0]]},
        {"foreground": [5, 5]},
        {"foreground": [[5, 5]] * (MOST_PROMPTS + 1)},
        {"foreground": [[1e400, 5]]},
        {"foreground": [[5, 5]], "background": [[99, 0]]},
        {"boxes": [[1, 2, 3]]},
        {"boxes": [[9, 9, 2, 2]]},
        {"boxes": [[30, 30, 60, 60]]},
        {"background": [[5, 5]]},
    ],
)
def test_clicks_that_cannot_be_used(request_: dict) -> None:
    with pytest.raises(NucSAMError):
        clicks_of_request(request_, ArrayImage(np.zeros((30, 40, 3), dtype=np.uint8)))


def test_clicks_of_slicer_have_a_slice() -> None:
    read = clicks_of_request({"foreground": [[3, 4, 0]], "background": []}, ArrayImage(np.zeros((9, 9, 3))))
    assert read.foreground.tolist() == [[3, 4]]
    assert read.background.shape == (0, 2)
