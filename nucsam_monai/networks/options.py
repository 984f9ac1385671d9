"""Read a network's options from a bundle's JSON; an unknown name, type or choice is refused, never ignored."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from torch import nn

from nucsam_monai.utils.errors import ConfigurationError

Options = TypeVar("Options")

# A bool is an int to isinstance, and the text "false" is true; so types are compared exactly.
_EXACT: dict[Any, tuple[type, ...]] = {
    bool: (bool,),
    int: (int,),
    float: (int, float),
    NoneType: (NoneType,),
}


def read_options(kind: type[Options], values: Mapping[str, Any] | None, name: str) -> Options:
    """Build an options dataclass from the values of a configuration.

    Args:
        kind: a dataclass; booleans, numbers, literals, None and unions of them are checked, types of any
            other kind are left to the dataclass.
        values: values of the fields; other fields keep their defaults.
        name: the configuration's key, for messages.

    Raises:
        ConfigurationError: an unknown name, or a value of another type or choice.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Head:
        ...     channels: int = 64
        >>> read_options(Head, {"channels": 32}, "head")
        Head(channels=32)
    """
    values = dict(values or {})
    permitted = get_type_hints(kind)
    unknown = sorted(set(values) - set(permitted))
    if unknown:
        raise ConfigurationError(f"{name}: unknown option {unknown}; permitted are {sorted(permitted)}.")
    for key, value in values.items():
        if not _fits(value, permitted[key]):
            raise ConfigurationError(f"{name}.{key} {value!r}: expected {_describe(permitted[key])}.")
    return kind(**values)


def parameter_groups(network: nn.Module, lr: float, factors: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return the trained parameters of a network in groups with separate learning rates for an optimizer.

    Args:
        network: the network.
        lr: learning rate of all other parts.
        factors: fraction of ``lr`` by the start of the parameter names, for example ``{"image_encoder.trunk": 0.5}``;
            ``*`` matches anything.

    Raises:
        ConfigurationError: no trained parameter has such a name.
    """
    groups: dict[str, list[nn.Parameter]] = {part: [] for part in (*factors, "")}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            groups[next((part for part in factors if fnmatchcase(name, f"{part}*")), "")].append(parameter)
    if empty := [part for part in factors if not groups[part]]:
        raise ConfigurationError(f"lr_factors: no trained parameter is called '{empty[0]}...'.")
    return [{"params": members, "lr": lr * factors.get(part, 1.0)} for part, members in groups.items()]


def _fits(value: Any, expected: Any) -> bool:
    if get_origin(expected) in (Union, UnionType):
        return any(_fits(value, one) for one in get_args(expected))
    if get_origin(expected) is Literal:
        return any(type(value) is type(one) and value == one for one in get_args(expected))
    return expected not in _EXACT or type(value) in _EXACT[expected]


def _describe(expected: Any) -> str:
    if get_origin(expected) in (Union, UnionType):
        return " or ".join(_describe(one) for one in get_args(expected))
    if get_origin(expected) is Literal:
        return f"one of {list(get_args(expected))}"
    return "null" if expected is NoneType else expected.__name__
