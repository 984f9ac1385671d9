"""Segment whole slides with the configuration of a bundle."""

from pathlib import Path
from typing import TYPE_CHECKING

from nucsam_monai.engines.configuration import changed_keys, current_parser
from nucsam_monai.utils.errors import ConfigurationError

if TYPE_CHECKING:
    from nucsam_monai.wsi.cluster import MethodSource

_OF_SLIDES = ("bundle_root", "input", "output_dir", "domain", "mpp", "imports", "initialize", "run")


def configured_method(domain: str | None = None) -> "MethodSource":
    """Return the network of the configuration that is being read, with what the user changed in ``inference.json``.

    Args:
        domain: of the slides, for methods with domains.

    Raises:
        ConfigurationError: called outside of a bundle's configuration.
    """
    from nucsam_monai.wsi.cluster import MethodSource  # needs the extra ``slides``

    parser = current_parser()
    if parser is None or "bundle_root" not in parser:
        raise ConfigurationError(
            "bundle_root: not found. Put the bundle's inference.json first in --config_file."
        )
    folder = Path(parser.get_parsed_content("bundle_root"))
    changed = changed_keys(parser, folder / "configs" / "inference.json")
    settings = {key: parser.get_parsed_content(key) for key in changed if key not in _OF_SLIDES}
    checkpoint, device = settings.pop("checkpoint", None), settings.pop("device", None)
    return MethodSource(str(folder), checkpoint, tuple(settings.items()), domain, (), device)
