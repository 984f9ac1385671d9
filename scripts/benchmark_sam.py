"""Measure the stock segment_anything and our SAM side by side, on the same weights and in one run.

Results that the JSON file holds already are kept, so a long run can be interrupted and taken up again.

Example:
    python scripts/benchmark_sam.py --variants vit_b --sizes 256,1024 --batches 1 --parts encoder --output sam.json
    python scripts/benchmark_sam.py --preset memory --output sam.json --markdown sam.md
"""

import datetime
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarking import commit, describe_machine, versions
from sam_benchmark.cases import (
    IMPLEMENTATIONS,
    MATRIX,
    PRESETS,
    Case,
    Settings,
    as_dict,
    contenders,
    select_cases,
)
from sam_benchmark.isolation import NoResultError, run_isolated
from sam_benchmark.report import markdown as as_markdown
from sam_benchmark.report import text_table

from nucsam_monai.apps.command_line import run_command
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.files import atomic_path

Choice = str | int | tuple[str | int, ...] | list[str | int]


def main(
    output: str,
    preset: str | None = None,
    variants: Choice = MATRIX["variants"],
    sizes: Choice = MATRIX["sizes"],
    batches: Choice = MATRIX["batches"],
    precisions: Choice = MATRIX["precisions"],
    parts: Choice = MATRIX["parts"],
    modes: Choice = MATRIX["modes"],
    prompts: Choice = MATRIX["prompts"],
    implementations: Choice = MATRIX["implementations"],
    device: str = "cpu",
    threads: int | None = None,
    repeats: int = 5,
    seconds_per_case: float = 60.0,
    timeout_seconds: float | None = None,
    memory_gb: float | None = None,
    stock_chunk: int = 64,
    seed: int = 0,
    fresh: bool = False,
    markdown: str | None = None,
) -> None:
    """Measure the selected cases, print a table and write everything as JSON.

    Args:
        output: JSON file; cases that it holds are not measured again.
        preset: ``memory`` or ``targets``; takes the place of the selection of cases.
        variants: of ``vit_tiny``, ``vit_b``, ``vit_l``, ``vit_h``.
        sizes: sides of the images in pixels.
        batches: numbers of images.
        precisions: of ``fp32``, ``bf16``.
        parts: of ``encoder``, ``decoder``.
        modes: of ``forward``, ``train``.
        prompts: numbers of point prompts in all.
        implementations: of ``stock``, ``ours``, ``ours_compiled``, ``ours_graphs``, ``ours_checkpointed``, ``timm``.
        device: ``cpu`` or ``cuda``.
        threads: threads of the CPU; all cores by default.
        repeats: rounds in which every contender is timed once.
        seconds_per_case: no further round begins after this time.
        timeout_seconds: a case that takes longer is skipped; by default four times ``seconds_per_case`` and a minute.
        memory_gb: a contender that needs more main memory is skipped; by default 80 % of what is free.
        stock_chunk: prompts that the stock decoder gets at a time (64 in its own mask generator); 0 for all.
        seed: seed of weights and inputs.
        fresh: measure the selected cases again.
        markdown: file for the tables in Markdown.
    """
    settings = Settings(
        device=device,
        threads=threads or os.cpu_count() or 1,
        repeats=repeats,
        seconds_per_case=seconds_per_case,
        timeout_seconds=timeout_seconds or 60 + 4 * seconds_per_case,
        memory_gb=memory_gb or _free_memory_gb(),
        stock_chunk=stock_chunk,
        seed=seed,
    )
    chosen = {
        "variants": variants,
        "sizes": sizes,
        "batches": batches,
        "precisions": precisions,
        "parts": parts,
        "modes": modes,
        "prompts": prompts,
        "implementations": implementations,
    }
    selection = {axis: _checked(axis, value) for axis, value in chosen.items()}
    cases = select_cases(selection) if preset is None else _preset(preset)
    report = _open_report(Path(output), settings)
    wanted = [case for case in cases if fresh or case.key not in report["cases"]]
    _measure(wanted, report, Path(output), settings, selection)
    measured_cases = {case.key: report["cases"][case.key] for case in cases}
    print(text_table(measured_cases))
    if markdown is not None:
        with atomic_path(markdown) as temporary:
            temporary.write_text(as_markdown(report))
    if any(case.get("skipped", "").startswith("failed") for case in measured_cases.values()):
        raise SystemExit("Some cases failed; their errors stand above.")


