"""Segment nuclei with SAM: published methods as MONAI bundles.

Bundle configurations import this package, so importing it loads neither torch nor MONAI. It sets two things for the
process: OpenMP threads sleep while they wait, and the C library keeps freed memory for the next tensor. A configuration
finds its own folder with ``$nucsam_monai.bundle_root('unsam')``.
"""

from typing import TYPE_CHECKING, Any

from nucsam_monai.utils.exit import is_bundle_run, shorten_errors_of_bundle_runs
from nucsam_monai.utils.machine import reuse_freed_memory
from nucsam_monai.utils.paths import bundle_root
from nucsam_monai.utils.threads import collector_paused, wait_passively

if TYPE_CHECKING:
    from nucsam_monai.segmenter import Segmenter, load

__version__ = "0.1.0"

__all__ = ["Segmenter", "__version__", "bundle_root", "load"]


def __getattr__(name: str) -> Any:
    """Import the names that need torch on first use."""
    if name in ("Segmenter", "load"):
        with collector_paused():
            from nucsam_monai import segmenter

        return getattr(segmenter, name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'.")


wait_passively()
reuse_freed_memory()
shorten_errors_of_bundle_runs()
if is_bundle_run():
    with collector_paused():
        from nucsam_monai.engines.bundle import limit_threads
        from nucsam_monai.engines.configuration import restore_paths

    restore_paths()
    limit_threads()
