"""The losses of the nuclei prompter, one anchor and one pixel at a time."""

import math

from tests.oracles.anchor_matching import cheapest_anchors


def softmax(logits):
    powers = [math.exp(value) for value in logits]
    return [power / sum(powers) for power in powers]


def prompter_loss_terms(output, target, beta=0.4, gamma=5e-3, regression="squared", normaliser="code"):
    """Return ``(regression, classification, mask)`` of tensors as the loss itself takes them."""
    errors, entropies, weights, nuclei_in_all = [], [], [], 0
    for image in range(len(output.points)):
        points = output.points[image].tolist()
        probabilities = [softmax(logits) for logits in output.class_logits[image].tolist()]
        nuclei, classes = target.points[image].tolist(), target.classes[image].tolist()
        anchors, _ = cheapest_anchors(points, probabilities, nuclei, classes)
        nuclei_in_all += len(nuclei)
        for anchor, (point, probability) in enumerate(zip(points, probabilities, strict=True)):
            if anchor in anchors:
                nucleus = anchors.index(anchor)
                distance = math.dist(point, nuclei[nucleus])
                errors.append(distance**2 if regression == "squared" else distance)
                entropies.append(-math.log(probability[classes[nucleus]]))
                weights.append(1.0)
            else:
                entropies.append(-math.log(probability[-1]))
                weights.append(beta)
    total = sum(weight * entropy for weight, entropy in zip(weights, entropies, strict=True))
    divisor = sum(weights) if normaliser == "code" else len(weights)
    return gamma * sum(errors) / max(nuclei_in_all, 1), total / divisor, focal(output, target)


def focal(output, target):
    if output.mask_logits is None:
        return 0.0
    losses = []
    for logit, truth in zip(
        output.mask_logits.flatten().tolist(), target.mask.flatten().tolist(), strict=True
    ):
        probability = 1 / (1 + math.exp(-logit))
        of_truth = probability if truth else 1 - probability
        losses.append(-((1 - of_truth) ** 2) * math.log(of_truth))
    return sum(losses) / len(losses)
