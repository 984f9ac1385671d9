"""Parameters, operations and speed of a bundle's whole evaluation of an image."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.engines import SupervisedEvaluator
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from experiments.description import COST_IMAGE_PX, COST_NUCLEI
from nucsam_monai.inferers import DetectedPoints, TilePrompter
from nucsam_monai.inferers.tiling import EncodedTiles, Tiling
from nucsam_monai.io import write_json, write_png
from nucsam_monai.utils.machine import processor_name

MILLION, BILLION = 1e6, 1e9
_TIMED_IMAGES = 5
_RADIUS_PX = 12


def write_cost(evaluator: SupervisedEvaluator, network: nn.Module, output_dir: str | Path) -> None:
    """Measure a network in its evaluator and write ``cost.json``.

    Counted are the multiply-accumulate operations of matrix products, convolutions and attention that an image takes,
    from the network's input to its answer at the image's size, by PyTorch's own counter. Timed are more images of
    the same size, reading and metrics left out; the median counts. All images are drawn for this and hold the same
    nuclei. Where each nucleus is prompted the prompts are these nuclei, after a detector has searched the image: what
    it finds with random weights is chance.

    Args:
        evaluator: of a bundle; its first item is taken, with another image.
        network: all of its parameters count. They need no gradient afterwards.
        output_dir: where ``cost.json`` and the images go.
    """
    parameters = list(network.parameters())
    total = sum(parameter.numel() for parameter in parameters)
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    batches = list(_batches(evaluator, Path(output_dir)))
    evaluator.network.eval()
    network.requires_grad_(False)  # the counter's hooks fail on a module that answers a view of its parameter
    counter = FlopCounterMode(display=False)
    # Without gradients operators of oneDNN are used, which the counter passes over.
    with torch.enable_grad(), counter:
        prompts = _infer(evaluator, batches[0])
    with torch.no_grad():
        seconds = statistics.median(_seconds(evaluator, batch) for batch in batches[1:])
    device = torch.device(evaluator.state.device)
    write_json(
        Path(output_dir) / "cost.json",
        {
            "trainable_m": trainable / MILLION,
            "frozen_m": (total - trainable) / MILLION,
            "total_m": total / MILLION,
            "gmacs": counter.get_total_flops() / 2 / BILLION,
            "seconds_per_image": seconds,
            "images_per_second": 1 / seconds,
            "image_px": [COST_IMAGE_PX, COST_IMAGE_PX],
            "prompts": prompts,
            "device": processor_name() if device.type == "cpu" else torch.cuda.get_device_name(device),
            "threads": torch.get_num_threads(),
        },
    )


def _batches(evaluator: SupervisedEvaluator, folder: Path) -> Iterator[Any]:
    """Yield a batch for each image to measure, read and collated as the evaluator's own."""
    loader, rng = evaluator.data_loader, np.random.default_rng(0)
    instances = np.zeros((COST_IMAGE_PX, COST_IMAGE_PX), dtype=np.uint8)
    rows, columns = np.mgrid[:COST_IMAGE_PX, :COST_IMAGE_PX]
    for number, (x, y) in enumerate(_centres(), start=1):
        instances[(rows - y) ** 2 + (columns - x) ** 2 <= _RADIUS_PX**2] = number
    item = {**loader.dataset.data[0], "instances": str(folder / "instances.png")}
    Image.fromarray(instances).save(folder / "instances.png")
    if "classes" in item:
        item["classes"] = str(folder / "classes.json")
        write_json(folder / "classes.json", dict.fromkeys(map(str, range(1, COST_NUCLEI + 1)), 0))
    for number in range(1 + _TIMED_IMAGES):
        # Pixels differ, so that nothing is found in a cache.
        grey = np.where(instances, 90, 210) + rng.integers(-20, 21, instances.shape)
        item["image"] = str(folder / f"image_{number}.png")
        write_png(Path(item["image"]), np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2))
        yield loader.collate_fn([loader.dataset.transform(item)])


def _centres() -> list[tuple[int, int]]:
    """Return the centres (x, y) of the nuclei, on a square grid."""
    side = round(COST_NUCLEI**0.5)
    places = [round((k + 0.5) * COST_IMAGE_PX / side) for k in range(side)]
    return [(x, y) for y in places for x in places]


@dataclass(frozen=True)
class _KnownNuclei:
    """Let a detector search, and return the drawn nuclei whatever it found."""

    finder: Callable[[Tensor], DetectedPoints] | TilePrompter

    def known(self, found: DetectedPoints) -> DetectedPoints:
        """Return the drawn nuclei, with sizes if those that were found have some."""
        sizes = None if found.sizes is None else np.full((COST_NUCLEI, 2), 2.0 * _RADIUS_PX)
        return DetectedPoints(np.array(_centres()), np.ones(COST_NUCLEI), np.zeros(COST_NUCLEI), sizes)


class _InImage(_KnownNuclei):
    def __call__(self, image: Tensor) -> DetectedPoints:
        return self.known(self.finder(image))  # type: ignore[operator]


class _InTiles(_KnownNuclei):
    def find_in_tiles(self, encoded: Sequence[EncodedTiles], tiling: Tiling) -> DetectedPoints:
        return self.known(self.finder.find_in_tiles(encoded, tiling))  # type: ignore[union-attr]


def _infer(evaluator: SupervisedEvaluator, batch: Mapping[str, Any]) -> int:
    """Run the evaluator's inference on one batch, without metrics and handlers; return the number of prompts."""
    prepared = evaluator.prepare_batch(batch, evaluator.state.device, evaluator.non_blocking)
    inputs, _, arguments, options = prepared if len(prepared) == 4 else (*prepared, (), {})
    if arguments and not isinstance(arguments[0], DetectedPoints):
        kind = _InTiles if isinstance(arguments[0], TilePrompter) else _InImage
        arguments = (kind(arguments[0]), *arguments[1:])
    evaluator.inferer(inputs, evaluator.network, *arguments, **options)
    if arguments or "prompts" in options:
        return COST_NUCLEI
    return int((options["points"][1] >= 0).sum()) if "points" in options else 0


def _seconds(evaluator: SupervisedEvaluator, batch: Any) -> float:
    start = time.perf_counter()
    _infer(evaluator, batch)
    if torch.device(evaluator.state.device).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
