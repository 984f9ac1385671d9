"""Finding images, and naming what is written about them."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nucsam_monai.io import find_images, output_stems
from nucsam_monai.utils.errors import ImageReadError


def test_images_of_a_folder_are_sorted_and_others_skipped(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.nii.gz", "c.tif", ".hidden.png", "notes.txt", "d.gz", "raw.raw"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in find_images(tmp_path)] == ["a.nii.gz", "b.PNG", "c.tif"]
    assert find_images(str(tmp_path / "c.tif")) == [tmp_path / "c.tif"]


def test_nothing_found_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ImageReadError, match="no such file or folder"):
        find_images(tmp_path / "missing")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ImageReadError, match=r"no image in this folder.*\.nii\.gz"):
        find_images(tmp_path)
    with pytest.raises(ImageReadError, match=r"notes\.txt.*not a supported image"):
        find_images(tmp_path / "notes.txt")


def test_stems_differ_where_names_would_collide() -> None:
    stems = output_stems(["x/a.png", "x/a.tif", "y/a.png", "x/A_PNG.jpg", "b.nii.gz", "c.d.png", "b2.nii"])
    assert {str(path): stem for path, stem in stems.items()} == {
        "x/a.png": "a_png_2",
        "x/a.tif": "a_tif",
        "y/a.png": "a_png_3",
        "x/A_PNG.jpg": "A_PNG",
        "b.nii.gz": "b",
        "c.d.png": "c.d",
        "b2.nii": "b2",
    }


@settings(deadline=None)
@given(
    st.lists(
        st.builds(
            "{}{}{}".format,
            st.sampled_from(["a", "A", "b"]),
            st.sampled_from(["", "_png", "_png_2"]),
            st.sampled_from([".png", ".tif", ".nii.gz"]),
        )
    )
)
def test_stems_are_unique_whatever_the_case(names: list[str]) -> None:
    stems = output_stems(names)
    assert set(stems) == {Path(name) for name in names}
    assert len({stem.casefold() for stem in stems.values()}) == len(stems)
