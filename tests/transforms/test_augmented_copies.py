import numpy as np
import pytest
import torch
from monai.transforms import (
    Rand2DElasticd,
    RandAdjustContrastd,
    RandFlipd,
    RandGaussianNoised,
    RandRotate90d,
    RandRotated,
    RandZoomd,
    ScaleIntensityRanged,
)

from nucsam_monai.transforms import AugmentedCopiesd, NormalizeSAMd
from nucsam_monai.utils.errors import ConfigurationError

KEYS = ("image", "instances")
MODES = ("bilinear", "nearest")


def paper_augmentation():
    """What eU-Net3+ was trained with, as far as its text says it."""
    return [
        RandFlipd(KEYS, prob=0.5, spatial_axis=0),
        RandRotate90d(KEYS, prob=0.75),
        RandRotated(KEYS, range_x=np.pi, prob=0.5, mode=MODES, padding_mode="reflection"),
        RandZoomd(KEYS, prob=0.5, min_zoom=1.0, max_zoom=2.0, mode=MODES),
        Rand2DElasticd(KEYS, (16, 16), (1, 2), prob=0.5, mode=MODES, padding_mode="reflection"),
        RandAdjustContrastd("image", prob=0.5, gamma=(0.7, 1.5)),
        RandGaussianNoised("image", prob=0.5, std=8.0),
        ScaleIntensityRanged("image", 0.0, 255.0, 0.0, 255.0, clip=True),
    ]


def item(name="a", seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, 32, 32), generator=generator).byte()
    instances = torch.randint(0, 4, (1, 32, 32), generator=generator, dtype=torch.int32)
    return {"id": name, "image": image, "instances": instances}


def test_a_copy_is_the_same_in_every_epoch_and_process():
    first, second = (AugmentedCopiesd(paper_augmentation(), copies=4) for _ in range(2))
    for seed, copies in ((1, first), (2, second)):
        copies.set_random_state(seed=seed)
    expected = [first.copy_of(item(), copy) for copy in range(4)]
    np.random.rand(3)  # noqa: NPY002  the global state must not matter
    seen = set()
    for _ in range(40):
        found = second(item())
        same = [copy for copy in range(4) if torch.equal(found["image"], expected[copy]["image"])]
        assert len(same) == 1
        assert torch.equal(found["instances"], expected[same[0]]["instances"])
        seen.update(same)
    assert seen == {0, 1, 2, 3}


def test_copies_differ_between_items_and_seeds():
    noise = [RandGaussianNoised("image", prob=1.0)]
    found = [
        AugmentedCopiesd(noise, seed=seed).copy_of(item(name), 0)["image"]
        for seed, name in ((0, "a"), (0, "b"), (1, "a"))
    ]
    assert not any(torch.equal(found[0], other) for other in found[1:])


def test_copies_are_images_and_masks_still():
    copies = AugmentedCopiesd(paper_augmentation(), copies=20)
    for copy in range(20):
        found = copies.copy_of(item(), copy)
        assert found["image"].shape == (3, 32, 32)
        assert set(found["instances"].unique().tolist()) <= {0, 1, 2, 3}
        assert NormalizeSAMd("image")(found)["image"].isfinite().all()


def test_item_itself_stays_as_it_is():
    original = item()
    AugmentedCopiesd(paper_augmentation(), copies=3)(original)
    assert torch.equal(original["image"], item()["image"])
    assert torch.equal(original["instances"], item()["instances"])


def test_without_a_number_no_copy_comes_again():
    copies = AugmentedCopiesd([RandGaussianNoised("image", prob=1.0)], copies=None)
    copies.set_random_state(seed=0)
    assert len({copies(item())["image"].numpy().tobytes() for _ in range(30)}) == 30


def test_one_copy_is_the_least():
    with pytest.raises(ConfigurationError, match="augmented copies 0: expected 1 or more"):
        AugmentedCopiesd([], copies=0)
