import numpy as np
import pytest
import torch

from nucsam_monai.inferers import PointFinder, PromptedInferer, TilePointFinder, point_finder
from nucsam_monai.networks import MaskPrediction, PrompterOutput, PromptNucSeg
from nucsam_monai.networks.prompter import PrompterOptions, anchor_grid
from nucsam_monai.utils.errors import ConfigurationError

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


def test_the_finder_fits_the_network():
    options = {"mask_filter": False, "radius_px": 6.0, "tile_px": 256, "overlap_px": 64}
    for backbone, kind in (("compact", PointFinder), ("shared", TilePointFinder)):
        network = PromptNucSeg(["nucleus"], "vit_tiny", prompter={"backbone": backbone, "aux_mask": False})
        assert isinstance(point_finder(network, **options), kind)
        with pytest.raises(ConfigurationError, match="no auxiliary mask"):
            point_finder(network, **{**options, "mask_filter": True})
