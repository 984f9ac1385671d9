"""Read what the server was started with: ``--conf`` options, a settings file and the environment."""

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nucsam_monai.segmenter import Scalar, check_settings, read_inference_config
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.paths import bundle_root, project_root

TOKEN_VARIABLE = "NUCSAM_LABEL_TOKEN"  # noqa: S105 - the name of a variable
_KNOWN = (
    "models",
    "bundle_dir",
    "settings",
    "runs_dir",
    "origins",
    "max_upload_mb",
    "max_megapixels",
    "window_px",
    "overlap_px",
    "tracking_uri",
    "server_mode",
)


@dataclass(frozen=True)
class AppSettings:
    """Hold the settings of the application.

    Attributes:
        bundles: ``{name: folder}``.
        bundle_settings: ``{name: {key: value}}``, values of the bundles' configurations.
        runs_dir: folder for fine-tuned weights, with one subfolder per bundle.
        token: secret that other machines must send.
        chosen_token: whether the user chose it.
        origins: pages that may send requests besides those of this machine.
        max_upload_bytes: largest body of a request.
        max_pixels: largest plain image.
        window_px: larger regions are segmented as slides are, in parts of about this side.
        overlap_px: size of the largest nucleus that such a part sees whole.
        tracking_uri: MLflow store; None takes the bundles' default.
    """

    bundles: Mapping[str, Path]
    bundle_settings: Mapping[str, Mapping[str, Scalar]] = field(default_factory=dict)
    runs_dir: Path = Path("output/label")
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    chosen_token: bool = False
    origins: frozenset[str] = frozenset()
    max_upload_bytes: int = 512 << 20
    max_pixels: int = 1 << 28
    window_px: int = 2048
    overlap_px: int = 128
    tracking_uri: str | None = None


def read_settings(conf: Mapping[str, str], environment: Mapping[str, str] = os.environ) -> AppSettings:
    """Read the settings.

    ================  ==============================================================================
    ``models``        names of bundles, with commas between them
    ``bundle_dir``    a folder of bundles, looked into first; else as ``nucsam_monai.bundle_root``
    ``settings``      a JSON file ``{bundle: {key: value}}``, such as ``checkpoint`` or ``sam_variant``
    ``runs_dir``      for fine-tuned weights, ``output/label`` in the project's folder by default
    ``origins``       web pages that may send requests, with commas between them
    ``max_upload_mb``, ``max_megapixels``, ``window_px``, ``overlap_px``, ``tracking_uri``
    ================  ==============================================================================

    Args:
        conf: the ``--conf`` options.
        environment: ``NUCSAM_LABEL_TOKEN`` is the token; without it a random one is made.

    Raises:
        ConfigurationError: an option is unknown or has a wrong value, or a bundle is not found.
    """
    if unknown := sorted(set(conf) - set(_KNOWN)):
        raise ConfigurationError(f"--conf {unknown[0]}: unknown; expected one of {', '.join(_KNOWN)}.")
    names = [name.strip() for name in conf.get("models", "").split(",") if name.strip()]
    if not names:
        raise ConfigurationError(
            "--conf models: name at least one bundle, as in '--conf models unsam,promptnucseg'."
        )
    bundles = {name: find_bundle(name, conf.get("bundle_dir")) for name in names}
    token = environment.get(TOKEN_VARIABLE, "")
    if token and len(token) < 16:
        raise ConfigurationError(f"{TOKEN_VARIABLE}: expected at least 16 characters, found {len(token)}.")
    defaults = AppSettings(bundles)
    return AppSettings(
        bundles,
        bundle_settings=_bundle_settings(conf.get("settings"), bundles),
        runs_dir=Path(conf.get("runs_dir") or project_root() / defaults.runs_dir).absolute(),
        token=token or defaults.token,
        chosen_token=bool(token),
        origins=frozenset(one.strip() for one in conf.get("origins", "").split(",") if one.strip()),
        max_upload_bytes=_number(conf, "max_upload_mb", defaults.max_upload_bytes >> 20, 1) << 20,
        max_pixels=_number(conf, "max_megapixels", defaults.max_pixels >> 20, 1) << 20,
        window_px=_number(conf, "window_px", defaults.window_px, 64),
        overlap_px=_number(conf, "overlap_px", defaults.overlap_px, 0),
        tracking_uri=conf.get("tracking_uri"),
    )


def find_bundle(name: str, bundle_dir: str | None = None) -> Path:
    """Return the folder of a bundle: no network, no copy and no link is needed.

    Raises:
        ConfigurationError: there is none.
    """
    if Path(name).name != name or name.startswith("."):
        raise ConfigurationError(f"--conf models: '{name}' is not the name of a bundle.")
    if bundle_dir and (Path(bundle_dir) / name / "configs" / "inference.json").is_file():
        return (Path(bundle_dir) / name).resolve()
    return Path(bundle_root(name))


def _bundle_settings(file: str | None, bundles: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    if not file:
        return {}
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"--conf settings {file}: cannot be read as JSON ({error}).") from error
    if not isinstance(content, dict) or not all(isinstance(values, dict) for values in content.values()):
        raise ConfigurationError(f"--conf settings {file}: expected {{bundle: {{key: value}}}}.")
    if unknown := sorted(set(content) - set(bundles)):
        raise ConfigurationError(
            f"--conf settings {file}: '{unknown[0]}' is not served; --conf models has {', '.join(bundles)}."
        )
    for name, values in content.items():
        check_settings(values, read_inference_config(bundles[name]), f"{file}, {name}")
    return content


def _number(conf: Mapping[str, str], name: str, default: int, least: int) -> int:
    text = conf.get(name)
    if text is None:
        return default
    if not str(text).isdigit() or int(text) < least:
        raise ConfigurationError(f"--conf {name} {text}: expected a whole number of at least {least}.")
    return int(text)
