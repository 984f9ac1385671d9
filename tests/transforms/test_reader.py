import contextlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged
from PIL import Image

from nucsam_monai.transforms import NormalizeSAMd, NucleiImageReader
from nucsam_monai.utils.errors import ConfigurationError, ImageReadError
from nucsam_monai.utils.sam_pixels import SAM_PIXEL_MEAN, SAM_PIXEL_STD

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
    path = tmp_path / "image.nrrd"
    Image.fromarray(PIXELS).save(path, format="PNG")
    with pytest.raises(RuntimeError) as caught:
        load(path)
    assert "content is PNG" in str(caught.value.__cause__)


def test_one_file_at_a_time(tmp_path):
    reader = NucleiImageReader()
    with pytest.raises(ImageReadError, match="found 2"):
        reader.get_data(reader.read([tmp_path / "a.png", tmp_path / "b.png"]))


@pytest.mark.parametrize(("name", "supported"), [("a.PNG", True), ("a.nii.gz", True), ("a.svs", False)])
def test_suffixes(name, supported):
    assert NucleiImageReader().verify_suffix(name) is supported


def image(seed=0, height=4, width=6):
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed)).byte()


@pytest.mark.parametrize(("pixel_std", "divisor"), [("sam", SAM_PIXEL_STD), ("released", SAM_PIXEL_MEAN)])
def test_normalisation_subtracts_the_mean_and_divides(pixel_std, divisor):
    pixels = image()
    result = NormalizeSAMd("image", pixel_std)({"image": pixels})["image"]
    assert result.dtype == torch.float32
    for channel in range(3):
        expected = (pixels[channel].double() - SAM_PIXEL_MEAN[channel]) / divisor[channel]
        np.testing.assert_allclose(result[channel], expected, atol=1e-6)


def test_normalisation_equals_that_of_imagenet_on_the_unit_scale():
    pixels = image()
    expected = (pixels / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    torch.testing.assert_close(NormalizeSAMd("image")({"image": pixels})["image"], expected)


def test_normalisation_keeps_the_kind_of_array():
    pixels = image()
    normalise = NormalizeSAMd("image")
    expected = normalise({"image": pixels})["image"]
    from_numpy = normalise({"image": pixels.numpy()})["image"]
    assert isinstance(from_numpy, np.ndarray)
    assert from_numpy.dtype == np.float32
    np.testing.assert_array_equal(from_numpy, expected)
    with_meta = normalise({"image": MetaTensor(pixels, meta={"filename_or_obj": "a.png"})})["image"]
    assert with_meta.meta["filename_or_obj"] == "a.png"
    np.testing.assert_array_equal(with_meta.as_tensor(), expected)


@pytest.mark.parametrize(
    "wrong",
    [
        torch.rand(3, 4, 4),
        torch.full((3, 4, 4), 255.5),
        torch.full((3, 4, 4), -0.5),
        torch.full((3, 4, 4), float("nan")),
        torch.zeros(1, 4, 4),
        torch.zeros(4, 4, 3),
        torch.zeros(1, 3, 4, 4),
        torch.zeros(4, 4),
    ],
)
def test_what_is_not_rgb_of_0_to_255_is_refused(wrong):
    with pytest.raises(ConfigurationError, match="expected"):
        NormalizeSAMd("image")({"image": wrong})


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31 - 1), st.floats(0.1, 1.0), st.integers(0, 100))
def test_with_its_own_contrast_an_image_looks_the_same_faint_or_strong(seed, contrast, shift):
    pixels = image(seed, 12, 12).float()
    changed = (pixels / 2 * contrast + shift).clamp(0, 255)
    normalise = NormalizeSAMd("image", "image")
    found, other = (normalise({"image": each})["image"] for each in (pixels, changed))
    torch.testing.assert_close(found, other, atol=1e-4, rtol=1e-4)
    expected = (pixels.double() - pixels.double().mean()) / pixels.double().std()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_noise_of_an_empty_image_is_not_blown_up():
    pixels = torch.full((3, 8, 8), 7.0)
    pixels[:, ::2] = 8.0
    found = NormalizeSAMd("image", "image")({"image": pixels})["image"]
    assert found.abs().max() == pytest.approx(0.25)


def test_an_image_is_not_normalised_twice():
    once = NormalizeSAMd("image")({"image": image()})
    with pytest.raises(ConfigurationError, match="Normalise once"):
        NormalizeSAMd("image")(once)


@pytest.mark.parametrize("value", [0, 1, 255])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_black_and_white_images_are_fine(value, dtype):
    pixels = torch.full((3, 2, 2), value, dtype=dtype)
    assert NormalizeSAMd("image")({"image": pixels})["image"].isfinite().all()


@pytest.mark.parametrize(("value", "fits"), [(-1e-4, True), (255.0001, True), (-0.5, False), (255.5, False)])
def test_interpolated_values_may_be_rounded_beyond_the_scale(value, fits):
    pixels = torch.full((3, 2, 2), 128.0)
    pixels[0, 0, 0] = value
    with contextlib.nullcontext() if fits else pytest.raises(ConfigurationError, match=r"in 0\.\.255"):
        NormalizeSAMd("image")({"image": pixels})


def test_unknown_divisor_is_refused():
    with pytest.raises(ConfigurationError, match="expected one of sam, released, image"):
        NormalizeSAMd("image", "imagenet")
