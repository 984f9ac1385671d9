import json

import pytest
import torch

from nucsam_monai.transforms import ExpertPointsd
from nucsam_monai.utils.errors import DatasetError

ITEMS = [{"image": f"folder/{name}.png", "id": name} for name in ("first", "second", "third")]


@pytest.fixture
def transform(tmp_path):
    path = tmp_path / "points.json"
    path.write_text(json.dumps({"first.png": [[3, 4.5], [6, 0, 0]], "second": []}))
    return ExpertPointsd("image", path, ITEMS)


def item(name):
    return {"image": torch.zeros(3, 5, 7), "id": name}


def test_an_image_gets_its_points(transform):
    found = transform(item("first"))
    assert found["points"].tolist() == [[3, 4.5], [6, 0]]
    assert found["point_labels"].tolist() == [1, 0]
    assert (found["points"].dtype, found["point_labels"].dtype) == (torch.float32, torch.int64)


def test_an_empty_list_and_no_list(transform):
    found = transform(item("second"))
    assert (found["points"].shape, found["point_labels"].shape) == ((0, 2), (0,))
    assert "points" not in transform(item("third"))


def test_points_outside_and_unknown_images_are_refused(transform, tmp_path):
    with pytest.raises(DatasetError, match="outside of the image"):
        transform({**item("first"), "image": torch.zeros(3, 5, 6)})
    with pytest.raises(DatasetError, match="no such image"):
        ExpertPointsd("image", tmp_path / "points.json", ITEMS[1:])
