import logging

import numpy as np
import pytest
import torch
from monai.data import DataLoader
from monai.transforms import Compose, EnsureChannelFirstd, Lambdad, LoadImaged

from nucsam_monai.engines import ReadableImages, inference_items
from nucsam_monai.io import read_image, write_png
from nucsam_monai.transforms import NucleiImageReader
from nucsam_monai.utils.errors import ConfigurationError, ImageReadError
from tests.data.test_dataset import write_toy

LOAD = [
    LoadImaged("image", reader=NucleiImageReader, dtype=torch.uint8, image_only=True),
    EnsureChannelFirstd("image", channel_dim=-1),
]


@pytest.fixture
def folder(tmp_path):
    for number, shape in enumerate([(4, 6), (5, 3), (2, 2)]):
        write_png(tmp_path / "images" / f"{number}.png", np.full((*shape, 3), number, np.uint8))
    return tmp_path / "images"


def break_images(folder, *names):
    for name in names:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])


def images(folder, *more, **options):
    items = inference_items(folder, folder.parent / "out")
    return ReadableImages(items, Compose([*LOAD, *more], **options))


@pytest.mark.parametrize("domain", [None, "monuseg"])
def test_a_folder_gives_its_images(folder, domain):
    items = inference_items(folder, folder.parent / "out", domain)
    known = {} if domain is None else {"domain": domain}
    assert items == [{"image": str(folder / f"{n}.png"), "id": str(n), **known} for n in range(3)]


def test_results_of_a_single_image_may_lie_next_to_it(folder):
    items = inference_items(folder / "1.png", folder)
    assert items == [{"image": str(folder / "1.png"), "id": "1"}]


@pytest.mark.parametrize("output", ["images", "images/", "out/../images"])
def test_results_among_the_images_are_refused(folder, output):
    (folder.parent / "out").mkdir()
    with pytest.raises(ConfigurationError, match="output_dir"):
        inference_items(folder, f"{folder.parent}/{output}")


def test_no_image_is_an_error(tmp_path):
    with pytest.raises(ImageReadError, match="no image"):
        inference_items(tmp_path, tmp_path / "out")
    with pytest.raises(ImageReadError, match="no such file"):
        inference_items(tmp_path / "nowhere", tmp_path / "out")


def test_a_dataset_gives_its_test_images_with_their_domain(tmp_path):
    folder = write_toy(tmp_path / "toy", domain="kumar")
    (item,) = inference_items(folder, tmp_path / "out")
    assert item["id"] == "s2"
    assert item["domain"] == "kumar"
    assert set(item) == {"image", "id", "domain"}
    assert read_image(item["image"]).shape == (6, 8, 3)
    assert inference_items(folder, tmp_path / "out", "mean")[0]["domain"] == "mean"


def test_images_of_several_datasets_have_different_ids(tmp_path):
    for name, splits in (("one", ("test", "test")), ("two", ("training", "test", "test"))):
        write_toy(tmp_path / "data" / name, domain="same", splits=splits)
    items = inference_items(tmp_path / "data", tmp_path / "out")
    assert sorted(item["id"] for item in items) == ["one_s1", "s0", "s2", "two_s1"]
    assert all(f"/{item['id'].split('_')[0]}/" in item["image"] for item in items if "_" in item["id"])


def test_all_images_are_read(folder):
    found = [(item["id"], tuple(item["image"].shape)) for item in images(folder)]
    assert found == [("0", (3, 4, 6)), ("1", (3, 5, 3)), ("2", (3, 2, 2))]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_skipped(folder, caplog, workers):
    break_images(folder, "1.png")
    with caplog.at_level(logging.WARNING):
        loader = DataLoader(images(folder), batch_size=1, num_workers=workers)
        assert [batch["id"] for batch in loader] == [["0"], ["2"]]
    if not workers:  # another process logs for itself
        error, summary = (record.getMessage() for record in caplog.records)
        assert error.startswith("skipped: ")
        assert str(folder / "1.png") in error
        assert summary == "1 of 3 images could not be read and were skipped."


def test_a_reader_without_monai_around_it_is_fine(folder):
    break_images(folder, "0.png")
    dataset = ReadableImages(
        inference_items(folder, "out"), lambda item: {**item, "image": read_image(item["image"])}
    )
    assert [item["id"] for item in dataset] == ["1", "2"]


def test_only_broken_images_are_an_error(folder):
    break_images(folder, "0.png", "1.png", "2.png")
    with pytest.raises(ImageReadError, match="3 of 3 images"):
        list(images(folder))


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), ValueError("a bug"), KeyError("image")])
def test_other_errors_are_not_swallowed(folder, error):
    def fail(_):
        raise error

    with pytest.raises(RuntimeError) as caught:
        list(images(folder, Lambdad("image", fail)))
    assert caught.value.__cause__ is error or caught.value.__cause__.__cause__ is error


def test_an_error_while_handling_a_broken_image_is_not_swallowed():
    def fail(_):
        try:
            raise ImageReadError("broken")
        except ImageReadError:
            raise RuntimeError("a bug") from None

    with pytest.raises(RuntimeError, match="a bug"):
        list(ReadableImages([{"image": "a.png"}], fail))


def test_several_workers_are_refused(folder):
    with pytest.raises(ConfigurationError, match="num_workers 2"):
        list(DataLoader(images(folder), num_workers=2))
