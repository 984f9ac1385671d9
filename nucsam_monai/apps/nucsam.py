"""Segment nuclei in images and slides; train, evaluate and view.

Each command has its own help, for example: nucsam segment --help. With
--show_command a command only prints the full command that it stands for.

Examples:
    nucsam models
    nucsam segment images output/segmented --weights he
    nucsam view output/segmented --images images
    nucsam slides run unsam slides output/slides
    nucsam train unsam compact --dataset_dir data --output_dir output/mine
    nucsam evaluate unsam --weights he --dataset_dir data
    nucsam evaluate --dataset data/mine --predictions my/predictions
    nucsam datasets list
"""

# Arguments are read by argparse, because Fire would turn a folder called ``2024`` into a number.

import argparse
import json
import os
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nucsam_monai.utils.errors import ConfigurationError, NucSAMError
from nucsam_monai.utils.paths import bundle_root, bundles, find_weights, scripts_folder, trained_weights

_SCRIPTS = {
    "slides": ("segment_slides.py", "segment whole slides, and show the progress"),
    "datasets": ("prepare_dataset.py", "list, download, convert and validate datasets"),
    "experiment": ("run_experiment.py", "reproduce a table of a paper: train, evaluate, report"),
    "export": ("export_monaibundle.py", "copy a bundle and its weights for MONAI Label's own app"),
}
_PACKAGES = {
    "experiment": (("joblib", "matplotlib"), "pip install 'nucsam-monai[train]'"),
    "label": (("monailabel",), "bash scripts/install_label.sh, in a checkout of the project"),
}
"""Packages that a command can't start without, and what installs them."""
_SERVERS = {
    "view": ("viewer", "view the results in a browser"),
    "mlflow": ("mlflow_server", "view the recorded trainings and evaluations in a browser"),
}
_BUNDLE_HELP = "name of a bundle; 'nucsam models' lists them"
_WEIGHTS_HELP = (
    "short name such as he, or path of a weights file (default: the pretrained weights of the bundle, "
    "else those that 'nucsam train' wrote to output/<bundle>)"
)
_OF_TOOLS = "evaluate_predictions.py"
_FORM = argparse.RawDescriptionHelpFormatter


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 2 for a wrong call, else that of the command behind it."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    shown = "--show_command" in given
    given = [argument for argument in given if argument != "--show_command"]
    try:
        command = command_of(given)
        if not shown and not {"-h", "--help"} & set(given):
            _require_packages(*given[:1])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, for example head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except NucSAMError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    if not command:
        return 0
    if shown:
        sys.stdout.write(shlex.join(["python", *command]) + "\n")
        return 0
    if os.name == "posix":  # signals reach the command itself
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *command])  # noqa: S606
    return subprocess.run([sys.executable, *command], check=False).returncode  # noqa: S603


def command_of(given: Sequence[str]) -> list[str]:
    """Return the arguments of Python that a call of ``nucsam`` stands for; none if it is answered already.

    Raises:
        ConfigurationError: there is no such bundle or configuration.
        CheckpointError: there are no such weights.
        SystemExit: the help was asked for, or the call is wrong.
    """
    name = given[0] if given else ""
    if name in _SCRIPTS:
        return [_script(_SCRIPTS[name][0]), *given[1:]]
    if name == "evaluate" and any(option.partition("=")[0] == "--predictions" for option in given):
        return [_script(_OF_TOOLS), *given[1:]]
    if name in _SERVERS:
        return ["-m", f"nucsam_monai.apps.{_SERVERS[name][0]}", *given[1:]]
    arguments, further = _parser().parse_known_args(given)
    if further and not arguments.takes_keys:
        _parser().error(f"unknown argument {further[0]}")
    build: Callable[[argparse.Namespace], list[str]] = arguments.build
    return [*build(arguments), *further] if arguments.takes_keys else build(arguments)


