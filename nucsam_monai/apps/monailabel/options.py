"""Define the options that a client shows and a request may set: each is a number in a range, a switch or a choice.

A value of a request becomes a value of the bundle's configuration, where MONAI evaluates texts that begin with
``$``. Therefore texts are taken from a list of choices only.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from nucsam_monai.apps.monailabel.refusals import RequestRefusedError
from nucsam_monai.inferers.masks import SuppressionRule
from nucsam_monai.segmenter import Segmenter
from nucsam_monai.utils.instances import InstanceRule

OptionValue = bool | int | float | str


@dataclass(frozen=True)
class Number:
    """Offer a number from ``low`` to ``high``, whole if ``whole`` is set."""

    name: str
    default: float
    low: float
    high: float
    whole: bool = False

    @property
    def shown(self) -> float:
        """Return what the client shows at first."""
        return self.default

    def read(self, value: Any) -> OptionValue:
        """Return the checked value of a request.

        Raises:
            RequestRefusedError: it is not such a number.
        """
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not self.low <= number <= self.high or (self.whole and number != int(number)):
            kind = "a whole number" if self.whole else "a number"
            raise RequestRefusedError(
                f"{self.name} {_shortened(value)}: expected {kind} in {self.low}..{self.high}."
            )
        return int(number) if self.whole else number


@dataclass(frozen=True)
class Switch:
    """Offer yes or no."""

    name: str
    default: bool

    @property
    def shown(self) -> bool:
        """Return what the client shows at first."""
        return self.default

    def read(self, value: Any) -> OptionValue:
        """Return the checked value of a request.

        Raises:
            RequestRefusedError: it is neither true nor false.
        """
        known = {"true": True, "false": False}
        chosen = value if isinstance(value, bool) else known.get(str(value).lower())
        if chosen is None:
            raise RequestRefusedError(f"{self.name} {_shortened(value)}: expected true or false.")
        return chosen


@dataclass(frozen=True)
class Choice:
    """Offer one of several texts, the first by default."""

    name: str
    choices: tuple[str, ...]

    @property
    def default(self) -> str:
        """Return the choice of a request that makes none."""
        return self.choices[0]

    @property
    def shown(self) -> list[str]:
        """Return what the client shows: the list to choose from."""
        return list(self.choices)

    def read(self, value: Any) -> OptionValue:
        """Return the checked value of a request; clients send the whole list back if nothing was chosen.

        Raises:
            RequestRefusedError: it is none of the choices.
        """
        chosen = value[0] if isinstance(value, list) and value else value
        if not isinstance(chosen, str) or chosen not in self.choices:
            raise RequestRefusedError(
                f"{self.name} {_shortened(chosen)}: expected one of {', '.join(self.choices)}."
            )
        return chosen


Option = Number | Switch | Choice

_NUMBERS: Mapping[str, tuple[float, float, bool]] = {
    "threshold": (0.0, 1.0, False),
    "overlap": (0.0, 0.9, False),
    "overlap_px": (0, 4096, True),
    "nms_threshold": (0.0, 1.0, False),
    "neg_test": (0, 16, True),
    "point_radius_px": (0.5, 200.0, False),
}
"""Range of each number, and whether it is whole: only numbers whose harmless range is known are offered."""

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "instances": tuple(
        rule for rule in get_args(InstanceRule) if rule != "distance"
    ),  # needs its own weights
    "nms": get_args(SuppressionRule),
}


def options_of(segmenter: Segmenter) -> tuple[Option, ...]:
    """Return the options of a bundle with its weights: what its ``inference.json`` sets for single images."""
    names = [
        name
        for name, value in segmenter.config.items()
        if (isinstance(value, bool) or name in _NUMBERS or name in _CHOICES)
        and name not in segmenter.network_keys
    ]
    return options_of_values({name: segmenter.value(name) for name in names})


def options_of_values(values: Mapping[str, Any]) -> tuple[Option, ...]:
    """Return those values of a configuration as options that clients may set.

    Args:
        values: keys of the configuration with their values.

    Example:
        >>> [option.name for option in options_of_values({"threshold": 0.5, "seed": 1, "tta": False})]
        ['threshold', 'tta']
    """
    options: list[Option] = []
    for name, value in values.items():
        if name in _NUMBERS and _is_number(value):
            options.append(Number(name, value, *_NUMBERS[name]))
        elif isinstance(value, bool):
            options.append(Switch(name, value))
        elif name in _CHOICES and value in _CHOICES[name]:
            options.append(Choice(name, tuple(dict.fromkeys((value, *_CHOICES[name])))))
    return tuple(options)


def read_options(options: Sequence[Option], request: Mapping[str, Any]) -> dict[str, OptionValue]:
    """Return the value of every option: the request's, else the default.

    Raises:
        RequestRefusedError: a value is not allowed.
    """
    return {
        option.name: option.read(request[option.name]) if option.name in request else option.default
        for option in options
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."
