"""The losses of SAC pixel by pixel, in float64."""

from tests.oracles.unsam_losses import mean_cross_entropy, pixel_focal, pixels, sigmoid


def squared_dice(logits, truth):
    """1 - Dice with squared sums, of one image; 1 is added to both sides of the fraction."""
    p, y = [sigmoid(logit) for logit in pixels(logits)], pixels(truth)
    shared = sum(a * b for a, b in zip(p, y, strict=True))
    return 1 - (2 * shared + 1) / (sum(a * a for a in p) + sum(b * b for b in y) + 1)


def mask_loss(logits, truth, *, kind, focal_weight=20.0):
    dice = sum(squared_dice(one, other) for one, other in zip(logits, truth, strict=True)) / len(logits)
    if kind == "focal_dice":
        return focal_weight * pixel_focal(logits, truth) + dice
    return mean_cross_entropy(logits, truth) + dice
