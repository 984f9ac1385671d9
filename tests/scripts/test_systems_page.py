"""docs/systems.md says what the code has."""

import re
from typing import get_args

import pytest
from experiments.description import BundleOptions
from experiments.preflight import option_problems
from experiments.shared import compared_systems, system_printed_as
from systems_page import PAGE, page, parameters_m, table_states

from nucsam_monai.networks.detectors import DETECTORS
from nucsam_monai.networks.fine_tuning import FineTuning
from nucsam_monai.systems import SYSTEMS

HERE = [system for system in compared_systems().values() if system.runs]


def printed_parameters() -> dict[str, float]:
    rows = re.findall(r"^\| ([^|]+) \|.* \| (\d+\.\d\d) \|$", PAGE.read_text(), re.MULTILINE)
    return {name: float(number) for name, number in rows}


def test_the_page_is_that_of_the_list_and_of_the_printed_tables() -> None:
    assert len(HERE) >= 24
    assert PAGE.read_text() == page(printed_parameters())


def test_most_tables_of_the_papers_are_whole_and_the_rest_have_named_reasons() -> None:
    states = table_states()
    assert len(states) == 35
    assert sum(one.state == "whole" for one in states) >= 26
    missing = {row for one in states for row in one.missing}
    assert all((system := system_printed_as(row)) is not None and system.reason for row in missing)


@pytest.mark.parametrize("system", HERE, ids=lambda system: system.name)
def test_a_system_builds_at_the_size_that_the_page_says(system) -> None:
    assert parameters_m(system) == pytest.approx(printed_parameters()[system.name], abs=0.0051)


@pytest.mark.parametrize("system", HERE, ids=lambda system: system.name)
def test_what_a_system_needs_is_there_and_tests_train_a_small_one(system) -> None:
    method = system.method
    settings = method.get("settings", {})
    overlays = tuple(method.get("test_overlays", ()))
    names = ("train", "evaluate", *overlays)
    assert not list(option_problems(method["bundle"], BundleOptions(overlays, settings), names))
    kind = settings.get("baseline") or settings.get("detector") or settings.get("adapter", "none")
    # Every key of the first two trains in tests of their own, and the ways of fine-tuning in those of SAC.
    trained = {*SYSTEMS, *DETECTORS, *get_args(FineTuning)}
    assert trained & {kind, kind.partition("-")[0] + "-*"}
