"""The documentation site builds without a warning, its links lead somewhere, and it loads nothing from elsewhere."""

import html
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

from scripts.draw_methods import FIGURES, svg_of
from tests.bundles.runs import BUNDLES, REPOSITORY

DOCS = REPOSITORY / "docs"
_ELSEWHERE = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?(?:https?:)?//|"
    r"<link\b(?![^>]*\brel=\"?canonical)[^>]*\bhref=\"?(?:https?:)?//|url\([\"']?(?:https?:)?//|@import"
)
_LINKED = re.compile(r"<[a-z]+\b[^>]*?\s(?:href|src)=(?:\"([^\"]*)\"|([^\s\">]+))")
_ID = re.compile(r"\s(?:id|name)=(?:\"([^\"]*)\"|([^\s\">]+))")
_MARKDOWN_LINK = re.compile(r"\]\((?![a-z]+:|#)([^)\s#]+)")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    for name in ("material", "mkdocstrings", "nbformat"):
        pytest.importorskip(name, reason='pip install -e ".[docs]"')
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_link_of_the_site_leads_to_a_page_and_a_place_on_it(site: Path) -> None:
    texts = {
        path: path.read_text(encoding="utf-8") for path in site.rglob("*.html") if path.name != "404.html"
    }
    places = {path: {a or b for a, b in _ID.findall(text)} for path, text in texts.items()}
    broken = []
    for path, text in texts.items():
        for link in {html.unescape(a or b) for a, b in _LINKED.findall(text)}:
            if re.match(r"[a-z]+:|//", link):
                continue
            name, anchor = urldefrag(link)
            target = (path.parent / unquote(name)).resolve() if name else path
            target = target / "index.html" if target.is_dir() else target
            known = places.get(target)
            if not target.is_file() or (anchor and known is not None and unquote(anchor) not in known):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert len(texts) > 50
    assert not broken


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    files = [path for path in site.rglob("*") if path.suffix in (".html", ".css")]
    found = {
        path.name: match[0]
        for path in files
        if (match := _ELSEWHERE.search(path.read_text(encoding="utf-8")))
    }
    assert not found


def test_every_public_name_has_a_place_in_the_reference(site: Path) -> None:
    for init in (REPOSITORY / "nucsam_monai").glob("*/__init__.py"):
        names = re.findall(r'^    "(\w*[a-z]\w*)",$', init.read_text(encoding="utf-8"), re.MULTILINE)
        page = (site / "reference" / f"{init.parent.name}.html").read_text(encoding="utf-8")
        missing = [name for name in names if not re.search(rf"id=\"?nucsam_monai[\w.]*\.{name}[\"\s>]", page)]
        assert not missing, f"{init.parent.name}: names without a docstring are left out"


@pytest.mark.parametrize(
    "page",
    sorted(
        path.relative_to(REPOSITORY).as_posix()
        for pattern in ("*.md", "docs/**/*.md", "bundles/*/docs/*.md", "tests/**/*.md")
        for path in REPOSITORY.glob(pattern)
    ),
)
def test_every_relative_link_of_a_page_leads_to_a_file_of_the_repository(page: str) -> None:
    path = REPOSITORY / page
    text = re.sub(r"^ *```.*?^ *```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert not [link for link in _MARKDOWN_LINK.findall(text) if not (path.parent / link).exists()]


def test_every_page_of_the_documentation_is_in_the_navigation() -> None:
    navigation = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [path.relative_to(DOCS) for path in [*DOCS.rglob("*.md"), *DOCS.rglob("*.ipynb")]]
    assert not [page for page in pages if f" {page.with_suffix('.md').as_posix()}\n" not in navigation]


def test_every_method_has_a_page_with_its_figure_as_drawn() -> None:
    methods = {path.parents[1].name for path in BUNDLES.glob("*/configs/metadata.json")}
    assert set(FIGURES) == methods
    for name, figure in FIGURES.items():
        assert f"(../figures/{name}.svg)" in (DOCS / "methods" / f"{name}.md").read_text(encoding="utf-8")
        drawn = (DOCS / "figures" / f"{name}.svg").read_text(encoding="utf-8")
        assert drawn == svg_of(figure), "run: python scripts/draw_methods.py"
