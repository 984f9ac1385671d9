import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from nucsam_monai.engines import PreparePromptsBatch
from nucsam_monai.inferers import PointFinder, PromptedInferer, TilePointFinder, point_finder
from nucsam_monai.inferers.points import (
    DetectedPoints,
    check_points,
    oracle_prompts,
    select_points,
    suppress_near_points,
)
from nucsam_monai.inferers.tiling import TileEncoder, plan_tiles
from nucsam_monai.networks import MaskPrediction, Prompter, PrompterOutput, PromptNucSeg
from nucsam_monai.networks.prompter import PrompterOptions, anchor_grid
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.prediction import prediction_from_instances
from tests.oracles.point_suppression import suppress_near_points_slow


def test_points_of_any_kind_of_tensor_are_read():
    found = DetectedPoints(torch.tensor([[1.25, 2.5]]).bfloat16(), torch.ones(1).half(), torch.tensor([1]))
    points = check_points(found, (4, 4), ("a", "b"))
    assert points.xy.tolist() == [[1.25, 2.5]]
    assert points.pixels.tolist() == [[1, 3]]
    assert points.class_ids.tolist() == [1]


def test_points_in_the_outer_half_of_the_rim_move_to_its_pixels():
    found = DetectedPoints(np.array([[-0.5, 3.5], [4.5, -0.25]]), np.ones(2), np.zeros(2))
    assert check_points(found, (4, 5), ("a",)).xy.tolist() == [[0, 3], [4, 0]]


def test_no_points_may_come_as_an_empty_list():
    points = check_points(DetectedPoints(np.array([]), np.array([]), np.array([])), (0, 0), ("a",))
    assert points.xy.shape == points.pixels.shape == (0, 2)


def test_oracle_prompts_lie_in_their_nuclei():
    instances = np.zeros((20, 20), dtype=np.int32)
    instances[2:6, 3:6] = 7
    instances[10:19, 10:19] = 4
    instances[10:17, 13:16] = 0  # a horseshoe, whose centre is beside it
    prompts = oracle_prompts(prediction_from_instances(instances, class_ids=np.array([2, 1])))
    assert prompts.points[1].tolist() == [4, 3.5]
    columns, rows = np.floor(prompts.points + 0.5).astype(int).T
    assert instances[rows, columns].tolist() == [4, 7]
    assert prompts.class_ids.tolist() == [2, 1]
    assert prompts.scores.tolist() == [1, 1]


def test_no_nuclei_give_no_oracle_prompts():
    assert oracle_prompts(prediction_from_instances(np.zeros((3, 3), dtype=int))).points.shape == (0, 2)


def output_of(points, probabilities, mask=None):
    return PrompterOutput(
        torch.tensor([points], dtype=torch.float32).reshape(1, -1, 2),
        torch.tensor([probabilities], dtype=torch.float32).log(),
        None if mask is None else torch.as_tensor(mask, dtype=torch.float32)[None, None],
    )


@settings(max_examples=80)
@given(
    arrays(np.float32, st.tuples(st.integers(0, 25), st.just(2)), elements=st.integers(0, 20).map(float)),
    st.sampled_from([0.0, 1.5, 4.7, 100.0]),
    st.data(),
)
def test_suppression_equals_comparing_all_with_all(points, radius, data):
    scores = data.draw(arrays(np.float32, len(points), elements=st.sampled_from([0.1, 0.4, 0.5, 0.9])))
    kept = suppress_near_points(points, scores, radius)
    assert kept.tolist() == suppress_near_points_slow(points.tolist(), scores.tolist(), radius)
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    among_kept = distances[np.ix_(kept, kept)]
    assert (among_kept[~np.eye(len(kept), dtype=bool)] > radius).all()
    for dropped in set(range(len(points))) - set(kept.tolist()):
        better = [index for index in kept if scores[index] >= scores[dropped]]
        assert distances[dropped, better].min() <= radius


def test_class_and_score_come_from_the_likeliest_class():
    output = output_of([[5, 5], [20, 5], [5, 20]], [[0.6, 0.1, 0.3], [0.1, 0.5, 0.4], [0.3, 0.3, 0.4]])
    found = select_points(output, (32, 32), mask_filter=False, radius=3)
    assert len(found) == 2
    np.testing.assert_array_equal(found.points, [[5, 5], [20, 5]])
    np.testing.assert_allclose(found.scores, [0.6, 0.5], rtol=1e-5)
    assert found.class_ids.tolist() == [0, 1]
    assert (found.points.dtype, found.scores.dtype, found.class_ids.dtype) == (
        np.float32,
        np.float32,
        np.int64,
    )