def _measure(
    wanted: Sequence[Case],
    report: dict[str, Any],
    output: Path,
    settings: Settings,
    selection: Mapping[str, Sequence[Any]],
) -> None:
    """Measure cases one after another; every one is in the report and on the disk before the next begins."""
    if wanted:
        from sam_benchmark.machine import matrix_product_peak

        peaks = {
            precision: run_isolated(matrix_product_peak, precision, settings, timeout_seconds=300)
            for precision in selection["precisions"]
        }
    for number, case in enumerate(wanted, start=1):
        print(f"{number}/{len(wanted)} {case.key}", file=sys.stderr, flush=True)
        measured = measure_case(case, settings, selection["implementations"], selection["precisions"])
        origin = {"commit": commit(), "date": datetime.date.today().isoformat(), "peak_gflops": peaks}
        report["cases"][case.key] = {"case": as_dict(case), **origin, **measured}
        with atomic_path(output) as temporary:
            temporary.write_text(json.dumps(report, indent=1) + "\n")


def measure_case(case: Case, settings: Settings, implementations: Any, precisions: Any) -> dict[str, Any]:
    """Return the results of all contenders, or why there are none."""
    from sam_benchmark.measure import peak_memory, time_contenders

    taking_part = contenders(case, implementations, precisions)
    limit = settings.timeout_seconds
    try:
        results = run_isolated(time_contenders, case, settings, taking_part, timeout_seconds=limit)
    except NoResultError as reason:
        return {"skipped": str(reason)}
    for contender in taking_part:
        result = results[contender.key]
        if "skipped" in result:
            continue
        try:
            result |= run_isolated(peak_memory, case, settings, contender, timeout_seconds=limit)
        except NoResultError as reason:
            result["memory_skipped"] = str(reason)
    return {"results": results}


def _open_report(path: Path, settings: Settings) -> dict[str, Any]:
    """Return the report in ``path`` if it is of this machine, or a new one.

    Raises:
        ConfigurationError: the file's results are of another machine or seed and cannot be shown next to new ones.
    """
    # The CUDA driver must not be started in the process that others are forked from.
    machine = run_isolated(describe_machine, settings.device, settings.threads, timeout_seconds=300)
    new = {"machine": machine, "versions": versions(), "settings": as_dict(settings), "cases": {}}
    if not path.is_file():
        return new
    known = json.loads(path.read_text())
    for what in ("machine", "versions"):
        if known[what] != json.loads(json.dumps(new[what])):
            raise ConfigurationError(
                f"{path}: holds results of {what} {known[what]}, but this run is of {new[what]}. "
                "Give another --output."
            )
    for what in ("seed", "stock_chunk"):
        if known["settings"][what] != new["settings"][what]:
            raise ConfigurationError(f"{path}: its {what} is {known['settings'][what]}. Use it again.")
    return {**new, "cases": known["cases"]}


def _preset(name: str) -> list[Case]:
    if name not in PRESETS:
        raise ConfigurationError(f"preset '{name}': expected one of {', '.join(PRESETS)}.")
    return PRESETS[name]


def _checked(axis: str, value: Choice) -> list[str | int]:
    """Return the selected values of an axis as a list; a size, batch or count may be any number."""
    values = list(value) if isinstance(value, (tuple, list)) else [value]
    permitted = IMPLEMENTATIONS if axis == "implementations" else MATRIX[axis]
    for entry in values:
        if entry not in permitted and not (type(entry) is int and entry > 0 and type(permitted[0]) is int):
            raise ConfigurationError(f"{axis}: found {entry!r}, expected some of {list(permitted)}.")
    return values


def _free_memory_gb() -> float:
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return 16.0
    free = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable"))
    return round(0.8 * int(free.split()[1]) * 1024 / 1e9, 1)


if __name__ == "__main__":
    sys.exit(run_command(main))
