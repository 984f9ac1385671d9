"""What all detectors learn from and give, and what is peculiar to PointNu-Net and SparseInst."""

import pytest
import torch
from torch import Tensor

from nucsam_monai.networks import (
    DETECTORS,
    Detector,
    PointNuNet,
    SparseInst,
    build_detector,
    default_min_score,
    paper_encoder,
)
from nucsam_monai.networks.detector import with_coordinates
from nucsam_monai.networks.pointnu_net import centre_cells, draw_peaks, keypoint_loss
from nucsam_monai.networks.sparse_inst import mask_iou, match
from nucsam_monai.utils.errors import ConfigurationError

SMALL = [
    ("pointnu_net", "hrnet_w18_small"),
    ("sparse_inst", "resnet10t"),
    ("pointnu_net", "lite0"),
    ("sparse_inst", "lite0"),
    ("maskrcnn", "lite0"),
]


@pytest.fixture(scope="module", params=SMALL, ids="-".join)
def network(request: pytest.FixtureRequest) -> Detector:
    torch.manual_seed(0)
    return build_detector(request.param[0], ("left", "right"), request.param[1])


def losses_of(network: Detector, *counts: int) -> dict[str, Tensor]:
    """Train on squares, so many in each image."""
    masks = [torch.zeros(count, 64, 64, dtype=torch.uint8) for count in counts]
    for of_image in masks:
        for number, mask in enumerate(of_image):
            mask[10 : 20 + number, 30 * number : 30 * number + 10] = 1
    ids = [torch.arange(count) for count in counts]
    losses = network.train()(torch.randn(len(counts), 3, 64, 64), masks, ids)
    assert isinstance(losses, dict)
    return losses


@pytest.mark.parametrize("counts", [(2, 0), (0, 0)])
def test_every_weight_learns_with_and_without_nuclei(network: Detector, counts: tuple[int, int]) -> None:
    network.zero_grad()
    losses = losses_of(network, *counts)
    assert all(loss.isfinite() for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_the_best_nuclei_come_first_and_masks_have_the_size_of_the_image(network: Detector) -> None:
    if isinstance(network, PointNuNet | SparseInst):
        network.min_score = 0.0
    with torch.no_grad():
        (found,) = network.eval()(torch.randn(1, 3, 64, 32))
    assert len(found.scores)
    assert found.masks.shape == (len(found.scores), 1, 64, 32)
    assert (found.scores.diff() <= 0).all()
    assert set(found.class_ids.tolist()) <= {0, 1}


@pytest.mark.parametrize("detector", [PointNuNet, SparseInst])
def test_an_image_in_which_nothing_is_likely_has_no_nuclei(
    detector: type[PointNuNet] | type[SparseInst],
) -> None:
    network = detector(encoder="lite0", min_score=0.99).eval()
    with torch.no_grad():
        (found,) = network(torch.zeros(1, 3, 32, 32))
    assert found.masks.shape == (0, 1, 32, 32)


@pytest.mark.parametrize("network", SMALL[:4], ids="-".join, indirect=True)
def test_images_of_other_sides_are_refused(network: Detector) -> None:
    with pytest.raises(
        ConfigurationError, match="found an image of 64 x 40 px, expected sides that are multiples of 32"
    ):
        network.eval()(torch.zeros(1, 3, 64, 40))


@pytest.mark.parametrize(
    ("name", "encoder", "message"),
    [
        ("yolo", None, "detector 'yolo': expected one of maskrcnn, pointnu_net, sparse_inst"),
        ("sparse_inst", "resnet51", "encoder 'resnet51': expected a network of timm"),
        ("maskrcnn", "hrnet_w64", "encoder 'hrnet_w64': expected one of resnet18"),
    ],
)
def test_unknown_names_are_refused(name: str, encoder: str | None, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        build_detector(name, ["nucleus"], encoder)


def test_each_detector_has_its_own_encoder_and_score_by_default() -> None:
    assert {name: default_min_score(name) for name in DETECTORS} == {
        "maskrcnn": 0.5,
        "pointnu_net": 0.2,
        "sparse_inst": 0.3,
    }
    assert paper_encoder("pointnu_net") == "hrnet_w64"


def test_parameters_are_counted() -> None:
    with torch.device("meta"):
        found = {
            name: sum(p.numel() for p in build_detector(name, list("abcde")).parameters())
            for name in DETECTORS
        }
    assert found == {"maskrcnn": 43_997_043, "pointnu_net": 136_846_533, "sparse_inst": 33_954_038}


def test_places_run_from_one_edge_to_the_other() -> None:
    placed = with_coordinates(torch.zeros(1, 1, 2, 3))[0, 1:]
    assert placed.tolist() == [[[-1, 0, 1], [-1, 0, 1]], [[-1, -1, -1], [1, 1, 1]]]


def test_a_peak_stands_in_the_cell_of_the_centroid_and_in_the_map_of_the_class() -> None:
    mask = torch.zeros(1, 32, 32)
    mask[0, 8:12, 16:28] = 1  # centroid (21.5, 9.5)
    cells, spread = centre_cells(mask, 4)
    heat = torch.zeros(2, 8, 8)
    draw_peaks(heat, cells, spread, torch.tensor([1]))
    assert cells.tolist() == [[5, 2]]
    assert (heat == 1).nonzero().tolist() == [[1, 2, 5]]
    assert heat[0].max() == 0
    nothing = torch.zeros(2, 8, 8)
    draw_peaks(nothing, cells[:0], spread[:0], torch.zeros(0, dtype=torch.int64))
    assert nothing.max() == 0


def test_keypoint_loss_is_small_where_centres_are_found_and_nothing_else() -> None:
    heat = torch.zeros(1, 1, 4, 4)
    heat[0, 0, 1, 2] = 1
    right = 40 * heat - 20
    assert keypoint_loss(right, heat) < 1e-6
    assert keypoint_loss(-right, heat) > 10
    assert keypoint_loss(torch.full_like(heat, -20), torch.zeros_like(heat)) < 1e-6


def test_each_nucleus_is_matched_with_the_object_that_draws_it() -> None:
    truth = torch.zeros(2, 1, 32, 32)
    truth[0, 0, :16], truth[1, 0, 16:] = 1, 1
    drawn = torch.full((3, 8, 8), -9.0)
    drawn[2, :4], drawn[0, 4:] = 9, 9
    objects, nuclei = match(torch.zeros(3, 1), drawn, truth, torch.zeros(2, dtype=torch.int64))
    assert dict(zip(nuclei.tolist(), objects.tolist(), strict=True)) == {0: 2, 1: 0}
    assert mask_iou(20 * truth - 10, truth).tolist() == [1, 1]


def test_an_object_draws_what_its_map_highlights() -> None:
    network = SparseInst(encoder="resnet10t", most=3).eval()
    with torch.no_grad():
        found = network.describe(torch.randn(2, 3, 32, 64))
    assert [tuple(one.shape) for one in found] == [(2, 3, 1), (2, 3), (2, 3, 8, 16)]