def test_points_are_clipped_to_the_image():
    output = output_of([[-4, 3], [99, 40]], [[0.9, 0.1], [0.8, 0.2]])
    found = select_points(output, (20, 30), mask_filter=False, radius=1)
    np.testing.assert_array_equal(found.points, [[0, 3], [29, 19]])


def test_the_mask_filter_looks_at_the_pixel_of_the_point():
    mask = np.full((4, 6), -1.0)
    mask[1, 3] = 0.1
    output = output_of([[3.9, 1.9], [4.0, 1.0], [3.0, 2.0]], [[0.9, 0.1]] * 3, mask)
    found = select_points(output, (4, 6), mask_filter=True, radius=0)
    np.testing.assert_allclose(found.points, [[3.9, 1.9]])
    assert len(select_points(output, (4, 6), mask_filter=False, radius=0)) == 3


def test_a_filtered_point_suppresses_nothing():
    mask = np.full((4, 6), -1.0)
    mask[:, 3:] = 1
    output = output_of([[2, 1], [3, 1]], [[0.9, 0.1], [0.6, 0.4]], mask)
    found = select_points(output, (4, 6), mask_filter=True, radius=2)
    np.testing.assert_array_equal(found.points, [[3, 1]])


@pytest.mark.parametrize("mask_filter", [False, True])
def test_an_image_without_nuclei(mask_filter):
    output = output_of([[5, 5], [6, 6]], [[0.1, 0.9]] * 2, np.zeros((8, 8)))
    found = select_points(output, (8, 8), mask_filter=mask_filter, radius=3)
    assert len(found) == 0
    assert (found.points.shape, found.scores.shape, found.class_ids.shape) == ((0, 2), (0,), (0,))
    assert found.points.dtype == np.float32


def test_points_that_are_not_finite_are_dropped_and_said(caplog):
    output = output_of([[np.nan, 5], [np.inf, 6], [7, 7], [2, 2]], [[0.9, 0.1]] * 3 + [[np.nan, np.nan]])
    with caplog.at_level(logging.WARNING):
        found = select_points(output, (8, 8), mask_filter=False, radius=3)
    np.testing.assert_array_equal(found.points, [[7, 7]])
    assert "3 of 4 points are not finite" in caplog.text


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (2, {}, "found 2 images, expected one"),
        (1, {"radius": -1.0}, "radius -1.0"),
        (1, {"radius": float("nan")}, "radius nan"),
        (1, {"mask_filter": True}, "the output holds no mask"),
    ],
)
def test_what_makes_no_sense_is_refused(images, options, message):
    output = PrompterOutput(torch.zeros(images, 3, 2), torch.zeros(images, 3, 2), None)
    with pytest.raises(ConfigurationError, match=message):
        select_points(output, (8, 8), **{"mask_filter": False, "radius": 3.0, **options})


IMAGE = torch.zeros(1, 3, 32, 32)


class FixedPrompter(nn.Module):
    """Three anchors: class 1 at (4, 4), background that would be class 1 at (20, 4), class 0 at (4, 20)."""

    options = PrompterOptions()

    def __init__(self):
        super().__init__()
        self.masks_asked_for = []

    def forward(self, image, *, with_mask=True):
        self.masks_asked_for.append(with_mask)
        mask = torch.ones(1, 1, 32, 32)
        mask[..., 16:, :] = -1
        logits = torch.tensor([[[0.0, 3, 1], [0, 1, 3], [2, 0, 0]]])
        points = torch.tensor([[[4.0, 4], [20, 4], [4, 20]]])
        return PrompterOutput(points, logits, mask if with_mask else None)


@pytest.mark.parametrize(("mask_filter", "expected"), [(False, [[4, 4], [4, 20]]), (True, [[4, 4]])])
def test_the_auxiliary_mask_is_computed_and_used_only_by_the_filter(mask_filter, expected):
    prompter = FixedPrompter()
    found = PointFinder(prompter, mask_filter=mask_filter, radius_px=3)(IMAGE)
    assert found.points.tolist() == expected
    assert prompter.masks_asked_for == [mask_filter]


