"""The losses of CFR-SAM with loops over nuclei and pixels."""

import math

import numpy as np
from scipy import ndimage


def mask_loss(logits, masks, iou, *, focal_weight=20.0, dice="pooled"):
    """20 * focal + Dice + squared error of the IoU, which may be None; (N, S, S) arrays."""
    focal, terms, squares = [], [], []
    for n in range(len(logits)):
        shared = found = true = 0.0
        for logit, truth in zip(logits[n].ravel(), masks[n].ravel(), strict=True):
            p = 1 / (1 + math.exp(-logit))
            right = p if truth else 1 - p
            focal.append((1 - right) ** 2 * -math.log(right))
            shared, found, true = shared + p * truth, found + p, true + truth
        terms.append((shared, found, true))
        if iou is not None:
            squares.append((iou[n] - (shared + 1e-7) / (found + true - shared + 1e-7)) ** 2)
    if dice == "pooled":
        terms = [tuple(map(sum, zip(*terms, strict=True)))]
    overlap = [1 - 2 * shared / (found + true) if true else 0.0 for shared, found, true in terms]
    return focal_weight * np.mean(focal) + np.mean(overlap) + (np.mean(squares) if squares else 0.0)


def cross_entropy(logits, targets):
    p = 1 / (1 + np.exp(-logits))
    return -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).mean()


def inner_boundary(mask):
    """The mask without its 3 x 3 erosion; what lies beyond the image counts as nucleus."""
    height, width = mask.shape
    boundary = np.zeros(mask.shape)
    for y in range(height):
        for x in range(width):
            around = mask[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
            boundary[y, x] = mask[y, x] and not around.all()
    return boundary


def sobel_boundary(mask, foreground):
    gradient = np.hypot(*(ndimage.sobel(foreground.astype(float), axis, mode="nearest") for axis in (0, 1)))
    strongest = gradient.max()
    return (gradient / strongest if strongest else gradient) * mask
