import csv
import math
from dataclasses import astuple, replace
from pathlib import Path

import pytest
from experiments import run_experiment
from experiments.description import Printed
from experiments.figures import sweep
from experiments.tables import (
    COST,
    Cell,
    Results,
    build_table,
    csv_rows,
    dataset_cells,
    epoch_cells,
    latex,
    markdown,
    merge_rows,
    not_run,
    paired_tests,
)

from tests.scripts.experiments.stub import StubCommands, experiment_of, places_of


def rows_of(*values: float) -> list[dict]:
    return [{"id": str(i), "domain": "d", "dice": value} for i, value in enumerate(values)]


def test_seeds_are_averaged_image_by_image() -> None:
    merged = merge_rows([rows_of(0.2, 0.4), rows_of(0.4, math.nan), rows_of(0.6)])
    assert [row["dice"] for row in merged] == pytest.approx([0.4, 0.4])
    assert [row["id"] for row in merged] == ["0", "1"]


def test_cells_by_hand() -> None:
    summaries = [{"dice": 0.2, "mpq_tissue": 0.5, "pq:dead": 0.1}, {"dice": 0.4, "mpq_tissue": 0.7}]
    cells = dataset_cells(merge_rows([rows_of(0.1, 0.3), rows_of(0.3, 0.5)]), summaries)
    assert cells["dice"].value == pytest.approx(0.3)
    assert 0.2 <= cells["dice"].ci_low < 0.3 < cells["dice"].ci_high <= 0.4
    assert cells["dice"].deviation == pytest.approx(math.sqrt(0.02))
    assert cells["mpq_tissue"].value == pytest.approx(0.6)
    assert math.isnan(cells["mpq_tissue"].ci_low)
    assert cells["pq:dead"].value == 0.1
    one = dataset_cells(rows_of(0.5), [{"pq:dead": 0.1, "pq_ci_low:dead": 0.05, "pq_ci_high:dead": 0.2}])
    assert astuple(one["pq:dead"]) == pytest.approx((0.1, 0.05, 0.2, math.nan, 1), nan_ok=True)


@pytest.fixture
def table(tmp_path: Path):
    experiment = replace(
        experiment_of(tmp_path, metrics=["dice", "hd", "total_m"]),
        percent=True,
        datasets=experiment_of(tmp_path).datasets[:1],
    )
    cells = {
        ("A", "bright", "dice"): Cell(0.5, 0.4, 0.6),
        ("B", "bright", "dice"): Cell(0.75, math.nan, math.nan, 0.01, 2),
        ("A", "bright", "hd"): Cell(3.0),
        ("B", "bright", "hd"): Cell(4.0),
        ("B", COST, "total_m"): Cell(1234.5),
    }
    printed = Printed(
        "Paper", "I", "x", {"A": {("bright", "dice"): 51.0}, "Other": {("bright", "dice"): 9.0}}
    )
    results = Results(cells, images={("A", "bright"): 7})
    return experiment, results, build_table(experiment, results, printed), printed


def test_markdown_by_hand(table) -> None:
    assert markdown(table[2]) == (
        "| method | bright Dice | bright HD (px) | parameters (M) |\n"
        "|---|---|---|---|\n"
        "| A | 50.00 [40.00, 60.00] *51.00* | **3.0** | - |\n"
        "| B | **75.00** ± 1.00 | 4.0 | 1,234.5 |"
    )
    assert markdown(table[2], transpose=True).splitlines()[0] == "|  | A | B |"
    assert not_run(table[3], table[0]) == ["Other"]


def test_latex_by_hand(table) -> None:
    text = latex(table[2], caption="50 % of_it", label="x")
    assert r"\caption{50 \% of\_it}" in text
    assert r"A & 50.00 {\scriptsize [40.00, 60.00]} \textit{51.00} & \textbf{3.0} & -- \\" in text
    assert r"B & \textbf{75.00} {\scriptsize $\pm$ 1.00} & 4.0 & 1,234.5 \\" in text
    assert text.count("{") == text.count("}")


