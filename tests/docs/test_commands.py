"""Every command of the documentation is understood: its files, configurations, keys and options exist."""

import ast
import importlib
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from nucsam_monai.apps.nucsam import command_of
from tests.bundles.runs import REPOSITORY

# What its own test executes.
EXECUTED = {"docs/add_a_method.md"}
PAGES = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "bundles/*/docs/*.md")
    for path in REPOSITORY.glob(pattern)
)
# Programs of others, whose options are not ours to check.
OTHERS = {
    *(
        "cd",
        "cp",
        "curl",
        "docker",
        "done",
        "echo",
        "export",
        "for",
        "git",
        "mkdir",
        "mkdocs",
        "monailabel",
        "mypy",
    ),
    *("pip", "pre-commit", "ruff", "sed", "source"),
}
_PLACEHOLDER = re.compile(r"[<\[].*[>\]]|\.\.\.")


def commands(page: str) -> Iterator[list[str]]:
    """Yield the words of every command of a page."""
    variables: dict[str, str] = {}
    for block in _listings("bash", (REPOSITORY / page).read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            line = re.sub(r"\$(\w+)", lambda match: variables.get(match[1], match[0]), line)
            if set_here := re.fullmatch(r"(\w+)=(.+)", line):
                variables[set_here[1]] = shlex.split(set_here[2])[0]
                continue
            for part in re.split(r"\s(?:&&|\|)\s", line):
                words = shlex.split(part, comments=True)
                while words and re.match(r"[A-Za-z_]+=", words[0]):
                    words = words[1:]
                if words:
                    yield words


@pytest.mark.parametrize("page", [page for page in PAGES if page not in EXECUTED])
def test_every_command_of_a_page_is_understood(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bundles").symlink_to(REPOSITORY / "bundles")
    (tmp_path / "scripts").symlink_to(REPOSITORY / "scripts")
    monkeypatch.chdir(tmp_path)
    for words in commands(page):
        if words[0] == "nucsam":
            words = ["python", *_of_nucsam(words[1:])]
        problem = _problem(words)
        assert problem is None, f"{shlex.join(words)}: {problem}"


@pytest.mark.parametrize(
    "page", sorted((REPOSITORY / "docs" / "methods").glob("[!i]*.md")), ids=lambda page: page.stem
)
def test_every_option_of_a_methods_page_is_a_key_of_its_bundle(page: Path) -> None:
    keys: set[str] = {"show_command", "use_trace", "weights", "prompter_", "segmentor_"}
    for config in (REPOSITORY / "bundles" / page.stem / "configs").glob("*.json"):
        keys |= json.loads(config.read_text(encoding="utf-8")).keys()
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert not {name for name in re.findall(r"--([a-z]\w*)", text) if name not in keys}


@pytest.mark.parametrize("page", PAGES)
def test_every_listing_of_a_page_parses_and_imports_what_there_is(page: str) -> None:
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    for block in _listings("json", text):
        json.loads(block)
    for block in _listings("yaml", text):
        yaml.safe_load(block)
    for block in _listings("python", text):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "nucsam_monai":
                module = importlib.import_module(str(node.module))
                assert not [name.name for name in node.names if not hasattr(module, name.name)], node.module


def _listings(language: str, text: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def _of_nucsam(arguments: list[str]) -> list[str]:
    """Return the command that a call of ``nucsam`` stands for, with files in place of the weights it names."""
    for option, value in pairwise(arguments):
        if option == "--weights" and "/" in value and not Path(value).exists():
            Path(value).parent.mkdir(parents=True, exist_ok=True)
            Path(value).touch()
    if "--help" in arguments:
        return ["-m", "answered"]
    return command_of(arguments) or ["-m", "answered"]


def _problem(words: Sequence[str]) -> str | None:
    """Return what is wrong with a command; None if nothing is."""
    if "monai.bundle" in words:
        rest = words[words.index("monai.bundle") + 1 :]
        return _problem_of_bundle(rest[1:]) if rest[:1] == ["run"] else None
    if words[0] in ("python", "bash") and len(words) > 1 and not words[1].startswith("-"):
        return _problem_of_script(words[1], words[2:])
    if words[0] in (*OTHERS, "python", "torchrun", "bash"):
        return None
    return "an unknown program"


def _problem_of_bundle(words: Sequence[str]) -> str | None:
    options = dict(zip(words, [*words[1:], ""], strict=True))
    named = options["--config_file"]
    files = re.findall(r"[^'\"\[\], ]+", named)
    missing = [file for file in files if not Path(file).is_file()]
    if missing:
        return f"no {missing[0]}"
    known: set[str] = set()
    for file in files:
        known |= {key.partition("#")[0] for key in json.loads(Path(file).read_text(encoding="utf-8"))}
    keys = [word.removeprefix("--").partition("#")[0] for word in words if word.startswith("--")]
    keys += [word for word in words[:1] if not word.startswith("--")]
    unknown = [key for key in keys if key not in {*known, "config_file", "args_file"}]
    return f"no key {unknown[0]}" if unknown else None


def _problem_of_script(script: str, words: Sequence[str]) -> str | None:
    if _PLACEHOLDER.search(script):
        return None
    if not Path(script).is_file():
        return f"no {script}"
    unknown = [
        word
        for word in words
        if word.startswith("--") and not _has_option(script, word[2:].partition("=")[0])
    ]
    return f"no option {unknown[0]}" if unknown else None


@cache
def _sources(script: str) -> str:
    """Return the text of a script and of the modules that its options may come from."""
    files = [REPOSITORY / script, *(REPOSITORY / "nucsam_monai" / "data" / "converters").glob("*.py")]
    files += (REPOSITORY / "scripts").glob("*/*.py")
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def _has_option(script: str, option: str) -> bool:
    if option == "help" or "**settings" in (REPOSITORY / script).read_text(encoding="utf-8"):
        return True
    return re.search(rf"\b{re.escape(option)}\b", _sources(script)) is not None
