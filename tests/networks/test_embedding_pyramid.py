import pytest
import torch

from nucsam_monai.networks.prompter import EmbeddingPyramid
from nucsam_monai.utils.errors import ConfigurationError


@pytest.mark.parametrize(
    ("patch", "widths"), [(4, (16, 16, 16, 16)), (8, (8, 16, 16, 16)), (16, (4, 8, 16, 16))]
)
def test_four_maps_cover_the_same_image(patch, widths):
    pyramid = EmbeddingPyramid(channels=16, patch=patch)
    assert pyramid.widths == widths
    maps = pyramid(torch.randn(2, 16, 64 // patch, 32 // patch))
    expected = [
        (2, width, 64 // stride, 32 // stride) for width, stride in zip(widths, (4, 8, 16, 32), strict=True)
    ]
    assert [tuple(stage.shape) for stage in maps] == expected


def test_a_cell_of_the_embedding_reaches_only_its_own_pixels():
    embedding = torch.zeros(1, 16, 4, 4, requires_grad=True)
    finest = EmbeddingPyramid(channels=16, patch=16)(embedding)[0]
    finest[0, :, 8:12, 4:8].square().sum().backward()  # 16 px are 4 cells of 4 px
    touched = embedding.grad.abs().sum(dim=(0, 1)) > 0
    assert touched.nonzero().tolist() == [[2, 1]]


def test_other_patches_are_refused():
    with pytest.raises(ConfigurationError, match="patch 32"):
        EmbeddingPyramid(channels=16, patch=32)
