"""Keeping what is computed from a frozen parameter until the parameter changes."""

from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch
from torch import Tensor, nn


class _Entry(NamedTuple):
    source: Tensor  # shares the parameter's memory: while it lives, no other tensor can have its address
    version: int
    arguments: tuple[Hashable, ...]
    result: Tensor


class FrozenCache:
    """The last result of a function of one frozen parameter.

    It is computed anew when the parameter was replaced, moved, cast or written in place (``load_state_dict``
    and optimizers do), and when the other arguments differ. Only writing through ``parameter.data`` leaves no
    trace in PyTorch and is not noticed. Trainable parameters are never cached, nor is anything while a graph
    is recorded, where a kept tensor would become a constant. Copies and pickles start empty.

    Example:
        >>> squared = FrozenCache(torch.square)
        >>> weight = nn.Parameter(torch.full((1,), 3.0), requires_grad=False)
        >>> squared(weight) is squared(weight)
        True
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._function = function
        self._entry: _Entry | None = None

    def __call__(self, parameter: Tensor, *arguments: Hashable) -> Tensor:
        """Return ``function(parameter, *arguments)``; the caller must not write into it."""
        if _is_recording() or not _is_frozen(parameter):
            return self._function(parameter, *arguments)
        entry = self._entry  # read once: another thread may replace it meanwhile
        if entry is None or entry.arguments != arguments or not _is_unchanged(parameter, entry):
            # A tensor made in inference mode could not be used for training later.
            with torch.inference_mode(False), torch.no_grad():
                result = self._function(parameter, *arguments)
                entry = _Entry(parameter.detach(), parameter._version, arguments, result)
            self._entry = entry
        return entry.result

    def __reduce__(self) -> tuple[type["FrozenCache"], tuple[Callable[..., Tensor]]]:
        return FrozenCache, (self._function,)


def _is_recording() -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]


def _is_frozen(parameter: Tensor) -> bool:
    # Tensor subclasses and function transforms put other types in a parameter's place; they have no memory.
    return type(parameter) is nn.Parameter and not parameter.requires_grad and not parameter.is_inference()


def _is_unchanged(parameter: Tensor, entry: _Entry) -> bool:
    return (
        parameter._version == entry.version
        and parameter.data_ptr() == entry.source.data_ptr()
        and parameter.dtype == entry.source.dtype
        and parameter.device == entry.source.device
    )
