"""Options of requests."""

import math

import pytest

from nucsam_monai.apps.monailabel.options import (
    Choice,
    Number,
    Switch,
    options_of,
    options_of_values,
    read_options,
)
from nucsam_monai.apps.monailabel.refusals import RequestRefusedError
from nucsam_monai.segmenter import Segmenter
from tests.bundles.runs import BUNDLES
from tests.tiny_bundles import SEGMENTING, Weights

OPTIONS = (Number("threshold", 0.5, 0, 1), Switch("tta", False), Choice("domain", ("automatic", "he")))


def test_defaults_and_values() -> None:
    assert read_options(OPTIONS, {}) == {"threshold": 0.5, "tta": False, "domain": "automatic"}
    given = {"threshold": "0.25", "tta": "true", "domain": ["he", "automatic"], "unknown": object()}
    assert read_options(OPTIONS, given) == {"threshold": 0.25, "tta": True, "domain": "he"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threshold", 1.5),
        ("threshold", math.nan),
        ("threshold", True),
        ("threshold", "$__import__('os').system('true')"),
        ("threshold", [0.5]),
        ("threshold", 10**400),
        ("tta", 1),
        ("tta", "$True"),
        ("domain", "$__import__('os').system('true')"),
        ("domain", "@network_def"),
        ("domain", {"he": 1}),
        ("domain", []),
    ],
)
def test_values_that_are_not_allowed(name: str, value: object) -> None:
    with pytest.raises(RequestRefusedError, match=name):
        read_options(OPTIONS, {name: value})


def test_whole_numbers() -> None:
    option = Number("overlap_px", 64, 0, 256, whole=True)
    assert option.read(32.0) == 32
    with pytest.raises(RequestRefusedError, match="whole"):
        option.read(32.5)


def test_only_what_clients_may_set_is_an_option() -> None:
    config = {"threshold": 0.5, "instances": "watershed", "checkpoint": "x", "tta": True, "overlap": "1"}
    assert [(one.name, one.shown) for one in options_of_values(config)] == [
        ("threshold", 0.5),
        ("instances", ["watershed", "components"]),
        ("tta", True),
    ]


def test_every_option_of_the_bundles_allows_its_default(weights: dict[str, Weights]) -> None:
    for name in SEGMENTING:
        options = options_of(weights[name].segmenter())
        assert options
        assert all(option.read(option.shown) == option.default for option in options)


def test_weights_that_part_nuclei_by_a_distance_map_leave_no_other_rule(weights: dict[str, Weights]) -> None:
    own = weights["unsam"]
    segmenter = Segmenter(BUNDLES / "unsam", own.path, settings={**own.settings, "instances": "distance"})
    assert "instances" not in {option.name for option in options_of(segmenter)}
