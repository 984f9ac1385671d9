"""The notebooks: their outputs are whole and free of this machine, and they run."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.bundles.runs import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "docs" / "notebooks").glob("*.ipynb"))
LARGEST = 400_000
_OF_A_MACHINE = re.compile(r"(?:/(?:home|root|tmp|work|Users|mnt|opt|usr)/|[A-Z]:\\|~/)")


def code_cells(path: Path) -> list[dict[str, Any]]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_was_executed_without_an_error_from_top_to_bottom(path: Path) -> None:
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [
        output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"
    ]
    assert any(
        "image/jpeg" in output.get("data", {}) or "image/png" in output.get("data", {}) for output in outputs
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_names_no_path_of_a_machine(path: Path) -> None:
    assert path.stat().st_size < LARGEST
    for cell in code_cells(path):
        texts = ["".join(cell["source"])]
        texts += [
            "".join(output.get("text", output.get("data", {}).get("text/plain", [])))
            for output in cell["outputs"]
        ]
        assert not [text for text in texts if _OF_A_MACHINE.search(text)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_code_of_a_notebook_compiles(path: Path) -> None:
    for cell in code_cells(path):
        source = re.sub(r"\\\n", " ", "".join(cell["source"]))
        compile(re.sub(r"^(\s*)[!%].*$", r"\1pass", source, flags=re.MULTILINE), path.name, "exec")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    for name in ("nbclient", "ipykernel", "matplotlib"):
        pytest.importorskip(name, reason='pip install -e ".[docs]"')
    if shutil.which("nucsam") is None:
        pytest.skip("pip install -e .")
    from scripts.run_notebooks import executed

    folder = tmp_path / "docs" / "notebooks"  # so that its outputs go there, too
    folder.mkdir(parents=True)
    for name in ("bundles", "scripts", "tests"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    assert executed(Path(shutil.copy(path, folder))).cells
