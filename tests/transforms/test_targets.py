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
from nucsam_monai.transforms import (
    DenseNucleid,
    DistanceTargetd,
    ForegroundMaskd,
    NucleusCentroidsd,
    NucleusDistanced,
    nucleus_distance,
)
from nucsam_monai.transforms.targets import nucleus_centroids
from nucsam_monai.utils.errors import ConfigurationError, DatasetError
from tests.oracles import learned_instances as oracle

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


def dense(instances: np.ndarray, cell: int = 1) -> np.ndarray:
    return DenseNucleid(pixels_per_cell=cell)({"instances": torch.from_numpy(instances)[None]})[
        "dense"
    ].numpy()


def expected(instances: np.ndarray) -> np.ndarray:
    """The same, pixel by pixel."""
    found = np.zeros((3, *instances.shape), dtype=np.float32)
    for nucleus in set(instances.ravel().tolist()) - {0}:
        rows, columns = np.nonzero(instances == nucleus)
        for row, column in zip(rows, columns, strict=True):
            found[0, row, column] = 1
            for channel, own, all_of_it in ((1, column, columns), (2, row, rows)):
                offset = own - all_of_it.mean()
                extent = (
                    (all_of_it - all_of_it.mean()).max()
                    if offset > 0
                    else (all_of_it.mean() - all_of_it).max()
                )
                found[channel, row, column] = offset / extent if offset else 0
    return found


def test_the_target_is_the_mask_and_the_distances_from_each_centre() -> None:
    instances = np.zeros((24, 31), dtype=np.int32)
    y, x = np.mgrid[:24, :31]
    instances[(y - 8) ** 2 + (x - 9) ** 2 <= 36] = 1
    instances[10:20, 15:29] = 7
    instances[0, 30] = 3  # one pixel has no extent
    np.testing.assert_allclose(dense(instances), expected(instances), atol=1e-5)


def test_the_pixel_in_the_middle_speaks_for_its_cell() -> None:
    instances = np.random.default_rng(1).integers(0, 3, (9, 12)).repeat(4, axis=0).repeat(4, axis=1)
    np.testing.assert_allclose(dense(instances, cell=4), dense(instances[2::4, 2::4].copy()))
    np.testing.assert_allclose(dense(instances[:35, :47], cell=4), dense(instances[2:32:4, 2:44:4].copy()))


def test_an_image_without_nuclei_is_all_zero() -> None:
    assert not dense(np.zeros((8, 8), dtype=np.int32), cell=2).any()


def test_a_cell_of_no_pixel_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="pixels_per_cell 0: expected 1 or more"):
        DenseNucleid(pixels_per_cell=0)


KINDS = [torch.as_tensor, MetaTensor, np.asarray]


@pytest.mark.parametrize("kind", KINDS)
def test_mask_is_1_on_every_nucleus(kind):
    instances = kind(np.array([[[0, 3, 3, 70_000, 0]]], dtype=np.int32))
    item = ForegroundMaskd()({"instances": instances, "id": "a"})
    assert type(item["label"]) is type(instances)
    np.testing.assert_array_equal(item["label"], [[[0, 1, 1, 1, 0]]])
    assert item["label"].dtype in (torch.float32, np.float32)
    assert item["instances"] is instances
    assert ForegroundMaskd(output_key="mask")({"instances": instances})["mask"].shape == (1, 1, 5)


@settings(max_examples=100, deadline=None)
@given(LABEL_MAPS)
def test_distance_is_that_to_the_nearest_pixel_outside_of_the_nucleus(instances):
    found = nucleus_distance(instances)
    assert (found.dtype, found.shape) == (np.float32, instances.shape)
    np.testing.assert_allclose(found, oracle.nucleus_distance(instances), atol=1e-6)
    np.testing.assert_array_equal(found > 0, instances > 0)
    for nucleus in set(instances.ravel()) - {0}:
        assert found[instances == nucleus].max() == 1


def test_distances_are_the_same_wherever_an_image_lies_in_memory():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:60, :60]
    instances = np.where((y - 30) ** 2 + (x - 30) ** 2 <= 400, 1, 0).astype(np.int32)
    first, kept = nucleus_distance(instances), []
    for _ in range(40):
        kept.append(rng.random(rng.integers(1, 999)))  # moves what is allocated next
        np.testing.assert_array_equal(nucleus_distance(instances), first)


def test_the_border_of_the_image_does_not_bound_a_nucleus():
    instances = np.zeros((1, 1, 9), dtype=np.int32)
    instances[..., :5] = 3
    item = NucleusDistanced(output_key="depth")({"instances": torch.from_numpy(instances)})
    np.testing.assert_allclose(item["depth"][0, 0], [1, 0.8, 0.6, 0.4, 0.2, 0, 0, 0, 0], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_distance_map_is_the_last_channel_of_the_target(kind):
    instances = kind(np.array([[[0, 4, 4, 4, 0]]], dtype=np.float32))  # resampling makes floats
    label = kind(np.array([[[0, 1, 1, 1, 0]]], dtype=np.float32))
    item = {"instances": instances, "label": label}
    target = DistanceTargetd()(item)["label"]
    np.testing.assert_allclose(target, [[[0, 1, 1, 1, 0]], [[0, 0.5, 1, 0.5, 0]]], atol=1e-6)
    assert target.dtype == torch.float32
    known = torch.full((1, 1, 5), 0.25)
    assert torch.equal(DistanceTargetd()({**item, "distance": known})["label"][1:], known)


def test_domains_with_classes_have_a_mask_for_each():
    instances = torch.tensor([[[0, 7, 7], [4, 0, 9]]]).float()
    item = {"instances": instances, "classes": {4: 1, 7: 0, 9: 1}, "domain": "cells"}
    draw = ForegroundMaskd(classes={"cells": ["nucleus", "cytoplasm"]})
    label = draw(item)["label"]
    assert label.dtype == torch.float32
    assert label.tolist() == [[[0, 1, 1], [0, 0, 0]], [[0, 0, 0], [1, 0, 1]]]
    assert draw({**item, "domain": "other"})["label"].shape == (1, 2, 3)
    assert not draw({"instances": torch.zeros(1, 2, 2), "domain": "cells"})["label"].any()
    del item["classes"]
    with pytest.raises(DatasetError, match="3 of 3 nuclei have no class"):
        draw(item)
