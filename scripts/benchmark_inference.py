"""Time the inference of every bundle on a large synthetic image, from the file to the written instances.

All weights are random. The networks run as they are; what is merged and written are answers as trained networks
would give them, see ``inference_benchmark/pipelines.py``.

Example:
    python scripts/benchmark_inference.py --output inference.json --markdown inference.md
    python scripts/benchmark_inference.py --methods promptnucseg --variants vit_b --repeats 1 --output vit_b.json
"""

import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarking import markdown_table, origin
from inference_benchmark import METHODS, STAGES

from nucsam_monai.apps.command_line import run_command
from nucsam_monai.io import write_json
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.files import atomic_path

if TYPE_CHECKING:
    from inference_benchmark.pipelines import Pipeline

Choice = str | tuple[str, ...] | list[str]


def main(
    output: str,
    methods: Choice = tuple(METHODS),
    variants: Choice = ("vit_tiny", "vit_b"),
    side_px: int = 1000,
    nuclei: int = 700,
    repeats: int = 3,
    precision: str = "fp32",
    device: str = "cpu",
    threads: int = 1,
    seed: int = 0,
    options: dict[str, Any] | None = None,
    markdown: str | None = None,
) -> None:
    """Measure every method with every SAM variant, print a table and write everything as JSON.

    Args:
        output: JSON file.
        methods: names of bundles that can infer; all by default.
        variants: of SAM.
        side_px: side of the image.
        nuclei: about so many are drawn.
        repeats: timed runs after one that is not; the fastest counts for each stage.
        precision: of the networks: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        device: ``cpu`` or ``cuda``.
        threads: of torch on the CPU.
        seed: of image and weights.
        options: values of other keys of ``inference.json``, for the bundles that have them.
        markdown: file for the table in Markdown.

    Raises:
        ConfigurationError: there is no such bundle.
    """
    chosen = [methods] if isinstance(methods, str) else list(methods)
    if unknown := sorted(set(chosen) - set(METHODS)):
        raise ConfigurationError(f"methods: found {unknown}, expected some of {METHODS}.")
    import monai
    import torch
    from inference_benchmark.pipelines import Pipeline
    from inference_benchmark.scene import draw_benchmark_image

    monai.data.set_track_meta(False)
    torch.set_num_threads(threads)
    cases = [
        (method, variant)
        for method in chosen
        for variant in ([variants] if isinstance(variants, str) else variants)
    ]
    with tempfile.TemporaryDirectory() as folder:
        image = draw_benchmark_image(Path(folder), side_px, nuclei, seed)
        report = {
            **origin(device, threads),
            "precision": precision,
            "options": options or {},
            "image": {"side_px": side_px, "nuclei": len(image.truth), "seed": seed},
            "weights": "random; outputs replaced by nearly correct ones",
            "rows": [],
        }
        for method, variant in cases:
            print(f"{method} {variant}", file=sys.stderr, flush=True)
            torch.manual_seed(seed)
            place = (Path(folder) / "out", precision, torch.device(device))
            pipeline = Pipeline(method, variant, image, *place, options or {})
            report["rows"].append({"method": method, "sam_variant": variant, **measure(pipeline, repeats)})
            # After every case, as a long run may be interrupted.
            write_json(Path(output), report)
            if markdown is not None:
                with atomic_path(markdown) as temporary:
                    temporary.write_text(as_markdown(report) + "\n")
    print(as_markdown(report))


def measure(pipeline: "Pipeline", repeats: int) -> dict[str, Any]:
    """Return the seconds of every stage and the share of merging and writing."""
    pipeline.run()
    runs = [pipeline.run() for _ in range(repeats)]
    seconds = {stage: min(run[0][stage] for run in runs) for stage in STAGES}
    total = sum(seconds.values())
    return {
        "instances": runs[-1][1],
        "seconds": {stage: round(value, 4) for stage, value in seconds.items()},
        "total_seconds": round(total, 4),
        "median_total_seconds": round(statistics.median(sum(run[0].values()) for run in runs), 4),
        "merge_and_write_share": round((seconds["merge"] + seconds["write"]) / total, 4),
    }


def as_markdown(report: dict[str, Any]) -> str:
    """Return the table of a report with a line about where its numbers come from."""
    image = report["image"]
    titles = [
        "method",
        "SAM",
        "instances",
        *(f"{stage} (s)" for stage in STAGES),
        "total (s)",
        "merge + write",
    ]
    rows = [
        [
            row["method"],
            row["sam_variant"],
            str(row["instances"]),
            *(f"{row['seconds'][stage]:.3f}" for stage in STAGES),
            f"{row['total_seconds']:.2f}",
            f"{100 * row['merge_and_write_share']:.1f} %",
        ]
        for row in report["rows"]
    ]
    where = report["gpu"] or f"{report['processor']}, {report['threads']} thread(s)"
    return "\n".join(
        [
            f"{image['side_px']} x {image['side_px']} px, {image['nuclei']} synthetic nuclei; random weights, with "
            f"outputs replaced by nearly correct ones; {where}, "
            f"{report['precision']}, torch {report['versions']['torch']}.",
            "",
            markdown_table(titles, rows, 3),
        ]
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
