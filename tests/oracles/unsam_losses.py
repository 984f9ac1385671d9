"""The losses of UN-SAM pixel by pixel, in float64 and in the words of the paper."""

import math

import numpy as np


def sigmoid(logit):
    return 1 / (1 + math.exp(-logit))


def cross_entropy(logit, truth):
    return -math.log(sigmoid(logit)) if truth else -math.log(1 - sigmoid(logit))


def pixels(array):
    return [float(value) for value in np.asarray(array).ravel()]


def pixel_focal(logits, truth, gamma=2.0, alpha=0.25):
    losses = []
    for logit, y in zip(pixels(logits), pixels(truth), strict=True):
        p_true = sigmoid(logit) if y else 1 - sigmoid(logit)
        balance = alpha if y else 1 - alpha
        losses.append(balance * (1 - p_true) ** gamma * cross_entropy(logit, y))
    return sum(losses) / len(losses)


def batch_focal(logits, truth):
    b = mean_cross_entropy(logits, truth)
    return 0.8 * (1 - math.exp(-b)) ** 2 * b


def mean_cross_entropy(logits, truth):
    losses = [cross_entropy(logit, y) for logit, y in zip(pixels(logits), pixels(truth), strict=True)]
    return sum(losses) / len(losses)


def pooled_dice(logits, truth):
    p, y = [sigmoid(logit) for logit in pixels(logits)], pixels(truth)
    shared = sum(a * b for a, b in zip(p, y, strict=True))
    return 1 - (2 * shared + 1) / (sum(p) + sum(y) + 1)


def per_image_dice(logits, truth):
    return sum(pooled_dice(one, other) for one, other in zip(logits, truth, strict=True)) / len(logits)


def mask_loss(logits, truth, *, variant, dice, focal_weight=0.8):
    """One mask per image, ``(B, 1, H, W)``."""
    dice_value = pooled_dice(logits, truth) if dice == "pooled" else per_image_dice(logits, truth)
    if variant == "paper":
        return focal_weight * pixel_focal(logits, truth) + (1 - focal_weight) * dice_value
    return (1 - focal_weight) * batch_focal(logits, truth) + focal_weight * dice_value


def hint_target(truth, size, *, rule):
    """``(B, n_q, S, S)`` to ``(B, 1, size, size)``: the cell's first pixel, or its majority."""
    cell = truth.shape[-1] // size
    target = np.zeros((len(truth), 1, size, size))
    for image, row, column in np.ndindex(len(truth), size, size):
        block = truth[image, :, row * cell : (row + 1) * cell, column * cell : (column + 1) * cell]
        covered = block.max(axis=0)
        target[image, 0, row, column] = covered[0, 0] if rule == "nearest" else covered.mean() >= 0.5
    return target


def dice_coefficient(predicted, truth):
    predicted, truth = pixels(predicted), pixels(truth)
    shared = sum(a * b for a, b in zip(predicted, truth, strict=True))
    return 2 * shared / (sum(predicted) + sum(truth))
