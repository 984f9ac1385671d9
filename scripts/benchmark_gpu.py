"""Measure a GPU in one go: encoder, decoder, training steps, memory, compiled code and CUDA graphs, whole images.

Every case runs as it is, compiled, and compiled with CUDA graphs, in float32 and in bfloat16, all in turn on the same
random weights. What this needs besides Python is printed first: PyTorch and the package.

Example:
    python scripts/benchmark_gpu.py --output gpu.json --markdown gpu.md --profiles output/profiles
    python scripts/benchmark_gpu.py --device cpu --small True --output cpu.json      # shows that it works
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from benchmark_sam import measure_case
from benchmarking import ROOT, origin
from sam_benchmark.cases import Case, Contender, Settings, as_dict, contenders
from sam_benchmark.isolation import NoResultError, run_isolated
from sam_benchmark.report import text_table

from nucsam_monai.apps.command_line import run_command
from nucsam_monai.io import write_json

CASES = [
    Case("encoder", "vit_b", 256, 1, "forward"),
    Case("encoder", "vit_b", 256, 16, "forward"),
    Case("encoder", "vit_b", 1024, 1, "forward"),
    Case("encoder", "vit_h", 1024, 1, "forward"),
    Case("decoder", "vit_b", 256, 1, "forward", prompts=32),
    Case("decoder", "vit_b", 256, 16, "forward", prompts=512),
    Case("decoder", "vit_tiny", 256, 1, "forward", prompts=256),
    Case("encoder", "vit_b", 256, 16, "train"),
    Case("decoder", "vit_b", 256, 8, "train", prompts=256),
]
SMALL = [
    Case("encoder", "vit_tiny", 64, 2, "forward"),
    Case("decoder", "vit_tiny", 64, 2, "forward", prompts=5),
    Case("encoder", "vit_tiny", 64, 1, "train"),
    Case("decoder", "vit_tiny", 64, 2, "train", prompts=4),
]
IMPLEMENTATIONS = ("ours", "ours_compiled", "ours_graphs")


def main(
    output: str,
    device: str = "cuda",
    small: bool = False,
    implementations: str | tuple[str, ...] | None = None,
    precisions: str | tuple[str, ...] = ("fp32", "bf16"),
    repeats: int = 20,
    seconds_per_case: float = 60.0,
    threads: int = 4,
    profiles: str | None = None,
    markdown: str | None = None,
) -> None:
    """Measure all cases, print a table and write everything as JSON.

    Args:
        output: JSON file.
        device: ``cuda`` or ``cpu``.
        small: only cases that take a moment, to see that everything works.
        implementations: of ``ours``, ``ours_compiled``, ``ours_graphs``; all on a GPU, the first on a CPU.
        precisions: of ``fp32``, ``bf16``.
        repeats: rounds in which every contender is timed once.
        seconds_per_case: no further round begins after this time.
        threads: of the CPU.
        profiles: folder for PyTorch's table of the costliest operations of every contender; none by default.
        markdown: file for the table of whole images in Markdown.
    """
    from sam_benchmark.machine import matrix_product_peak

    project = (ROOT / "pyproject.toml").read_text()
    needed = re.search(r"^dependencies = \[(.*?)^\]", project, re.MULTILINE | re.DOTALL)
    print("needs: " + ", ".join(re.findall(r'"(.+)"', needed[1] if needed else "")))
    if implementations is None:
        implementations = IMPLEMENTATIONS if device == "cuda" else IMPLEMENTATIONS[:1]
    chosen, types = ([one] if isinstance(one, str) else list(one) for one in (implementations, precisions))
    settings = Settings(device, threads, repeats, seconds_per_case, 600 + seconds_per_case, 64.0, 64, 0)
    where = run_isolated(origin, device, threads, timeout_seconds=300)
    report: dict[str, Any] = {**where, "settings": as_dict(settings), "cases": {}}
    peaks = {one: run_isolated(matrix_product_peak, one, settings, timeout_seconds=300) for one in types}
    for case in SMALL if small else CASES:
        print(case.key, file=sys.stderr, flush=True)
        measured = measure_case(case, settings, chosen, types)
        report["cases"][case.key] = {"case": as_dict(case), "peak_gflops": peaks, **measured}
        write_json(output, report)  # after every case, as a long run may be interrupted
        for contender in contenders(case, chosen, types) if profiles else []:
            profile(case, settings, contender, Path(str(profiles)))
    print(text_table(report["cases"]))
    report["images"] = whole_images(Path(output), device, types, small, markdown)
    write_json(output, report)


def profile(case: Case, settings: Settings, contender: Contender, folder: Path) -> None:
    """Write the costliest operations of one contender as a table, or why there are none."""
    try:
        text = run_isolated(operations, case, settings, contender, timeout_seconds=settings.timeout_seconds)
    except NoResultError as reason:
        text = str(reason)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{case.key} {contender.key}.txt".replace(" ", "_")).write_text(text)


def operations(case: Case, settings: Settings, contender: Contender) -> str:
    """Return PyTorch's table of the operations of five steps, the costliest first."""
    import torch
    from sam_benchmark.runners import Workbench

    torch.set_num_threads(settings.threads)
    runner = Workbench(case, settings).runner(contender)
    for _ in range(3):
        runner.step()
    with torch.profiler.profile() as profiler:
        for _ in range(5):
            runner.step()
    key = f"self_{'cuda' if settings.device == 'cuda' else 'cpu'}_time_total"
    return str(profiler.key_averages().table(sort_by=key, row_limit=30))


def whole_images(
    output: Path, device: str, precisions: list[str], small: bool, markdown: str | None
) -> dict[str, Any]:
    """Return the reports of whole images, from file to file, by precision."""
    from benchmark_inference import main as measure_images

    found = {}
    for precision in precisions:
        part = output.with_suffix(f".{precision}.json")
        methods, variants = (
            (["unsam"], ["vit_tiny"]) if small else (["promptnucseg", "unsam", "sac"], ["vit_b"])
        )
        size = {"side_px": 256, "nuclei": 30, "repeats": 1} if small else {}
        measure_images(
            str(part), methods, variants, device=device, precision=precision, markdown=markdown, **size
        )
        found[precision] = json.loads(part.read_text())
        part.unlink()
    return found


if __name__ == "__main__":
    sys.exit(run_command(main))