def test_given_points_get_the_class_of_the_nearest_anchor_even_if_it_is_background():
    points = torch.tensor([[5.0, 30], [25, 1], [1, 1]])
    found = PointFinder(FixedPrompter(), radius_px=3).classify(IMAGE, points)
    assert found.class_ids.tolist() == [0, 1, 1]
    np.testing.assert_array_equal(found.points, points)
    assert len(PointFinder(FixedPrompter()).classify(IMAGE, points[:0])) == 0


def test_a_filter_without_a_mask_is_refused():
    prompter = Prompter(1, options={"backbone": "compact", "aux_mask": False})
    with pytest.raises(ConfigurationError, match="no auxiliary mask"):
        PointFinder(prompter, mask_filter=True)


BATCH = {"image": IMAGE, "id": ["a"], "points": torch.tensor([[[1.0, 2]]])}


def prompts_of(batch, given_points):
    finder = PointFinder(FixedPrompter())
    image, label, (prompts,), named = PreparePromptsBatch(finder, given_points=given_points)(batch)
    assert image.equal(IMAGE)
    assert label is None
    assert named == {}
    return prompts, finder


@pytest.mark.parametrize(("batch", "given"), [(BATCH, False), ({"image": IMAGE, "id": ["a"]}, True)])
def test_the_prompter_finds_the_points_where_none_are_given(batch, given):
    prompts, finder = prompts_of(batch, given)
    assert prompts is finder


def test_given_points_come_with_their_classes_or_get_them():
    prompts, _ = prompts_of({**BATCH, "point_classes": torch.tensor([[1]])}, True)
    assert isinstance(prompts, DetectedPoints)
    assert (prompts.points.tolist(), prompts.class_ids.tolist()) == ([[1, 2]], [1])
    classified = prompts_of({**BATCH, "point_labels": torch.tensor([[1]])}, True)[0](IMAGE)
    assert (classified.points.tolist(), classified.class_ids.tolist()) == ([[1, 2]], [1])


def test_background_points_are_not_prompts():
    with pytest.raises(ConfigurationError, match="points of 'a'"):
        prompts_of({**BATCH, "point_labels": torch.tensor([[0]])}, True)


def test_sizes_go_with_their_points():
    torch.manual_seed(0)
    prompter = Prompter(2, options={"backbone": "compact", "channels": 16, "sizes": True}).eval()
    image = torch.randn(1, 3, 64, 64)
    finder = PointFinder(prompter, radius_px=6)
    found = finder(image)
    assert len(found) > 0
    output = prompter(image)
    anchors = output.points[0].detach().clamp(0, 63)
    for point, size in zip(found.points, found.sizes, strict=True):
        row = (anchors - torch.from_numpy(point)).abs().sum(dim=1).argmin()
        torch.testing.assert_close(torch.from_numpy(size), output.sizes[0, row].detach())
    inside = (output.points[0] == anchors).all(dim=1)
    clicked = finder.classify(image, anchors[inside][:3])
    torch.testing.assert_close(torch.from_numpy(clicked.sizes), output.sizes[0][inside][:3].detach())


TILE, OVERLAP = 64, 16


