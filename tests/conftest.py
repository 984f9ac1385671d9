"""Settings and fixtures that hold for every test."""

import fcntl
import gc
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import settings

# Examples take longer on a busy machine: time is not a criterion. They vary only when asked to.
settings.register_profile("nucsam", deadline=None, derandomize=not os.environ.get("NUCSAM_NEW_EXAMPLES"))
settings.load_profile("nucsam")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "slow: takes more than ten seconds on one core; NUCSAM_SLOW_TESTS=1 runs it"
    )
    gc.disable()


def pytest_collection_finish() -> None:
    """Spare the tests what would be done again for each: going through all objects, and through MONAI's modules."""
    gc.freeze()
    gc.enable()
    if (bundle := sys.modules.get("monai.bundle.config_item")) is not None:
        scan = bundle.ComponentLocator._find_classes_or_functions
        tables: dict[tuple[str, ...], dict[str, list[str]]] = {}

        def scan_once(locator: object, names: Sequence[str]) -> dict[str, list[str]]:
            if (key := tuple(names)) not in tables:
                tables[key] = scan(locator, names)
            return tables[key]

        bundle.ComponentLocator._find_classes_or_functions = scan_once


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not os.environ.get("NUCSAM_SLOW_TESTS"):
        skip = pytest.mark.skip(reason="slow: set NUCSAM_SLOW_TESTS=1 to run it")
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(skip)


# The fixtures import what they need themselves: most tests do without MLflow and torch, which take seconds.


@pytest.fixture(scope="session")
def template_database(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A tracking database that is made once and copied: MLflow's migrations take seconds."""
    from sqlalchemy import Engine, event

    from nucsam_monai.handlers.tracking_store import create_database

    # No test ends with the machine, so SQLite need not wait for the disk.
    event.listen(Engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=OFF"))
    folder = tmp_path_factory.getbasetemp()
    folder = folder if worker_id == "master" else folder.parent  # where all workers of a run see it
    with (folder / "template.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        database = folder / "template" / "mlflow.db"
        if not database.exists():
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
