"""Read and write weights files: whole SAMs, and what a method trained on one."""

import errno
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

import nucsam_monai
from nucsam_monai.networks.sam.variants import SAM_VARIANTS, SAMVariant
from nucsam_monai.utils.errors import CheckpointError, ConfigurationError
from nucsam_monai.utils.files import atomic_path

logger = logging.getLogger(__name__)

_DIGEST = "tensors_sha256"
_DAMAGED = "damaged, its tensors are not what was written."
_REPLACE = "Use another copy; without one delete it, so that it is downloaded or made from the beginning."
_OF_TORCH = (b"PK\x03\x04", b"\x80")
"""First bytes of what ``torch.save`` writes, a zip archive or a pickle."""
_WRAPPERS = ("model", "state_dict", "model_state_dict", "network", "net")


@contextmanager
def open_safetensors(path: Path | str) -> Iterator[safetensors.safe_open]:
    """Open a safetensors file for reading.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    require_file(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            yield file
    except safetensors.SafetensorError as error:
        with Path(path).open("rb") as content:
            is_of_torch = content.read(4).startswith(_OF_TORCH)
        if is_of_torch:
            raise CheckpointError(
                f"{path}: written by torch.save, expected a safetensors file, as trainings here write. Give that one; "
                "official SAM weights are a 'sam_checkpoint', under their own suffix (.pth), and weights that "
                "a paper's authors publish can't be loaded, as the names of their tensors are not documented."
            ) from error
        raise CheckpointError(f"{path}: damaged or cut off ({error}). {_REPLACE}") from error


def read_safetensors(path: Path | str) -> dict[str, torch.Tensor]:
    """Read all tensors of a safetensors file, and compare them with the digest in its header if there is one.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    with open_safetensors(path) as file:
        names, digest = file.keys(), (file.metadata() or {}).get(_DIGEST)
        tensors = {name: file.get_tensor(name) for name in names}
    if digest is not None and digest != digest_of_tensors(tensors):
        raise CheckpointError(f"{path}: {_DAMAGED} {_REPLACE}")
    return tensors


def write_safetensors(
    path: Path | str, tensors: Mapping[str, torch.Tensor], header: Mapping[str, str]
) -> None:
    """Write a safetensors file, completely or not at all; equal tensors and headers give equal bytes.

    The header holds the SHA-256 of the tensors, by which :func:`read_safetensors` detects damage.

    Args:
        path: path of the file.
        tensors: tensors on any device.
        header: metadata of the file.

    Raises:
        OutputError: the file can't be written.
    """
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    metadata = {**header, _DIGEST: digest_of_tensors(own)}
    with atomic_path(path) as temporary:
        try:
            safetensors.torch.save_file(own, temporary, metadata=metadata)
        except safetensors.SafetensorError as error:
            raise OSError(errno.EIO, str(error)) from error
        _sort_header(temporary)


