import numpy as np
import pytest
import torch
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged
from PIL import Image

from nucsam_monai.transforms import NucleiImageReader
from nucsam_monai.utils.errors import ImageReadError

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 9, 3), dtype=np.uint8)


def load(path):
    return Compose(
        [
            LoadImaged(
                "image",
                reader="nucsam_monai.transforms.NucleiImageReader",
                dtype=torch.uint8,
                image_only=True,
            ),
            EnsureChannelFirstd("image", channel_dim=-1),
        ]
    )({"image": str(path)})["image"]


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".PNG"])
def test_rows_are_y_and_columns_are_x(tmp_path, suffix):
    path = tmp_path / f"image{suffix}"
    Image.fromarray(PIXELS).save(path)
    image = load(path)
    assert image.dtype == torch.uint8
    np.testing.assert_array_equal(image, PIXELS.transpose(2, 0, 1))


def test_grey_images_and_alpha_become_rgb(tmp_path):
    Image.fromarray(PIXELS[..., 0]).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(load(tmp_path / "grey.png"), np.stack([PIXELS[..., 0]] * 3))
    alpha = np.dstack([PIXELS, np.full(PIXELS.shape[:2], 255, np.uint8)])
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(load(tmp_path / "alpha.png"), PIXELS.transpose(2, 0, 1))


def test_the_reason_of_a_failure_arrives(tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    with pytest.raises(RuntimeError) as caught:
        load(path)
    assert isinstance(caught.value.__cause__, ImageReadError)
    assert "broken.png" in str(caught.value.__cause__)


def test_no_other_reader_takes_over(tmp_path):
    """MONAI's own reader would load this file, transposed."""
    path = tmp_path / "image.png"
    Image.fromarray(PIXELS).save(path, format="JPEG")
    with pytest.raises(RuntimeError) as caught:
        load(path)
    assert "content is JPEG" in str(caught.value.__cause__)


def test_one_file_at_a_time(tmp_path):
    reader = NucleiImageReader()
    with pytest.raises(ImageReadError, match="found 2"):
        reader.get_data(reader.read([tmp_path / "a.png", tmp_path / "b.png"]))


@pytest.mark.parametrize(("name", "supported"), [("a.PNG", True), ("a.nii.gz", True), ("a.svs", False)])
def test_suffixes(name, supported):
    assert NucleiImageReader().verify_suffix(name) is supported
