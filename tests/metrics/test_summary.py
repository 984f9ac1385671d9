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
        assert row.pop("domain") == slow.pop("domain")
        assert row == pytest.approx(slow, nan_ok=True, abs=1e-12)


def test_without_metrics_images_are_counted():
    rows = [{"id": "1", "domain": "a"}, {"id": "2", "domain": "a"}]
    assert summarise_by_domain(rows) == [{"domain": "a", "images": 2, "skipped_images": 0}]
