import math
import weakref
from dataclasses import replace

import numpy as np
import pytest

from nucsam_monai.metrics import (
    EvaluationSample,
    GreedyDetection,
    HovernetDetection,
    PanNukeImage,
    PooledPanopticQuality,
    centroids_xy,
    class_panoptic_quality,
    dice2,
    evaluate,
    foreground_metrics,
    instance_metrics,
    majority_classes,
    object_scores,
    pannuke_summary,
    threshold_mean,
    weighted_scores,
)
from nucsam_monai.utils.errors import ConfigurationError
from tests.metrics.evaluation_samples import CLASSES, EMPTY, FEW, SAMPLES, sample
from tests.pickling_pool import without_processes

REPORT = evaluate(iter(SAMPLES), class_names=CLASSES, radius_px=6, bootstrap=FEW)


def points(one):
    true, predicted = centroids_xy(one.y), centroids_xy(one.y_pred)
    return (
        true.xy,
        [one.y_classes[i] for i in true.ids.tolist()],
        predicted.xy,
        [one.y_pred_classes[i] for i in predicted.ids.tolist()],
        [one.scores[i] for i in predicted.ids.tolist()],
    )


def assert_same(estimates, **expected):
    found = {name: estimates[name].value for name in expected}
    assert found == pytest.approx(expected, nan_ok=True)


def test_rows_hold_the_metrics_of_every_image():
    assert [row["id"] for row in REPORT.per_image] == [one.id for one in SAMPLES]
    for row, one in zip(REPORT.per_image, SAMPLES, strict=True):
        class_pq = class_panoptic_quality(one.y, one.y_pred, one.y_classes, one.y_pred_classes, 3)
        expected = {
            **foreground_metrics(one.y, one.y_pred)._asdict(),
            **instance_metrics(one.y, one.y_pred)._asdict(),
            **weighted_scores(one.y, one.y_pred)._asdict(),
            "dice2": dice2(one.y, one.y_pred),
            "object_f1_75": object_scores(one.y, one.y_pred, [0.75]).f1[0],
            "ap_50": object_scores(one.y, one.y_pred, [0.5]).average_precision[0],
            **{f"pq_{name}": value for name, value in zip(CLASSES, class_pq, strict=True)},
        }
        assert {key: row[key] for key in expected} == pytest.approx(expected, nan_ok=True)
        assert row["mpq"] == pytest.approx(np.nanmean(class_pq) if one.y.any() else math.nan, nan_ok=True)
        assert row["tissue"] == one.tissue


def test_summary_is_of_the_images_and_of_the_pooled_counts():
    (summary,) = REPORT.summary
    assert (summary.name, summary.images, summary.skipped_images) == ("a", 9, 2)
    aji = [instance_metrics(one.y, one.y_pred).aji for one in SAMPLES]
    pooled = PooledPanopticQuality(3)
    protocols = {"hovernet": HovernetDetection(3, 6), "greedy": GreedyDetection(3, 6)}
    for one in SAMPLES:
        pooled.update(one.y, one.y_pred, one.y_classes, one.y_pred_classes)
        for protocol in protocols.values():
            protocol.update(*points(one))
    assert_same(summary.estimates, aji=np.nanmean(aji), mpq_plus=pooled.result().mpq_plus)
    for name, protocol in protocols.items():
        result = protocol.result()
        scores = dict(zip(("precision", "recall", "f1"), result.detection[:3], strict=True))
        assert_same(summary.estimates, **{f"{name}_{key}": value for key, value in scores.items()})
        for entry, score in zip(REPORT.per_class, result.classes, strict=True):
            assert_same(entry.estimates, **{f"{name}_precision": score.precision, f"{name}_f1": score.f1})
    for found in summary.estimates.values():
        assert found.ci_low - 1e-9 <= found.value <= found.ci_high + 1e-9
        assert found.ci_low < found.ci_high or found.value == 1


def test_classes_have_their_own_table():
    by_name = {entry.name: entry for entry in REPORT.per_class}
    assert [entry.name for entry in REPORT.per_class] == list(CLASSES)
    for class_id, name in enumerate(CLASSES):
        per_image = [
            class_panoptic_quality(one.y, one.y_pred, one.y_classes, one.y_pred_classes, 3)[class_id]
            for one in SAMPLES
        ]
        assert by_name[name].images == np.count_nonzero(~np.isnan(per_image))
        expected = np.nanmean(per_image) if by_name[name].images else math.nan
        assert_same(by_name[name].estimates, pq=expected)
    assert by_name["rare"].images == 0
    assert math.isnan(by_name["rare"].estimates["pq_plus"].ci_low)
    assert by_name["round"].estimates["pq_plus"].ci_low < by_name["round"].estimates["pq_plus"].ci_high


