from pathlib import Path

import pytest

from nucsam_monai.data.converters.pairing import part_of
from nucsam_monai.data.converters.sources import open_source
from tests.data.originals import write_zip

WORDS = {"train": "train", "training": "train", "test": "test"}


@pytest.mark.parametrize(
    ("source", "name", "part"),
    [
        ("a.zip", "data/Train_Set.zip/images/test.png", "train"),
        ("a.zip", "test/train/images/a.png", "train"),
        ("a.zip", "training/train_test/a.png", "train"),
        ("Test 2.zip", "images/a.png", "test"),
        ("contest.zip", "trained/a.png", None),
    ],
)
def test_part_is_told_by_whole_words_of_folders(
    tmp_path: Path, source: str, name: str, part: str | None
) -> None:
    with open_source(write_zip(tmp_path / source, {"x": b""})) as opened:
        assert part_of(opened, name, WORDS) == part
