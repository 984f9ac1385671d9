import copy
import multiprocessing
import os
import pickle
import time

import pytest
import torch

from nucsam_monai.networks.sam.cache import Entry, FileStore, MemoryStore
from nucsam_monai.utils.errors import ConfigurationError

KEYS = [f"{index:02x}" * 32 for index in range(40)]
KB = 1000


def entry_of(value, numbers=250):
    return Entry({"block_03": torch.full((numbers,), float(value))}, {"dtype": "torch.float32"})


def assert_same(found, expected):
    assert found.tensors.keys() == expected.tensors.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in expected.tensors.items())
    assert found.header["dtype"] == expected.header["dtype"]


def write_all(folder, value, ready):
    ready.set()
    store = FileStore(folder, 10**6)
    for _ in range(3):
        for key in KEYS[:4]:
            store.put(key, entry_of(value))
            found = store.get(key)
            assert found is not None
            assert found.tensors["block_03"].unique().tolist() in ([1.0], [2.0])


@pytest.fixture
def store(tmp_path):
    return FileStore(tmp_path / "new" / "cache", 10**6)


def files_of(store):
    return sorted(path for path in store.folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_was_put_is_found_by_every_store_of_the_folder(store, dtype):
    entry = Entry({"a": torch.randn(2, 3).to(dtype), "b": torch.randn(4).to(dtype)}, {"dtype": str(dtype)})
    store.put(KEYS[1], entry)
    assert_same(store.get(KEYS[1]), entry)
    assert_same(FileStore(store.folder, 10**6).get(KEYS[1]), entry)
    assert store.get(KEYS[2]) is None
    assert files_of(store) == [store.folder / "01" / f"{KEYS[1]}.safetensors"]


def test_last_writer_of_a_key_wins(store):
    store.put(KEYS[0], entry_of(1))
    FileStore(store.folder, 10**6).put(KEYS[0], entry_of(2))
    assert_same(store.get(KEYS[0]), entry_of(2))
    assert len(files_of(store)) == 1


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def empty(path):
    path.write_bytes(b"")


def flip_number(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def flip_header(path):
    path.write_bytes(path.read_bytes().replace(b"torch.float32", b"torch.float31"))


def swap(path):
    path.write_bytes((path.parents[1] / "05" / f"{KEYS[5]}.safetensors").read_bytes())


@pytest.mark.parametrize("damage", [cut, empty, flip_number, flip_header, swap])
def test_damaged_file_is_missing_and_removed(store, damage, caplog):
    store.put(KEYS[5], entry_of(5))
    store.put(KEYS[1], entry_of(1))
    path = store.folder / "01" / f"{KEYS[1]}.safetensors"
    damage(path)
    assert store.get(KEYS[1]) is None
    assert not path.exists()
    assert str(path) in caplog.text
    assert "damaged" in caplog.text
    store.put(KEYS[1], entry_of(1))
    assert_same(store.get(KEYS[1]), entry_of(1))


def test_files_read_last_stay_when_the_folder_is_full(tmp_path):
    store = FileStore(tmp_path, 10 * KB)
    size = None
    for index, key in enumerate(KEYS[:6]):
        store.put(key, entry_of(index))
        path = files_of(store)[-1]
        size = path.stat().st_size
        os.utime(path, (index + 1, index + 1))
    assert 6 * size < 10 * KB
    assert store.get(KEYS[0]) is not None
    for key in KEYS[6:10]:
        store.put(key, entry_of(9))
    assert store.get(KEYS[0]) is not None
    assert store.get(KEYS[1]) is None
    assert all(store.get(key) is not None for key in KEYS[6:10])


def test_limit_holds_for_files_of_earlier_and_other_writers(tmp_path, caplog):
    stores = [FileStore(tmp_path, 20 * KB) for _ in range(2)]
    for index, key in enumerate(KEYS):
        stores[index % 2].put(key, entry_of(index))
        total = sum(path.stat().st_size for path in files_of(stores[0]))
        assert total <= 20 * KB * (1 + 2 / 32) + 1500
    assert total > 10 * KB
    assert 1 <= caplog.text.count("Raise embedding_cache_gb") <= 2  # once by each
    small = FileStore(tmp_path, 5 * KB)
    small.put(KEYS[0], entry_of(0))
    assert sum(path.stat().st_size for path in files_of(small)) <= 5 * KB
    assert_same(small.get(KEYS[0]), entry_of(0))


def test_entry_beyond_the_limit_is_not_kept_and_removes_nothing(tmp_path):
    store = FileStore(tmp_path, 3 * KB)
    store.put(KEYS[0], entry_of(0))
    store.put(KEYS[1], entry_of(1, numbers=1000))
    assert store.get(KEYS[1]) is None
    assert store.get(KEYS[0]) is not None


def test_only_own_files_are_removed_and_remains_of_killed_writers_too(tmp_path):
    shard = tmp_path / "ab"
    shard.mkdir()
    foreign = [shard / "model.safetensors", tmp_path / "notes.txt", shard / ".hidden"]
    abandoned, fresh = (shard / f".{'ab' * 32}-{name}.safetensors" for name in ("old", "new"))
    for path in [*foreign, abandoned, fresh]:
        path.write_bytes(bytes(5000))
        os.utime(path, (1, 1))
    os.utime(fresh, (time.time(), time.time()))
    store = FileStore(tmp_path, 3 * KB)
    for key in KEYS[:5]:
        store.put(key, entry_of(1))
    assert all(path.exists() for path in [*foreign, fresh])
    assert not abandoned.exists()


def test_evicted_file_is_not_lost_for_its_reader(store):
    store.put(KEYS[0], entry_of(7))
    found = store.get(KEYS[0])
    for path in files_of(store):
        path.unlink()
    assert_same(found, entry_of(7))


@pytest.mark.slow
def test_two_processes_write_and_read_the_same_keys(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    other = context.Process(target=write_all, args=(tmp_path, 1, ready))
    other.start()
    assert ready.wait(120)
    write_all(tmp_path, 2, ready)
    other.join(120)
    assert other.exitcode == 0
    store = FileStore(tmp_path, 10**6)
    assert len(files_of(store)) == 4
    assert all(store.get(key) is not None for key in KEYS[:4])


def test_folder_that_cannot_be_made_gives_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        ConfigurationError, match=r"file.cache: the embedding cache cannot be written .* null"
    ):
        FileStore(tmp_path / "file" / "cache", 10**6)


def test_folder_that_cannot_be_written_gives_one_clear_error(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(ConfigurationError, match="Permission denied"):
        FileStore(tmp_path, 10**6)


def test_full_disk_ends_writing_but_not_reading(store, monkeypatch, caplog):
    store.put(KEYS[0], entry_of(0))

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("nucsam_monai.utils.files.os.fsync", fail)
        for key in KEYS[1:4]:
            store.put(key, entry_of(1))
    assert caplog.text.count("No space left on device") == 1
    assert len(files_of(store)) == 1
    assert_same(store.get(KEYS[0]), entry_of(0))


def test_memory_keeps_the_entries_used_last():
    store = MemoryStore(3 * KB)
    for index in range(3):
        store.put(KEYS[index], entry_of(index))
    assert store.get(KEYS[0]) is not None
    store.put(KEYS[3], entry_of(3))
    assert [store.get(key) is not None for key in KEYS[:4]] == [True, False, True, True]
    store.put(KEYS[3], entry_of(4))
    assert_same(store.get(KEYS[3]), entry_of(4))
    assert [store.get(key) is not None for key in KEYS[:4]] == [True, False, True, True]
    store.put(KEYS[5], entry_of(5, numbers=751))
    assert store.get(KEYS[5]) is None


def test_memory_is_not_copied():
    store = MemoryStore(3 * KB)
    store.put(KEYS[0], entry_of(0))
    for other in (copy.deepcopy(store), pickle.loads(pickle.dumps(store))):
        assert other.max_bytes == 3 * KB
        assert other.get(KEYS[0]) is None
