import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import ComputeHoVerMaps

from nucsam_monai.transforms import (
    HoVerNetInstancesd,
    LabelMapToPredictiond,
    ProbabilityToInstancesd,
)
from nucsam_monai.utils.errors import ConfigurationError

KINDS = [torch.as_tensor, MetaTensor, np.asarray]


@pytest.mark.parametrize("kind", KINDS)
def test_instances_are_the_8_connected_components(kind):
    probability = np.zeros((1, 4, 7), dtype=np.float32)
    probability[0, 0, 0] = probability[0, 1, 1] = 0.5  # touch at a corner; the threshold is foreground
    probability[0, 1, 3] = 0.499
    probability[0, 3, 6] = 1.0
    nuclei = ProbabilityToInstancesd()({"pred": kind(probability)})["pred"]
    instances = nuclei.instances
    assert (instances.shape, instances.dtype) == ((4, 7), np.int32)
    assert instances[0, 0] == instances[1, 1] > 0
    assert instances[1, 3] == 0
    assert np.unique(instances).tolist() == [0, 1, 2]
    np.testing.assert_array_equal(nuclei.foreground, probability[0])
    assert nuclei.table["score"].tolist() == [0.5, 1.0]


def test_no_foreground_gives_no_instances():
    item = ProbabilityToInstancesd("found", threshold=0.9)({"found": torch.full((1, 3, 5), 0.8)})
    assert not item["found"].instances.any()
    assert item["found"].instances.shape == (3, 5)


def test_components_pass_over_a_distance_map():
    maps = torch.zeros(2, 3, 5)
    maps[0, :, 1:4], maps[1, 1, 2] = 0.8, 0.1
    found, expected = (ProbabilityToInstancesd()({"pred": one})["pred"] for one in (maps, maps[:1]))
    np.testing.assert_array_equal(found.instances, expected.instances)
    assert len(found) == 1


@pytest.mark.parametrize("shape", [(3, 3, 3), (3, 3), (1, 1, 3, 3)])
def test_several_masks_are_refused(shape):
    with pytest.raises(ConfigurationError, match=r"\(1, H, W\)"):
        ProbabilityToInstancesd()({"pred": torch.zeros(shape)})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("domain", ["cells", None])
def test_a_pixel_belongs_to_its_likeliest_class(kind, domain):
    probability = np.zeros((2, 3, 6), dtype=np.float32)
    probability[1, :, :5] = 0.6  # cytoplasm around two nuclei, one of them nearly as likely cytoplasm
    probability[0, 1, 1], probability[0, 1, 3] = 0.9, 0.61
    transform = ProbabilityToInstancesd(classes={"other": ["a", "b", "c"], "cells": ["nucleus", "cytoplasm"]})
    item = transform({"pred": kind(probability), **({"domain": domain} if domain else {})})
    nuclei = item["pred"]
    assert nuclei.class_names == ("nucleus", "cytoplasm")
    assert nuclei.table["class_id"].tolist() == [0, 0, 1]
    expected = [[3, 3, 3, 3, 3, 0], [3, 1, 3, 2, 3, 0], [3, 3, 3, 3, 3, 0]]
    assert nuclei.instances.tolist() == expected
    np.testing.assert_array_equal(nuclei.foreground, probability.max(axis=0))
    np.testing.assert_array_equal(item["probability"], probability)
    empty = transform({"pred": kind(np.zeros_like(probability)), "domain": "cells"})["pred"]
    assert len(empty) == 0
    whole = transform({"pred": kind(probability[:1]), "domain": "cells"})["pred"]
    assert whole.class_names == ("nucleus",)


@pytest.mark.parametrize("kind", KINDS)
def test_touching_nuclei_are_split_on_request(kind):
    y, x = np.mgrid[:20, :40]
    probability = np.where((y - 10) ** 2 + np.minimum((x - 11) ** 2, (x - 28) ** 2) <= 81, 0.9, 0.1)[None]
    for options, nuclei in (
        ({}, 1),
        ({"instances": "watershed"}, 2),
        ({"instances": "watershed", "min_distance_px": 20}, 1),
        ({"instances": "watershed", "threshold": 0.95}, 0),
    ):
        found = ProbabilityToInstancesd(**options)({"pred": kind(probability)})["pred"]
        assert (found.instances.shape, found.instances.dtype) == ((20, 40), np.int32)
        assert found.instances.max() == len(found) == nuclei


@pytest.mark.parametrize("kind", KINDS)
def test_learned_instances_score_their_foreground_times_the_height_of_their_marker(kind):
    y, x = np.mgrid[:20, :40]
    inside = (y - 10) ** 2 + np.minimum((x - 11) ** 2, (x - 28) ** 2) <= 81
    foreground = np.where(inside, np.where(x < 20, 0.9, 0.7), 0.1)
    distance = inside * (1 - np.minimum(np.hypot(y - 10, x - 11), np.hypot(y - 10, x - 28)) / 10)
    transform = ProbabilityToInstancesd(instances="distance", distance_rule={"min_area_px": 5})
    item = transform({"pred": kind(np.stack([foreground, distance]).astype(np.float32))})
    nuclei = item["pred"]
    assert nuclei.instances.max() == len(nuclei) == 2
    assert nuclei.foreground is not None
    for row in nuclei.table:
        own = nuclei.instances == row["id"]
        assert row["score"] == pytest.approx(foreground[own].mean() * distance[own].max(), abs=1e-5)


