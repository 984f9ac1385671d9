"""Parameters, operations and speed of a bundle's whole evaluation of an image."""

import statistics
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from monai.engines import SupervisedEvaluator
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nucsam_monai.io import write_json
from nucsam_monai.utils.machine import processor_name

MILLION, BILLION = 1e6, 1e9
_TIMED_IMAGES = 5


def write_cost(evaluator: SupervisedEvaluator, network: nn.Module, output_dir: str | Path) -> None:
    """Measure a network in its evaluator and write ``cost.json``.

    Counted are the multiply-accumulate operations of matrix products, convolutions and attention that the first
    image takes, from the network's input to its answer at the image's size, by PyTorch's own counter. Timed are the
    images behind it, reading and metrics left out; the median counts.

    Args:
        evaluator: of a bundle; its first images are measured.
        network: all of its parameters count. They need no gradient afterwards.
        output_dir: where ``cost.json`` goes.
    """
    parameters = list(network.parameters())
    total = sum(parameter.numel() for parameter in parameters)
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    batches = list(islice(iter(evaluator.data_loader), 1 + _TIMED_IMAGES))
    evaluator.network.eval()
    network.requires_grad_(False)  # the counter's hooks fail on a module that answers a view of its parameter
    with torch.no_grad():
        counter = FlopCounterMode(display=False)
        with counter:
            _infer(evaluator, batches[0])
        seconds = statistics.median(_seconds(evaluator, batch) for batch in batches[1:] or batches)
    height, width = batches[0]["image"].shape[-2:]
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
            "counted_image_px": [height, width],
            "device": processor_name() if device.type == "cpu" else torch.cuda.get_device_name(device),
            "threads": torch.get_num_threads(),
        },
    )


def _infer(evaluator: SupervisedEvaluator, batch: Any) -> None:
    """Run the evaluator's inference on one batch, without metrics and handlers."""
    prepared = evaluator.prepare_batch(batch, evaluator.state.device, evaluator.non_blocking)
    inputs, _, arguments, options = prepared if len(prepared) == 4 else (*prepared, (), {})
    evaluator.inferer(inputs, evaluator.network, *arguments, **options)


def _seconds(evaluator: SupervisedEvaluator, batch: Any) -> float:
    start = time.perf_counter()
    _infer(evaluator, batch)
    if torch.device(evaluator.state.device).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
