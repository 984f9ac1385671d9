"""Metrics of a slide from outlines are those from label maps."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from nucsam_monai.metrics import LabelPair, instance_metrics
from nucsam_monai.metrics.outlines import table_of_outlines
from nucsam_monai.wsi import segment_slide
from tests.wsi.slides import oracle, picture_of, random_nuclei
from tests.wsi.test_run import OPTIONS


def nuclei_of(truth: np.ndarray, folder: Path, name: str) -> Path:
    Image.fromarray(picture_of(truth)).save(folder / f"{name}.png")
    segment_slide(folder / f"{name}.png", folder, oracle(), OPTIONS)
    return folder / name / "nuclei.parquet"


def test_metrics_of_outlines_are_those_of_label_maps(tmp_path: Path) -> None:
    truth = random_nuclei(500, 150, seed=5)
    moved = np.roll(np.where(truth % 7 == 0, 0, truth), (2, 3), axis=(0, 1))
    moved[:, :3] = moved[:2] = 0
    files = nuclei_of(truth, tmp_path, "truth"), nuclei_of(moved, tmp_path, "moved")
    found = instance_metrics(LabelPair.of_table(table_of_outlines(*files)))
    assert found._asdict() == pytest.approx(instance_metrics(truth, moved)._asdict())
    same = instance_metrics(LabelPair.of_table(table_of_outlines(files[0], files[0])))
    assert (same.aji, same.pq) == pytest.approx((1, 1))
    assert pq.read_table(files[0]).num_rows == 150
