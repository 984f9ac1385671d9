import logging

import numpy as np
import pytest

from nucsam_monai.data import DatasetWriter, class_names
from nucsam_monai.data.metadata import DatasetMetadata
from nucsam_monai.utils.errors import DatasetError


def write(folder, names):
    metadata = DatasetMetadata(
        folder.name, folder.name, "none", None, None, "CC0-1.0", "none", class_names=names
    )
    with DatasetWriter(folder, metadata) as writer:
        writer.add("training", "a", np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.int32))


def test_the_classes_that_all_datasets_share(tmp_path):
    for name in ("one", "two"):
        write(tmp_path / name, ("a", "b"))
    assert class_names(tmp_path) == class_names(tmp_path / "one") == ["a", "b"]


def test_datasets_of_different_classes_have_one_class_and_say_so(tmp_path, caplog):
    write(tmp_path / "one", ("a", "b"))
    write(tmp_path / "two", ("b", "a"))
    with caplog.at_level(logging.WARNING):
        assert class_names(tmp_path) == ["nucleus"]
    assert "different classes" in caplog.text


def test_no_dataset_has_no_classes(tmp_path):
    with pytest.raises(DatasetError):
        class_names(tmp_path)