def _add_command(
    commands: Any, name: str, text: str, example: str, build: Callable, *, takes_keys: bool = False
) -> Callable:
    """Add a command and return the function that adds its options."""
    keys = (
        "\nEvery key of the bundle's configuration is an option too, as in --tta True." if takes_keys else ""
    )
    command = commands.add_parser(
        name,
        help=text,
        description=f"{textwrap.fill(f'{text[0].upper()}{text[1:]}.', 79)}{keys}",
        epilog=f"example:\n  {example}",
        formatter_class=_FORM,
        allow_abbrev=False,
    )
    command.set_defaults(build=build, takes_keys=takes_keys)
    return command.add_argument


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("nucsam", description=__doc__, formatter_class=_FORM)
    commands = parser.add_subparsers(required=True, metavar="command")

    add = partial(_add_command, commands)
    option = add(
        "segment",
        "segment the nuclei of an image or of a folder of images",
        "nucsam segment images output/segmented --weights he --threshold 0.6",
        _segment,
        takes_keys=True,
    )
    option("input", help="image, or folder of images")
    output_help = "folder for the results (default: %(default)s)"
    option("output_dir", nargs="?", default="output/segmented", help=output_help)
    option("--bundle", default="unsam", help=f"{_BUNDLE_HELP} (default: %(default)s)")
    option("--weights", help=_WEIGHTS_HELP)
    option = add(
        "train",
        "train a bundle on the demo images, or on your own with --dataset_dir",
        "nucsam train unsam compact --dataset_dir data --output_dir mine --epochs 40",
        _train,
        takes_keys=True,
    )
    option("bundle", help=_BUNDLE_HELP)
    option("overlays", nargs="*", help="configurations to apply after train.json, such as compact or paper")
    option("--output_dir", help="folder for the weights (default: output/<bundle>)")
    option = add(
        "evaluate",
        "measure a bundle on a dataset, or any other tool with --predictions",
        "nucsam evaluate unsam --weights he --dataset_dir data/monuseg",
        _evaluate,
        takes_keys=True,
    )
    option("bundle", help=_BUNDLE_HELP)
    option("overlays", nargs="*", help="configurations of the training, or a test such as zero_shot of sac")
    option("--weights", help=_WEIGHTS_HELP)
    option("--output_dir", help="folder for the tables (default: output/<bundle>_evaluated)")
    option = add(
        "label",
        "serve bundles to clients of MONAI Label, such as QuPath and 3D Slicer, on this machine",
        "nucsam label images --models unsam,promptnucseg",
        _label,
    )
    option("studies", help="folder of images")
    option(
        "--models", default="unsam,promptnucseg", help="bundles, separated by commas (default: %(default)s)"
    )
    option("--port", default="8000", help="port of the server (default: %(default)s)")
    option("--settings", help="JSON file with options of the bundles, such as their weights")
    add("models", "list the bundles and their pretrained weights", "nucsam models", _models)
    for name, (_, text) in {**_SERVERS, **_SCRIPTS}.items():
        commands.add_parser(name, help=text, add_help=False)
    return parser


def _segment(arguments: argparse.Namespace) -> list[str]:
    weights = _weights(arguments)
    places = ["--input", arguments.input, "--output_dir", arguments.output_dir]
    return [*_bundle_run(arguments.bundle, ["inference"]), *places, *weights]


def _train(arguments: argparse.Namespace) -> list[str]:
    output = ["--output_dir", arguments.output_dir or f"output/{arguments.bundle}"]
    return [*_bundle_run(arguments.bundle, ["train", *arguments.overlays], "training"), *output]


def _evaluate(arguments: argparse.Namespace) -> list[str]:
    if not arguments.overlays:
        _add_pretrained_overlays(arguments)
    of_test = [name for name in arguments.overlays if _is_of_test(arguments.bundle, name)]
    names = ["train", *(name for name in arguments.overlays if name not in of_test), "evaluate", *of_test]
    output = ["--output_dir", arguments.output_dir or f"output/{arguments.bundle}_evaluated"]
    weights = [] if of_test and arguments.weights is None else _weights(arguments)
    return [*_bundle_run(arguments.bundle, names, "evaluating"), *output, *weights]