def test_csv_has_every_value_in_full(table) -> None:
    rows = csv_rows(table[2], table[1])
    assert [(row["method"], row["metric"], row["value"], row["best"]) for row in rows] == [
        ("A", "dice", 0.5, False),
        ("A", "hd", 3.0, True),
        ("B", "dice", 0.75, True),
        ("B", "hd", 4.0, False),
        ("B", "total_m", 1234.5, False),
    ]
    assert (rows[0]["printed"], rows[0]["images"]) == (51.0, 7)


def test_times_are_the_median_epoch_and_the_sum_of_processor_time() -> None:
    first = [
        {"metric": metric, "epoch": k, "value": value}
        for metric in ("epoch_seconds", "epoch_core_seconds")
        for k, value in enumerate((9.0, 2.0, 3.0))
    ]
    second = [
        {"metric": "epoch_seconds", "epoch": 0, "value": 5.0},
        {"metric": "loss", "epoch": 0, "value": 7.0},
    ]
    cells = epoch_cells([first, second, []])
    assert cells["core_minutes"].value == pytest.approx(14 / 60)
    cell = cells["seconds_per_epoch"]
    assert (cell.value, cell.replicates, cell.deviation) == (4.0, 2, pytest.approx(math.sqrt(2)))
    assert epoch_cells([[], second[1:]]) == {}


def test_paired_tests_against_the_reference(tmp_path: Path) -> None:
    experiment = experiment_of(tmp_path, metrics=["dice", "pq"], reference="B")
    rows = {
        ("A", "bright"): rows_of(0.1, 0.3),
        ("B", "bright"): rows_of(0.4, 0.8),
        ("A", "dark"): rows_of(1.0),
    }
    (test,) = paired_tests(experiment, Results(rows=rows))
    assert (test["method"], test["other"], test["metric"], test["pairs"]) == ("B", "A", "dice", 2)
    assert test["mean_difference"] == pytest.approx(0.4)


def test_the_report_of_a_run(tmp_path: Path, dataset_dir: str) -> None:
    experiment = experiment_of(tmp_path, seeds=[0, 2], metrics=["dice", "gmacs"])
    report = run_experiment(experiment, places_of(tmp_path, dataset_dir), run=StubCommands(), command="again")
    # Two test images in "dark", of 0 and 0.1 with seed 0, and 0.02 more with seed 2.
    assert report.results.value("A", "dark", "dice") == pytest.approx(0.06)
    assert report.results.cells["A", "dark", "dice"].replicates == 2
    names = {path.name for path in report.folder.iterdir()}
    assert names >= {"results.md", "results.csv", "results.tex", "paired_tests.csv", "bars.png"}
    assert names >= {"sheet_bright.png", "sheet_dark.png", "parameters.png", "speed.png"}
    text = (report.folder / "results.md").read_text()
    assert "tested on bright (1 image), dark (2 images); seeds 0, 2;" in text
    assert "```bash\nagain\n```" in text
    with (report.folder / "results.csv").open() as file:
        (row,) = [
            r
            for r in csv.DictReader(file)
            if (r["method"], r["dataset"], r["metric"]) == ("A", "dark", "dice")
        ]
    assert float(row["value"]) == pytest.approx(0.06)
    assert row["images"] == "2"


def test_a_sweep_has_a_point_for_every_method(tmp_path: Path) -> None:
    methods = [{"name": f"tau {x}", "bundle": "unsam", "x": x} for x in (0.9, 0.5)]
    experiment = experiment_of(tmp_path, methods=methods, sweep="tau", metrics=["dice"])
    cells = {("tau 0.5", "dark", "dice"): Cell(0.1), ("tau 0.9", "dark", "dice"): Cell(0.2)}
    figure = sweep(experiment, Results(cells))
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    assert lines["dark"].get_xdata().tolist() == [0.5, 0.9]
    assert lines["dark"].get_ydata().tolist() == [0.1, 0.2]
