import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from torch import nn

from nucsam_monai.engines import PreparePrompterBatch, collate_points
from nucsam_monai.losses import PrompterLoss, PrompterTarget
from nucsam_monai.networks import Prompter


def item(nuclei, **more):
    return {
        "image": torch.full((3, 32, 32), float(nuclei)),
        "points": 32 * torch.rand(nuclei, 2),
        "point_classes": torch.zeros(nuclei, dtype=torch.long),
        "mask": torch.zeros(1, 32, 32),
        "id": f"image {nuclei}",
        **more,
    }


def test_what_differs_in_length_stays_a_list():
    items = [item(nuclei, classes=dict.fromkeys(range(nuclei), 0)) for nuclei in (3, 0, 1)]
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
    batch = collate_points([item(2), item(0)])
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
        Dataset([item(nuclei) for nuclei in (3, 0, 1)]),
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