def _add_pretrained_overlays(arguments: argparse.Namespace) -> None:
    """Add the configurations that pretrained weights were trained with, if their evaluation needs them."""
    folder = Path(bundle_root(arguments.bundle))
    default = folder / "models" / "compact.safetensors"
    weights = default if arguments.weights is None else find_weights(folder, arguments.weights)
    if weights.resolve().parent == default.parent.resolve() and weights.is_file():
        metadata = json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))
        overlays = metadata["shipped_weights"][weights.name].get("overlays", [])
        if overlays:
            arguments.overlays, arguments.weights = overlays, str(weights)


def _label(arguments: argparse.Namespace) -> list[str]:
    conf = ["--conf", "models", arguments.models]
    conf += ["--conf", "settings", arguments.settings] if arguments.settings else []
    app = Path(__file__).parent / "monailabel"
    place = ["--studies", arguments.studies, "--host", "127.0.0.1", "--port", arguments.port]
    return ["-m", "monailabel.main", "start_server", "--app", str(app), *place, *conf]


def _models(arguments: argparse.Namespace) -> list[str]:
    for folder in bundles():
        metadata = json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))
        sys.stdout.write(f"{folder.name:<14}{metadata['task']}\n")
        for file in sorted((folder / "models").glob("*.safetensors")):
            name = file.stem.removeprefix("compact").removeprefix("_") or "(default)"
            facts = metadata["shipped_weights"][file.name]
            sys.stdout.write(f"{'':<14}  {name}: {facts['trained_on']}; {facts['licence']}\n")
    return []


def _is_of_test(bundle: str, name: str) -> bool:
    """Return whether a configuration belongs to a test without training: it sets ``protocol``, a key of evaluations."""
    file = Path(bundle_root(bundle)) / "configs" / f"{name}.json"
    return file.is_file() and "protocol" in json.loads(file.read_text(encoding="utf-8"))


def _bundle_run(bundle: str, names: Sequence[str], run: str = "run") -> list[str]:
    """Return the arguments that run a key of a bundle's configurations.

    Raises:
        ConfigurationError: a configuration is missing.
    """
    folder = Path(bundle_root(bundle)) / "configs"
    files = [folder / f"{name}.json" for name in names]
    for file in files:
        if not file.is_file():
            known = sorted(other.stem for other in folder.glob("*.json") if other.stem != "metadata")
            raise ConfigurationError(
                f"{bundle}: found no configuration '{file.stem}'. Expected one of {', '.join(known)}."
            )
    paths = [_short(file) for file in files]
    return [
        "-m",
        "monai.bundle",
        "run",
        run,
        "--config_file",
        # Fire, which reads this option, ends a text at #, but not in a list.
        paths[0] if len(paths) == 1 and "#" not in paths[0] else json.dumps(paths),
    ]


def _weights(arguments: argparse.Namespace) -> list[str]:
    """Return the weights that are named; without a name those that ``nucsam train`` wrote, if none ship."""
    folder = Path(bundle_root(arguments.bundle))
    if arguments.weights is not None:
        return ["--checkpoint", _short(find_weights(folder, arguments.weights))]
    trained = trained_weights(Path(f"output/{arguments.bundle}"))
    if trained is None or any((folder / "models").glob("*.safetensors")):
        return []
    return ["--checkpoint", str(trained)]


def _require_packages(command: str = "") -> None:
    """Refuse a command whose packages are not installed.

    Raises:
        ConfigurationError: a package is missing.
    """
    packages, remedy = _PACKAGES.get(command, ((), ""))
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise ConfigurationError(
            f"nucsam {command}: {' and '.join(missing)} {verb} not installed. Run: {remedy}."
        )


def _script(name: str) -> str:
    return _short(scripts_folder() / name)


def _short(path: Path) -> str:
    """Return a path relative to the working folder if it lies in it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


if __name__ == "__main__":
    sys.exit(main())
