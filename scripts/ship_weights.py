r"""Write trained weights as they ship with a bundle: in half precision, with the settings of their inference.

Example:
    python scripts/ship_weights.py output/compact/model.safetensors bundles/unsam/models/compact.safetensors \
        --threshold 0.6 --distance_rule "{'marker_threshold': 0.45}"
"""

import hashlib
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nucsam_monai.apps.command_line import run_command

logger = logging.getLogger(__name__)


def main(checkpoint: str | Sequence[str], output: str, store: str | None = None, **settings: Any) -> None:
    """Write the file and log its size and SHA-256, which the model card names.

    Args:
        checkpoint: weights of a training, or of several cycles of one, of which the mean is written.
        output: the file to write, ``<bundle>/models/<name>.safetensors``.
        store: MLflow tracking URI of a store in which the file becomes a version of the model ``nucsam-<bundle>``
            with its name as alias.
        settings: values of keys of ``inference.json``, chosen on validation images.
    """
    from nucsam_monai.networks.sam import write_half

    write_half([checkpoint] if isinstance(checkpoint, str) else checkpoint, output, settings)
    content = Path(output).read_bytes()
    logger.info("%s: %.1f MB, sha256 %s", output, len(content) / 1e6, hashlib.sha256(content).hexdigest())
    if store is not None:
        register(Path(output).resolve(), store, settings)


def register(weights: Path, store: str, settings: Mapping[str, Any]) -> None:
    """Make a weights file a version of its bundle's model in MLflow, with a run that holds the file and its settings.

    Raises:
        ConfigurationError: the store can't be opened.
    """
    from nucsam_monai.handlers import TrackedRun

    bundle = weights.parents[1].name
    model, name = f"nucsam-{bundle}", f"{bundle}, {weights.stem}, shipped"
    run = TrackedRun(
        f"nucsam/{bundle}",
        store,
        name=name,
        tags={"bundle": bundle},
        params=settings,
        weights={weights.stem: weights},
    )
    with run:
        if run.run_id is None:  # tracking is off, or MLflow is missing
            return
        run.log_artifacts([weights])
        if not run.client.search_registered_models(filter_string=f"name = '{model}'"):
            run.client.create_registered_model(model)
        source = f"{run.client.get_run(run.run_id).info.artifact_uri}/{weights.name}"
        version = run.client.create_model_version(model, source=source, run_id=run.run_id)
        run.client.set_registered_model_alias(model, weights.stem, version.version)


if __name__ == "__main__":
    sys.exit(run_command(main))
