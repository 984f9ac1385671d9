"""The losses of eU-Net3+ pixel by pixel, in float64."""

from math import exp, log


def sigmoid(x):
    return 1 / (1 + exp(-x))


def pixels(image):
    return [float(value) for value in image.ravel()]


def focal_term(probability_of_truth):
    return -((1 - probability_of_truth) ** 2) * log(probability_of_truth)


def generalized_dice(probabilities, truths):
    """1 - generalised Dice of one image; a class that is absent weighs as much as the other one."""
    areas = [sum(truth) for truth in truths]
    weights = [1 / area**2 if area else 0 for area in areas]
    weights = [weight or max(weights) for weight in weights]
    shared = whole = 0
    for weight, p, y in zip(weights, probabilities, truths, strict=True):
        shared += weight * sum(a * b for a, b in zip(p, y, strict=True))
        whole += weight * (sum(p) + sum(y))
    return 1 - 2 * shared / whole


def softmax_loss(logits, masks):
    """Of (B, 2, H, W) logits and (B, 1, H, W) masks."""
    dice, focal = [], []
    for (background, nucleus), mask in zip(logits, masks, strict=True):
        p = [sigmoid(b - a) for a, b in zip(pixels(background), pixels(nucleus), strict=True)]
        y = pixels(mask)
        classes = [[1 - a for a in p], p], [[1 - a for a in y], y]
        dice.append(generalized_dice(*classes))
        focal += [focal_term(a if b else 1 - a) for a, b in zip(p, y, strict=True)]
    return 0.5 * sum(dice) / len(dice) + 0.5 * sum(focal) / len(focal)


def sigmoid_loss(logits, masks):
    """Of (B, 2, H, W) logits and (B, 1, H, W) masks."""
    dice, focal = [], []
    for channels, mask in zip(logits, masks, strict=True):
        for channel, truth in zip(channels, (1 - mask, mask), strict=True):
            p, y = [sigmoid(x) for x in pixels(channel)], pixels(truth)
            shared = sum(a * b for a, b in zip(p, y, strict=True))
            dice.append(1 - (2 * shared + 1) / (sum(p) + sum(y) + 1))
            focal += [focal_term(a if b else 1 - a) for a, b in zip(p, y, strict=True)]
    return 0.5 * sum(dice) / len(dice) + 0.5 * sum(focal) / len(focal)
