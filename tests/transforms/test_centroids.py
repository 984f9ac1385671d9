import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.data import MetaTensor
from monai.transforms import Lambdad

from nucsam_monai.data.label_files import read_classes
from nucsam_monai.transforms import NucleusCentroidsd, nucleus_centroids
from nucsam_monai.utils.errors import ConfigurationError, DatasetError

LABEL_MAPS = hnp.arrays(
    np.int32,
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    elements=st.sampled_from([0, 0, 1, 2, 5, 70_000]),
)


@settings(max_examples=100)
@given(LABEL_MAPS)
def test_points_are_centres_of_mass_or_the_nearest_pixel(instances):
    points, ids = nucleus_centroids(instances)
    assert ids.tolist() == [value for value in np.unique(instances) if value]
    assert points.shape == (len(ids), 2)
    assert points.dtype == np.float32
    for (x, y), value in zip(points, ids, strict=True):
        pixels = np.argwhere(instances == value)
        centre = pixels.mean(axis=0)
        row, column = np.rint(centre).astype(int)
        if instances[row, column] == value:
            np.testing.assert_allclose([y, x], centre, rtol=1e-6)
        else:
            away = np.linalg.norm(pixels - centre, axis=1)
            assert instances[int(y), int(x)] == value
            assert np.linalg.norm([y, x] - centre) == pytest.approx(away.min())


def test_the_centre_of_a_ring_is_moved_into_it():
    ring = np.ones((5, 5), dtype=int)
    ring[1:4, 1:4] = 0
    ((x, y),), _ = nucleus_centroids(ring)
    assert ring[int(y), int(x)]
    assert np.hypot(x - 2, y - 2) == 2


@pytest.mark.parametrize("kind", [torch.as_tensor, MetaTensor, np.asarray])
@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_targets_of_an_item(kind, dtype):
    instances = kind(np.array([[[0, 7, 7, 0], [3, 0, 0, 0]]], dtype=dtype))
    item = NucleusCentroidsd()({"instances": instances, "classes": {3: 2, 7: 4, 9: 1}, "id": "a"})
    assert item["points"].tolist() == [[0, 1], [1.5, 0]]
    assert item["point_classes"].tolist() == [2, 4]
    assert item["mask"].tolist() == [[[0, 1, 1, 0], [1, 0, 0, 0]]]
    assert (item["points"].dtype, item["mask"].dtype) == (torch.float32, torch.float32)
    assert item["point_classes"].dtype == torch.int64
    assert item["instances"] is instances


@pytest.mark.parametrize("classes", [{}, {"classes": {}}, {"classes": {1: 3}}])
def test_an_image_without_nuclei(classes):
    item = NucleusCentroidsd()({"instances": torch.zeros(1, 4, 6, dtype=torch.int32), **classes})
    assert item["points"].shape == (0, 2)
    assert item["point_classes"].shape == (0,)
    assert item["mask"].shape == (1, 4, 6)
    assert not item["mask"].any()


def test_a_dataset_without_classes_has_one():
    item = NucleusCentroidsd()({"instances": torch.tensor([[[4, 0, 9]]])})
    assert item["point_classes"].tolist() == [0, 0]


def test_classes_come_from_the_datasets_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"4": 1, "9": 0}))
    item = {"instances": torch.tensor([[[4, 0, 9]]]), "classes": str(path)}
    with pytest.raises(ConfigurationError, match="Read the file first"):
        NucleusCentroidsd()(item)
    read = Lambdad("classes", read_classes, allow_missing_keys=True)
    assert NucleusCentroidsd()(read(item))["point_classes"].tolist() == [1, 0]


def test_a_nucleus_without_class_is_refused():
    item = {"instances": torch.tensor([[[4, 0, 9]]]), "classes": {4: 0}}
    with pytest.raises(DatasetError, match="1 of 2 nuclei have no class, the first is 9"):
        NucleusCentroidsd()(item)