class ReadingNetwork:
    """Reads class logits off the image at every anchor: channel 0 is the nucleus's, channel 1 the other class's."""

    shares_encoder = True

    class prompter:  # noqa: N801
        options = PrompterOptions(backbone="shared")
        n_classes = 2

    def __init__(self):
        self.encoded = 0

    def encode(self, image):
        self.encoded += len(image)
        return image

    def propose(self, embedding, *, with_mask=True):
        side = embedding.shape[-1]
        anchors = anchor_grid(side // 8, side // 8, 8).reshape(1, -1, 2)
        x, y = anchors[0].long().unbind(-1)
        logits = embedding[:, :, y, x].transpose(1, 2).clone()
        logits[..., 2] = 1e-6  # above the zeros beyond the image
        mask = embedding[:, 2:3] if with_mask else None
        return PrompterOutput(anchors.expand(len(embedding), -1, -1), logits, mask)

    def decode(self, embedding, prompts):
        cells = torch.arange(embedding.shape[-1])
        x, y = prompts.points[:, 0].unbind(-1)
        away = (x[:, None, None] - cells) ** 2 + (y[:, None, None] - cells[:, None]) ** 2
        return MaskPrediction((4.0 - away)[:, None], torch.ones(len(away), 1))


def image_of(height=160, width=208, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(1, 3, height, width, generator=generator)
    image[:, 2] = 1  # of the mask, everywhere a nucleus
    return image


def find(image, **options):
    network = ReadingNetwork()
    finder = TilePointFinder(network, tile_px=TILE, overlap_px=OVERLAP, **options)
    inferer = PromptedInferer(tile_px=TILE, overlap_px=OVERLAP, edge_px=0, class_names=("a", "b"))
    return network, inferer(image, network, finder)


def whole(image):
    """Return the nuclei at the anchors of the whole image."""
    output = ReadingNetwork().propose(
        torch.nn.functional.pad(image, (0, 256 - image.shape[-1], 0, 256 - image.shape[-2]), value=-9)
    )
    logits = output.class_logits[0]
    nuclei = logits[:, :2].amax(dim=1) > 0
    return {
        (*point.tolist(), int(kind))
        for point, kind in zip(output.points[0][nuclei], logits[nuclei].argmax(1), strict=True)
    }


@pytest.mark.parametrize("size", [(160, 208), (64, 64), (40, 160)])
def test_tiles_give_every_point_of_the_image_once(size):
    image = image_of(*size)
    network, found = find(image, radius_px=0)
    table = found.table
    points = {
        (round(float(x)), round(float(y)), int(kind))
        for x, y, kind in zip(table["centroid_x_px"], table["centroid_y_px"], table["class_id"], strict=True)
    }
    assert points == whole(image)
    assert len(found.nucleus_of_prompt) == len(points)
    rows, columns = (1 if side <= TILE else -(-(side - TILE) // (TILE - OVERLAP)) + 1 for side in size)
    assert network.encoded == rows * columns


def test_points_on_both_sides_of_a_seam_are_one_nucleus():
    image = torch.full((1, 3, 64, 112), -5.0)
    image[0, 0, 28, 52], image[0, 0, 28, 60] = 3.0, 5.0  # the seam lies between the two
    assert len(find(image, radius_px=3)[1]) == 2
    _, found = find(image, radius_px=9)
    assert [round(float(x)) for x in found.table["centroid_x_px"]] == [60]


def test_the_mask_filter_drops_points_off_the_nuclei():
    image = image_of()
    image[:, 2, :, 100:] = -1
    table = find(image, radius_px=0, mask_filter=True)[1].table
    assert 0 < table["centroid_x_px"].max() < 100


def test_an_image_without_nuclei_has_none():
    assert len(find(torch.full((1, 3, 160, 208), -5.0))[1]) == 0


def test_given_points_get_the_class_of_the_nearest_anchor():
    image = image_of()
    finder = TilePointFinder(ReadingNetwork(), tile_px=TILE, overlap_px=OVERLAP)
    points = torch.tensor([[4.5, 4.0], [203.0, 155.0], [100.0, 68.5]])
    found = finder.classify(image, points)
    expected = [int(image[0, :2, y, x].argmax()) for x, y in ((4, 4), (204, 156), (100, 68))]
    assert found.class_ids.tolist() == expected
    np.testing.assert_allclose(found.points, points)
    assert len(finder.classify(image, points[:0])) == 0


def test_points_in_tiles_are_those_of_a_shared_encoder():
    """Each tile is shown to the prompter alone, and its points are put together as those of encoded tiles."""

    class Alone(ReadingNetwork):
        options = ReadingNetwork.prompter.options

        def __call__(self, image, with_mask=False):
            assert image.shape == (1, 3, TILE, TILE)
            return self.propose(self.encode(image), with_mask=with_mask)

    image = image_of()
    options = {"radius_px": 3.0, "tile_px": TILE, "overlap_px": OVERLAP}
    tiling = plan_tiles((160, 208), TILE, OVERLAP)
    encoded = [TileEncoder(ReadingNetwork(), image, tiling).encode(np.arange(len(tiling)))]
    expected = TilePointFinder(ReadingNetwork(), **options).find_in_tiles(encoded, tiling)
    found = PointFinder(Alone(), in_tiles=True, **options)(image)
    assert len(found) > 20
    for one, other in zip(vars(found).values(), vars(expected).values(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_finder_fits_the_network():
    options = {"mask_filter": False, "radius_px": 6.0, "tile_px": 256, "overlap_px": 64}
    for backbone, kind in (("compact", PointFinder), ("shared", TilePointFinder)):
        network = PromptNucSeg(["nucleus"], "vit_tiny", prompter={"backbone": backbone, "aux_mask": False})
        assert isinstance(point_finder(network, **options), kind)
        with pytest.raises(ConfigurationError, match="no auxiliary mask"):
            point_finder(network, **{**options, "mask_filter": True})
