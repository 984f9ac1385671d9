"""A prompter that was trained for some classes as the start of one for others."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from nucsam_monai.networks.prompter import Prompter
from nucsam_monai.networks.sam.tensor_files import read_safetensors, require_same_tensors
from nucsam_monai.networks.sam.trained_weights import read_header
from nucsam_monai.utils.errors import CheckpointError

logger = logging.getLogger(__name__)

_CLASS_LAYER = "classification.3."


def start_from_other_classes(path: Path | str, prompter: Prompter, header: Mapping[str, str]) -> None:
    """Load a prompter's weights into one that tells other classes apart.

    Everything but the last layer of the classification is taken over as it is. In that layer background stays
    background, classes of the same name stay themselves, and every other class begins as the mean of the trained
    ones, its bias lowered so that together they are as probable as the trained ones were: nuclei are found from the
    first step on, and what is left to learn is to tell them apart.

    Args:
        path: ``prompter.safetensors`` of a training.
        prompter: with the options of that training.
        header: of ``prompter``, with its ``class_names``.

    Raises:
        CheckpointError: the file is missing or damaged, names no classes, or is of a prompter of other options.

    Source: ours; the paper trains each dataset by itself.
    """
    found = read_header(path)
    try:
        trained = [str(name) for name in json.loads(found["class_names"])]
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path}: its header names no classes, expected those of a prompter."
        ) from error
    for name in sorted(set(header) - {"n_classes", "class_names"}):
        if found.get(name) != header[name]:
            raise CheckpointError(
                f"{path}: its {name} is '{found.get(name, 'not named')}', but this prompter's is '{header[name]}'. "
                "Only the classes may differ."
            )
    tensors = read_safetensors(path)
    wanted = json.loads(header["class_names"])
    for part, shift in (("weight", 0.0), ("bias", 1.0)):
        rows = tensors.get(_CLASS_LAYER + part)
        if rows is not None and len(rows) == len(trained) + 1:
            tensors[_CLASS_LAYER + part] = _rows_for(wanted, trained, rows, shift)
    own = prompter.state_dict()
    require_same_tensors(
        {name: tensor.shape for name, tensor in own.items()},
        {name: tensor.shape for name, tensor in tensors.items()},
        str(path),
        hint="Its options differ from those of this prompter.",
    )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
    logger.info("%s: trained for %s, taken as the start for %s.", path, trained, wanted)


def _rows_for(wanted: Sequence[str], trained: Sequence[str], rows: Tensor, shift: float) -> Tensor:
    new = [name for name in wanted if name not in trained]
    replaced = [number for number, name in enumerate(trained) if name not in wanted] or range(len(trained))
    start = rows[list(replaced)].mean(dim=0)
    if new:
        start = start - shift * math.log(len(new) / len(replaced))
    chosen = [rows[trained.index(name)] if name in trained else start for name in wanted]
    return torch.stack([*chosen, rows[-1]])
