"""Inspect a bundle's configuration while it is read: its parser, unknown keys and settings."""

import inspect
import json
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from pydoc import locate
from typing import Any

from monai.bundle import ConfigExpression, ConfigItem, ConfigParser

from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.files import sha256_of_file

_REFERENCE = re.compile(r"[@%](\w+(?:(?:#|::)\w+)*)")
_OF_MONAI = ("_meta_", "imports", "initialize", "run", "finalize", "save_execute_config", "run_name")
_NEVER_RECORDED = ("tracking_uri", "imports", "_meta_")  # an address may hold a password

NETWORK_KEYS = ("network_def", "network")
"""The keys of ``inference.json`` that hold the network: as it was built, and on its device."""

_PATH_KEY = re.compile(
    r"(\w+_)?(dir|root|path|checkpoint|start|weights|cache)"
    r"|input|points|mask|region|outputs|scheduler|tracking_uri|experiment_name|(unseen_)?domain"
)
_OPTION = re.compile(r"--?([A-Za-z][\w-]*)(?:=(.*))?", re.DOTALL)


def restore_paths(arguments: Sequence[str] | None = None, parser: ConfigParser | None = None) -> None:
    """Restore paths and names of the command line in the configuration as they were typed.

    ``monai.bundle`` reads ``2024``, ``1e5``, ``a,b``, ``True`` and ``plate #1`` as Python values, ignores ``None`` and
    turns ``#`` into ``::``. This runs while the first line of ``imports`` is evaluated, before anything reads a path.

    Args:
        arguments: arguments of the command. Default: those of this process.
        parser: None takes the one that is evaluating its configuration.
    """
    parser = parser or current_parser()
    if parser is None:
        return
    for name, text in typed_options(sys.argv[1:] if arguments is None else arguments).items():
        if name in parser.get() and _PATH_KEY.fullmatch(name) and text[:1] not in ("$", "@", "%"):
            parser.get()[name] = written = literal(text)
            kind = ConfigExpression if written != text else ConfigItem
            parser.ref_resolver.items[name] = kind(config=written, id=name)


def typed_options(arguments: Sequence[str]) -> dict[str, str]:
    """Return the options of a command line that have a value, as text.

    Example:
        >>> typed_options(["run", "--input", "plate #1", "--seed=3", "--tta", "--lr", "-1"])
        {'input': 'plate #1', 'seed': '3', 'lr': '-1'}
    """
    found = {}
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=True):
        option = _OPTION.fullmatch(argument)
        if option and (option[2] is not None or not re.match("--|-[A-Za-z]", following)):
            found[option[1].replace("-", "_")] = following if option[2] is None else option[2]
    return found


def literal(text: str) -> str:
    r"""Escape a text in which MONAI would see references or keys.

    Example:
        >>> literal("plate 1"), literal("plate #1")
        ('plate 1', "$'plate \\x231'")
    """
    if "#" not in text and text[:1] not in ("$", "@", "%"):
        return text
    return "$" + re.sub("[#@%$]", lambda sign: f"\\x{ord(sign[0]):x}", repr(text))


def current_parser() -> ConfigParser | None:
    """Return the parser that is evaluating the configuration from which the caller is called, if any.

    MONAI does not pass its parser to expressions or components, so it is searched on the call stack.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if isinstance(parser := frame.f_locals.get("self"), ConfigParser):
            return parser
        frame = frame.f_back
    return None


def check_options() -> None:
    """Check the keys of the configuration that is being read, as a step of ``initialize``; see :func:`check_keys`."""
    if (parser := current_parser()) is not None:
        check_keys(parser)


def check_keys(parser: ConfigParser) -> None:
    """Raise for options that nothing reads, for example misspelt ones.

    A key is known if a configuration file of the bundle has it, or has a value that is not a section in its place; if
    the configuration refers to it; or if it is an argument of the component that it belongs to.

    Raises:
        ConfigurationError: a key is unknown; the message names the most similar one.
    """
    config = parser.get()
    files = [set(_paths(file)) for file in _files_in_use(parser)]
    known = {path for paths in files for path in paths}
    if not known:
        return
    references = {name.replace("#", "::") for name in _REFERENCE.findall(json.dumps(config, default=str))}
    references |= {
        "::".join(name.split("::")[:n]) for name in references for n in range(1, name.count("::") + 1)
    }
    whole = {path for paths in files for path in paths - {part.rpartition("::")[0] for part in paths}}
    for path in _paths(config):
        above = ["::".join(path.split("::")[:n]) for n in range(1, path.count("::") + 1)]
        if any(one in whole for one in above):
            continue  # part of a value that an option has, such as a dictionary in place of null or {}
        if _is_workflow(config.get(path)):
            continue
        if path not in known | references and not _is_argument(path, config):
            options = [one for one in known | references if one.count("::") == path.count("::")]
            nearest = get_close_matches(path, sorted(options), n=1, cutoff=0.5)
            hint = f" Did you mean '{nearest[0].replace('::', '#')}'?" if nearest else ""
            raise ConfigurationError(
                f"--{path.replace('::', '#')}: not a key of the configuration, so nothing would read it.{hint}"
            )


def _is_workflow(value: Any) -> bool:
    """Return whether a value is a list of steps or a component, which ``monai.bundle run <key>`` runs."""
    if isinstance(value, Mapping):
        return "_target_" in value
    return isinstance(value, list) and bool(value) and all(str(step).startswith("$") for step in value)


def _files_in_use(parser: ConfigParser) -> list[dict[str, Any]]:
    """Return the contents of the bundle's files, but not of those that have keys which the configuration lacks."""
    if "bundle_root" not in parser:
        return []
    folder = Path(parser.get_parsed_content("bundle_root")) / "configs"
    names = sorted(file for file in folder.glob("*.json") if file.name != "metadata.json")
    own = set(parser.get())
    files = [json.loads(file.read_text()) for file in names]
    return [
        file
        for file in files
        if {key.removeprefix("+").replace("#", "::").split("::")[0] for key in file} <= own
    ]


