import torch

from nucsam_monai.engines import PrepareCFRSAMBatch, collate_nuclei


def item(nuclei, **more):
    return {
        "image": torch.zeros(3, 8, 8),
        "points": torch.zeros(nuclei, 1, 2),
        "point_labels": torch.ones(nuclei, 1, dtype=torch.long),
        "masks": torch.zeros(nuclei, 8, 8, dtype=torch.uint8),
        **more,
    }


def test_target_and_prompts_of_all_images():
    foreground = torch.ones(1, 8, 8)
    batch = collate_nuclei([item(2, foreground=foreground), item(0, foreground=0 * foreground)])
    image, target, _, named = PrepareCFRSAMBatch()(batch, "cpu")
    assert image.shape == (2, 3, 8, 8)
    assert target.masks.shape == (2, 8, 8)
    assert target.foreground.sum(dim=(1, 2)).tolist() == [64, 0]
    assert target.prompts_per_image.tolist() == named["prompts"].prompts_per_image.tolist() == [2, 0]


def test_without_the_mask_of_all_nuclei():
    assert PrepareCFRSAMBatch()(collate_nuclei([item(1)]), "cpu")[1].foreground is None
