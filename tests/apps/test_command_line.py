import pytest

from nucsam_monai.apps.command_line import run_command
from nucsam_monai.utils.errors import DatasetError


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
