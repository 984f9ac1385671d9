"""Execute the documentation's notebooks and keep their outputs.

Example:
    python scripts/run_notebooks.py                               # all of docs/notebooks, in place
    python scripts/run_notebooks.py docs/notebooks/segment_and_measure.ipynb --output_dir /tmp/executed
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from nucsam_monai.apps.command_line import run_command

NOTEBOOKS = Path(__file__).resolve().parents[1] / "docs" / "notebooks"
SECONDS = 900


def main(*notebooks: str, output_dir: str | None = None) -> None:
    """Execute notebooks, each in its own folder.

    Args:
        notebooks: files; all of ``docs/notebooks`` by default.
        output_dir: where the executed notebooks go; None keeps the outputs in the files themselves.
    """
    for path in [Path(name) for name in notebooks] or sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook = executed(path)
        target = path if output_dir is None else Path(output_dir) / path.name
        nbformat.write(notebook, target)
        print(target)


def executed(path: Path) -> nbformat.NotebookNode:
    """Return a notebook with new outputs, without what differs between machines.

    Raises:
        CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=SECONDS, record_timing=False, resources={"metadata": {"path": str(path.parent)}}
    )
    client.execute()
    notebook.metadata.pop("language_info", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if "text" in output:
                    output.text = output.text.replace("\r\n", "\n")
                data = output.get("data", {})
                data.pop("text/html", None)  # the same picture again
                if "image/jpeg" in data:  # a fifth of the size
                    data.pop("image/png", None)
    return notebook


if __name__ == "__main__":
    sys.exit(run_command(main))
