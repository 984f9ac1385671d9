"""Settings and fixtures that hold for every test."""

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

# Examples take longer on a busy machine: time is not a criterion. In continuous integration they don't vary.
settings.register_profile("nucsam", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("nucsam")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "slow: takes more than ten seconds on one core; NUCSAM_SLOW_TESTS=1 runs it"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not os.environ.get("NUCSAM_SLOW_TESTS"):
        skip = pytest.mark.skip(reason="slow: set NUCSAM_SLOW_TESTS=1 to run it")
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(skip)


# The fixtures import what they need themselves: most tests do without MLflow and torch, which take seconds.


@pytest.fixture(scope="session")
def template_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tracking database that is made once and copied: MLflow's migrations take seconds."""
    from nucsam_monai.handlers.tracking_store import create_database

    database = tmp_path_factory.mktemp("template") / "mlflow.db"
    create_database(database)
    return database


@pytest.fixture
def store_uri(template_database: Path, tmp_path: Path) -> str:
    from monai.utils import path_to_sqlite_uri

    # a blank in the path shows whether every URI is quoted and unquoted
    folder = tmp_path / "tracking store"
    folder.mkdir()
    shutil.copy(template_database, folder / "mlflow.db")
    return path_to_sqlite_uri(folder / "mlflow.db")


@pytest.fixture
def store(store_uri: str) -> object:
    """What answers questions about the database of ``store_uri``."""
    from tests.handlers.tracked_engines import Store

    return Store(store_uri)
