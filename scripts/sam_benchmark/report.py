"""The results as an aligned table and as Markdown.

Example:
    PYTHONPATH=scripts python -m sam_benchmark.report docs/results/sam_cpu.json docs/results/sam_cpu.md
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fire

from sam_benchmark.cases import Case

HEADINGS = (
    "case", "contender", "median ms", "min ms", "x stock fp32", "x stock same", "peak MiB", "working MiB",
    "difference", "GMAC", "of peak",
)  # fmt: skip


def rows(cases: dict[str, Any]) -> Iterator[list[str]]:
    """Yield a row of texts per contender; a case or contender that was left out says why."""
    for name, case in cases.items():
        if "skipped" in case:
            yield [name, f"skipped: {case['skipped']}", *[""] * (len(HEADINGS) - 2)]
            continue
        for contender, result in case["results"].items():
            yield [name, *_row(contender, result, case)]
            name = ""  # a case's name stands once


def _row(contender: str, result: dict[str, Any], case: dict[str, Any]) -> list[str]:
    precision = contender.split()[-1]
    if "skipped" in result:
        return [f"{contender} skipped: {result['skipped']}", *[""] * (len(HEADINGS) - 2)]
    median = result["median_ms"]
    ratios = [
        f"{case['results'][rival]['median_ms'] / median:.2f}"
        if "median_ms" in case["results"].get(rival, {})
        else "-"
        for rival in ("stock fp32", f"stock {precision}")
    ]
    difference, gmac = result.get("max_difference"), result.get("gmac")
    peak = case["peak_gflops"].get(precision)
    share = f"{100 * 2 * gmac / (median / 1e3) / peak:.0f} %" if gmac and peak else "-"
    memory = [f"{result[key]:.0f}" if key in result else "-" for key in ("peak_mib", "working_mib")]
    return [
        contender,
        f"{median:.1f}",
        f"{result['min_ms']:.1f}",
        *ratios,
        *memory,
        "-" if difference is None else f"{difference:.1e}",
        "-" if gmac is None else f"{gmac:.2f}",
        share,
    ]


def text_table(cases: dict[str, Any]) -> str:
    """Return a table with aligned columns; reasons for what is missing run on to the right."""
    table = [list(HEADINGS), *rows(cases)]
    full = [row for row in table if all(row[1:3])]
    widths = [max(len(row[column]) for row in full) for column in range(len(HEADINGS))]
    widths[0] = max(len(row[0]) for row in table)
    lines = []
    for row in table:
        cells = [row[0].ljust(widths[0]), row[1].ljust(widths[1])]
        cells += [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def markdown(report: dict[str, Any]) -> str:
    """Return the report as a Markdown document."""
    machine, settings = report["machine"], report["settings"]
    place = machine["gpu"] or f"{machine['processor']}, {machine['threads']} of {machine['cores']} cores"
    in_order = dict(sorted(report["cases"].items(), key=lambda item: Case(**item[1]["case"])))
    lines = [
        "# Stock SAM compared with ours",
        "",
        f"{place} ({', '.join(machine['flags']) or 'no vector flags known'}); "
        + ", ".join(f"{name} {version or 'not installed'}" for name, version in report["versions"].items())
        + f"; commits {', '.join(sorted({str(case['commit']) for case in report['cases'].values()}))}; "
        f"{min(case['date'] for case in report['cases'].values())} to "
        f"{max(case['date'] for case in report['cases'].values())}; seed {settings['seed']}.",
        "",
        f"Large matrix products reached {_peaks(in_order)}. Times are from interleaved steps in "
        "one process, with the same random weights. `difference` is the largest difference from the first contender, "
        "relative to the largest value of each output and, in training, of the gradients. Memory is measured in a "
        "separate process, in total and without the weights. `GMAC` counts the executed multiply-accumulate "
        "operations, `of peak` is their rate relative to that of large matrix products. "
        f"The stock decoder gets {settings['stock_chunk'] or 'all'} prompts at a time.",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "|---|---" + "|---:" * (len(HEADINGS) - 2) + "|",
        *("| " + " | ".join(row) + " |" for row in rows(in_order)),
        "",
    ]
    return "\n".join(lines)


def _peaks(cases: dict[str, Any]) -> str:
    """Report the range of the peak speeds measured next to the cases."""
    measured: dict[str, list[float]] = {}
    for case in cases.values():
        for precision, gflops in case.get("peak_gflops", {}).items():
            measured.setdefault(precision, []).append(gflops)
    spans = [f"{min(found):.0f} to {max(found):.0f} GFLOP/s in {name}" for name, found in measured.items()]
    return ", ".join(spans) or "an unknown speed"


def main(results: str, output: str) -> None:
    """Write the Markdown of a JSON file of ``benchmark_sam.py``."""
    Path(output).write_text(markdown(json.loads(Path(results).read_text())))


if __name__ == "__main__":
    fire.Fire(main)
