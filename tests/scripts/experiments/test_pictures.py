import json
from pathlib import Path

import numpy as np
from experiments.figures import confusion_matrix, outcome_picture

from nucsam_monai.data.label_files import write_classes, write_instances
from nucsam_monai.io import write_label_image
from nucsam_monai.io.overlay import FALSE_POSITIVE, MISSED, TRUE_POSITIVE


def blocks(*labels: int) -> np.ndarray:
    """Return a map with one 4 x 4 block for each label, side by side."""
    return np.repeat(np.repeat(np.array([labels], dtype=np.int32), 4, axis=0), 4, axis=1)


def test_found_false_and_missed_nuclei_are_told_apart() -> None:
    image = np.zeros((4, 16, 3), dtype=np.uint8)
    picture, text = outcome_picture(image, blocks(1, 2, 0, 0), blocks(7, 0, 0, 9))
    assert text == "1 found, 1 false, 1 missed"
    assert tuple(picture[0, 0]) == TRUE_POSITIVE
    assert tuple(picture[0, 4]) == MISSED
    assert tuple(picture[0, 12]) == FALSE_POSITIVE
    assert not picture[:, 8:12].any()
    picture, text = outcome_picture(image, blocks(0, 0, 0, 0), blocks(0, 0, 0, 0))
    assert text == "0 found, 0 false, 0 missed"
    assert not picture.any()


def test_confusion_by_hand(tmp_path: Path) -> None:
    folder = tmp_path / "evaluation"
    true = write_instances(tmp_path, "x", blocks(1, 2, 3, 0))
    write_classes(tmp_path / "x.json", {1: 0, 2: 1, 3: 1})
    write_label_image(folder / "label_maps" / "d_x.tif", blocks(5, 6, 0, 7))
    (folder / "label_maps" / "d_x.json").write_text(json.dumps({"5": 0, "6": 0, "7": 1}))
    item = {"id": "x", "domain": "d", "instances": str(true), "classes": str(tmp_path / "x.json")}
    unanswered = {**item, "id": "y"}
    matrix = confusion_matrix([item, unanswered], folder, ("a", "b"))
    assert matrix.tolist() == [[1, 0, 0], [1, 0, 1], [0, 1, 0]]
