"""A run that is tracked in a database of its own."""

import pytest

from nucsam_monai.handlers import TrackedRun
from tests.handlers.tracked_engines import EXPERIMENT


@pytest.fixture
def tracked(store_uri: str) -> TrackedRun:
    return TrackedRun(
        EXPERIMENT,
        store_uri,
        tags={"bundle": "demo", "dataset": "toy", "protocol": None, "seed": 7},
        params={"optimizer": {"lr": 0.1}, "epochs": 2},
    )
