import csv
import json
from pathlib import Path

import numpy as np
import pytest

from nucsam_monai.io import nuclei_rows, write_json, write_table
from nucsam_monai.io.predictions import NUCLEI_COLUMNS
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.prediction import prediction_from_instances


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_numbers_read_back_equal(tmp_path: Path) -> None:
    values = [1 / 3, 1e-300, np.float64(2) / 3, np.pi]
    write_table(tmp_path / "a.csv", [{"value": value} for value in values])
    assert [float(row["value"]) for row in read(tmp_path / "a.csv")] == values


def test_header_is_the_union_of_the_keys_and_text_is_quoted(tmp_path: Path) -> None:
    write_table(tmp_path / "a.csv", [{"a": 'say "1,2"'}, {"b": "µm\nnext", "a": None}])
    assert read(tmp_path / "a.csv") == [{"a": 'say "1,2"', "b": ""}, {"a": "", "b": "µm\nnext"}]


def test_unknown_column_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("old")
    with pytest.raises(ConfigurationError, match="'b'"):
        write_table(path, [{"a": 1}, {"b": 2}], columns=("a",))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_failing_generator_leaves_no_file(tmp_path: Path) -> None:
    def rows():
        yield {"a": 1}
        raise RuntimeError("the network is gone")

    with pytest.raises(RuntimeError):
        write_table(tmp_path / "a.csv", rows(), columns=("a",))
    assert list(tmp_path.iterdir()) == []


def test_rows_of_nuclei_name_class_and_short_score(tmp_path: Path) -> None:
    instances = np.zeros((6, 8), dtype=np.int32)
    instances[1:3, 2:6] = 5
    instances[4, 0] = 2
    prediction = prediction_from_instances(
        instances, scores=np.array([0.1, 0.9]), class_ids=np.array([0, 1]), class_names=("tumour", "stroma")
    )
    write_table(tmp_path / "a.csv", nuclei_rows(prediction), NUCLEI_COLUMNS)
    _, second = read(tmp_path / "a.csv")
    assert second == {
        "id": "5",
        "class_id": "1",
        "score": "0.9",
        "centroid_x_px": "3.5",
        "centroid_y_px": "1.5",
        "box_x_min_px": "2",
        "box_y_min_px": "1",
        "box_x_max_px": "6",
        "box_y_max_px": "3",
        "area_px": "8",
        "class_name": "stroma",
    }


def test_json_has_no_nan_and_knows_numpy_and_paths(tmp_path: Path) -> None:
    document = {
        "nan": float("nan"),
        "infinite": [np.float32("inf"), -np.inf],
        "array": np.array([[1.5, np.nan]]),
        "count": np.int64(3),
        "path": Path("a") / "b",
        7: (True, None, "µm"),
    }
    write_json(tmp_path / "a.json", document)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == {
        "nan": None,
        "infinite": [None, None],
        "array": [[1.5, None]],
        "count": 3,
        "path": str(Path("a") / "b"),
        "7": [True, None, "µm"],
    }


def test_json_refuses_other_types_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="set"):
        write_json(tmp_path / "a.json", {"a": {1, 2}})
    assert list(tmp_path.iterdir()) == []
