import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator

from nucsam_monai.engines import PrepareNucleusBatch, collate_nuclei
from nucsam_monai.handlers import DecollateNuclei, NamedMetricsHandler
from nucsam_monai.metrics.cumulative import PromptedMaskMetric
from nucsam_monai.networks import MaskPrediction


def item(name, prompts, **more):
    """An item whose i-th mask is a column that begins in row i and whose point lies in its last pixel."""
    masks = torch.zeros(prompts, 8, 8, dtype=torch.uint8)
    for number in range(prompts):
        masks[number, number:, number] = 1
    points = torch.tensor([[[number, 7.0]] for number in range(prompts)]).reshape(prompts, 1, 2)
    labels = torch.ones(prompts, 1, dtype=torch.long)
    image = torch.full((3, 8, 8), float(prompts))
    return {"id": name, "image": image, "points": points, "point_labels": labels, "masks": masks, **more}


ITEMS = [item("a", 2), item("b", 0), item("c", 3)]


def test_rows_of_prompts_are_concatenated_and_all_else_is_stacked():
    batch = collate_nuclei(ITEMS)
    assert batch["image"].shape == (3, 3, 8, 8)
    assert batch["id"] == ["a", "b", "c"]
    assert batch["prompts_per_image"].tolist() == [2, 0, 3]
    assert torch.equal(batch["masks"], torch.cat([ITEMS[0]["masks"], ITEMS[2]["masks"]]))
    assert torch.equal(batch["points"][:2], ITEMS[0]["points"])
    assert batch["point_labels"].shape == (5, 1)


def test_a_batch_without_any_nucleus_keeps_its_shapes():
    image, target, _, named = PrepareNucleusBatch()(collate_nuclei([item("a", 0), item("b", 0)]))
    assert image.shape == (2, 3, 8, 8)
    assert target.masks.shape == (0, 8, 8)
    prompts = named["prompts"]
    assert (prompts.points.shape, prompts.labels.shape) == ((0, 1, 2), (0, 1))
    assert prompts.prompts_per_image.tolist() == [0, 0]


def test_everything_but_the_numbers_of_prompts_goes_to_the_device():
    batch = collate_nuclei([item("a", 1, class_ids=torch.tensor([4]))])
    image, target, positional, named = PrepareNucleusBatch()(batch, device="meta", dtype=torch.float16)
    assert positional == ()
    assert image.dtype == torch.float16
    assert image.is_meta
    assert target.masks.is_meta
    assert target.classes.is_meta
    assert named["prompts"].points.is_meta
    assert named["prompts"].labels.is_meta
    assert named["prompts"].prompts_per_image.tolist() == [1]


def test_classes_are_absent_where_the_data_has_none():
    assert PrepareNucleusBatch()(collate_nuclei(ITEMS))[1].classes is None


class Columns(torch.nn.Module):
    """Answer each point with the whole column of pixels that it lies in."""

    def forward(self, image, prompts):
        columns = torch.full((len(prompts.points), 1, *image.shape[-2:]), -1.0)
        for mask, point in zip(columns, prompts.points, strict=True):
            mask[0, :, int(point[0, 0])] = 1.0
        return MaskPrediction(columns, columns.new_ones(len(columns), 1))


def test_an_evaluator_measures_every_image_by_its_own_masks():
    seen = []

    class Look:
        def attach(self, engine):
            engine.add_event_handler(Events.ITERATION_COMPLETED, self.look)

        def look(self, engine):
            seen.extend(zip(engine.state.batch, engine.state.output, strict=True))

    evaluator = SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(Dataset(ITEMS), batch_size=2, collate_fn=collate_nuclei),
        network=Columns(),
        prepare_batch=PrepareNucleusBatch(),
        decollate=False,
        key_val_metric={"val_mask_iou": NamedMetricsHandler(PromptedMaskMetric(), keys=("pred", "label"))},
        val_handlers=[DecollateNuclei(), Look()],
    )
    evaluator.run()
    assert [batch["id"] for batch, _ in seen] == ["a", "b", "c"]
    assert [tuple(output["pred"].shape) for _, output in seen] == [(2, 8, 8), (0, 8, 8), (3, 8, 8)]
    assert all(output["pred"].dtype == output["label"].dtype == torch.bool for _, output in seen)
    rows = evaluator.state.metric_details["val_mask_iou"]
    expected = [(1 + 7 / 8) / 2, (1 + 7 / 8 + 6 / 8) / 3]
    torch.testing.assert_close(rows[[0, 2]], torch.tensor(expected, dtype=torch.float64))
    assert rows[1].isnan()
    assert evaluator.state.metrics["val_mask_iou"] == pytest.approx(sum(expected) / 2)
    assert evaluator.state.metrics["val_jaccard_distance"] == pytest.approx(1 - sum(expected) / 2)
