"""Files that hold only what was trained, tied to the frozen weights they were trained on.

Saving the adapters alone loses the decoder, and loading them over another base gives plausible nonsense; so
one file holds every trained tensor, and its header names the base by digest.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

import nucsam_monai
from nucsam_monai.networks.sam.tensor_files import (
    digest_of_tensors,
    open_safetensors,
    read_safetensors,
    require_same_tensors,
)
from nucsam_monai.utils.errors import CheckpointError, ConfigurationError
from nucsam_monai.utils.files import atomic_path

logger = logging.getLogger(__name__)

FORMAT = "nucsam_monai.trained.1"
_REQUIRED = ("method", "sam_variant")
_WRITTEN_HERE = ("format", "frozen_sha256", "nucsam_monai_version", "torch_version")


def save_trained(path: Path | str, network: nn.Module, header: Mapping[str, str]) -> None:
    """Write what was trained in ``network`` to one safetensors file, completely or not at all.

    Saved are the parameters that require a gradient and the persistent buffers that belong to them, such as
    the statistics of batch normalisation.

    Args:
        path: the file; by convention it ends with ``.safetensors``.
        network: any module.
        header: ``method`` and ``sam_variant``, and whatever else describes the training, for example
            ``config_sha256`` or ``domains``. The format, the versions and the digest of the frozen weights
            are added.

    Raises:
        ConfigurationError: the header lacks a required entry, has one that is written here, or holds anything
            but strings.
    """
    _check_header(header)
    trained, _ = _split(network)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in trained.items()}
    metadata = {
        **header,
        "format": FORMAT,
        "frozen_sha256": frozen_digest(network),
        "nucsam_monai_version": nucsam_monai.__version__,
        "torch_version": str(torch.__version__),
    }
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata=metadata)
    logger.info("%s: saved %d trained tensors.", path, len(tensors))


def load_trained(path: Path | str, network: nn.Module, expected: Mapping[str, str]) -> dict[str, str]:
    """Load a file of :func:`save_trained` into a network built and frozen like the one that was saved.

    Everything is checked before the first tensor is changed.

    Args:
        path: the file.
        network: the method's network with the frozen base weights already loaded.
        expected: header entries that must agree: ``method``, ``sam_variant``, and more if wanted.

    Returns:
        The file's header.

    Raises:
        ConfigurationError: ``expected`` lacks a required entry.
        CheckpointError: the file is missing or damaged, an expected entry differs, the frozen weights are not
            those of the training, or a tensor is missing, unexpected or of another shape.
    """
    _check_header(expected)
    header = read_header(path)
    for name, value in expected.items():
        if header.get(name) != value:
            raise CheckpointError(
                f"{path}: its {name} is '{header.get(name, 'not named')}', but this network's is '{value}'. "
                "Build the network that the file was trained for, or give another file."
            )
    trained, _ = _split(network)
    found = read_safetensors(path)
    require_same_tensors(
        {name: tensor.shape for name, tensor in trained.items()},
        {name: tensor.shape for name, tensor in found.items()},
        str(path),
        hint="Its options or its trainable part differ from those of the training.",
    )
    digest = frozen_digest(network)
    if header.get("frozen_sha256") != digest:
        raise CheckpointError(
            f"{path}: trained on other frozen weights (sha256 {header.get('frozen_sha256', 'none')[:12]}...) "
            f"than this network has ({digest[:12]}...). Load the SAM checkpoint of the training first."
        )
    with torch.no_grad():
        for name, tensor in trained.items():
            tensor.copy_(found[name])
    logger.info("%s: loaded %d trained tensors.", path, len(found))
    return header


def read_header(path: Path | str) -> dict[str, str]:
    """Read the header of a file of :func:`save_trained` without its tensors.

    Raises:
        CheckpointError: the file is missing, damaged or of another kind.
    """
    with open_safetensors(path) as file:
        header = file.metadata() or {}
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: its format is '{header.get('format', 'not named')}', expected '{FORMAT}'. "
            "Only files that this package saved after training can be loaded here."
        )
    return header


def write_half(source: Path | str, path: Path | str, settings: Mapping[str, Any]) -> None:
    """Write weights in half precision, as they ship: half the size, and equal masks but for rounding.

    Args:
        source: a file of :func:`save_trained`.
        path: the file to write.
        settings: what inference is told beside the settings in ``source``; see :func:`with_settings`.

    Raises:
        CheckpointError: the source is missing or damaged, or a value is beyond half precision.
    """
    header = read_header(source)
    known = json.loads(header.get("settings", "{}"))
    tensors = {}
    for name, tensor in read_safetensors(source).items():
        tensors[name] = tensor.half() if tensor.is_floating_point() else tensor
        if not tensors[name].isfinite().all():
            raise CheckpointError(
                f"{source}: '{name}' holds values beyond half precision or NaN. Train again."
            )
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata=with_settings(header, {**known, **settings}))


def with_settings(header: Mapping[str, str], settings: Mapping[str, Any]) -> dict[str, str]:
    """Return a header that also says how inference has to treat images and outputs.

    Args:
        header: of the network.
        settings: values of keys of ``inference.json`` that the weights were trained for, for example
            ``{"pixel_std": "image", "instances": "distance"}``.
    """
    return {**header, "settings": json.dumps(dict(settings), sort_keys=True)}


def trained_setting(checkpoint: Path | str | None, name: str, default: Any) -> Any:
    """Return what a weights file says of a key of ``inference.json``.

    Args:
        checkpoint: the file; where there is none, as for tools that only look at a bundle, the default is returned.
        name: the key.
        default: for files that do not say.

    Raises:
        CheckpointError: the file is damaged or of another kind.
    """
    if checkpoint is None or not Path(checkpoint).is_file():
        return default
    return json.loads(read_header(checkpoint).get("settings", "{}")).get(name, default)


def frozen_digest(network: nn.Module) -> str:
    """Return the SHA-256 over the names, types, shapes and bytes of every tensor that is not trained.

    Example:
        >>> frozen_digest(nn.Linear(2, 2)) == digest_of_tensors({})  # nothing is frozen
        True
    """
    _, frozen = _split(network)
    return digest_of_tensors(frozen)


def _split(network: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split the state dict into what is trained and what is frozen."""
    trained: dict[str, Tensor] = {}
    frozen: dict[str, Tensor] = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        own = isinstance(tensor, nn.Parameter)
        is_trained = tensor.requires_grad if own else _owner_is_trained(network, name)
        (trained if is_trained else frozen)[name] = tensor
    return trained, frozen


def _owner_is_trained(network: nn.Module, buffer: str) -> bool:
    """Whether the nearest module around a buffer that has parameters has trained ones."""
    owner = buffer
    while owner:
        owner = owner.rpartition(".")[0]
        parameters = list(network.get_submodule(owner).parameters())
        if parameters:
            return any(parameter.requires_grad for parameter in parameters)
    return False


def _check_header(header: Mapping[str, str]) -> None:
    missing = [name for name in _REQUIRED if name not in header]
    reserved = [name for name in _WRITTEN_HERE if name in header]
    if missing or reserved:
        raise ConfigurationError(
            f"header: found {', '.join(header) or 'nothing'}; {', '.join(_REQUIRED)} are required and "
            f"{', '.join(_WRITTEN_HERE)} are written by the package."
        )
    wrong = [name for name, value in header.items() if not isinstance(value, str)]
    if wrong:
        raise ConfigurationError(
            f"header: '{wrong[0]}' is a {type(header[wrong[0]]).__name__}, expected a string."
        )
