"""The fine-tuned weights of a bundle: a folder for each run, and which of them is served."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from nucsam_monai.apps.monailabel.refusals import RequestRefusedError
from nucsam_monai.io import write_json

logger = logging.getLogger(__name__)

ORIGINAL = "original"
"""Name of the weights that the server was started with."""

RUN_FILE = "run.json"
_SERVED_FILE = "served.json"


@dataclass(frozen=True)
class BundleRuns:
    """The runs of one bundle.

    A run is a folder with its weights and ``run.json``, which is written last. Runs are only added; the weights
    that the server was started with are elsewhere and never touched.

    Attributes:
        folder: of all runs of the bundle.
        original: the weights that the server was started with.
        single_file: whether the weights of the bundle are one file ``model.safetensors``; else the run's folder
            is what stands for them.
    """

    folder: Path
    original: Path | None
    single_file: bool

    def names(self) -> list[str]:
        """Return the complete runs, the newest first."""
        if not self.folder.is_dir():
            return []
        complete = (file.parent.name for file in self.folder.glob(f"*/{RUN_FILE}"))
        return sorted((name for name in complete if not name.startswith(".")), reverse=True)

    def choices(self) -> tuple[str, ...]:
        """Return the names of all weights, those that are served first."""
        served = self.served()
        known = [*([ORIGINAL] if self.has_original else []), *self.names()]
        return (served, *(name for name in known if name != served)) if served in known else tuple(known)

    @property
    def has_original(self) -> bool:
        """Whether there are weights beside those of the runs."""
        return self.original is not None and self.original.exists()

    def served(self) -> str:
        """Return the name of the weights that requests get which name none."""
        try:
            name = json.loads((self.folder / _SERVED_FILE).read_text(encoding="utf-8"))["run"]
        except FileNotFoundError:
            return ORIGINAL
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.error("%s: cannot be read (%s); the original weights are served.", self.folder, error)
            return ORIGINAL
        return name if name in self.names() else ORIGINAL

    def serve(self, name: str) -> None:
        """Serve other weights from now on.

        Raises:
            RequestRefusedError: there are none of this name.
        """
        self.weights(name)
        write_json(self.folder / _SERVED_FILE, {"run": name})
        logger.info("%s: serves the weights '%s' from now on", self.folder.name, name)

    def weights(self, name: str) -> Path:
        """Return the weights of a run, or the original ones.

        Raises:
            RequestRefusedError: there are none of this name.
        """
        if name == ORIGINAL and self.original is not None and self.has_original:
            return self.original
        if name not in self.names():
            raise RequestRefusedError(
                f"weights '{name[:100]}': expected one of {', '.join(self.choices()) or 'none'}."
            )
        return self.weights_in(self.folder / name)

    def weights_in(self, run_dir: Path) -> Path:
        """Return what stands for the weights in the folder of a run."""
        return run_dir / "model.safetensors" if self.single_file else run_dir

    def new_name(self, now: datetime) -> str:
        """Return a name that no run has, from the time."""
        name = plain = now.strftime("%Y%m%d-%H%M%S")
        number = 2
        while (self.folder / name).exists():
            name, number = f"{plain}-{number}", number + 1
        return name


def write_run_facts(run_dir: Path, facts: Mapping[str, Any]) -> None:
    """Mark a run as complete."""
    write_json(run_dir / RUN_FILE, dict(facts))
