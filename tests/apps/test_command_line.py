import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from fire.decorators import GetParseFns

from nucsam_monai.apps.command_line import keep_texts, run_command
from nucsam_monai.data.converters import folder
from nucsam_monai.utils.errors import DatasetError
from scripts import prepare_dataset


def greet(name: str) -> str:
    if name == "nobody":
        raise DatasetError("nobody: no such name.")
    if name == "wrapped":
        raise RuntimeError("transform failed") from DatasetError("wrapped: no such name.")
    if name == "bug":
        raise LookupError(name)
    return f"hello {name}"


def test_result_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command({"greet": greet}, ["greet", "--name", "you"]) == 0
    assert capsys.readouterr().out == "hello you\n"


def test_error_of_the_user_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(greet, ["nobody"]) == 1
    assert capsys.readouterr() == ("", "error: nobody: no such name.\n")


def test_error_behind_one_of_monai_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(greet, ["wrapped"]) == 1
    assert capsys.readouterr().err == "error: wrapped: no such name.\n"


def test_bug_is_not_hidden() -> None:
    with pytest.raises(LookupError):
        run_command(greet, ["bug"])


def show(
    folder: Path | str | None = None, *, name: str = "", count: int = 0, ids: str | list[str] = ""
) -> str:
    return repr((folder, name, count, ids))


@pytest.mark.parametrize(
    "text", ["2024", "1_2", "1e5", "True", "None", "a,b", "plate #1", "[a]", "{a: 1}", "'q'"]
)
def test_texts_and_paths_stay_as_they_were_typed(capsys: pytest.CaptureFixture[str], text: str) -> None:
    assert run_command({"show": show}, ["show", text, "--name", text, "--count", "3", "--ids", "a,b"]) == 0
    assert capsys.readouterr().out == f"{(text, text, 3, ('a', 'b'))}\n"


def test_a_reader_that_stops_is_not_an_error(tmp_path: Path) -> None:
    code = (
        "import sys; from nucsam_monai.apps.command_line import run_command; "
        "sys.exit(run_command(lambda: 'line\\n' * 100_000, []))"
    )
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)}"
    piped = ["bash", "-c", f"set -o pipefail; {command} | head -1"]
    found = subprocess.run(piped, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (0, "line\n", "")


def test_every_path_of_the_data_command_is_a_text() -> None:
    convert = prepare_dataset.reporting(folder.convert)
    keep_texts(convert)
    assert {"output_dir", "images", "instances", "classes", "splits"} <= set(GetParseFns(convert)["named"])


def test_help_is_no_error_where_arguments_are_required(capsys: pytest.CaptureFixture[str]) -> None:
    def halve(number: float) -> float:
        """Halve a number."""
        return number / 2

    assert run_command(halve, ["--help"]) == 0
    assert "Halve a number." in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_command(halve, [])
