"""Compile the most expensive modules of a network, and refuse networks that cannot be exported as a graph."""

from collections.abc import Iterable

import torch
from torch import nn

from nucsam_monai.utils.errors import ConfigurationError

# One encoder block's code serves windows and whole grids, frozen and trained tokens, with and without gradients,
# and batches of one, of the first size seen and of any other size: 15 graphs for a partly frozen encoder. Beyond
# PyTorch's limit of 8 it stops compiling with no more than a warning.
_GRAPHS_PER_CODE = 24


def compile_modules(modules: Iterable[nn.Module], device: torch.device) -> None:
    """Compile each module in place, when it first runs; names of parameters and state-dict keys stay.

    Give the blocks of a transformer rather than the whole network: equal blocks share one graph, so the first step
    waits for two graphs instead of one of all blocks, and what differs between calls outside the blocks (the
    domain, for one) compiles nothing again. The first batch size gets a graph of its own, the second one a graph
    for all sizes, so that the last, smaller batch of an evaluation does not compile again each time.

    Args:
        modules: modules to compile, for example ``encoder.blocks``.
        device: device of the modules.

    Raises:
        ConfigurationError: kernels cannot be built here, for example because there is no C++ compiler.

    Example:
        >>> from nucsam_monai.networks.sam import build_sam
        >>> sam = build_sam("vit_tiny", 256)
        >>> compile_modules(sam.image_encoder.blocks, torch.device("cpu"))  # doctest: +SKIP
    """
    _require_working_compiler(device)
    # The setting is PyTorch's public one in spite of its underscore; torch.compile's own argument came later.
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _GRAPHS_PER_CODE)
    for module in modules:
        module.compile()


WHY_NO_EXPORT = (
    "there are as many masks as nuclei found in an image, which no graph can hold. Run inference.json, or load the "
    "bundle with nucsam_monai.load."
)
"""Why networks that find nuclei and then segment each of them are not exported."""


def refuse_export(reason: str) -> None:
    """Refuse to become a part of a graph that is traced or exported.

    Call it where steps depend on what was found in an image: a traced graph would keep what its example showed, and
    silently give wrong masks for every other image.

    Args:
        reason: what depends on the image, and what to do instead.

    Raises:
        ConfigurationError: a graph is traced or exported.
    """
    if torch.jit.is_tracing() or torch.compiler.is_exporting():  # type: ignore[attr-defined]
        raise ConfigurationError(f"export: {reason}")


def _require_working_compiler(device: torch.device) -> None:
    """Build a kernel now: a missing compiler would else show in the first step, below many frames."""
    try:
        torch.compile(_add_one)(torch.zeros(2, device=device))
    except RuntimeError as error:  # every error of torch.compile is one
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigurationError(
            f"compile: torch.compile cannot build kernels for device '{device}' ({reason.strip()}). "
            "Install a C++ compiler (Debian: apt install g++; macOS: xcode-select --install), or set "
            "compile to false."
        ) from error


def _add_one(values: torch.Tensor) -> torch.Tensor:
    return values + 1
