import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from nucsam_monai.handlers.label_map_writer import LabelMapWriter
from nucsam_monai.io import read_label_map
from nucsam_monai.utils.prediction import prediction_from_instances


def engine_with(*outputs: dict) -> SimpleNamespace:
    items = [{"domain": "d", "id": str(number)} for number in range(len(outputs))]
    return SimpleNamespace(state=SimpleNamespace(batch=items, output=list(outputs)))


def test_label_maps_and_classes_are_kept(tmp_path: Path) -> None:
    instances = np.array([[0, 3], [5, 5]], dtype=np.int32)
    typed = prediction_from_instances(instances, class_ids=np.array([1, 0]), class_names=("a", "b"))
    plain = prediction_from_instances(np.zeros((2, 2), dtype=np.int32))
    LabelMapWriter(tmp_path).write(engine_with({"pred": typed}, {"pred": plain}))
    assert np.array_equal(read_label_map(tmp_path / "d_0.tif"), instances)
    assert json.loads((tmp_path / "d_0.json").read_text()) == {"3": 1, "5": 0}
    assert not read_label_map(tmp_path / "d_1.tif").any()
    assert {path.name for path in tmp_path.iterdir()} == {"d_0.tif", "d_0.json", "d_1.tif"}
