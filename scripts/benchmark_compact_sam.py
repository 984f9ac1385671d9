"""Compare sizes of the compact SAM: what does each learn in the same CPU time?

Every candidate trains UN-SAM with the recipe of bundles/unsam on one domain until its CPU time is used up,
the learning rate falling over that time, and is then evaluated on the validation images.

Example:
    python scripts/benchmark_compact_sam.py --dataset_dir data --domain dsb2018 --output compact_sam.json
"""

import dataclasses
import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import fire
import torch
from monai.bundle import ConfigWorkflow

from nucsam_monai.io import write_json
from nucsam_monai.networks.sam import SAM_VARIANTS
from nucsam_monai.utils.machine import processor_name

ROOT = Path(__file__).resolve().parents[1]
CANDIDATES: dict[str, dict[str, Any]] = {
    "vit_tiny": {},
    "tokens of 16 px, width 192, depth 8": {
        "patch": 16,
        "pos_grid": 16,
        "width": 192,
        "heads": 6,
        "depth": 8,
        "global_blocks": (1, 3, 5, 7),
    },
    "no global block": {"global_blocks": ()},
    "width 192": {"width": 192, "heads": 6},
    "64 channels in neck and decoder": {"embed_channels": 64, "decoder_mlp_width": 256},
}


def main(
    dataset_dir: str, domain: str, cpu_seconds: float = 200.0, seed: int = 0, output: str | None = None
) -> None:
    """Train and evaluate all candidates and print one line for each.

    Args:
        dataset_dir: folder of the dataset.
        domain: the domain to train on.
        cpu_seconds: CPU time of one training, on one thread.
        seed: seed of weights, batches and augmentation.
        output: JSON file for the results.
    """
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    results = []
    for name, changes in CANDIDATES.items():
        SAM_VARIANTS["candidate"] = dataclasses.replace(SAM_VARIANTS["vit_tiny"], name="candidate", **changes)
        row = {"candidate": name, **train_and_evaluate(dataset_dir, domain, cpu_seconds, seed)}
        print(json.dumps(row), flush=True)
        results.append(row)
    if output is not None:
        machine = {"processor": processor_name(), "torch": torch.__version__}
        write_json(output, {"cpu_seconds": cpu_seconds, "seed": seed, **machine, "results": results})


def train_and_evaluate(dataset_dir: str, domain: str, cpu_seconds: float, seed: int) -> dict[str, float]:
    """Train the registered candidate for ``cpu_seconds`` and return its metrics."""
    workflow = ConfigWorkflow(
        config_file=str(ROOT / "bundles/unsam/configs/train.json"),
        workflow_type="train",
        logging_file=False,
        dataset_dir=dataset_dir,
        domains=[domain],
        sam_variant="candidate",
        tracking_uri="off",
        seed=seed,
        samples_per_epoch=None,
        output_dir="unused",
        **{"validate#handlers": ["@validate#instance_metrics"]},
    )
    workflow.initialize()
    network, loss = workflow.parser.get_parsed_content("network"), workflow.parser.get_parsed_content("loss")
    optimizer = workflow.parser.get_parsed_content("optimizer")
    loader, sampler = (
        workflow.parser.get_parsed_content(f"train#{key}") for key in ("dataloader", "sampler")
    )
    full_rate, images, epoch = optimizer.param_groups[0]["lr"], 0, 0
    start = time.process_time()
    network.train()
    while (spent := (time.process_time() - start) / cpu_seconds) < 1:
        sampler.set_epoch(epoch)
        for batch in loader:
            spent = (time.process_time() - start) / cpu_seconds
            if spent >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = full_rate * min(1.0, 20 * spent) * 0.5 * (1 + math.cos(math.pi * spent))
            optimizer.zero_grad()
            loss(network(batch["image"], domain), batch["label"]).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            images += len(batch["image"])
        epoch += 1
    evaluator = workflow.parser.get_parsed_content("validate#evaluator")
    evaluator.run()
    metrics = {key: round(evaluator.state.metrics[f"val_{key}"], 4) for key in ("dice", "aji", "pq")}
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return {"parameters": parameters, "training_images": images, **metrics}


if __name__ == "__main__":
    fire.Fire(main)
