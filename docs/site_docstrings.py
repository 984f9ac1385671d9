"""An extension of griffe, which reads the docstrings for the site: it puts their marks into Markdown."""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|data|attr|mod|exc):`(~?)([\w.]+)`")
_EXAMPLE = re.compile(r"^( *)Example:$", re.MULTILINE)
_COMMANDS = re.compile(r"^( *)Examples:\n((?:\1    (?!>>>).+\n?)+)", re.MULTILINE)
_LITERAL = re.compile(r"::$", re.MULTILINE)


class Markdown(griffe.Extension):
    """Make references links, where their target is in the site, and examples code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring:
            text = _EXAMPLE.sub(r"\1Examples:", obj.docstring.value)
            text = _COMMANDS.sub(r"\1Examples:\n\1    ```bash\n\2\n\1    ```\n", text)
            obj.docstring.value = _ROLE.sub(_link, _LITERAL.sub(":", text))


def _link(match: re.Match[str]) -> str:
    shown = match[2].rpartition(".")[2] if match[1] else match[2]
    return f'<autoref optional identifier="{match[2]}"><code>{shown}</code></autoref>'
