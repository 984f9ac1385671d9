import numpy as np
import pytest
import torch

from nucsam_monai.inferers import DetectedPoints, PromptedInferer, oracle_prompts
from nucsam_monai.networks.nucleus_prompts import MaskPrediction
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.prediction import prediction_from_instances
from tests.inferers.synthetic_segmenters import TruthSegmenter, convex_nuclei, image_of


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