def _sort_header(path: Path) -> None:
    """Sort the metadata of a safetensors file, which the library writes in an order that differs from run to run."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        file.seek(8)
        file.write(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length))


def read_tensors(path: Path | str) -> dict[str, torch.Tensor]:
    """Read a state dict from a safetensors file or from one written by ``torch.save``, without unpickling.

    What trainings wrap around it is removed: a dictionary with the state dict under ``model`` or ``state_dict``,
    for example, and the ``module.`` of parallel training in front of every name.

    Args:
        path: ``.safetensors``, or any other suffix for a file written by ``torch.save``.

    Raises:
        CheckpointError: the file is missing, damaged, or holds anything but tensors.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return _without_prefix(read_safetensors(path))
    require_file(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file makes the restricted unpickler raise any type
        # The reason is not quoted: PyTorch's advises to switch the restriction off.
        raise CheckpointError(
            f"{path}: damaged, or holds more than tensors, which is refused because unpickling it could run code. "
            "Use the official file, or save the state dict alone as .safetensors where this one comes from."
        ) from error
    if isinstance(state, dict):
        state = next((state[key] for key in _WRAPPERS if isinstance(state.get(key), dict)), state)
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise CheckpointError(
            f"{path}: expected a state dict of tensors only, by itself or under {', '.join(_WRAPPERS)}, as the "
            "official files are."
        )
    return _without_prefix(state)


def _without_prefix(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    parallel = all(name.startswith("module.") for name in state)
    return {name.removeprefix("module."): tensor for name, tensor in state.items()} if parallel else state


def digest_of_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 over the names, types, shapes and bytes of tensors, whatever their order.

    Example:
        >>> digest_of_tensors({}) == hashlib.sha256().hexdigest()
        True
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(bytes_of_tensor(tensor))
    return digest.hexdigest()


def bytes_of_tensor(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor on the CPU without copying them."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def require_file(path: Path | str) -> None:
    """Check that a weights file exists.

    Raises:
        CheckpointError: it is not.
    """
    if not Path(path).is_file():
        raise CheckpointError(
            f"{path}: no such file. Correct the path of the weights, or get the file first."
        )


def require_same_tensors(
    expected: dict[str, torch.Size], found: dict[str, torch.Size], source: str, hint: str = ""
) -> None:
    """Compare tensors by name and shape.

    Args:
        expected: value of the network.
        found: value in the file.
        source: the file, for the message.
        hint: what the user can do about a difference.

    Raises:
        CheckpointError: they differ; one sentence counts the differences and names the first of each kind.
    """
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    reshaped = [name for name in expected if name in found and expected[name] != found[name]]
    complaints = []
    if missing:
        complaints.append(f"{len(missing)} missing (first: {missing[0]})")
    if unexpected:
        complaints.append(f"{len(unexpected)} unexpected (first: {unexpected[0]})")
    if reshaped:
        name = reshaped[0]
        complaints.append(
            f"{len(reshaped)} of another shape (first: {name}, found {tuple(found[name])}, "
            f"expected {tuple(expected[name])})"
        )
    if complaints:
        raise CheckpointError(
            f"{source}: tensors do not fit the network: {', '.join(complaints)}. {hint}".strip()
        )


SAM_FORMAT = "nucsam_monai.sam.1"

_Signature = tuple[int, int, int, int, int]


class SAMWeights(NamedTuple):
    """Hold the state dicts of SAM's parts, float32 on the CPU."""

    image_encoder: dict[str, Tensor]
    prompt_encoder: dict[str, Tensor]
    mask_decoder: dict[str, Tensor]


def load_official_checkpoint(path: Path | str, variant: SAMVariant) -> SAMWeights:
    """Read a checkpoint in the official layout and check that it is of ``variant``.

    Args:
        path: ``.safetensors``, for example of :func:`save_sam`, or any other suffix for a file written by
            ``torch.save``.
        variant: variant that the weights should belong to; their own is inferred from the shapes of the tensors.

    Raises:
        CheckpointError: the file is missing, damaged, holds anything but tensors, or is of another variant.
    """
    path = Path(path)
    state = read_tensors(path)
    if path.suffix == ".safetensors":
        _check_sam_header(path, variant)
    found, asked = _signature_of_state(path, state), _signature_of_variant(variant)
    if found != asked:
        known = [known.name for known in SAM_VARIANTS.values() if _signature_of_variant(known) == found]
        described = (
            f"'{known[0]}'" if known else f"unknown to this package (depth {found[0]}, width {found[1]})"
        )
        wanted = f" ({variant.checkpoint_file})" if variant.checkpoint_file else ""
        raise CheckpointError(
            f"{path}: the weights are of SAM variant {described}, but '{variant.name}' was asked for. "
            f"Change the variant or give the weights of '{variant.name}'{wanted}."
        )
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in SAMWeights._fields}
    for key, tensor in state.items():
        part, _, name = key.partition(".")
        if part not in parts:
            raise CheckpointError(
                f"{path}: found tensor '{key}', expected only {', '.join(parts)}. This is not a plain SAM."
            )
        parts[part][name] = tensor.float()
    return SAMWeights(**parts)


def save_sam(
    path: Path | str,
    state: Mapping[str, Tensor],
    variant: SAMVariant,
    image_size: int,
    facts: Mapping[str, str] | None = None,
) -> None:
    """Write a whole SAM to one safetensors file in the layout of the official ones, completely or not at all.

    The file is a ``sam_checkpoint`` like any other. Its header names variant and image size, and the SHA-256
    of the tensors, by which a damaged file is detected when it is loaded.

    Args:
        path: path of the file; its name ends with ``.safetensors``.
        state: ``SAM.state_dict()``.
        variant: variant of this SAM.
        image_size: side in pixels of the images that it was trained on.
        facts: further entries of the header, for example of the training.

    Raises:
        CheckpointError: the tensors are not those of a SAM of this variant.

    Example:
        >>> from nucsam_monai.networks.sam import build_sam
        >>> sam = build_sam("vit_tiny", 256)
        >>> save_sam("sam.safetensors", sam.state_dict(), sam.variant, 256)  # doctest: +SKIP
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: expected a name that ends with .safetensors.")
    if _signature_of_state(path, dict(state)) != _signature_of_variant(variant):
        raise CheckpointError(f"{path}: the tensors to be written are not of SAM variant '{variant.name}'.")
    header = {
        **(facts or {}),
        "format": SAM_FORMAT,
        "sam_variant": variant.name,
        "image_size": str(image_size),
        "nucsam_monai_version": nucsam_monai.__version__,
    }
    write_safetensors(path, state, header)
    logger.info("%s: saved a SAM of variant '%s', %d tensors.", path, variant.name, len(state))


def load_strictly(module: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load a state dict that must fit ``module`` tensor by tensor; a module on the meta device takes it over.

    Args:
        module: module to load into.
        state: every parameter and buffer of the module, by name.
        source: origin of the tensors, for error messages.

    Raises:
        CheckpointError: a tensor is missing, unexpected or of another shape. Nothing is loaded then.
    """
    expected = module.state_dict()
    require_same_tensors(
        {name: tensor.shape for name, tensor in expected.items()},
        {name: tensor.shape for name, tensor in state.items()},
        source,
    )
    module.load_state_dict(state, assign=any(tensor.is_meta for tensor in expected.values()))
    logger.info("%s: loaded %d tensors into %s.", source, len(state), type(module).__name__)


def _check_sam_header(path: Path, variant: SAMVariant) -> None:
    """Check the header of a file of this package; other files have none."""
    with open_safetensors(path) as file:
        header = file.metadata() or {}
    if header.get("format", "").startswith("nucsam_monai.trained"):
        raise CheckpointError(
            f"{path}: holds what was trained of '{header.get('method')}', not a whole SAM. Give the official "
            "weights or the sam.safetensors of a pretraining; as 'checkpoint' the file serves its own method."
        )
    if header.get("format") != SAM_FORMAT:
        return
    if _DIGEST not in header:
        raise CheckpointError(f"{path}: {_DAMAGED} {_REPLACE}")
    if header.get("sam_variant") != variant.name:
        raise CheckpointError(
            f"{path}: the weights are of SAM variant '{header.get('sam_variant')}', but '{variant.name}' was "
            "asked for. Change the variant or give other weights."
        )
    logger.info("%s: a SAM pretrained on images of %s px.", path, header.get("image_size"))


def _signature_of_variant(variant: SAMVariant) -> _Signature:
    return (variant.depth, variant.width, variant.head_width, variant.pos_grid, variant.embed_channels)


def _signature_of_state(path: Path, state: dict[str, Tensor]) -> _Signature:
    """Read the same five numbers from the shapes of the tensors."""
    prefix = "image_encoder."
    blocks = {key.split(".")[2] for key in state if key.startswith(f"{prefix}blocks.")}
    try:
        _, pos_grid, _, width = state[f"{prefix}pos_embed"].shape
        head_width = state[f"{prefix}blocks.0.attn.rel_pos_h"].shape[-1]
        embed_channels = state[f"{prefix}neck.0.weight"].shape[0]
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"{path}: not a SAM checkpoint: the image encoder's position tables or neck are not in it."
        ) from error
    return (len(blocks), width, head_width, pos_grid, embed_channels)


FORMAT = "nucsam_monai.trained.1"
_REQUIRED = ("method", "sam_variant")
_WRITTEN_HERE = ("format", "frozen_sha256", _DIGEST, "nucsam_monai_version", "torch_version")


def save_trained(path: Path | str, network: nn.Module, header: Mapping[str, str]) -> None:
    """Write what was trained in ``network`` to one safetensors file, completely or not at all.

    Saved are the parameters that require a gradient and the persistent buffers that belong to them, such as
    the statistics of batch normalisation.

    Args:
        path: path of the file; by convention it ends with ``.safetensors``.
        network: any module.
        header: ``method`` and ``sam_variant``, and whatever else describes the training, for example
            ``config_sha256`` or ``domains``. The format, the versions and the digests of the tensors and of the
            frozen weights are added.

    Raises:
        ConfigurationError: the header lacks a required entry, has one that is written here, or holds anything
            but strings.
    """
    _check_header(header)
    trained, _ = _split(network)
    metadata = {
        **header,
        "format": FORMAT,
        "frozen_sha256": frozen_digest(network),
        "nucsam_monai_version": nucsam_monai.__version__,
        "torch_version": str(torch.__version__),
    }
    write_safetensors(path, trained, metadata)
    logger.info("%s: saved %d trained tensors.", path, len(trained))


def load_trained(path: Path | str, network: nn.Module, expected: Mapping[str, str]) -> dict[str, str]:
    """Load a file of :func:`save_trained` into a network built and frozen like the one that was saved.

    Everything is checked before the first tensor is changed.

    Args:
        path: path of the file.
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


def read_header(path: Path | str, method: str | None = None) -> dict[str, str]:
    """Read the header of a file of :func:`save_trained` without its tensors.

    Args:
        path: path of the file.
        method: the method that it must be of; None takes any.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind or of another method.
    """
    with open_safetensors(path) as file:
        header = file.metadata() or {}
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: its format is '{header.get('format', 'not named')}', expected '{FORMAT}'. "
            "Only files that this package saved after training can be loaded here; how a paper's authors name the "
            "tensors of theirs is not documented."
        )
    if method is not None and header.get("method") != method:
        raise CheckpointError(
            f"{path}: weights of '{header.get('method')}', expected those of '{method}'. Give another file."
        )
    return header


def write_half(sources: Sequence[Path | str], path: Path | str, settings: Mapping[str, Any]) -> None:
    """Write weights in half precision, as they ship: half the size, and equal masks but for rounding.

    Args:
        sources: files of :func:`save_trained`. Of several, cycles of one training for example, the mean is written.
        path: the file to write.
        settings: values for inference besides those of the first source; see :func:`with_settings`.

    Raises:
        CheckpointError: a source is missing, damaged or of another network, or a value is beyond half precision.
    """
    headers, members = (
        [read_header(source) for source in sources],
        [read_safetensors(source) for source in sources],
    )
    header, known = headers[0], json.loads(headers[0].get("settings", "{}"))
    if len(sources) > 1:
        header = _of_network(header)
        for source, other, member in zip(sources, headers, members, strict=True):
            if _of_network(other) != header or member.keys() != members[0].keys():
                raise CheckpointError(
                    f"{source}: not weights of the network of {sources[0]}. Average cycles of one training."
                )
    tensors = {}
    for name, tensor in members[0].items():
        if tensor.is_floating_point():
            tensor = torch.stack([member[name].float() for member in members]).mean(dim=0).half()
        if not tensor.isfinite().all():
            raise CheckpointError(
                f"{sources[0]}: '{name}' holds values beyond half precision or NaN. Train again."
            )
        tensors[name] = tensor
    write_safetensors(path, tensors, with_settings(header, {**known, **settings}))


def _of_network(header: Mapping[str, str]) -> dict[str, str]:
    """Return the entries of a header that identify the network, without settings and training progress."""
    apart = ("settings", "epoch", _DIGEST)
    return {key: value for key, value in header.items() if key not in apart and not key.startswith("val_")}


def with_settings(header: Mapping[str, str], settings: Mapping[str, Any]) -> dict[str, str]:
    """Add to a header how inference has to treat images and outputs.

    Args:
        header: header of the network.
        settings: values of keys of ``inference.json`` that the weights were trained for, for example
            ``{"pixel_std": "image", "instances": "distance"}``.
    """
    return {**header, "settings": json.dumps(dict(settings), sort_keys=True)}


def trained_setting(checkpoint: Path | str | None, name: str, default: Any) -> Any:
    """Return a weights file's value for a key of ``inference.json``.

    Args:
        checkpoint: the file; without it, as for tools that only inspect a bundle, the default is returned.
        name: the key.
        default: for files without it.

    Raises:
        CheckpointError: the file is damaged or of another kind.
    """
    if checkpoint is None or not Path(checkpoint).is_file():
        return default
    return json.loads(read_header(checkpoint).get("settings", "{}")).get(name, default)


def trained_names(
    checkpoint: Path | str | None,
    entry: Literal["class_names", "domains"],
    default: Sequence[str] | None = None,
    *,
    method: str | None = None,
) -> list[str]:
    """Return the classes or domains that a weights file names in its header.

    Args:
        checkpoint: path of the file.
        entry: entry of the header.
        default: returned if there is no such file, as for tools that only inspect a bundle; None requires the file.
        method: name of the method, see :func:`read_header`.

    Raises:
        CheckpointError: the file is missing and there is no default, it is damaged or of another kind, or names
            none.
    """
    if default is not None and (checkpoint is None or not Path(checkpoint).is_file()):
        return list(default)
    try:
        return [str(name) for name in json.loads(read_header(str(checkpoint), method)[entry])]
    except (KeyError, ValueError) as error:
        what = "classes" if entry == "class_names" else "domains"
        raise CheckpointError(
            f"{checkpoint}: its header names no {what}, expected those of its training. Give another file."
        ) from error


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
