"""Detection in tiles, by a detector that knows the nuclei."""

import numpy as np
import pytest
import torch
from torch import Tensor

from nucsam_monai.inferers import DetectionInferer
from nucsam_monai.networks.detector import Detections
from nucsam_monai.utils.errors import ConfigurationError


def discs(side: int, centres: list[tuple[int, int]], radius: int) -> np.ndarray:
    rows, columns = np.mgrid[:side, :side]
    labels = np.zeros((side, side), dtype=np.int32)
    for number, (x, y) in enumerate(centres, start=1):
        labels[(rows - y) ** 2 + (columns - x) ** 2 <= radius**2] = number
    return labels


class KnownNuclei:
    """Reads the nuclei from an image that holds their ids; larger ones are surer."""

    def __call__(self, image: Tensor) -> list[Detections]:
        labels = image[0, 0].round().long()
        ids = [int(number) for number in labels.unique() if number]
        masks = (
            torch.stack([(labels == number).float() for number in ids]) if ids else labels[None][:0].float()
        )
        areas = masks.sum(dim=(1, 2))
        order = areas.argsort(descending=True)
        scores = 0.5 + areas[order] / 2000
        return [
            Detections(
                masks[order][:, None],
                scores,
                torch.tensor(ids)[order] % 2 if ids else torch.zeros(0, dtype=torch.int64),
            )
        ]


def detect(labels: np.ndarray, **options: object) -> np.ndarray:
    image = torch.from_numpy(np.repeat(labels[None, None], 3, axis=1)).float()
    inferer = DetectionInferer(tile_px=48, overlap_px=20, class_names=("even", "odd"), **options)
    found = inferer(image, KnownNuclei())
    for nucleus in found.table:
        assert nucleus["class_id"] == labels[found.instances == nucleus["id"]][0] % 2
    return found.instances


def same_partition(one: np.ndarray, other: np.ndarray) -> bool:
    pairs = {tuple(pair) for pair in np.stack([one.ravel(), other.ravel()], axis=1).tolist()}
    return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def test_every_nucleus_is_found_once_whatever_tiles_cut_it() -> None:
    rng = np.random.default_rng(0)
    centres = [(int(x), int(y)) for x in range(8, 150, 20) for y in range(8, 150, 20)]
    labels = discs(150, [(x + int(rng.integers(-1, 2)), y) for x, y in centres], 8)
    assert same_partition(detect(labels), labels)


def test_a_nucleus_larger_than_the_overlap_is_not_lost() -> None:
    labels = discs(100, [(50, 50)], 30)
    found = detect(labels) > 0  # a part that mostly repeats a better one is dropped with what it adds
    assert (found & (labels > 0)).sum() > 0.75 * (labels > 0).sum()


def test_an_image_without_nuclei_and_one_smaller_than_a_tile() -> None:
    assert detect(np.zeros((60, 60), dtype=np.int32)).max() == 0
    labels = discs(30, [(12, 12)], 6)
    assert same_partition(detect(labels), labels)


def test_unsure_nuclei_are_dropped() -> None:
    labels = discs(40, [(10, 10)], 4)
    assert detect(labels, min_score=0.9).max() == 0


@pytest.mark.parametrize("name", ["min_score", "threshold", "nms_threshold"])
def test_values_outside_of_their_range_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} 1.5"):
        DetectionInferer(48, 8, **{name: 1.5})
    with pytest.raises(ConfigurationError, match="expected one image"):
        DetectionInferer(48, 8)(torch.zeros(2, 3, 48, 48), KnownNuclei())
