import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from nucsam_monai.data.converters.label_decoding import (
    as_label_map,
    decode_grey_labels,
    decode_label_channels,
    decode_label_file,
)
from nucsam_monai.utils.errors import DatasetError
from tests.data.encoded import bmp, labels, mat, npy
from tests.data.originals import noise, png, tiff

MAPS = arrays.arrays(
    np.int32, arrays.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.integers(0, 60_000)
)


@settings(max_examples=25)
@given(MAPS)
def test_every_format_gives_the_same_map(expected: np.ndarray) -> None:
    for name, content in (
        ("a.npy", npy(expected)),
        ("a.NPY", npy(np.asfortranarray(expected).astype(np.float64))),
        ("a.mat", mat(inst_map=expected)),
        ("a.Mat", mat(inst_map=expected.astype(np.float32))),
        ("a.png", png(expected.astype(np.uint16))),
        ("a.tif", tiff(expected)),
        ("a.tiff", tiff(expected.astype(np.float32))),
    ):
        decoded = decode_label_file(content, name, "x")
        assert decoded.dtype == np.int32
        np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "L"])
def test_equal_channels_are_one(mode: str) -> None:
    expected = labels((6, 9), 3, 9)
    np.testing.assert_array_equal(decode_grey_labels(png(expected.astype(np.uint8), mode), "a"), expected)


def test_channels_without_alpha() -> None:
    pixels = noise(4, 5, 4)
    np.testing.assert_array_equal(decode_label_channels(png(pixels), "a"), pixels[..., :3])
    assert decode_label_channels(bmp(pixels[..., 0]), "a").shape == (4, 5, 1)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(3), r"expected a label map .* float64 \(3,\)"),
        (np.zeros((2, 2, 1), np.int32), r"int32 \(2, 2, 1\)"),
        (np.array([["a"]]), "expected a label map"),
        (np.array([[0.5]]), "not whole"),
        (np.array([[np.inf]]), "not whole"),
        (np.array([[-1]]), "ids from -1 to -1"),
        (np.array([[2**31]]), "ids from 2147483648"),
    ],
)
def test_what_is_no_label_map_is_refused(array: np.ndarray, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        as_label_map(array, "x")


def test_huge_claims_are_refused() -> None:
    content = npy(np.zeros((4, 4))).replace(b"(4, 4), }           ", b"(99999, 99999999), }")
    with pytest.raises(DatasetError, match=r"not a \.npy file of numbers .*allocate"):
        decode_label_file(content, "a.npy", "x")
