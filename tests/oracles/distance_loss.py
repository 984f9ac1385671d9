"""The loss of foreground and distance map, pixel by pixel in float64."""

import math

from tests.oracles.unsam_losses import pixels, sigmoid


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def soft_cross_entropy(logits, target):
    pairs = zip(pixels(logits), pixels(target), strict=True)
    return mean(-y * math.log(sigmoid(x)) - (1 - y) * math.log(1 - sigmoid(x)) for x, y in pairs)


def smooth_l1(logits, target, beta):
    errors = [abs(sigmoid(x) - y) for x, y in zip(pixels(logits), pixels(target), strict=True)]
    return mean(0.5 * e**2 / beta if e < beta else e - 0.5 * beta for e in errors)


def dice(logits, target):
    losses = []
    for image, truth in zip(logits, target, strict=True):
        p, y = [sigmoid(x) for x in pixels(image)], pixels(truth)
        both = sum(a * b for a, b in zip(p, y, strict=True))
        losses.append(1 - (2 * both + 1) / (sum(p) + sum(y) + 1))
    return mean(losses)


def distance_loss(logits, target, l1_weight, beta):
    return soft_cross_entropy(logits, target) + l1_weight * smooth_l1(logits, target, beta)
