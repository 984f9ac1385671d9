"""The class of a nucleus where a dataset has a map of classes that must fit its instances."""

import numpy as np

from nucsam_monai.utils import label_runs
from nucsam_monai.utils.errors import DatasetError


def majority_values(instances: np.ndarray, values: np.ndarray, where: str) -> dict[int, int]:
    """Give every instance its class, see :func:`nucsam_monai.utils.label_runs.majority_values`.

    Args:
        instances: ``(H, W)`` non-negative integers, 0 = background.
        values: ``(H, W)`` non-negative integers, 0 = no class.
        where: name of the class map for messages.

    Returns:
        ``{instance id: value}`` for every instance.

    Raises:
        DatasetError: the maps differ in shape, or an instance has no pixel with a value.
    """
    if values.shape != instances.shape:
        raise DatasetError(f"{where}: class map is {values.shape}, instance map is {instances.shape}.")
    majority = label_runs.majority_values(instances, values)
    if without := sorted(set(np.unique(instances[instances > 0]).tolist()) - set(majority)):
        raise DatasetError(f"{where}: {len(without)} instances have no class, first {without[0]}.")
    return majority
