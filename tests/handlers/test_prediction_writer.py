import csv
import json
from pathlib import Path

import numpy as np
import tifffile

from nucsam_monai.handlers import PredictionWriter
from nucsam_monai.io import read_image
from tests.handlers.tiny_evaluation import evaluator, toy_items


def test_every_image_gets_its_four_files(tmp_path):
    items = toy_items(tmp_path)
    evaluator(items, [PredictionWriter(tmp_path / "out")]).run()
    suffixes = (".geojson", "_instances.tif", "_nuclei.csv", "_overlay.png")
    expected = sorted(item["id"] + suffix for item in items for suffix in suffixes)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == expected
    for item, nuclei, score in zip(items, [1, 1, 0, 0], [0.75, 0.8, None, None], strict=True):
        stem = tmp_path / "out" / item["id"]
        probability = item["image"][0].numpy()
        instances = tifffile.imread(f"{stem}_instances.tif")
        np.testing.assert_array_equal(instances > 0, probability >= 0.5)
        with Path(f"{stem}_nuclei.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == nuclei
        assert all(np.isclose(float(row["score"]), score) for row in rows)
        document = json.loads(stem.with_suffix(".geojson").read_text())
        assert len(document["features"]) == nuclei
        overlay = read_image(f"{stem}_overlay.png")
        pixels = item["pixels"].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(overlay[instances == 0], pixels[instances == 0])
