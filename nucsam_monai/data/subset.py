"""A part of a split, for validations that shall not cost more than the training."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeVar

from nucsam_monai.utils.errors import ConfigurationError

Item = TypeVar("Item", bound=Mapping[str, object])


def first_of_each_domain(items: Sequence[Item], count: int | None) -> list[Item]:
    """Return the first items of each domain, in their order.

    Args:
        items: each with ``domain``.
        count: items of each domain; None takes all.

    Raises:
        ConfigurationError: the count is below 1.

    Example:
        >>> items = [{"domain": "a", "id": "1"}, {"domain": "a", "id": "2"}, {"domain": "b", "id": "3"}]
        >>> [item["id"] for item in first_of_each_domain(items, 1)]
        ['1', '3']
    """
    if count is None:
        return list(items)
    if count < 1:
        raise ConfigurationError(f"{count} images of each domain: expected 1 or more, or null for all.")
    taken: Counter[object] = Counter()
    chosen = []
    for item in items:
        taken[item["domain"]] += 1
        if taken[item["domain"]] <= count:
            chosen.append(item)
    return chosen
