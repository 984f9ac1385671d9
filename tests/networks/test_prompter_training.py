import numpy as np
import torch
from skimage.draw import disk

from nucsam_monai.inferers import select_points
from nucsam_monai.losses import PrompterLoss, PrompterTarget
from nucsam_monai.networks import Prompter
from nucsam_monai.transforms import NucleusCentroidsd

CENTRES = ([(12.4, 15.0, 0), (40.0, 20.5, 1), (50.2, 50.0, 0), (18.0, 47.0, 1)], [(31.0, 30.0, 1)])


def two_images():
    """Two 64 px images of dark discs, and the targets that follow from their instance maps."""
    images, items = [], []
    rng = np.random.default_rng(0)
    for centres in CENTRES:
        image = rng.normal(0, 0.1, (3, 64, 64))
        instances = np.zeros((1, 64, 64), dtype=np.int32)
        for number, (x, y, kind) in enumerate(centres, start=1):
            rows, columns = disk((y, x), 6, shape=(64, 64))
            instances[0, rows, columns] = number
            image[kind, rows, columns] -= 1.5
        classes = {number: kind for number, (_, _, kind) in enumerate(centres, start=1)}
        images.append(torch.from_numpy(image).float())
        items.append(NucleusCentroidsd()({"instances": torch.from_numpy(instances), "classes": classes}))
    target = PrompterTarget(
        [item["points"] for item in items],
        [item["point_classes"] for item in items],
        torch.stack([item["mask"] for item in items]),
    )
    return torch.stack(images), target


def test_two_images_are_learnt_by_heart():
    torch.manual_seed(0)
    images, target = two_images()
    network = Prompter(2, options={"backbone": "compact", "channels": 32}).train()
    optimizer, loss = torch.optim.AdamW(network.parameters(), 1e-3), PrompterLoss()
    for _ in range(100):
        optimizer.zero_grad()
        loss(network(images), target).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    network.eval()
    with torch.no_grad():
        for number, (nuclei, classes) in enumerate(zip(target.points, target.classes, strict=True)):
            output = network(images[number : number + 1])
            found = select_points(output, (64, 64), mask_filter=True, radius=6)
            distances = np.linalg.norm(found.points[:, None] - nuclei.numpy()[None], axis=-1)
            assert distances.shape == (len(nuclei), len(nuclei))
            assert (distances.min(axis=0) < 3).all()
            assert found.class_ids[distances.argmin(axis=0)].tolist() == classes.tolist()
            mask = output.mask_logits[0] > 0
            assert (mask == (target.mask[number] > 0)).float().mean() > 0.97


def test_every_parameter_takes_part():
    torch.manual_seed(0)
    images, target = two_images()
    network = Prompter(2, options={"backbone": "compact", "channels": 8, "levels": 4}).train()
    PrompterLoss()(network(images), target).backward()
    assert [name for name, parameter in network.named_parameters() if not parameter.grad.any()] == []
