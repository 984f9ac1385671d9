"""The loss of PromptNucSeg's segmentor pixel by pixel, in float64."""

import math

from tests.oracles.unsam_losses import cross_entropy, pixels, sigmoid


def focal(logits, truth):
    losses = []
    for logit, y in zip(pixels(logits), pixels(truth), strict=True):
        p_true = sigmoid(logit) if y else 1 - sigmoid(logit)
        losses.append((1 - p_true) ** 2 * cross_entropy(logit, y))
    return sum(losses) / len(losses)


def dice(logits, truth):
    p, y = [sigmoid(logit) for logit in pixels(logits)], pixels(truth)
    if sum(y) == 0:
        return 0.0
    return 1 - 2 * sum(a * b for a, b in zip(p, y, strict=True)) / (sum(p) + sum(y))


def soft_iou(logits, truth):
    p, y = [sigmoid(logit) for logit in pixels(logits)], pixels(truth)
    shared = sum(a * b for a, b in zip(p, y, strict=True))
    return (shared + 1e-7) / (sum(p) + sum(y) - shared + 1e-7)


def class_focal(logits, classes):
    losses = []
    for row, true in zip(logits, classes, strict=True):
        p = math.exp(row[true]) / sum(math.exp(value) for value in row)
        losses.append((1 - p) ** 2 * -math.log(p))
    return sum(losses) / len(losses)


def segmentor_loss(logits, iou, truth, *, dice_of="pooled", focal_weight=20.0):
    """Logits and truth ``(N, 1, S, S)``, predicted IoU ``(N, 1)``."""
    pairs = list(zip(logits, truth, strict=True))
    dices = [dice(logits, truth)] if dice_of == "pooled" else [dice(*pair) for pair in pairs]
    squares = [(float(iou[i, 0]) - soft_iou(*pair)) ** 2 for i, pair in enumerate(pairs)]
    return focal_weight * focal(logits, truth) + sum(dices) / len(dices) + sum(squares) / len(squares)
