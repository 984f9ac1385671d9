"""Hooks of MkDocs: the site's pages are the repository's Markdown, with links that work in both places.

A link that leaves ``docs/`` brings the file into the site: Markdown as a page, any other text as a listing.
``README.md`` is the site's home, a notebook is a page with its outputs, and every subpackage has a page of its public
names. A link to a file that is missing stays as it is, so that MkDocs warns of it.
"""

import base64
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
_HOME = "README.md"
_FENCED = re.compile(r"(^ *```.*?^ *```$)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?")
_UNSEARCHED = "---\nsearch:\n  exclude: true\n---\n\n"
_INLINE_CODE = re.compile(r"(?<=<code>)[^<]+(?=</code>)")
_UNBROKEN = r'<span class="unbroken">\g<0></span>'
_OPTION = re.compile(r"(?<![\w-])--[\w#]+")
_CELL = re.compile(r"<td[^>]*>.*?</td>")
_INTERVAL = re.compile(r"[\[(]-?[\d.]+(?:, | to )-?[\d.]+[\])]|[\d.]+ / [\d.]+|[\d.,]+ (?:ms|[MG]i?B|s|px)\b")
_PICTURE = re.compile(r'<img [^>]*src="(?!https?:)([^"]+)"[^>]*>')
_NOT_FOUND = (
    "<h1>Page not found</h1><p>The address is misspelt, or the page was renamed. Use the search, or go to "
    '<a href="/index.html">Home</a>.</p>'
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the home page, the notebooks and every file of the repository that a page links to."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        _add_notebook(file, files, config)
    for init in sorted((ROOT / "nucsam_monai").glob("*/__init__.py")):
        files.append(_reference(init.parent, config))
    left = [_HOME] + [f"docs/{file.src_uri}" for file in files if file.src_uri.endswith(".md")]
    while left:
        path = left.pop()
        if files.get_file_from_path(_in_site(path)) is None:
            files.append(File.generated(config, _in_site(path), content=_page_of(path)))
        if path.endswith(".md"):
            text = files.get_file_from_path(_in_site(path)).content_string
            targets = {
                _target(path, match[1]) for part in _outside_fences(text) for match in _LINK.finditer(part)
            }
            left += [
                name
                for name in targets
                if files.get_file_from_path(_in_site(name)) is None and _is_text(name)
            ]
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let the links of a page lead to the pages of the site."""
    source = _in_repository(page.file.src_uri)

    def rewritten(match: re.Match[str]) -> str:
        place = _in_site(_target(source, match[1]))
        known = files.get_file_from_path(place) is not None
        return (
            os.path.relpath(place, Path(page.file.src_uri).parent) + (match[2] or "") if known else match[0]
        )

    return _replace_outside_fences(markdown, lambda text: _LINK.sub(rewritten, text))


def on_page_content(html: str, *, page: Page, **_: Any) -> str:
    """Keep options and intervals on one line, and open a picture in full size on a click."""
    if page.is_homepage:
        page.meta["hide"] = ["navigation"]  # its only entry would be the page itself
    html = _INLINE_CODE.sub(lambda code: _OPTION.sub(_UNBROKEN, code[0]), html)
    html = _CELL.sub(lambda cell: _INTERVAL.sub(_UNBROKEN, cell[0]), html)
    return _PICTURE.sub(r'<a href="\1">\g<0></a>', html)


def on_post_template(output_content: str, *, template_name: str, **_: Any) -> str:
    """Say on the page for missing pages what to do."""
    if template_name != "404.html":
        return output_content
    return re.sub(r"<h1>404[^<]*</h1>", _NOT_FOUND, output_content)


def _in_site(path: str) -> str:
    """Return where a file of the repository is in the site."""
    if path == _HOME:
        return "index.md"
    if path.startswith("docs/"):
        return re.sub(r"\.ipynb$", ".md", path.removeprefix("docs/"))
    return f"repository/{path}" if path.endswith(".md") else f"repository/{path}.md"


def _in_repository(place: str) -> str:
    """Return which file of the repository a page of the site shows."""
    if place == "index.md":
        return _HOME
    if not place.startswith("repository/"):
        return f"docs/{place}"
    path = place.removeprefix("repository/")
    return path if (ROOT / path).is_file() else path.removesuffix(".md")


def _target(source: str, link: str) -> str:
    """Return the file of the repository that a link in another one means."""
    return Path(os.path.normpath(Path(source).parent / link)).as_posix()


def _is_text(path: str) -> bool:
    file = ROOT / path
    if path.startswith("..") or not file.is_file():
        return False
    return b"\0" not in file.read_bytes()[:1024]


def _page_of(path: str) -> str:
    """Return the Markdown that shows a file of the repository."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".md"):
        return text
    language = Path(path).suffix.removeprefix(".") or "text"
    return f"{_UNSEARCHED}# {Path(path).name}\n\n`{path}`\n\n````{language}\n{text.rstrip()}\n````\n"


def _reference(package: Path, config: MkDocsConfig) -> File:
    """Return the page of a subpackage's public names; of all its modules where it re-exports none."""
    name = f"nucsam_monai.{package.name}"
    modules = {file.stem for file in package.glob("[!_]*.py")}
    public = re.findall(
        r'^    "(\w+)",$', (package / "__init__.py").read_text(encoding="utf-8"), re.MULTILINE
    )
    if public:
        parts = [f"::: {name}\n    options: {{heading_level: 1, show_root_full_path: true}}\n"]
        parts += [
            f"::: {name}.{same}.{same}" for same in public if same in modules
        ]  # griffe takes it for the module
    else:
        parts = [f"# {name}", *(f"::: {name}.{module}" for module in sorted(modules))]
    return File.generated(config, f"reference/{package.name}.md", content="\n\n".join(parts))


def _add_notebook(file: File, files: Files, config: MkDocsConfig) -> None:
    """Add the page of a notebook, with its pictures next to it."""
    name = Path(file.src_uri)
    parts = []
    for number, cell in enumerate(nbformat.reads(file.content_string, as_version=4).cells):
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for order, output in enumerate(cell.outputs):
            data = output.get("data", {})
            kind = next((kind for kind in ("jpeg", "png") if f"image/{kind}" in data), None)
            if kind:
                picture = f"{name.stem}_{number}_{order}.{kind}"
                content = base64.b64decode(data[f"image/{kind}"])
                files.append(File.generated(config, str(name.parent / picture), content=content))
                parts.append(f"![what the cell above shows]({picture})")
            else:
                text = output.get("text") or data.get("text/plain", "")
                parts.append(f"```text\n{text.rstrip()}\n```")
    parts.append(f'<a href="{name.name}" download>Download this notebook</a>')
    files.append(File.generated(config, str(name.with_suffix(".md")), content="\n\n".join(parts)))


def _outside_fences(text: str) -> list[str]:
    return _FENCED.split(text)[::2]


def _replace_outside_fences(text: str, replace: Callable[[str], str]) -> str:
    parts: list[Any] = _FENCED.split(text)
    parts[::2] = [replace(part) for part in parts[::2]]
    return "".join(parts)