def _paths(config: Any, start: str = "") -> Iterator[str]:
    """Yield the path of every key outside of lists."""
    if not isinstance(config, Mapping):
        return
    for name, value in config.items():
        key = name.removeprefix("+").replace("#", "::")
        if (start or key not in _OF_MONAI) and key[:1] != "_":
            for end in range(1, key.count("::") + 2):
                yield start + "::".join(key.split("::")[:end])
            yield from _paths(value, f"{start}{key}::")


def _is_argument(path: str, config: Mapping[str, Any]) -> bool:
    """Return whether a path is, or lies in, an argument of a component."""
    parts = path.split("::")
    node: Any = config
    for part in parts:
        if isinstance(node, Mapping) and "_target_" in node:
            found = locate(str(node["_target_"]))
            if not callable(found) or (part == parts[-1] and part in config):
                return True
            parameters = inspect.signature(found).parameters
            return part in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())
        node = node.get(part) if isinstance(node, Mapping) else None
    return False


def recorded_settings(parser: ConfigParser) -> dict[str, Any]:
    """Return those settings of a configuration that have been read so far, by key.

    These are the scalars and lists of scalars at the top level, and the constants among the arguments of components
    outside of lists, nested by their path.
    """
    resolved = parser.ref_resolver.resolved_content
    steps = {str(step).removeprefix("@") for step in parser.get("initialize", [])}
    found: dict[str, Any] = {}
    for key, raw in parser.get().items():
        if key in steps or key in _NEVER_RECORDED or (isinstance(raw, Mapping) and _is_run(raw)):
            continue
        if isinstance(raw, str) and raw[:1] in ("$", "@", "%"):
            if key in resolved and resolved[key] != [] and not isinstance(resolved[key], Mapping):
                found[key] = resolved[key]
        elif isinstance(raw, Mapping):
            found[key] = _constants(raw)
        elif _is_constant(raw):
            found[key] = raw
    return found


def _is_run(component: Mapping[str, Any]) -> bool:
    return str(component.get("_target_")).endswith(".TrackedRun")


def executed_configuration(parser: ConfigParser) -> dict[str, Any]:
    """Return a configuration merged from its files and overrides, without keys that may hold a password."""
    return {key: value for key, value in parser.get().items() if key not in ("tracking_uri", "_meta_")}


def deciding_settings(parser: ConfigParser, apart: Collection[str]) -> dict[str, str]:
    """Return the settings that determine a result, by path; files and datasets are identified by content.

    Args:
        parser: parser of the configuration.
        apart: keys at the top level that do not matter; paths of what the workflow writes are left out as well.
    """
    found: dict[str, str] = {}
    output = str(parser.get_parsed_content("output_dir"))

    def collect(name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, one in value.items():
                collect(f"{name}#{key}", one)
        elif isinstance(value, (str, Path)):
            if not str(value).startswith(output):
                found[name] = _content_of(Path(value)) or str(value)
        elif _is_plain(value) or (isinstance(value, (list, tuple)) and all(map(_is_plain, value))):
            found[name] = str(value)

    for key, value in recorded_settings(parser).items():
        if key not in apart:
            collect(key, value)
    return found


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, bool, int, float))


def _content_of(path: Path) -> str:
    """Return the digest of a file, or of the datasets or weights in a folder; empty if there are none."""
    if not (path.suffix or len(path.parts) > 1):
        return ""  # a word, such as the name of a variant
    files = [path] if path.is_file() else []
    for pattern in ("dataset.json", "*/dataset.json", "*.safetensors"):
        files = files or sorted(path.glob(pattern))
    return " ".join(f"sha256:{sha256_of_file(file)}" for file in files)


def changed_settings(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return ``{key: (old, new)}`` of settings that differ.

    A key that one of them lacks counts only inside of a component that both have: which expressions were read may
    differ, and so may versions, where an expression may have taken the place of a component.
    """
    components = [{key.rpartition("#")[0] for key in settings if "#" in key} for settings in (old, new)]
    in_both = components[0] & components[1]
    return {
        key: (old.get(key, "not given"), new.get(key, "not given"))
        for key in {**old, **new}
        if old.get(key) != new.get(key) and ((key in old and key in new) or key.rpartition("#")[0] in in_both)
    }


def _constants(node: Mapping[str, Any]) -> dict[str, Any]:
    own = {key: value for key, value in node.items() if key[:1] != "_"}
    nested = {key: _constants(value) for key, value in own.items() if isinstance(value, Mapping)}
    return {key: value for key, value in own.items() if _is_constant(value)} | nested


def _is_constant(raw: Any) -> bool:
    if isinstance(raw, list):
        return all(not isinstance(item, list) and _is_constant(item) for item in raw)
    return not isinstance(raw, Mapping) and not (isinstance(raw, str) and raw[:1] in ("$", "@", "%"))


def settings_named(names: Iterable[str]) -> dict[str, Any]:
    """Return values of the configuration that is being read; none outside of one."""
    parser = current_parser()
    return {} if parser is None else {name: parser.get_parsed_content(name) for name in names}


def changed_keys(parser: ConfigParser, file: Path) -> list[str]:
    """Return those keys of a configuration file that have another value in the configuration that is being read.

    Args:
        parser: parser of the configuration.
        file: one of the files that it was read from.
    """
    original = ConfigParser()
    original.read_config(file)
    original.parse()
    config = parser.get()
    own = {key: value for key, value in original.get().items() if key[:1] != "_"}
    return [key for key, value in own.items() if config.get(key, value) != value]
