"""How items are joined to batches, and what engines hand to networks and losses."""

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset, list_data_collate
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from torch import nn

from nucsam_monai.engines import (
    PrepareCFRSAMBatch,
    PrepareDomainBatch,
    PrepareEndToEndBatch,
    PrepareNucleusBatch,
    PreparePointsBatch,
    PreparePrompterBatch,
    PrepareTruthBatch,
    collate_end_to_end,
    collate_nuclei,
    collate_points,
)
from nucsam_monai.handlers import DecollateNuclei, NamedMetricsHandler
from nucsam_monai.losses import PrompterLoss, PrompterTarget
from nucsam_monai.metrics.cumulative import PromptedMaskMetric
from nucsam_monai.networks import MaskPrediction, Prompter
from nucsam_monai.utils.errors import ConfigurationError


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


def collated(domains, **more):
    return list_data_collate(
        [{"image": torch.full((3, 4, 4), i), "domain": name, **more} for i, name in enumerate(domains)]
    )


def test_image_label_and_domain_are_handed_over():
    batch = collated(["a", "a"], label=torch.ones(1, 4, 4))
    image, label, positional, named = PrepareDomainBatch()(batch)
    assert image.shape == (2, 3, 4, 4)
    assert label.shape == (2, 1, 4, 4)
    assert positional == ()
    assert named == {"domain": "a"}


def test_label_domain_and_points_may_be_absent():
    image, label, positional, named = PrepareDomainBatch()({"image": torch.zeros(1, 3, 4, 4)})
    assert (label, positional, named) == (None, (), {})
    assert image.shape == (1, 3, 4, 4)


def test_points_are_handed_over_with_their_labels():
    batch = collated(["b"], points=torch.ones(5, 2), point_labels=torch.zeros(5))
    coordinates, labels = PrepareDomainBatch()(batch)[3]["points"]
    assert coordinates.shape == (1, 5, 2)
    assert labels.shape == (1, 5)


def test_everything_goes_to_the_device_in_the_given_type():
    batch = collated(["b"], label=torch.ones(1, 4, 4), points=torch.ones(5, 2), point_labels=torch.zeros(5))
    image, label, _, named = PrepareDomainBatch()(batch, device="meta", dtype=torch.float16)
    for tensor in (image, label, *named["points"]):
        assert tensor.is_meta
        assert tensor.dtype == torch.float16


def test_batches_of_several_domains_are_refused():
    with pytest.raises(ConfigurationError, match=r"images of one domain, found \['a', 'b'\]"):
        PrepareDomainBatch()(collated(["b", "a"]))


def test_networks_without_domains_get_none():
    _, _, _, named = PreparePointsBatch()(
        collated(["a", "b"], points=torch.ones(5, 2), point_labels=torch.ones(5))
    )
    assert list(named) == ["points"]


@pytest.mark.parametrize("channels", [1, 2])
def test_the_mask_of_the_ground_truth_is_handed_over_next_to_the_label(channels):
    batch = collated(["a", "b"], label=torch.arange(channels).view(-1, 1, 1).expand(channels, 4, 4))
    _, label, _, named = PrepareTruthBatch()(batch)
    assert list(named) == ["truth"]
    assert label.shape == (2, channels, 4, 4)
    assert torch.equal(named["truth"], label[:, :1])
    assert PrepareTruthBatch()(batch, device="meta")[3]["truth"].is_meta


def test_monai_s_engines_call_the_network_with_it():
    seen = []

    class Network(torch.nn.Module):
        def forward(self, image, domain=None, points=None):
            seen.append((image.shape[0], domain, points))
            return image

    batches = [collated(["a", "a"]), collated(["b"])]
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=batches,
        network=Network(),
        prepare_batch=PrepareDomainBatch(),
        decollate=False,
    )
    evaluator.run()
    assert seen == [(2, "a", None), (1, "b", None)]


def image_with(nuclei, **more):
    return {
        "image": torch.full((3, 32, 32), float(nuclei)),
        "points": 32 * torch.rand(nuclei, 2),
        "point_classes": torch.zeros(nuclei, dtype=torch.long),
        "mask": torch.zeros(1, 32, 32),
        "id": f"image {nuclei}",
        **more,
    }


