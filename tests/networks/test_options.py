from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pytest
from torch import nn

from nucsam_monai.networks.options import parameter_groups, read_options
from nucsam_monai.utils.errors import ConfigurationError


@dataclass(frozen=True)
class Example:
    flag: bool = True
    number: int = 1
    ratio: float = 0.5
    limit: int | None = None
    rank: int | Literal["d/4"] = "d/4"
    form: Literal["a", "b"] = "a"
    counts: int | Mapping[str, int] = 1


def test_defaults_stay_where_nothing_is_said():
    assert read_options(Example, None, "example") == Example()
    assert read_options(Example, {"form": "b"}, "example") == Example(form="b")


@pytest.mark.parametrize(
    ("key", "value"),
    [("ratio", 1), ("limit", None), ("limit", 3), ("rank", 4), ("rank", "d/4"), ("counts", {"a": 2})],
)
def test_permitted_values_are_taken(key, value):
    assert getattr(read_options(Example, {key: value}, "example"), key) == value


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("flag", "false", "bool"),
        ("flag", 1, "bool"),
        ("number", True, "int"),
        ("number", 1.0, "int"),
        ("ratio", None, "float"),
        ("limit", "3", "int or null"),
        ("rank", "d/2", r"int or one of \['d/4'\]"),
        ("rank", True, r"int or one of \['d/4'\]"),
        ("form", "c", r"one of \['a', 'b'\]"),
    ],
)
def test_other_values_are_refused(key, value, expected):
    with pytest.raises(ConfigurationError, match=rf"example\.{key} {value!r}: expected {expected}\."):
        read_options(Example, {key: value}, "example")


def test_unknown_names_are_refused_and_the_permitted_named():
    with pytest.raises(ConfigurationError, match=r"example: unknown option \['flags'\]; permitted .*'flag'"):
        read_options(Example, {"flags": True}, "example")


def test_parts_of_a_network_learn_at_a_rate_of_their_own():
    network = nn.ModuleDict({"trunk": nn.Linear(2, 2), "head": nn.Linear(2, 1), "frozen": nn.Linear(2, 2)})
    network["frozen"].requires_grad_(False)
    groups = parameter_groups(network, 0.01, {"trunk": 0.5})
    assert [group["lr"] for group in groups] == [0.005, 0.01]
    assert [list(map(id, group["params"])) for group in groups] == [
        [id(parameter) for parameter in network[part].parameters()] for part in ("trunk", "head")
    ]
    (whole,) = parameter_groups(network, 0.01, {})
    assert len(whole["params"]) == 4
    for wrong in ("neck", "frozen"):
        with pytest.raises(ConfigurationError, match=f"no trained parameter is called '{wrong}"):
            parameter_groups(network, 0.01, {wrong: 0.5})
