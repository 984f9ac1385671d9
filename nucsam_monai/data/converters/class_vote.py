"""The class of a nucleus where the classes come as a map of pixels."""

import numpy as np

from nucsam_monai.utils.errors import DatasetError


def majority_values(instances: np.ndarray, values: np.ndarray, where: str) -> dict[int, int]:
    """Give every instance the value of most of its pixels; 0 does not vote, equal votes go to the lower value.

    Args:
        instances: ``(H, W)`` non-negative integers, 0 = background.
        values: ``(H, W)`` non-negative integers, 0 = no class.
        where: name of the class map for messages.

    Returns:
        ``{instance id: value}`` for every instance.

    Raises:
        DatasetError: the maps differ in shape, or an instance has no pixel with a value.

    Example:
        >>> majority_values(np.array([[1, 1, 7]]), np.array([[2, 0, 3]]), "classes.png")
        {1: 2, 7: 3}
    """
    if values.shape != instances.shape:
        raise DatasetError(f"{where}: class map is {values.shape}, instance map is {instances.shape}.")
    voting = (instances > 0) & (values > 0)
    # One number per pair of instance and value counts the votes far faster than rows of two numbers.
    base = int(values.max(initial=0)) + 1
    pairs, votes = np.unique(instances[voting].astype(np.int64) * base + values[voting], return_counts=True)
    best: dict[int, tuple[int, int]] = {}
    for pair, count in zip(pairs.tolist(), votes.tolist(), strict=True):
        instance_id, value = divmod(pair, base)
        if count > best.get(instance_id, (0, 0))[0]:
            best[instance_id] = (count, value)
    if without := sorted(set(np.unique(instances[instances > 0]).tolist()) - set(best)):
        raise DatasetError(f"{where}: {len(without)} instances have no class, first {without[0]}.")
    return {instance_id: value for instance_id, (_, value) in best.items()}
