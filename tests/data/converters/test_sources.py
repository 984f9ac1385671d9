import hashlib
import os
import pickle
import re
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from nucsam_monai.data.converters import sources
from nucsam_monai.data.converters.sources import open_source, source_digests
from nucsam_monai.utils.errors import DatasetError
from tests.data.originals import write_folder, write_zip

MEMBERS = {"root/b.txt": b"bee", "root/a.txt": b"ay", "__MACOSX/root/._a.txt": b"?", "root/.DS_Store": b"?"}


@pytest.mark.parametrize("write", [write_zip, write_folder])
def test_files_are_listed_in_order_without_leftovers(tmp_path: Path, write: object) -> None:
    path = write(tmp_path / "source", MEMBERS)  # type: ignore[operator]
    with open_source(path) as source:
        assert source.names == ("root/a.txt", "root/b.txt")
        assert source.read("root/b.txt") == b"bee"
        matches = [
            (name, found[1]) for name, found in source.match(re.compile(r"root/(b)\.TXT", re.IGNORECASE))
        ]
        assert matches == [("root/b.txt", "b")]


def test_digests_identify_content(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    archive = write_zip(tmp_path / "x" / "a.zip", MEMBERS)
    folder = write_folder(tmp_path / "y" / "a.zip", MEMBERS)
    listing = "".join(
        f"{hashlib.sha256(MEMBERS[name]).hexdigest()}  {name}\n" for name in ("root/a.txt", "root/b.txt")
    )
    with open_source(archive) as zipped, open_source(folder) as unpacked:
        assert source_digests(zipped) == {"a.zip": hashlib.sha256(archive.read_bytes()).hexdigest()}
        assert unpacked.sha256 == hashlib.sha256(listing.encode()).hexdigest()
        assert set(source_digests(zipped, unpacked)) == {"x/a.zip", "y/a.zip"}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../evil.png", "leaves the archive"),
        ("a/../../evil.png", "leaves the archive"),
        ("/etc/evil.png", "absolute"),
        ("C:/evil.png", "absolute"),
        ("a\\..\\evil.png", "backslash"),
        ("__MACOSX/../../evil", "leaves the archive"),
        ("a\nb.png", "control characters"),
    ],
)
def test_hostile_names_are_refused(tmp_path: Path, name: str, reason: str) -> None:
    path = write_zip(tmp_path / "a.zip", {"fine.png": b"", name: b""})
    with pytest.raises(DatasetError, match=reason), open_source(path):
        pass


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices_are_refused(tmp_path: Path, kind: int) -> None:
    member = zipfile.ZipInfo("link.png")
    member.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(member, "/etc/passwd")
    with pytest.raises(DatasetError, match="link or a device"), open_source(tmp_path / "a.zip"):
        pass


def test_names_that_differ_in_case_only_are_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a.png": b"1", "A.PNG": b"2"})
    with pytest.raises(DatasetError, match="occurs twice"), open_source(path):
        pass


def test_encrypted_members_are_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a.png": b"1"})
    content = bytearray(path.read_bytes())
    central = content.index(b"PK\x01\x02")
    content[central + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="encrypted"), open_source(path):
        pass


def declare_size(path: Path, size: int) -> Path:
    """Let the archive's index claim that its only member unpacks to ``size`` bytes."""
    content = bytearray(path.read_bytes())
    central = content.index(b"PK\x01\x02")
    content[central + 24 : central + 28] = size.to_bytes(4, "little")
    path.write_bytes(content)
    return path


def test_bomb_is_refused_by_its_claimed_size(tmp_path: Path) -> None:
    path = declare_size(write_zip(tmp_path / "a.zip", {"a.png": b"1" * 5000}), 4_000_000_000)
    with pytest.raises(DatasetError, match="decompression bomb"), open_source(path):
        pass


def test_large_member_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_MEMBER_BYTES", 100)
    members = {"a.png": os.urandom(101), "b.png": os.urandom(100)}
    for path in (write_zip(tmp_path / "a.zip", members), write_folder(tmp_path / "a", members)):
        with open_source(path) as source:
            assert len(source.read("b.png")) == 100
            with pytest.raises(DatasetError, match="larger than"):
                source.read("a.png")


