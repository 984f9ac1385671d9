import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nucsam_monai.data import read_dataset
from nucsam_monai.data.label_files import read_instances
from nucsam_monai.data.nnunet import export_nnunet, import_nnunet
from nucsam_monai.io import read_image, read_label_map
from nucsam_monai.utils.errors import ConfigurationError, DatasetError
from nucsam_monai.utils.instances import connected_components
from tests.bundles.runs import write_datasets


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(write_datasets(tmp_path_factory.mktemp("data"))) / "dark"


def test_what_is_exported_comes_back_as_nuclei(dataset: Path, tmp_path: Path) -> None:
    text = export_nnunet(str(dataset), str(tmp_path / "raw"), number=7)
    folder = tmp_path / "raw" / "Dataset007_dark"
    found = read_dataset(dataset)
    content = json.loads((folder / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "nucleus": 1}
    assert (content["numTraining"], content["file_ending"]) == (7, ".png")
    (division,) = json.loads((folder / "splits_final.json").read_text())
    assert {key: len(ids) for key, ids in division.items()} == {"train": 5, "val": 2}
    assert {f"{name}.png" for ids in division.values() for name in ids} == {
        path.name for path in (folder / "labelsTr").iterdir()
    }
    assert f"-i {folder}/imagesTs" in text
    for item in found.splits["test"]:
        image = np.asarray(Image.open(folder / "imagesTs" / f"{item['id']}_0000.png"))
        np.testing.assert_array_equal(image, read_image(item["image"]))
    text = import_nnunet(str(folder / "labelsTs"), str(dataset), str(tmp_path / "maps"))
    assert "nucsam evaluate --dataset" in text
    for item in found.splits["test"]:
        truth = connected_components(read_instances(item["instances"]) > 0)
        np.testing.assert_array_equal(read_label_map(tmp_path / "maps" / f"{item['id']}.tif"), truth)


def test_what_cannot_be_exported_or_imported_is_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="number 0"):
        export_nnunet(str(dataset), str(tmp_path), number=0)
    export_nnunet(str(dataset), str(tmp_path))
    with pytest.raises(ConfigurationError, match="is there already"):
        export_nnunet(str(dataset), str(tmp_path))
    options = {"dataset": str(dataset), "output_dir": str(tmp_path / "maps")}
    with pytest.raises(ConfigurationError, match="instances 'distance'"):
        import_nnunet(str(tmp_path), instances="distance", **options)  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match="missing"):
        import_nnunet(str(tmp_path), **options)
    predictions = tmp_path / "Dataset001_dark" / "labelsTs"
    path = sorted(predictions.iterdir())[0]
    Image.fromarray(np.full((72, 64), 2, np.uint8)).save(path)
    with pytest.raises(DatasetError, match="values up to 2"):
        import_nnunet(str(predictions), **options)
    assert not (tmp_path / "maps").exists()
