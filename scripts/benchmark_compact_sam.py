"""Compare designs of the compact SAM: what does each learn in the same CPU time?

Every candidate is trained by the ``compact.json`` of its bundle, on one thread, for as many crops as fit into the CPU
time, with the whole course of the learning rate, and measured on the validation images. Finished trainings are kept as
one file each and not repeated, so that several processes share the work: each takes some of the candidates.

Example:
    python scripts/benchmark_compact_sam.py --dataset_dir data --output_dir output/compact_sam
    python scripts/benchmark_compact_sam.py --dataset_dir data --output_dir output/compact_sam --seed 1 \
        --candidates "['hybrid', 'U-shaped']"
"""

import dataclasses
import json
import logging
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from nucsam_monai.apps.command_line import run_command
from nucsam_monai.io import write_json
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.machine import processor_name
from nucsam_monai.utils.paths import bundle_root

if TYPE_CHECKING:
    from monai.bundle import ConfigWorkflow

_EPOCH_CROPS = 256


@dataclass(frozen=True)
class Candidate:
    """One design.

    Attributes:
        description: what it changes.
        bundle: whose recipe trains it.
        keys: of the configuration.
        variant: fields of the SAM variant ``hybrid``.
    """

    description: str
    bundle: str = "unsam"
    keys: Mapping[str, Any] = field(default_factory=dict)
    variant: Mapping[str, Any] = field(default_factory=dict)


CANDIDATES = {
    "hybrid": Candidate("UN-SAM with the variant `hybrid` as it ships"),
    "U-shaped": Candidate("no SAM: the same trunk with a light U-shaped decoder", bundle="baselines"),
    "domains": Candidate(
        "a domain for every dataset, drawn in turn",
        keys={
            "network_domains": "@domains",
            "schedule": "interleaved",
            "train#trainer#prepare_batch#_target_": "nucsam_monai.engines.PrepareDomainBatch",
        },
    ),
    "no bypass": Candidate("without the bypass (E)", keys={"network_def#encoder#bypass": False}),
    "no SPGen": Candidate("without the self-prompt generator (S)", keys={"network_def#spgen#enabled": False}),
    "no global": Candidate("no global attention", variant={"global_blocks": ()}),
    "8 blocks": Candidate(
        "8 blocks, every second one global", variant={"depth": 8, "global_blocks": (1, 3, 5, 7)}
    ),
    "fine 16": Candidate("16 in place of 32 fine channels", variant={"fine_channels": 16}),
    "random trunk": Candidate("no ImageNet weights", keys={"trunk_weights": None}),
}


def main(
    dataset_dir: str,
    output_dir: str,
    cpu_seconds: float = 900.0,
    seed: int = 0,
    candidates: Sequence[str] = tuple(CANDIDATES),
) -> None:
    """Train and measure candidates, and print the table of all that are finished.

    Args:
        dataset_dir: a dataset folder, or a folder of several.
        output_dir: of the results, one JSON file for a training.
        cpu_seconds: CPU time of one training.
        seed: of weights, batches and augmentation.
        candidates: names in ``CANDIDATES``.
    """
    import torch

    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    if unknown := set(candidates) - set(CANDIDATES):
        raise ConfigurationError(f"candidates {sorted(unknown)}: expected some of {', '.join(CANDIDATES)}.")
    for name in candidates:
        path = Path(output_dir, f"{re.sub(r'[^a-z0-9]+', '_', name.lower())}_seed{seed}.json")
        if not path.is_file():
            row = train_and_measure(CANDIDATES[name], dataset_dir, cpu_seconds, seed)
            machine = {"processor": processor_name(), "torch": torch.__version__}
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"candidate": name, "seed": seed, "cpu_seconds": cpu_seconds, **row, **machine})
    sys.stdout.write(
        table([json.loads(path.read_text()) for path in sorted(Path(output_dir).glob("*.json"))])
    )


def train_and_measure(
    candidate: Candidate, dataset_dir: str, cpu_seconds: float, seed: int
) -> dict[str, Any]:
    """Train a candidate; return its size, its crops and the metrics of every dataset's validation images."""
    from monai.bundle import ConfigWorkflow

    from nucsam_monai.networks.sam import SAM_VARIANTS

    SAM_VARIANTS["candidate"] = dataclasses.replace(
        SAM_VARIANTS["hybrid"], name="candidate", **candidate.variant
    )
    configs = Path(bundle_root(candidate.bundle)) / "configs"
    keys = {**candidate.keys, **({"sam_variant": "candidate"} if candidate.bundle == "unsam" else {})}

    def train(epochs: int) -> "tuple[ConfigWorkflow, float]":
        """Train for some epochs without validation; return the workflow and its CPU seconds."""
        with TemporaryDirectory() as folder:
            workflow = ConfigWorkflow(
                config_file=[str(configs / "train.json"), str(configs / "compact.json")],
                workflow_type="train",
                logging_file=False,
                dataset_dir=dataset_dir,
                output_dir=folder,
                tracking_uri="off",
                hide_progress=True,
                seed=seed,
                epochs=epochs,
                val_interval=None,
                **{"samples_per_epoch": _EPOCH_CROPS, **keys},
            )
            workflow.initialize()
            trainer = workflow.parser.get_parsed_content("train#trainer")
            start = time.process_time()
            trainer.run()
            return workflow, time.process_time() - start

    epochs = max(1, round(cpu_seconds / train(1)[1]))
    workflow, spent = train(epochs)
    evaluator = workflow.parser.get_parsed_content("validate#evaluator")
    evaluator.run()
    domains = np.array(
        [item["domain"] for item in workflow.parser.get_parsed_content("validate#dataset#data")]
    )
    network, trainer, batch_size = (
        workflow.parser.get_parsed_content(key) for key in ("network_def", "train#trainer", "batch_size")
    )
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "crops": trainer.state.iteration * batch_size,
        "spent_cpu_seconds": round(spent),
        "metrics": {
            str(domain): {
                metric: round(
                    float(np.nanmean(evaluator.state.metric_details[f"val_{metric}"][domains == domain])), 4
                )
                for metric in ("aji", "pq")
            }
            for domain in np.unique(domains)
        },
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table of trainings, the best first."""
    domains = sorted({domain for row in rows for domain in row["metrics"]})
    lines = [
        f"| design | seed | parameters | crops | {' | '.join(f'{domain} AJI / PQ' for domain in domains)} | mean |",
        "|---|---|---|---|" + "---|" * (len(domains) + 1),
    ]
    mean = {id(row): np.mean([list(values.values()) for values in row["metrics"].values()]) for row in rows}
    for row in sorted(rows, key=lambda row: -mean[id(row)]):
        parts = [
            f"{row['metrics'][domain]['aji']:.3f} / {row['metrics'][domain]['pq']:.3f}" for domain in domains
        ]
        lines.append(
            f"| {CANDIDATES[row['candidate']].description} | {row['seed']} | {row['parameters'] / 1e6:.2f} million | "
            f"{row['crops']:,} | {' | '.join(parts)} | {mean[id(row)]:.3f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(run_command(main))