def test_tissue_means_follow_the_pannuke_protocol():
    images = [
        PanNukeImage(
            one.tissue,
            instance_metrics(one.y, one.y_pred).pq,
            class_panoptic_quality(one.y, one.y_pred, one.y_classes, one.y_pred_classes, 3),
            one.fold,
        )
        for one in SAMPLES
    ]
    expected = pannuke_summary(images)
    assert_same(
        REPORT.tissue_means,
        bpq_tissue=expected.bpq.tissue_mean,
        bpq_global=expected.bpq.global_mean,
        mpq_tissue=expected.mpq.tissue_mean,
        mpq_global=expected.mpq.global_mean,
    )
    assert expected.bpq.tissue_mean != pytest.approx(expected.bpq.global_mean)
    assert REPORT.tissue_means["mpq_tissue"].ci_low < expected.mpq.tissue_mean
    assert [(entry.name, entry.images) for entry in REPORT.per_tissue] == [
        ("tissue0", 5),
        ("tissue1", 4),
        ("all images", 9),
    ]


def test_hand_computed_tissue_means():
    # PQ of one perfect nucleus is 1 / (1 + 1e-6); tissue x has images of 1, 1, 0 and y one of 0
    full, none = np.ones((2, 2), int), np.zeros((2, 2), int)
    cases = [("x", full, full), ("x", full, full), ("x", full, none), ("y", full, none), ("y", none, full)]
    report = evaluate(
        [EvaluationSample(str(i), y, found, tissue=tissue) for i, (tissue, y, found) in enumerate(cases)],
        bootstrap=FEW,
    )
    assert_same(report.tissue_means, bpq_tissue=1 / 3, bpq_global=1 / 2)
    assert [(entry.metric, entry.images) for entry in report.skipped] == [
        (metric, 1) for metric in ("aji", "aji_plus", "dq", "sq", "pq", "dice2")
    ]
    assert {entry.reason for entry in report.skipped} == {"no ground-truth nucleus"}


def test_skipped_images_are_counted_with_their_reason():
    skipped = {entry.metric: (entry.images, entry.reason) for entry in REPORT.skipped}
    assert skipped["aji"] == (2, "no ground-truth nucleus")
    assert skipped["pq_rare"] == (9, "no ground-truth nucleus of class rare")
    assert "dice" not in skipped
    some = evaluate([SAMPLES[0], replace(SAMPLES[1], tissue=None)], bootstrap=FEW)
    assert [(entry.images, entry.reason) for entry in some.skipped] == [(1, "no tissue given")]
    assert [entry.name for entry in some.per_tissue] == ["tissue0"]


def test_probabilities_are_measured_at_five_thresholds():
    probability = np.where(SAMPLES[0].y > 0, 0.8, 0.2)
    report = evaluate([replace(SAMPLES[0], probability=probability), SAMPLES[1]], bootstrap=FEW)
    expected = threshold_mean(SAMPLES[0].y, probability)
    assert report.per_image[0]["dice_5_thresholds"] == expected.dice < 1
    assert_same(report.summary[0].estimates, iou_5_thresholds=expected.iou)
    assert [(e.metric, e.images, e.reason) for e in report.skipped] == [
        (name, 1, "no probability map") for name in ("dice_5_thresholds", "iou_5_thresholds")
    ]


def test_order_of_samples_does_not_matter():
    shuffled = evaluate(SAMPLES[::-1], class_names=CLASSES, radius_px=6, bootstrap=FEW)
    assert repr(shuffled) == repr(REPORT)


def test_two_workers_find_the_same(monkeypatch):
    without_processes(monkeypatch)
    parallel = evaluate(iter(SAMPLES), class_names=CLASSES, radius_px=6, bootstrap=FEW, workers=2)
    assert repr(parallel) == repr(REPORT)


def test_measured_samples_are_dropped():
    references, alive = [], []

    def stream():
        for index in range(6):
            one = sample(index)
            references.append(weakref.ref(one.y_pred))
            alive.append(sum(reference() is not None for reference in references))
            yield one
            del one

    evaluate(stream(), bootstrap=FEW, protocols=["instance"])
    assert len(alive) == 6
    assert max(alive) <= 2


def test_groups_are_resampled_as_a_whole():
    groups = [replace(one, group=f"slide{i // 5}") for i, one in enumerate(SAMPLES)]
    grouped = evaluate(groups, bootstrap=FEW)
    assert (grouped.unit, grouped.units) == ("group", 2)
    assert (REPORT.unit, REPORT.units) == ("image", 9)
    dice, by_image = grouped.summary[0].estimates["dice"], REPORT.summary[0].estimates["dice"]
    assert dice.value == by_image.value
    means = [
        np.mean([row["dice"] for row in grouped.per_image if row["group"] == name])
        for name in ("slide0", "slide1")
    ]
    assert sorted([dice.ci_low, dice.ci_high]) == pytest.approx(sorted(means))


