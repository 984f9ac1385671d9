import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nucsam_monai.metrics.summary import ALL_IMAGES, summarise_by_domain

VALUES = st.floats(0, 1) | st.just(math.nan)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.just("7"),
            "domain": st.sampled_from("abc"),
            "dice": st.floats(0, 1),
            "pq": VALUES,
            "precision": VALUES,
            "recall": VALUES,
        }
    ),
    max_size=8,
)


def mean(values):
    measured = [value for value in values if not math.isnan(value)]
    return sum(measured) / len(measured) if measured else math.nan


def by_loops(rows, name):
    """One row of the summary, the slow way."""
    expected = {"domain": name, "images": len(rows)}
    for key in ("dice", "pq", "precision", "recall"):
        expected[key] = mean([row[key] for row in rows])
    precision, recall = expected["precision"], expected["recall"]
    total = precision + recall
    expected["f1_mean_pr"] = 2 * precision * recall / total if total else 0.0
    missing = [sum(math.isnan(row[key]) for row in rows) for key in ("pq", "precision", "recall")]
    expected["skipped_images"] = max(missing)
    return expected


@settings(max_examples=50, deadline=None)
@given(ROWS)
def test_summary_equals_plain_loops(rows):
    names = list(dict.fromkeys(row["domain"] for row in rows))
    expected = [by_loops([row for row in rows if row["domain"] == name], name) for name in names]
    if len(names) > 1:
        expected.append(by_loops(rows, ALL_IMAGES))
    found = summarise_by_domain(rows)
    for row, slow in zip(found, expected, strict=True):
        assert row["domain"] == slow.pop("domain")
        assert {key: row[key] for key in slow} == pytest.approx(slow, nan_ok=True, abs=1e-12)
        bounds = {f"{key}_ci_{end}" for key in slow for end in ("low", "high")}
        assert set(row) - set(slow) - {"domain"} == bounds - {
            f"{key}_ci_{end}" for key in ("images", "skipped_images") for end in ("low", "high")
        }


def test_intervals_are_of_the_domain_and_of_its_groups():
    rows = [
        {"id": str(i), "domain": domain, "pq": value}
        for domain, values in {"a": (0.1, 0.9), "b": (0.5, math.nan)}.items()
        for i, value in enumerate(values)
    ]
    a, b, every = summarise_by_domain(rows)
    assert (a["pq_ci_low"], a["pq_ci_high"]) == pytest.approx((0.1, 0.9))
    assert math.isnan(b["pq_ci_low"])  # one image says nothing about the spread
    assert 0.1 <= every["pq_ci_low"] < every["pq"] < every["pq_ci_high"] <= 0.9
    grouped = summarise_by_domain([{**row, "group": "slide"} for row in rows])
    assert math.isnan(grouped[0]["pq_ci_low"])  # one slide neither
    assert grouped[2]["pq"] == every["pq"]
    assert grouped[2]["pq_ci_low"] == pytest.approx(
        0.5
    )  # the slides of two domains differ: means 0.5 and 0.5
    with_gap = summarise_by_domain([{**row, "group": row["id"]} for row in rows[:2]])
    assert (with_gap[0]["pq_ci_low"], with_gap[0]["pq_ci_high"]) == pytest.approx((0.1, 0.9))


def test_without_metrics_images_are_counted():
    rows = [{"id": "1", "domain": "a"}, {"id": "2", "domain": "a"}]
    assert summarise_by_domain(rows) == [{"domain": "a", "images": 2, "skipped_images": 0}]
