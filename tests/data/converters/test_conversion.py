import logging
from pathlib import Path

import pytest

from nucsam_monai.data.converters import conversion, kumar
from nucsam_monai.data.converters.conversion import (
    KNOWN_ARCHIVES,
    KnownArchive,
    check_counts,
    named_protocols,
)
from nucsam_monai.data.converters.sources import open_source
from nucsam_monai.utils.errors import DatasetError
from tests.data.originals import write_zip


def test_only_the_first_protocol_may_be_without_test_images() -> None:
    splits = {"kumar_16_8_6": {"training": ["a"]}, "kumar_test1": {"training": ["a"], "test": []}}
    assert list(named_protocols(kumar.INFO, splits)) == ["kumar_16_8_6"]
    splits["kumar_test1"]["test"] = ["b"]
    protocols = named_protocols(kumar.INFO, splits, {"a": "1", "b": "1"})
    assert protocols["kumar_test1"].divides_groups
    assert protocols["kumar_test1"].description == kumar.INFO.protocols["kumar_test1"]


def test_table_has_no_archive_twice() -> None:
    assert len({archive.sha256 for archive in KNOWN_ARCHIVES}) == len(KNOWN_ARCHIVES)
    assert all(len(archive.sha256) == 64 and archive.counts for archive in KNOWN_ARCHIVES)


def test_known_archive_must_match(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_source(write_zip(tmp_path / "a.zip", {"x": b""})) as source:
        known = KnownArchive(source.sha256, "the copy", {"images": 3, "masks": 9})
        monkeypatch.setattr(conversion, "_BY_DIGEST", {source.sha256: known})
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
