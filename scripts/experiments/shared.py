"""What experiments share: the systems that papers compare with, and the methods, datasets and forms of a paper."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from nucsam_monai.utils.errors import ConfigurationError

SYSTEMS_FILE = Path(__file__).parent / "systems.yaml"

_PROMPTS = re.compile(r", (points|(\d+ auto, )?\d+ expert)$")


@dataclass(frozen=True)
class ComparedSystem:
    """A system of the papers' tables.

    Attributes:
        name: as rows of our tables call it.
        source: the paper that describes it.
        code: what runs here is made of, and its licence.
        printed_as: other names that papers print for it.
        method: what a row of a table needs to run it, as in an experiment's ``methods``; empty where it is not here.
        reason: why it is not here.
    """

    name: str
    source: str
    code: str = ""
    printed_as: tuple[str, ...] = ()
    method: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""

    @property
    def runs(self) -> bool:
        """Whether it is here."""
        return bool(self.method)

    @property
    def command(self) -> str:
        """The command that trains it, or tests it where it is not trained."""
        trained = self.method.get("train", True)
        settings = {} if trained else {"sam_variant": "vit_b", "sam_checkpoint": "sam_vit_b_01ec64.pth"}
        settings |= {**self.method.get("settings", {}), **self.method.get("test_settings", {})}
        overlays = [*self.method.get("overlays", []), *self.method.get("test_overlays", [])]
        verb = "train" if trained else "evaluate"
        options = (f"--{key} {_text(value)}" for key, value in settings.items())
        return " ".join([f"nucsam {verb}", self.method["bundle"], *overlays, *options])


def _text(value: Any) -> str:
    return {"true": "True", "false": "False"}.get(str(value).lower(), str(value))


@lru_cache(maxsize=4)
def compared_systems(file: Path = SYSTEMS_FILE) -> Mapping[str, ComparedSystem]:
    """Return all systems of the list by name.

    Raises:
        ConfigurationError: an entry runs and has a reason why it does not, or neither.
    """
    systems = {}
    for name, entry in yaml.safe_load(file.read_text(encoding="utf-8")).items():
        system = ComparedSystem(name=name, **{**entry, "printed_as": tuple(entry.get("printed_as", ()))})
        if system.runs == bool(system.reason):
            raise ConfigurationError(f"{file}: system '{name}': expected either 'method' or 'reason'.")
        systems[name] = system
    return systems


def system_printed_as(name: str) -> ComparedSystem | None:
    """Return the system of a row of a printed table; None for the paper's own method and its variants."""
    plain = _PROMPTS.sub("", name)
    for system in compared_systems().values():
        if plain in (system.name, *system.printed_as):
            return system
    return None


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return both objects as one: objects inside are merged, of everything else the later one counts."""
    merged = dict(under)
    for key, value in over.items():
        before = merged.get(key)
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(before, value) if both else value  # type: ignore[arg-type]
    return merged


def with_shared(document: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    """Complete an experiment by what it shares with others and by the list of systems.

    Args:
        document: the experiment. An entry of ``methods`` that is a text, or an object without ``bundle``, takes the
            method of its name, or that which ``method`` or ``system`` names.
        shared: ``methods`` and ``datasets`` by name, and what lies under the forms of the same name.
    """
    completed = {**document}
    names: set[str] = set()
    if isinstance(document.get("methods"), list):
        completed["methods"] = [_method(entry, shared.get("methods", {})) for entry in document["methods"]]
        names = {str(entry.get("name")) for entry in completed["methods"] if isinstance(entry, Mapping)}
    if isinstance(document.get("forms"), Mapping):
        under = shared.get("forms", {})
        completed["forms"] = {
            name: _form(form or {}, under.get(name, {}), shared.get("datasets", {}), names)
            for name, form in document["forms"].items()
        }
    return completed


def _form(
    form: Mapping[str, Any], under: Mapping[str, Any], datasets: Mapping[str, Any], names: set[str]
) -> dict[str, Any]:
    """Return a form over the shared one, of whose changes of methods those of this experiment count."""
    changes = {name: change for name, change in under.get("methods", {}).items() if name in names}
    merged = merge({**under, "methods": changes}, form)
    if isinstance(merged.get("datasets"), list):
        merged["datasets"] = [_named(entry, datasets) for entry in merged["datasets"]]
    return merged


def _method(entry: Any, shared: Mapping[str, Any]) -> Any:
    entry = {"name": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, Mapping) or "bundle" in entry:
        return entry
    entry = {**entry}
    entry = merge(shared.get(str(entry.pop("method", entry.get("name"))), {}), entry)
    system = compared_systems().get(str(entry.pop("system", entry.get("name"))))
    return entry if system is None or "bundle" in entry else merge(system.method, entry)


def _named(entry: Any, known: Mapping[str, Any]) -> Any:
    return known.get(entry, entry) if isinstance(entry, str) else entry
