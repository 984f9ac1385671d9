"""The label image of a slide and its SpatialData store show the nuclei pixel for pixel."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

pytest.importorskip("zarr", minversion="3")

import zarr

from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.prediction import prediction_from_instances
from nucsam_monai.wsi import Journal, SlideOptions, labels, merge_slide, segment_slide
from nucsam_monai.wsi.grid import WorkingGrid
from nucsam_monai.wsi.nuclei_table import measure, nuclei_rows
from tests.wsi.slides import oracle, picture_of, random_nuclei

WIDTH, HEIGHT = 700, 600


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    truth = random_nuclei(WIDTH, 400, seed=7)[:HEIGHT]
    truth[300:330, 300:330] = truth.max() + 1
    truth[310:315, 310:320] = 0  # a hole, in which lies another nucleus
    truth[311:313, 312:315] = truth.max() + 1
    truth[340:343, 300:303] = truth[343:346, 303:306] = truth.max() + 1  # parts that touch at a corner
    return truth


@pytest.fixture(scope="module")
def folder(truth: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slide") / "slide.png"
    Image.fromarray(picture_of(truth)).save(path)
    outputs = ("parquet", "labels", "spatialdata")
    options = SlideOptions(mpp=0.25, mask="all", shard_px=240, max_nucleus_um=8.0, outputs=outputs)
    small = {"_FILE_PX": 256, "_CHUNK_PX": 64, "_COARSEST_PX": 200}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in small.items():
            patch.setattr(labels, name, value)
        segment_slide(path, path.parent, oracle(), options)
    return path.parent / "slide"


def test_labels_are_the_nuclei_pixel_for_pixel(folder: Path, truth: np.ndarray) -> None:
    image = np.asarray(zarr.open_group(str(folder / "labels.zarr"), mode="r")["0"])
    assert image.shape == truth.shape
    pairs = np.unique(np.stack([image.ravel(), truth.ravel()]), axis=1)
    assert pairs.shape[1] == len(np.unique(truth)) == len(np.unique(image))
    np.testing.assert_array_equal(image > 0, truth > 0)


def test_coarser_levels_are_every_second_pixel(folder: Path) -> None:
    group = zarr.open_group(str(folder / "labels.zarr"), mode="r")
    arrays = [np.asarray(group[str(n)]) for n in range(3)]
    assert sorted(group.keys()) == ["0", "1", "2"]
    for finer, coarser in pairwise(arrays):
        np.testing.assert_array_equal(coarser, finer[::2, ::2])


def test_labels_follow_ome_zarr(folder: Path) -> None:
    """Checks what the specification 0.5 demands of a multiscale label image; the package checks it as well."""
    group = zarr.open_group(str(folder / "labels.zarr"), mode="r")
    ome: Any = group.attrs["ome"]
    assert group.metadata.zarr_format == 3
    assert ome["version"] == "0.5"
    assert "image-label" in ome
    (scales,) = ome["multiscales"]
    assert [(axis["name"], axis["type"]) for axis in scales["axes"]] == [("y", "space"), ("x", "space")]
    for number, dataset in enumerate(scales["datasets"]):
        assert np.issubdtype(group[dataset["path"]].dtype, np.unsignedinteger)
        assert group[dataset["path"]].metadata.dimension_names == ("y", "x")
        expected = [{"type": "scale", "scale": [0.25 * 2**number] * 2}]
        assert dataset["coordinateTransformations"] == expected
    models = pytest.importorskip("ome_zarr_models")
    assert type(models.open_ome_zarr(group)).__name__ == "ImageLabel"


def test_the_store_has_the_files_of_the_other_outputs(folder: Path) -> None:
    store = folder / "slide.zarr"
    assert (store / "shapes" / "nuclei" / "shapes.parquet").samefile(folder / "nuclei.parquet")
    labelled = (store / "labels" / "nuclei_labels" / "0" / "c").rglob("*")
    assert sum(file.is_file() for file in labelled) == 9
    written = json.loads((folder / "DONE.json").read_text())["files"]
    assert {file.relative_to(folder).as_posix() for file in store.rglob("*") if file.is_file()} < set(written)


def test_spatialdata_opens_the_store(folder: Path, truth: np.ndarray) -> None:
    spatialdata = pytest.importorskip("spatialdata")
    opened = spatialdata.read_zarr(folder / "slide.zarr")
    assert len(opened["nuclei"]) == len(np.unique(truth)) - 1
    np.testing.assert_array_equal(np.asarray(opened["nuclei_labels"]["scale0"]["image"]) > 0, truth > 0)
    extent = spatialdata.get_extent(opened["nuclei"], coordinate_system="global")
    rows, columns = np.nonzero(truth)
    assert extent["x"] == pytest.approx((columns.min() / 4, (columns.max() + 1) / 4))
    assert extent["y"] == pytest.approx((rows.min() / 4, (rows.max() + 1) / 4))


@pytest.mark.parametrize("scale", [1.7, 0.3, 4.0])
def test_nuclei_are_painted_on_the_pixels_that_the_network_saw(
    truth: np.ndarray, tmp_path: Path, scale: float
) -> None:
    prediction = prediction_from_instances(truth)
    measured = measure(truth, prediction.table["id"], np.zeros((*truth.shape, 3), np.uint8), 0, 0)
    table = nuclei_rows(prediction, measured, origin=(0, 0), scale=scale, mpp=0.25)
    table = table.set_column(0, "id", pa.array(prediction.table["id"].astype(np.int64)))
    image = labels.LabelImage(tmp_path, WorkingGrid(0, 0.25, scale, WIDTH, HEIGHT, True))
    image.paint(table.slice(0, 100))
    image.paint(table.slice(100))
    np.testing.assert_array_equal(np.asarray(image.levels[0]), truth)
    image.paint(table.slice(0, 100).set_column(0, "id", pa.array(np.full(100, 9999))))
    np.testing.assert_array_equal(np.asarray(image.levels[0]), truth)


def test_outputs_can_be_added_to_a_finished_slide(folder: Path) -> None:
    before = (folder / "nuclei.parquet").read_bytes()
    merge_slide(Journal(folder), ("parquet", "csv"))
    assert (folder / "nuclei.csv.gz").is_file()
    assert (folder / "nuclei.parquet").read_bytes() == before


def test_unknown_outputs_are_refused_before_the_work_begins() -> None:
    with pytest.raises(ConfigurationError, match=r"outputs 'label': expected some of .*labels"):
        SlideOptions(outputs=("parquet", "label"))