def test_member_that_unpacks_to_more_than_it_claims_is_refused(tmp_path: Path) -> None:
    path = declare_size(write_zip(tmp_path / "a.zip", {"a.png": b"1" * 5000}), 50)
    with open_source(path) as source, pytest.raises(DatasetError, match=r"a\.png is damaged"):
        source.read("a.png")


def test_damaged_sources_get_one_clear_error(tmp_path: Path) -> None:
    good = write_zip(tmp_path / "good.zip", {"a.png": os.urandom(3000)}).read_bytes()
    cases = {
        "cut.zip": (good[: len(good) // 2], "truncated or damaged"),
        "page.zip": (b"<!doctype html>", r"not a zip archive \(first bytes: 3c21646f\)"),
        "empty.zip": (b"", r"not a zip archive \(first bytes: none\)"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DatasetError, match=message), open_source(tmp_path / name):
            pass
    with pytest.raises(DatasetError, match="no such file"), open_source(tmp_path / "none.zip"):
        pass
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", write_zip(tmp_path / "nothing.zip", {})):
        with pytest.raises(DatasetError, match="holds no files"), open_source(path):
            pass


def test_flipped_bit_in_a_member_is_noticed(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a.png": os.urandom(3000)})
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with open_source(path) as source, pytest.raises(DatasetError, match=r"a\.png is damaged .* again"):
        source.read("a.png")


def nested(tmp_path: Path) -> dict[str, bytes]:
    inner = write_zip(tmp_path / "inner.zip", {"b.txt": b"bee", "__MACOSX/._b.txt": b"?"}).read_bytes()
    middle = write_zip(tmp_path / "middle.zip", {"deep/Inner.ZIP": inner, "c.txt": b"sea"}).read_bytes()
    return {"root/Fold 1.zip": middle, "root/a.txt": b"ay"}


@pytest.mark.parametrize("write", [write_zip, write_folder])
def test_archives_in_archives_are_walked(tmp_path: Path, write: Callable[..., Path]) -> None:
    path = write(tmp_path / "source", nested(tmp_path))
    names = ("root/Fold 1.zip/c.txt", "root/Fold 1.zip/deep/Inner.ZIP/b.txt", "root/a.txt")
    with open_source(path) as source:
        assert source.names == names
        assert [source.read(name) for name in names] == [b"sea", b"bee", b"ay"]
        elsewhere = pickle.loads(pickle.dumps(source))
        assert [elsewhere.read(name) for name in names] == [b"sea", b"bee", b"ay"]


def test_a_hostile_archive_inside_is_refused(tmp_path: Path) -> None:
    evil = write_zip(tmp_path / "evil.zip", {"../evil.png": b""}).read_bytes()
    for path in (
        write_zip(tmp_path / "a.zip", {"i.zip": evil}),
        write_folder(tmp_path / "a", {"i.zip": evil}),
    ):
        with pytest.raises(DatasetError, match="leaves the archive"), open_source(path):
            pass


def test_a_large_member_can_be_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_MEMBER_BYTES", 100)
    content = os.urandom(1000)
    for path in (write_zip(tmp_path / "a.zip", {"a": content}), write_folder(tmp_path / "a", {"a": content})):
        with open_source(path) as source, source.open("a") as file:
            assert file.read(10) + file.read() == content


@pytest.mark.parametrize("write", [write_zip, write_folder])
def test_archives_that_are_left_out_are_not_opened(tmp_path: Path, write: object) -> None:
    inner = write_zip(tmp_path / "inner.zip", {"a.png": b"a", "rois/1.zip": b"no archive"}).read_bytes()
    members = {"inner.zip": inner, "Rois/2.zip": b"no archive", "b.png": b"b"}
    path = write(tmp_path / "source", members)  # type: ignore[operator]
    without = re.compile(r"(?:.*/)?rois/.*", re.IGNORECASE)
    with open_source(path, without=without) as source:
        assert source.names == ("b.png", "inner.zip/a.png")
        sent = pickle.loads(pickle.dumps(source))
        assert sent.names == source.names
        sent.close()
    with pytest.raises(DatasetError, match="not a zip archive"), open_source(path):
        pass