def test_domains_and_images_without_one():
    two = evaluate([replace(SAMPLES[0], domain="x"), replace(SAMPLES[0], domain="y")], bootstrap=FEW)
    assert [entry.name for entry in two.summary] == ["x", "y", "all images"]
    one = evaluate([EvaluationSample("1", EMPTY, EMPTY)], bootstrap=FEW)
    assert [entry.name for entry in one.summary] == ["all images"]
    assert "domain" not in one.per_image[0]


def test_one_empty_image():
    (summary,) = evaluate([EvaluationSample("1", EMPTY, EMPTY)], radius_px=6, bootstrap=FEW).summary
    assert_same(summary.estimates, dice=1, hd=0, aji=math.nan, hovernet_f1=math.nan, ap_50=math.nan)
    assert all(math.isnan(found.ci_low) for found in summary.estimates.values())


def test_perfect_prediction_is_one_everywhere():
    perfect = [replace(one, y_pred=one.y, y_pred_classes=one.y_classes, scores=None) for one in SAMPLES]
    report = evaluate(perfect, class_names=CLASSES, radius_px=6, bootstrap=FEW)
    names = [
        "dice",
        "iou",
        "aji",
        "aji_plus",
        "pq",
        "mpq",
        "mpq_plus",
        "hovernet_f1",
        "greedy_f1",
        "f1_mean_pr",
    ]
    assert_same(report.summary[0].estimates, **dict.fromkeys(names, pytest.approx(1, abs=1e-5)))


def test_report_becomes_plain_tables():
    document = REPORT.to_dict()
    assert document["bootstrap"] == {
        "resamples": 100,
        "confidence": 0.95,
        "seed": 0,
        "unit": "image",
        "units": 9,
    }
    row = document["summary"][0]
    assert row["domain"] == "a"
    assert row["aji"] == REPORT.summary[0].estimates["aji"].value
    assert row["aji_ci_high"] == REPORT.summary[0].estimates["aji"].ci_high
    assert "pq_round" not in row
    assert document["per_class"][0]["class"] == "round"
    assert set(document["tissue_means"]) >= {"mpq_tissue", "mpq_tissue_ci_low"}
    assert document["per_image"][3]["id"] == "03"


def test_majority_of_pixels_decides_the_class():
    instances = np.array([[7, 7, 7, 0], [3, 3, 9, 9]])
    class_map = np.array([[2, 2, 1, 1], [5, 1, 0, 0]])
    assert majority_classes(instances, class_map) == {7: 1, 3: 0}


@pytest.mark.parametrize(
    ("samples", "options", "message"),
    [
        ([], {}, "found no sample"),
        ([SAMPLES[0], SAMPLES[0]], {}, "image 00 occurs twice"),
        ([replace(SAMPLES[0], y_pred=EMPTY[1:])], {}, r"image 00: y has shape \(96, 96\)"),
        (
            [replace(SAMPLES[0], y_classes=None)],
            {"class_names": CLASSES},
            "image 00: y_classes: .* have no class",
        ),
        ([replace(SAMPLES[0], scores={})], {"radius_px": 6}, "image 00: scores: .* have no score"),
        ([SAMPLES[0]], {"protocols": ["detection"]}, "radius_px: detection needs a positive radius"),
        ([SAMPLES[0]], {"radius_px": -1}, "radius_px"),
        (
            [SAMPLES[0]],
            {"protocols": ["instances"]},
            r"expected some of foreground, .* found \['instances'\]",
        ),
        ([SAMPLES[0]], {"protocols": []}, "expected some of foreground"),
        ([SAMPLES[0]], {"class_names": "ab"}, "expected a list of different names"),
        ([SAMPLES[0]], {"class_names": ["a", "a"]}, "expected a list of different names"),
        ([SAMPLES[0]], {"workers": 0}, "workers: expected at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(samples, options, message):
    with pytest.raises(ConfigurationError, match=message):
        evaluate(samples, bootstrap=FEW, **options)


def test_error_of_a_worker_reaches_the_caller(monkeypatch):
    without_processes(monkeypatch)
    broken = [*SAMPLES[:2], replace(SAMPLES[2], y_pred=EMPTY[1:]), *SAMPLES[3:]]
    with pytest.raises(ConfigurationError, match="image 02: y has shape"):
        evaluate(broken, bootstrap=FEW, workers=2)
