"""Data for experiments."""

import sys
from pathlib import Path

import pytest

from tests.bundles.runs import write_datasets

sys.path.insert(0, str(Path(__file__).parents[3] / "scripts"))


@pytest.fixture(scope="package")
def dataset_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_datasets(tmp_path_factory.mktemp("datasets")))
