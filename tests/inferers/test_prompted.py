"""Merging: nothing is lost, nothing is doubled, and the fast way gives what the slow one gives."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nucsam_monai.inferers import DetectedPoints, PromptedInferer, oracle_prompts
from nucsam_monai.inferers.prompted import nearest_others
from nucsam_monai.inferers.tiling import plan_tiles, visit_tiles
from nucsam_monai.networks.nucleus_prompts import MaskPrediction
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.prediction import prediction_from_instances
from tests.inferers.synthetic_segmenters import (
    BrightSegmenter,
    NoiseSegmenter,
    TruthSegmenter,
    convex_nuclei,
    image_of,
    image_of_positions,
    random_blob,
)
from tests.oracles.prompted_merge import slow_segmentation

SEEDS = st.integers(0, 2**32 - 1)
SIDES_PX = st.one_of(st.integers(1, 250), st.integers(250, 600))


def prompts_at(points, class_ids=None):
    points = np.array(points, dtype=float).reshape(-1, 2)
    return DetectedPoints(
        points, np.ones(len(points)), np.zeros(len(points)) if class_ids is None else class_ids
    )


def oracle_segmentation(instances, segmenter=None, **options):
    truth = prediction_from_instances(instances)
    return PromptedInferer(precision="fp32", **options)(
        image_of(instances), segmenter or TruthSegmenter(), oracle_prompts(truth)
    )


@settings(max_examples=20)
@given(
    SIDES_PX,
    SIDES_PX,
    st.sampled_from([(64, 32), (96, 48), (128, 70), (256, 64)]),
    st.sampled_from(["all", "best"]),
    SEEDS,
)
def test_nuclei_smaller_than_the_overlap_are_found_exactly(height, width, tile, crossing, seed):
    tile_px, overlap_px = tile
    truth = convex_nuclei(height, width, 3, overlap_px - 15, seed)
    found = oracle_segmentation(truth, tile_px=tile_px, overlap_px=overlap_px, crossing=crossing)
    np.testing.assert_array_equal(found.instances, truth)
    np.testing.assert_array_equal(found.nucleus_of_prompt, found.table["id"])


@settings(max_examples=30)
@given(
    st.integers(1, 400),
    st.integers(1, 400),
    st.integers(0, 63),
    st.integers(0, 20),
    st.integers(20, 90),
    st.sampled_from(["all", "best"]),
    SEEDS,
)
def test_nuclei_of_any_size_are_found_once(height, width, overlap_px, edge_px, largest, crossing, seed):
    truth = convex_nuclei(height, width, 3, largest, seed)
    options = {"tile_px": 64, "overlap_px": overlap_px, "edge_px": edge_px, "crossing": crossing}
    found = oracle_segmentation(truth, nms="mask", **options)
    np.testing.assert_array_equal(found.nucleus_of_prompt, np.arange(1, truth.max() + 1))
    assert len(found) == truth.max()
    drawn = found.instances > 0
    np.testing.assert_array_equal(found.instances[drawn], truth[drawn])


@settings(max_examples=20)
@given(st.integers(20, 400), st.integers(20, 400), st.sampled_from(["all", "best"]), SEEDS)
def test_coarse_logits_lose_and_double_nothing(height, width, crossing, seed):
    truth = convex_nuclei(height, width, 12, 26, seed)
    # A sliver at the border has too little of every coarse logit to be positive.
    for nucleus in prediction_from_instances(truth).table:
        sides = (nucleus[f"box_{axis}_max_px"] - nucleus[f"box_{axis}_min_px"] for axis in "xy")
        if nucleus["area_px"] < 100 or min(sides) < 8:
            truth[truth == nucleus["id"]] = 0
    found = oracle_segmentation(
        truth, TruthSegmenter(pixels_per_logit=4), tile_px=96, overlap_px=44, crossing=crossing
    )
    np.testing.assert_array_equal(found.nucleus_of_prompt, found.table["id"])
    assert len(found) == len(np.unique(truth[truth > 0]))


def test_a_nucleus_of_120_px_survives_between_small_ones():
    truth = np.zeros((450, 450), dtype=np.int32)
    rows, columns = np.ogrid[:450, :450]
    for label, (y, x) in enumerate(np.mgrid[12:450:25, 12:450:25].reshape(2, -1).T, 1):
        truth[(rows - y) ** 2 + (columns - x) ** 2 <= 100] = label
    large = (rows - 220) ** 2 + (columns - 220) ** 2 <= 3600
    truth[np.isin(truth, truth[large])] = 0
    truth[large] = truth.max() + 1
    ids = np.unique(truth)
    truth = np.searchsorted(ids, truth).astype(np.int32)
    found = oracle_segmentation(truth)
    assert len(found) == truth.max()
    small = truth < truth.max()
    np.testing.assert_array_equal(found.instances[small], truth[small])


@settings(max_examples=30)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([31, 32, 45]), SEEDS)
def test_six_views_of_the_truth_are_the_truth(height, width, tile_px, seed):
    truth = convex_nuclei(height, width, 3, 12, seed)
    segmenter = TruthSegmenter()
    plain = oracle_segmentation(truth, tile_px=tile_px, overlap_px=20)
    six = oracle_segmentation(truth, segmenter, tile_px=tile_px, overlap_px=20, test_time_augmentation=True)
    np.testing.assert_array_equal(six.instances, plain.instances)
    np.testing.assert_allclose(six.table["score"], plain.table["score"], atol=1e-6)
    assert len(segmenter.encoded) % 6 == 0


@settings(max_examples=100)
@given(
    st.data(),
    st.integers(1, 80),
    st.integers(1, 80),
    st.integers(0, 31),
    st.integers(0, 8),
    st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    st.sampled_from(["box", "mask", "smaller_mask"]),
    st.booleans(),
    st.booleans(),
)
def test_equals_the_slow_reference(data, height, width, overlap, edge, threshold, rule, largest, fill):
    pixel = st.tuples(st.integers(0, width - 1), st.integers(0, height - 1))
    points = data.draw(st.lists(pixel, max_size=12))
    inferer = PromptedInferer(
        tile_px=32,
        overlap_px=overlap,
        edge_px=edge,
        nms=rule,
        nms_threshold=threshold,
        largest_component=largest,
        fill_holes=fill,
        tiles_per_batch=3,
        prompts_per_call=5,
        precision="fp32",
    )
    found = inferer(image_of_positions(height, width), NoiseSegmenter(), prompts_at(points))
    expected = slow_segmentation(
        points,
        random_blob,
        (height, width),
        tile=32,
        overlap=overlap,
        edge=edge,
        threshold=threshold,
        rule=rule,
        largest=largest,
        fill=fill,
    )
    np.testing.assert_array_equal(found.instances, expected)
    for (x, y), nucleus in zip(points, found.nucleus_of_prompt, strict=True):
        assert nucleus in {0, *found.table["id"]}
        assert nucleus or not found.instances[y, x]


def test_tiles_are_encoded_once_and_only_where_prompts_are():
    truth = np.zeros((600, 600), dtype=np.int32)
    truth[20:30, 20:30], truth[215:235, 20:30], truth[590:, 590:] = 1, 2, 3
    segmenter = TruthSegmenter()
    assert len(oracle_segmentation(truth, segmenter, tiles_per_batch=2)) == 3
    assert len(segmenter.encoded) == 3  # of nine: top left, the one below it, bottom right
    assert segmenter.decoded == 4  # the second nucleus is in two tiles
    best = TruthSegmenter()
    assert len(oracle_segmentation(truth, best, crossing="best")) == 3
    assert (len(best.encoded), best.decoded) == (3, 3)


def test_a_click_where_four_tiles_meet_encodes_one_tile_if_it_may():
    truth = np.zeros((448, 448), dtype=np.int32)
    truth[220:240, 210:230] = 1
    counts = {}
    for crossing in ("all", "best"):
        segmenter = TruthSegmenter()
        np.testing.assert_array_equal(
            oracle_segmentation(truth, segmenter, crossing=crossing).instances, truth
        )
        counts[crossing] = len(segmenter.encoded)
    assert counts == {"all": 4, "best": 1}


@pytest.mark.parametrize("size", [(1, 1), (300, 20), (40, 500), (0, 7)])
def test_without_prompts_there_are_no_nuclei_and_no_work(size):
    found = PromptedInferer()(torch.zeros(1, 3, *size), object(), prompts_at([]))
    assert found.instances.shape == size
    assert found.instances.dtype == np.int32
    assert len(found) == len(found.nucleus_of_prompt) == 0


def test_all_prompts_in_one_corner():
    truth = np.zeros((400, 700), dtype=np.int32)
    truth[:4, :6] = 1
    points = [(x, y) for x in range(6) for y in range(4)] * 3
    segmenter = TruthSegmenter()
    found = PromptedInferer()(image_of(truth), segmenter, prompts_at(points))
    np.testing.assert_array_equal(found.instances, truth)
    assert set(found.nucleus_of_prompt) == {1}
    assert len(segmenter.encoded) == 1


def test_two_clicks_on_one_nucleus_and_one_next_to_it():
    truth = np.zeros((50, 40), dtype=np.int32)
    truth[10:30, 5:25], truth[35:45, 30:38] = 1, 2
    clicks = [(32, 36), (6, 12), (20, 25), (39, 0)]
    found = PromptedInferer(class_names=("a", "b"))(
        image_of(truth), TruthSegmenter(), prompts_at(clicks, [0, 1, 1, 0])
    )
    assert found.nucleus_of_prompt.tolist() == [1, 2, 2, 0]
    assert found.table["class_id"].tolist() == [0, 1]
    assert found.class_names == ("a", "b")
    assert found.table["area_px"].tolist() == [80, 400]
    assert ((found.table["score"] >= 0) & (found.table["score"] <= 1)).all()


def test_slender_diagonal_neighbours_need_masks():
    truth = np.zeros((60, 60), dtype=np.int32)
    rows, columns = np.indices(truth.shape)
    truth[(rows >= 10) & (columns >= 10) & (rows < 40) & (columns < 40) & (abs(rows - columns) <= 2)] = 1
    truth[
        (rows >= 10)
        & (columns >= 14)
        & (rows < 36)
        & (columns < 40)
        & (rows - columns < -3)
        & (rows - columns > -8)
    ] = 2
    assert len(oracle_segmentation(truth, nms="mask")) == 2
    assert len(oracle_segmentation(truth, nms="box")) == 1


def test_a_prompter_is_asked_for_the_whole_image():
    truth = convex_nuclei(300, 310, 5, 20, seed=3)
    points = oracle_prompts(prediction_from_instances(truth))
    seen = []

    def find_points(image):
        seen.append(tuple(image.shape))
        return DetectedPoints(*map(torch.from_numpy, (points.points, points.scores, points.class_ids)))

    inferer = PromptedInferer(tile_px=128, overlap_px=48)
    np.testing.assert_array_equal(inferer(image_of(truth), TruthSegmenter(), find_points).instances, truth)
    assert seen == [(1, 3, 300, 310)]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (prompts_at([(5, 5), (20, 5)]), "number 1 is at x=20, y=5"),
        (prompts_at([(5, -0.6)]), "outside"),
        (prompts_at([(float("nan"), 5)]), "outside"),
        (prompts_at([(1, 1)], [1]), "class id 1; expected a whole number in 0..0"),
        (prompts_at([(1, 1)], [-1]), "class id -1"),
        (prompts_at([(1, 1)], [0.5]), "class id 0.5"),
        (DetectedPoints(np.zeros((2, 2)), np.ones(1), np.zeros(2)), r"scores \(1,\)"),
        (DetectedPoints(np.zeros((2, 3)), np.ones(2), np.zeros(2)), r"points \(2, 3\)"),
    ],
)
def test_impossible_prompts_are_refused(found, message):
    with pytest.raises(ConfigurationError, match=message):
        PromptedInferer()(torch.zeros(1, 3, 10, 20), TruthSegmenter(), found)


def test_prompts_on_the_rim_of_the_image_are_in_it():
    truth = np.zeros((10, 300), dtype=np.int32)
    truth[:5, :5], truth[5:, 290:] = 1, 2
    found = PromptedInferer()(image_of(truth), TruthSegmenter(), prompts_at([(-0.5, -0.5), (299.5, 9.5)]))
    np.testing.assert_array_equal(found.instances, truth)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("tile_px", 0),
        ("overlap_px", 256),
        ("overlap_px", -1),
        ("edge_px", -1),
        ("negatives", -1),
        ("tiles_per_batch", 0),
        ("prompts_per_call", 0),
        ("class_names", ()),
        ("nms_threshold", 1.5),
        ("nms_threshold", float("nan")),
        ("nms", "soft"),
        ("crossing", "none"),
        ("classifier", "both"),
        ("precision", "int8"),
    ],
)
def test_impossible_options_are_refused(option, value):
    with pytest.raises(ConfigurationError, match=r"expected"):
        PromptedInferer(**{option: value})


@pytest.mark.parametrize(("height", "width"), [(40, 60), (300, 200), (96, 96), (7, 96)])
def test_a_sam_of_its_own_sees_the_whole_image_at_its_size(height, width):
    """Every image is one tile, whose longer side it fills; nuclei are where they were, in its own pixels."""
    rows, columns = np.indices((height, width))
    centres = [(0.3 * width, 0.4 * height), (0.7 * width, 0.6 * height)]
    radius = 0.2 * min(height, width)
    truth = np.zeros((height, width), dtype=np.int32)
    for number, (x, y) in enumerate(centres, start=1):
        truth[(columns - x) ** 2 + (rows - y) ** 2 <= radius**2] = number
    image = image_of((truth > 0).astype(np.int32))
    image[0, 1] = 1
    segmenter = BrightSegmenter()
    inferer = PromptedInferer(tile_px=96, overlap_px=16, precision="fp32", whole_image=True)
    found = inferer(image, segmenter, prompts_at(centres))
    (tile,) = segmenter.encoded
    scale = 96 / max(height, width)
    assert tile[1].sum() == round(height * scale) * round(width * scale)
    assert found.instances.shape == (height, width)
    assert found.nucleus_of_prompt.tolist() == found.table["id"].tolist() == [1, 2]
    assert (found.instances == truth).mean() > 0.97
    measured = np.stack([found.table["centroid_x_px"], found.table["centroid_y_px"]], axis=1)
    true = prediction_from_instances(truth).table
    np.testing.assert_allclose(measured[:, 0], true["centroid_x_px"], atol=0.15 / min(scale, 1))
    np.testing.assert_allclose(measured[:, 1], true["centroid_y_px"], atol=0.15 / min(scale, 1))


def test_nuclei_below_a_pixel_of_the_image_are_lost():
    image = torch.zeros(1, 3, 10, 10)
    image[0, 0, 4, 4] = 1
    inferer = PromptedInferer(tile_px=64, overlap_px=16, precision="fp32", whole_image=True)
    found = inferer(image, BrightSegmenter(), prompts_at([(4, 4), (0, 0)]))
    assert found.nucleus_of_prompt.tolist() == [1, 0]
    assert found.instances.sum() == found.instances[4, 4] == 1
    with pytest.raises(ConfigurationError, match="whole_image: found together with a prompter that shares"):
        inferer(image, BrightSegmenter(), SimpleNamespace(find_in_tiles=print))


def test_several_images_are_refused():
    with pytest.raises(ConfigurationError, match=r"expected one image"):
        PromptedInferer()(torch.zeros(2, 3, 8, 8), TruthSegmenter(), prompts_at([]))


class AnsweringSegmenter:
    """Answers every call by a function of the prompts, and remembers them."""

    def __init__(self, answer):
        self.answer = answer
        self.prompts = []

    def encode(self, image):
        return image

    def decode(self, embedding, prompts):
        self.prompts.append(prompts)
        return self.answer(prompts)


def points_at(*points):
    return DetectedPoints(np.array(points, dtype=float), np.ones(len(points)), np.zeros(len(points)))


def square_at_the_point(prompts, iou, half_px=2):
    """Logits ``(N, 1, 16, 16)`` of a square around each positive point, cut by those of negative points."""
    cells = torch.arange(16.0)
    logits = []
    for points, labels in zip(prompts.points, prompts.labels, strict=True):
        near = [
            ((cells - x).abs() <= half_px)[None] & ((cells - y).abs() <= half_px)[:, None]
            for x, y in points[labels >= 0]
        ]
        mask = near[0]
        for negative in near[1:]:
            mask = mask & ~negative
        logits.append(torch.where(mask, 1.0, -1.0)[None])
    return MaskPrediction(torch.stack(logits), torch.as_tensor(iou, dtype=torch.float32)[:, None])


def small_inferer(**options):
    return PromptedInferer(tile_px=16, overlap_px=4, precision="fp32", **options)


def test_negatives_are_kept_where_they_are_better():
    def answer(prompts):
        guided = prompts.labels.shape[1] > 1
        better = torch.where(prompts.points[:, 0, 0] < 6, 0.9, 0.1)
        return square_at_the_point(prompts, better if guided else torch.full((len(better),), 0.5))

    segmenter = AnsweringSegmenter(answer)
    found = small_inferer(negatives=1, nms="mask")(
        torch.zeros(1, 3, 16, 16), segmenter, points_at((5, 8), (8, 8))
    )
    alone, guided = segmenter.prompts
    assert alone.labels.tolist() == [[1], [1]]
    assert guided.labels.tolist() == [[1, 0], [1, 0]]
    assert guided.points.tolist() == [[[5, 8], [8, 8]], [[8, 8], [5, 8]]]
    assert found.table["score"].tolist() == [np.float32(0.9), 0.5]
    assert found.table["area_px"].tolist() == [15, 25]


def test_a_lonely_prompt_is_not_decoded_twice():
    segmenter = AnsweringSegmenter(lambda prompts: square_at_the_point(prompts, [0.5] * len(prompts.points)))
    found = small_inferer(negatives=2)(torch.zeros(1, 3, 16, 16), segmenter, points_at((5, 8)))
    assert len(found) == len(segmenter.prompts) == 1


def test_missing_neighbours_are_padding():
    segmenter = AnsweringSegmenter(lambda prompts: square_at_the_point(prompts, [0.5] * len(prompts.points)))
    small_inferer(negatives=2)(torch.zeros(1, 3, 16, 30), segmenter, points_at((2, 8), (5, 5), (28, 8)))
    assert segmenter.prompts[1].labels.tolist() == [[1, 0, -1], [1, 0, -1]]
    assert segmenter.prompts[1].prompts_per_image.tolist() == [2, 0]


@pytest.mark.parametrize("tiles_per_batch", [1, 3])
@pytest.mark.parametrize("prompts_per_call", [1, 7, 1000])
def test_the_division_of_work_changes_nothing(tiles_per_batch, prompts_per_call):
    truth = convex_nuclei(150, 170, 4, 12, seed=1)
    options = {"tiles_per_batch": tiles_per_batch, "prompts_per_call": prompts_per_call}
    found = PromptedInferer(tile_px=64, overlap_px=32, negatives=1, **options)(
        image_of(truth), TruthSegmenter(), oracle_prompts(prediction_from_instances(truth))
    )
    np.testing.assert_array_equal(found.instances, truth)


def test_the_views_are_averaged():
    values = iter([4.0, -1.0, -1.0, 2.0, -1.0, -2.0])

    def answer(prompts):
        value = next(values)
        logits = torch.full((1, 1, 16, 16), value)
        return MaskPrediction(logits.half(), torch.tensor([[value]]).half(), torch.tensor([[0.0, value]]))

    segmenter = AnsweringSegmenter(answer)
    inferer = small_inferer(
        test_time_augmentation=True, classifier="segmentor", class_names=("a", "b"), nms_threshold=0.3
    )
    found = inferer(torch.zeros(1, 3, 16, 16), segmenter, points_at((1, 3)))
    assert found.table["area_px"].tolist() == [256]  # the mean logit, 1/6, is positive
    assert found.table["score"][0] == pytest.approx(1 / 6)
    assert found.table["class_id"].tolist() == [1]
    seen = [tuple(prompts.points[0, 0].tolist()) for prompts in segmenter.prompts]
    assert seen == [(1, 3), (14, 3), (1, 12), (3, 14), (14, 12), (12, 1)]


def test_the_segmentor_cannot_classify_without_class_logits():
    with pytest.raises(ConfigurationError, match="no class logits"):
        PromptedInferer(classifier="segmentor")(torch.zeros(1, 3, 9, 9), TruthSegmenter(), points_at((1, 1)))


@pytest.mark.parametrize(
    ("logits", "iou", "message"),
    [
        ((2, 1, 16, 16), (1, 1), "logits"),
        ((1, 3, 16, 16), (1, 3), "logits"),
        ((1, 1, 16, 8), (1, 1), "logits"),
        ((1, 1, 5, 5), (1, 1), "divisor of 16"),
        ((1, 1, 16, 16), (1,), "IoU"),
    ],
)
def test_answers_of_wrong_shapes_are_refused(logits, iou, message):
    segmenter = AnsweringSegmenter(lambda prompts: MaskPrediction(torch.zeros(logits), torch.zeros(iou)))
    with pytest.raises(ConfigurationError, match=message):
        small_inferer()(torch.zeros(1, 3, 16, 16), segmenter, points_at((1, 1)))


@pytest.mark.parametrize("which", [0, 1])
def test_nan_is_refused(which):
    answer = [torch.zeros(1, 1, 16, 16), torch.zeros(1, 1)]
    answer[which] = answer[which] * float("nan")
    with pytest.raises(ConfigurationError, match="take bf16 or fp32"):
        small_inferer()(
            torch.zeros(1, 3, 16, 16),
            AnsweringSegmenter(lambda prompts: MaskPrediction(*answer)),
            points_at((1, 1)),
        )


def test_boxes_are_prompted_by_their_corners_in_the_tile():
    def answer(prompts):
        return square_at_the_point(prompts._replace(labels=prompts.labels.clamp(max=1)), [0.5] * 2)

    segmenter = AnsweringSegmenter(answer)
    boxes = DetectedPoints(
        np.array([[20.0, 8.0], [18.0, 3.0]]), np.ones(2), np.zeros(2), np.array([[4.0, 6.0], [40.0, 2.0]])
    )
    small_inferer()(torch.zeros(1, 3, 16, 28), segmenter, boxes)
    (asked,) = segmenter.prompts  # both lie in the second tile, which starts at column 12
    assert asked.points.tolist() == [[[6, 5], [10, 11]], [[-0.5, 2], [15.5, 4]]]
    assert asked.labels.tolist() == [[2, 3], [2, 3]]


def test_boxes_have_no_negatives_and_finite_sizes():
    image = torch.zeros(1, 3, 16, 16)
    segmenter = AnsweringSegmenter(
        lambda prompts: square_at_the_point(prompts._replace(labels=prompts.labels.clamp(max=1)), [0.5])
    )
    box = points_at((5, 5))
    for sizes, options, message in (
        (np.ones((1, 2)), {"negatives": 1}, "expected 0, because the prompts are boxes"),
        (np.full((1, 2), -1.0), {}, "with finite widths and heights"),
        (np.full((1, 2), np.nan), {}, "with finite widths and heights"),
        (np.ones((2, 2)), {}, r"expected \(1, 2\)"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            small_inferer(**options)(
                image, segmenter, DetectedPoints(box.points, box.scores, box.class_ids, sizes)
            )


@given(st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), min_size=1, max_size=9), st.integers(1, 3))
def test_negatives_are_the_nearest_other_points_of_the_tile(points, count):
    xy = np.array(points, dtype=float)
    visits = visit_tiles(np.array(points), plan_tiles((30, 30), 16, 4))
    half = visits.select(np.arange(len(visits)) % 2 == 0)
    found, labels = nearest_others(xy, half, visits, count)
    assert found.shape == (len(half), count, 2)
    for row, (tile, prompt) in enumerate(zip(*half, strict=True)):
        x, y = points[prompt]
        others = [points[i] for t, i in zip(*visits, strict=True) if t == tile and points[i] != (x, y)]
        distances = sorted((x - a) ** 2 + (y - b) ** 2 for a, b in others)[:count]
        assert labels[row].tolist() == [0] * len(distances) + [-1] * (count - len(distances))
        drawn = [tuple(point) for point in found[row, : len(distances)].tolist()]
        assert [(x - a) ** 2 + (y - b) ** 2 for a, b in drawn] == distances
        assert set(drawn) <= set(others)
        assert (found[row, len(distances) :] == (x, y)).all()