def test_no_foreground_has_no_scores():
    transform = ProbabilityToInstancesd(instances="distance")
    assert len(transform({"pred": torch.zeros(2, 5, 6)})["pred"]) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_label_maps_with_scores_become_nuclei(kind):
    instances, score = np.array([[[0, 2, 2, 1]]], np.int32), np.array([[[0, 0.5, 0.5, 0.75]]], np.float32)
    nuclei = LabelMapToPredictiond("pred")({"pred": {"instances": kind(instances), "score": kind(score)}})[
        "pred"
    ]
    np.testing.assert_array_equal(nuclei.instances, instances[0])
    assert nuclei.table["score"].tolist() == [0.75, 0.5]


@pytest.mark.parametrize(
    "options",
    [
        {"instances": "contours"},
        {"min_distance_px": 0},
        {"threshold": "low"},
        {"distance_rule": {"depth": 1}},
    ],
)
def test_unknown_rules_of_instances_are_refused(options):
    with pytest.raises(
        ConfigurationError, match=r"contours|min_distance_px 0|threshold 'low'|depth.*marker_threshold"
    ):
        ProbabilityToInstancesd(**options)


@pytest.mark.parametrize("kind", KINDS)
def test_a_learned_distance_parts_touching_nuclei(kind):
    foreground = np.full((1, 3, 9), 0.8, dtype=np.float32)
    depth = np.broadcast_to([0.2, 0.9, 0.9, 0.4, 0.1, 0.3, 0.7, 0.8, 0.3], foreground.shape)
    probability = kind(np.concatenate([foreground, depth.astype(np.float32)]))
    for options, nuclei in (
        ({}, 2),
        ({"distance_rule": {"marker_threshold": 0.85}}, 1),
        ({"distance_rule": {"min_area_px": 14}}, 1),
        ({"threshold": 0.9}, 0),
    ):
        rule = {"min_marker_px": 1, "min_area_px": 1} | options.pop("distance_rule", {})
        transform = ProbabilityToInstancesd(instances="distance", distance_rule=rule, **options)
        item = transform({"pred": probability})
        assert item["pred"].instances.shape == (3, 9)
        np.testing.assert_array_equal(item["pred"].foreground, foreground[0])
        assert item["pred"].instances.max() == nuclei


def test_maps_that_do_not_fit_the_rule_are_refused():
    with pytest.raises(ConfigurationError, match=r"\(2, H, W\) for instances 'distance'"):
        ProbabilityToInstancesd(instances="distance")({"pred": torch.zeros(1, 3, 3)})


def discs(*places, side=64):
    rows, columns = np.mgrid[:side, :side]
    labels = np.zeros((side, side), dtype=np.int32)
    for name, (row, column, radius) in enumerate(places, start=1):
        labels[((rows - row) ** 2 + (columns - column) ** 2 <= radius**2) & (labels == 0)] = name
    return labels


def perfect(labels):
    """What a network that is always right gives."""
    distances = np.asarray(ComputeHoVerMaps()(labels[None]))
    return torch.from_numpy(np.concatenate([labels[None] > 0, (distances + 1) / 2]).astype(np.float32))


def test_touching_nuclei_are_parted():
    truth = discs((20, 18, 9), (20, 36, 9), (44, 30, 10))
    nuclei = HoVerNetInstancesd()({"pred": perfect(truth)})["pred"]
    found = nuclei.instances
    assert found.shape == (64, 64)
    assert found.dtype == np.int32
    assert set(np.unique(found)) == {0, 1, 2, 3}
    for name in (1, 2, 3):
        mine = truth == name
        matched = found == np.bincount(found[mine]).argmax()
        assert (mine & matched).sum() / (mine | matched).sum() > 0.9
    np.testing.assert_array_equal(nuclei.foreground > 0.5, truth > 0)


def test_image_without_nuclei_has_no_instances():
    found = HoVerNetInstancesd()({"pred": torch.full((3, 32, 32), 0.3)})["pred"].instances
    assert found.shape == (32, 32)
    assert not found.any()


def test_maps_that_say_nothing_leave_connected_components():
    maps = torch.full((3, 64, 64), 0.5)
    maps[0] = torch.from_numpy(discs((12, 12, 6), (40, 40, 6)) > 0)
    found = HoVerNetInstancesd()({"pred": maps})["pred"].instances
    assert np.unique(found).tolist() == [0, 1, 2]


def test_specks_are_left_out():
    truth = discs((20, 18, 9), (50, 50, 1))
    found = HoVerNetInstancesd()({"pred": perfect(truth)})["pred"].instances
    assert np.unique(found).tolist() == [0, 1]


def test_other_channels_are_refused():
    with pytest.raises(
        ConfigurationError, match=r"three channels \(3, H, W\) of HoVer-Net, found shape \(1,"
    ):
        HoVerNetInstancesd()({"pred": torch.zeros(1, 8, 8)})
