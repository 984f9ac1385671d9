"""Data for experiments."""

import pytest

from tests.bundles.runs import write_datasets


@pytest.fixture(scope="package")
def dataset_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_datasets(tmp_path_factory.mktemp("datasets")))
