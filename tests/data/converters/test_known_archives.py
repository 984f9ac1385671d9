import logging
from pathlib import Path

import pytest

from nucsam_monai.data.converters import known_archives
from nucsam_monai.data.converters.known_archives import KNOWN_ARCHIVES, KnownArchive, check_counts
from nucsam_monai.data.converters.sources import open_source
from nucsam_monai.utils.errors import DatasetError
from tests.data.originals import write_zip


def test_table_has_no_archive_twice() -> None:
    assert len({archive.sha256 for archive in KNOWN_ARCHIVES}) == len(KNOWN_ARCHIVES)
    assert all(len(archive.sha256) == 64 and archive.counts for archive in KNOWN_ARCHIVES)


def test_known_archive_must_match(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_source(write_zip(tmp_path / "a.zip", {"x": b""})) as source:
        known = KnownArchive(source.sha256, "the copy", {"images": 3, "masks": 9})
        monkeypatch.setattr(known_archives, "_BY_DIGEST", {source.sha256: known})
        check_counts("dsb2018/train", source, {"images": 3, "masks": 9})
        with pytest.raises(DatasetError, match=r"a\.zip is 'the copy', but found 2 images, expected 3\."):
            check_counts("dsb2018/train", source, {"images": 2, "masks": 9})


def test_unknown_archive_is_compared_with_the_publication(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_source(write_zip(tmp_path / "a.zip", {"x": b""})) as source, caplog.at_level(logging.WARNING):
        check_counts("dsb2018/train", source, {"images": 670, "masks": 1})
        check_counts("something/else", source, {"images": 1})
        assert not caplog.records
        check_counts("dsb2018/train", source, {"images": 664})
    assert "664 images, expected 670" in caplog.text
    assert source.sha256 in caplog.text
