"""Measure other systems next to ours: the same picture, machine and threads, each in a process of its own.

Systems that are not installed are rows that say how to install them. Environments that cannot be one, such as those of
TensorFlow and PyTorch, are named by their Python.

Example:
    python scripts/benchmark_peers.py --output peers.json --markdown peers.md \
        --pythons "{'stardist': 'envs/tensorflow/bin/python', 'cellpose3': 'envs/cellpose3/bin/python'}"
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarking import markdown_table, origin
from peers_benchmark.adapters import PEERS

from nucsam_monai.apps.command_line import run_command
from nucsam_monai.io import write_json
from nucsam_monai.utils.errors import ConfigurationError

PROCESS = Path(__file__).with_name("peers_benchmark") / "process.py"
STAGES = ("read", "network", "instances")


def main(
    output: str,
    peers: str | Sequence[str] = tuple(PEERS),
    pythons: Mapping[str, str] | None = None,
    weights: Mapping[str, str] | None = None,
    side_px: int = 1000,
    nuclei: int = 700,
    repeats: int = 2,
    threads: int = 1,
    seed: int = 0,
    timeout_seconds: float = 1800.0,
    markdown: str | None = None,
) -> None:
    """Measure systems, print a table and write everything as JSON.

    Args:
        output: JSON file; rows of other systems that it holds already stay.
        peers: names in ``peers_benchmark/adapters.py``.
        pythons: the Python that runs a system, by its name; this one by default.
        weights: files of weights by system. Without, weights are random and nearly true maps are post-processed.
        side_px: side of the synthetic picture.
        nuclei: about so many are drawn.
        repeats: of every stage; the one with the least time of the processor counts.
        threads: of OpenMP, PyTorch and TensorFlow.
        seed: of the picture.
        timeout_seconds: a system that takes longer is left out.
        markdown: file for the table in Markdown.

    Raises:
        ConfigurationError: there is no such system.
    """
    chosen = [peers] if isinstance(peers, str) else list(peers)
    if unknown := sorted({*chosen, *(pythons or {}), *(weights or {})} - set(PEERS)):
        raise ConfigurationError(f"peers: found {unknown}, expected some of {', '.join(PEERS)}.")
    from inference_benchmark.scene import draw_benchmark_image

    rows = json.loads(Path(output).read_text())["rows"] if Path(output).is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        picture = draw_benchmark_image(Path(folder), side_px, nuclei, seed)
        import numpy as np

        labels = Path(folder) / "labels.npy"
        np.save(labels, picture.truth.instances)
        image = {"side_px": side_px, "nuclei": len(picture.truth), "seed": seed}
        for name in chosen:
            print(name, file=sys.stderr, flush=True)
            python = (pythons or {}).get(name, sys.executable)
            given = [
                str(picture.path),
                str(labels),
                str(repeats),
                str(threads),
                (weights or {}).get(name, ""),
            ]
            rows[name] = run([python, str(PROCESS), name, *given], threads, timeout_seconds)
            report = {**origin(threads=threads), "image": image, "weights": dict(weights or {}), "rows": rows}
            write_json(Path(output), report)
    table = as_markdown(report)
    print(table)
    if markdown is not None:
        Path(markdown).write_text(table + "\n")


def run(command: Sequence[str], threads: int, timeout_seconds: float) -> dict[str, Any]:
    """Return what a process measured, or why there is nothing."""
    limits = {
        name: str(threads) for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
    }
    environment = {**os.environ, **limits, "OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": ""}
    try:
        ended = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, timeout=timeout_seconds, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return {"missing": f"not finished in {timeout_seconds:.0f} s"}
    if ended.returncode:
        return {"missing": f"failed: {(ended.stderr.strip().splitlines() or ['no message'])[-1]}"}
    return dict(json.loads(ended.stdout.splitlines()[-1]))


def as_markdown(report: Mapping[str, Any]) -> str:
    """Return the table of a report with a line about where its numbers come from."""
    area_mm2 = (report["image"]["side_px"] * 0.25e-3) ** 2  # at 40x
    rows = []
    for name, row in report["rows"].items():
        if "missing" in row:
            rows.append([name, row["missing"], *[""] * 8])
            continue
        cpu = sum(row[stage]["cpu_s"] for stage in STAGES)
        wall = sum(row[stage]["wall_s"] for stage in STAGES)
        parts = (f"{row[stage]['cpu_s']:.2f}" for stage in STAGES)
        memory, start = f"{row['peak_mib']:,}", f"{row['start_s'][1]:.1f}"
        rows.append(
            [
                name,
                "",
                row["nuclei"],
                *parts,
                f"{cpu:.2f}",
                f"{wall:.2f}",
                f"{cpu / area_mm2:.0f}",
                memory,
                start,
            ]
        )
    titles = (
        "system",
        "",
        "nuclei",
        "read",
        "network",
        "instances",
        "in all",
        "wall",
        "per mm2",
        "MiB",
        "start",
    )
    image = report["image"]
    facts = (
        f"{image['side_px']} x {image['side_px']} px with {image['nuclei']} nuclei at 0.25 um per pixel; "
        f"{report['processor']}, {report['threads']} thread(s), float32 unless the name says otherwise and bfloat16 "
        "for cellpose4. Seconds of the processor, but for the wall; peak memory of the process."
    )
    return f"{facts}\n\n{markdown_table(titles, rows, 2)}"


if __name__ == "__main__":
    sys.exit(run_command(main))
