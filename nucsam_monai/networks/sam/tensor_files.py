"""What every kind of weights file needs: opening it safely and comparing it with a network."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import safetensors
import torch

from nucsam_monai.utils.errors import CheckpointError


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
        raise CheckpointError(f"{path}: damaged safetensors file ({error}). Get it again.") from error


def read_safetensors(path: Path | str) -> dict[str, torch.Tensor]:
    """Read all tensors of a safetensors file.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    with open_safetensors(path) as file:
        names = file.keys()
        return {name: file.get_tensor(name) for name in names}


def read_tensors(path: Path | str) -> dict[str, torch.Tensor]:
    """Read a state dict from a safetensors file or from one written by ``torch.save``, without unpickling.

    Args:
        path: ``.safetensors``, or any other suffix for a file written by ``torch.save``.

    Raises:
        CheckpointError: the file is missing, damaged, or holds anything but tensors.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    require_file(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file makes the restricted unpickler raise any type
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"{path}: damaged, or holds more than tensors, which is refused because unpickling it could run "
            f"code ({type(error).__name__}: {reason}). Use the official file or a .safetensors one."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise CheckpointError(f"{path}: expected a state dict of tensors only, as the official files are.")
    return state


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
    """Make sure that a weights file is there.

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
        expected: what the network has.
        found: what the file has.
        source: the file, for the message.
        hint: what the reader may do about a difference.

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
