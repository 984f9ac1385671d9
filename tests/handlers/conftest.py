"""A tracking database per test, copied from one that is made once: MLflow's migrations take seconds."""

import shutil
from pathlib import Path

import pytest
from monai.utils import path_to_sqlite_uri

from nucsam_monai.handlers import TrackedRun
from nucsam_monai.handlers.tracking_store import create_database
from tests.handlers.tracked_engines import EXPERIMENT, Store


@pytest.fixture(scope="session")
def template_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    database = tmp_path_factory.mktemp("template") / "mlflow.db"
    create_database(database)
    return database


@pytest.fixture
def store_uri(template_database: Path, tmp_path: Path) -> str:
    # a blank in the path shows whether every URI is quoted and unquoted
    folder = tmp_path / "tracking store"
    folder.mkdir()
    shutil.copy(template_database, folder / "mlflow.db")
    return path_to_sqlite_uri(folder / "mlflow.db")


@pytest.fixture
def store(store_uri: str) -> Store:
    return Store(store_uri)


@pytest.fixture
def tracked(store_uri: str) -> TrackedRun:
    return TrackedRun(
        EXPERIMENT,
        store_uri,
        tags={"bundle": "demo", "dataset": "toy", "protocol": None, "seed": 7},
        params={"optimizer": {"lr": 0.1}, "epochs": 2},
    )
