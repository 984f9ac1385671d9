"""Tiled, prompted inference with full-size masks and plain loops."""

import numpy as np
import torch
from scipy import ndimage

from nucsam_monai.utils.instances import connected_components


def slow_origins(side, tile, overlap):
    origins = [0]
    while origins[-1] + tile < side:
        origins.append(min(origins[-1] + tile - overlap, side - tile))
    return origins


def slow_segmentation(points, answer, size, *, tile, overlap, edge, threshold, rule, largest, fill):
    """Return the label map of prompts ``[(x, y), ...]``, ids in the order of the prompts.

    ``answer(position, origin, tile)`` gives the logits ``(s, s)`` of a tile and the predicted IoU.
    """
    best = {}
    for top in slow_origins(size[0], tile, overlap):
        for left in slow_origins(size[1], tile, overlap):
            for prompt, (x, y) in enumerate(points):
                if left <= x < left + tile and top <= y < top + tile:
                    logits, iou = answer((x, y), (left, top), tile)
                    mask = _full_mask(logits, left, top, tile, size)
                    if mask.any():
                        quality = (not _is_cut(mask, left, top, tile, edge), iou, mask.sum())
                        if prompt not in best or quality > best[prompt][0]:
                            best[prompt] = (quality, mask)
    ranked = sorted(best, key=lambda prompt: (-best[prompt][0][1], prompt))
    kept = []
    for prompt in ranked:
        mask = best[prompt][1]
        if all(_overlap(mask, best[better][1], rule) <= threshold for better in kept):
            kept.append(prompt)
    masks = [(prompt, best[prompt][1]) for prompt in kept]
    painted = _cleaned_painting(masks, size, largest, fill) if largest or fill else _painting(masks, size)
    seen = sorted(set(painted.ravel().tolist()) - {0})
    return sum((k * (painted == label) for k, label in enumerate(seen, 1)), np.zeros(size, dtype=int))


def _full_mask(logits, left, top, tile, size):
    pixels = torch.nn.functional.interpolate(
        torch.from_numpy(logits)[None, None], size=(tile, tile), mode="bilinear", align_corners=False
    )
    canvas = np.zeros((max(size[0], tile), max(size[1], tile)), dtype=bool)
    canvas[top : top + tile, left : left + tile] = (pixels[0, 0] > 0).numpy()
    return canvas[: size[0], : size[1]]


def _box(mask):
    rows, columns = np.nonzero(mask)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def _is_cut(mask, left, top, tile, edge):
    height, width = mask.shape
    x0, y0, x1, y1 = _box(mask)
    return (
        (left > 0 and x0 - left <= edge)
        or (top > 0 and y0 - top <= edge)
        or (left + tile < width and left + tile - x1 <= edge)
        or (top + tile < height and top + tile - y1 <= edge)
    )


def _overlap(one, other, rule):
    if rule == "box":
        filled = []
        for mask in (one, other):
            x0, y0, x1, y1 = _box(mask)
            filled.append(np.zeros_like(mask))
            filled[-1][y0:y1, x0:x1] = True
        one, other = filled
    if rule == "smaller_mask":
        return int((one & other).sum()) / min(int(one.sum()), int(other.sum()))
    return int((one & other).sum()) / int((one | other).sum())


def _painting(masks, size):
    """Paint from the worst to the best."""
    painted = np.zeros(size, dtype=int)
    for prompt, mask in reversed(masks):
        painted[mask] = prompt + 1
    return painted


def _cleaned_painting(masks, size, largest, fill):
    painted = np.zeros(size, dtype=int)
    for prompt, mask in masks:
        visible = (ndimage.binary_fill_holes(mask) if fill else mask) & (painted == 0)
        if largest and visible.any():
            parts = connected_components(visible)
            sizes = [(parts == part).sum() for part in range(1, parts.max() + 1)]
            visible = parts == 1 + int(np.argmax(sizes))
        painted[visible] = prompt + 1
    return painted
