"""Segmenters whose answers are known, and the images that they read."""

import zlib

import numpy as np
import torch
from scipy.ndimage import label
from torch.nn import functional as F

from nucsam_monai.networks.nucleus_prompts import MaskPrediction


class TruthSegmenter:
    """Knows the truth of a tile, as the first channel of the image holds its instance map.

    So it sees a nucleus as far as the tile shows it. Like a network it sees nothing of what is turned or
    mirrored; its predicted IoUs depend on the nucleus and on how much of it can be seen.
    """

    def __init__(self, pixels_per_logit=1):
        self.pixels_per_logit = pixels_per_logit
        self.encoded = []
        self.decoded = 0

    def encode(self, image):
        self.encoded += list(image)
        return image

    def decode(self, embedding, prompts):
        owners = torch.repeat_interleave(torch.arange(len(embedding)), prompts.prompts_per_image)
        assert len(owners) == len(prompts.points)
        assert (prompts.labels[:, 0] == 1).all()
        self.decoded += len(owners)
        pixels = torch.floor(prompts.points[:, 0] + 0.5).long()
        columns, rows = pixels.clamp(0, embedding.shape[-1] - 1).unbind(-1)
        ids = embedding[owners, 0, rows, columns][:, None, None]
        nuclei = (embedding[owners, 0] == ids) & (ids > 0)
        logits = F.avg_pool2d(nuclei[:, None] * 2.0 - 1, self.pixels_per_logit)
        areas = nuclei.flatten(1).sum(dim=1, keepdim=True)
        return MaskPrediction(logits, ((ids[:, 0] * 37 + areas * 11) % 101) / 100)


class BrightSegmenter:
    """Takes for a nucleus what is bright in the first channel of the image and joined to the prompt."""

    def __init__(self):
        self.encoded = []

    def encode(self, image):
        self.encoded += list(image)
        return image

    def decode(self, embedding, prompts):
        parts, masks = label(embedding[0, 0].numpy() >= 0.5)[0], []
        for x, y in prompts.points[:, 0].round().long().tolist():
            masks.append((parts == parts[y, x]) & (parts > 0))
        logits = torch.from_numpy(np.stack(masks)).float()[:, None] * 2 - 1
        return MaskPrediction(logits, torch.full((len(masks), 1), 0.9))


class NoiseSegmenter:
    """Draws a random blob at each prompt, which depends on the prompt and on the tile.

    The first two channels of the image hold the column and the row of every pixel.
    """

    def encode(self, image):
        return image

    def decode(self, embedding, prompts):
        side = embedding.shape[-1]
        owners = np.repeat(np.arange(len(embedding)), prompts.prompts_per_image.numpy())
        logits, iou = [np.zeros((0, side // 4, side // 4))], []
        for owner, point in zip(owners, prompts.points[:, 0].numpy(), strict=True):
            origin = embedding[owner, :2, 0, 0].numpy()
            answer = random_blob(origin + point, origin, side)
            logits.append(answer[0][None])
            iou.append(answer[1])
        stacked = torch.from_numpy(np.concatenate(logits)).float()[:, None]
        return MaskPrediction(stacked, torch.tensor(iou, dtype=torch.float32)[:, None])


def random_blob(position, origin, side):
    """Return ``(side / 4, side / 4)`` logits of a ragged blob and an IoU out of few values, so that some are equal."""
    seed = zlib.crc32(np.array([*position, *origin], dtype=np.float32).tobytes())
    generator = np.random.default_rng(seed)
    cells = np.arange(side // 4) * 4 + 1.5
    x, y = np.asarray(position) - origin
    away = np.hypot(cells[None] - x, cells[:, None] - y)
    logits = generator.uniform(0, side / 3) - away + generator.normal(0, 3, away.shape)
    return logits.astype(np.float32), np.float32(generator.integers(1, 12) / 10)


def image_of(instances):
    """Return an image ``(1, 3, H, W)`` whose first channel is the instance map."""
    image = torch.zeros(1, 3, *instances.shape)
    image[0, 0] = torch.from_numpy(instances)
    return image


def image_of_positions(height, width):
    """Return an image ``(1, 3, H, W)`` of columns and rows."""
    image = torch.zeros(1, 3, height, width)
    image[0, 0], image[0, 1] = torch.arange(width), torch.arange(height)[:, None]
    return image


def convex_nuclei(height, width, smallest, largest, seed, *, density=0.9):
    """Draw disjoint discs and rectangles whose boxes have sides of ``smallest`` to ``largest`` pixels.

    Those at the border are cut by it. Returns a ``(H, W)`` map with ids 1..n.
    """
    generator = np.random.default_rng(seed)
    instances = np.zeros((height, width), dtype=np.int32)
    shift = generator.integers(0, largest, 2)
    for top in range(-int(shift[0]), height, largest):
        for left in range(-int(shift[1]), width, largest):
            if generator.random() < density:
                _draw(instances, top, left, largest, smallest, generator)
    ids, contiguous = np.unique(instances, return_inverse=True)
    first = int(ids[0] != 0)
    return (contiguous.reshape(instances.shape) + first).astype(np.int32)


def _draw(instances, top, left, room, smallest, generator):
    high, wide = generator.integers(smallest, room + 1, 2)
    if generator.random() < 0.7:
        high = wide = min(high, wide)
        rows, columns = np.ogrid[:high, :wide]
        middle = (high - 1) / 2
        shape = (rows - middle) ** 2 + (columns - middle) ** 2 <= (high / 2) ** 2
    else:
        shape = np.ones((high, wide), dtype=bool)
    top += int(generator.integers(0, room - high + 1))
    left += int(generator.integers(0, room - wide + 1))
    visible = shape[max(0, -top) :, max(0, -left) :]
    place = instances[max(0, top) : max(0, top + high), max(0, left) : max(0, left + wide)]
    place[visible[: place.shape[0], : place.shape[1]]] = instances.max() + 1