def test_what_differs_in_length_stays_a_list():
    items = [image_with(nuclei, classes=dict.fromkeys(range(nuclei), 0)) for nuclei in (3, 0, 1)]
    batch = collate_points(items)
    assert batch["image"].shape == (3, 3, 32, 32)
    assert batch["mask"].shape == (3, 1, 32, 32)
    assert batch["id"] == ["image 3", "image 0", "image 1"]
    assert [tuple(points.shape) for points in batch["points"]] == [(3, 2), (0, 2), (1, 2)]
    for key in ("points", "point_classes", "classes"):
        assert all(found is original[key] for found, original in zip(batch[key], items, strict=True))


def test_images_alone_are_collated_too():
    batch = collate_points([{"image": torch.zeros(3, 8, 8)}] * 2)
    assert list(batch) == ["image"]
    image, target = PreparePrompterBatch()(batch)
    assert image.shape == (2, 3, 8, 8)
    assert target is None


def test_image_and_mask_go_to_the_device_and_points_stay():
    batch = collate_points([image_with(2), image_with(0)])
    image, target = PreparePrompterBatch()(batch, device="meta", dtype=torch.float16)
    assert isinstance(target, PrompterTarget)
    for tensor in (image, target.mask):
        assert tensor.is_meta
        assert tensor.dtype == torch.float16
    assert target.points is batch["points"]
    assert target.points[0].dtype == torch.float32
    assert target.classes is batch["point_classes"]
    del batch["mask"]
    assert PreparePrompterBatch()(batch)[1].mask is None


def test_monais_engines_train_and_evaluate_with_it():
    torch.manual_seed(0)
    network = Prompter(1, options={"backbone": "compact", "channels": 8, "dropout": 0.0})
    loader = DataLoader(
        Dataset([image_with(nuclei) for nuclei in (3, 0, 1)]),
        batch_size=2,
        num_workers=0,
        collate_fn=collate_points,
    )
    start = [parameter.clone() for parameter in network.parameters()]
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=loader,
        network=network,
        optimizer=torch.optim.AdamW(network.parameters()),
        loss_function=PrompterLoss(),
        prepare_batch=PreparePrompterBatch(),
        decollate=False,
    )
    trainer.run()
    assert trainer.state.iteration == 2
    assert not any(map(torch.equal, start, network.parameters()))

    seen = []

    class Watching(nn.Module):
        def forward(self, image):
            seen.append(len(image))
            return network(image)

    evaluator = SupervisedEvaluator(
        device="cpu",
        val_data_loader=loader,
        network=Watching(),
        prepare_batch=PreparePrompterBatch(),
        decollate=False,
    )
    evaluator.run()
    assert seen == [2, 1]


def square(nuclei, **more):
    return {
        "image": torch.zeros(3, 8, 8),
        "points": torch.zeros(nuclei, 1, 2),
        "point_labels": torch.ones(nuclei, 1, dtype=torch.long),
        "masks": torch.zeros(nuclei, 8, 8, dtype=torch.uint8),
        **more,
    }


def test_target_and_prompts_of_all_images():
    foreground = torch.ones(1, 8, 8)
    batch = collate_nuclei([square(2, foreground=foreground), square(0, foreground=0 * foreground)])
    image, target, _, named = PrepareCFRSAMBatch()(batch, "cpu")
    assert image.shape == (2, 3, 8, 8)
    assert target.masks.shape == (2, 8, 8)
    assert target.foreground.sum(dim=(1, 2)).tolist() == [64, 0]
    assert target.prompts_per_image.tolist() == named["prompts"].prompts_per_image.tolist() == [2, 0]


def test_without_the_mask_of_all_nuclei():
    assert PrepareCFRSAMBatch()(collate_nuclei([square(1)]), "cpu")[1].foreground is None


def test_points_and_masks_are_targets_of_a_training_of_both_networks():
    items = [square(n, centroids=torch.zeros(n, 2), point_classes=torch.zeros(n)) for n in (2, 0)]
    batch = collate_end_to_end(items)
    assert [len(points) for points in batch["centroids"]] == [2, 0]
    image, target, _, named = PrepareEndToEndBatch()(batch, device="meta")
    assert image.is_meta
    assert target.nuclei.points is batch["centroids"]
    assert target.masks.masks.shape == (2, 8, 8)
    assert named["prompts"].points.is_meta
