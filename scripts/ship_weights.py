r"""Write trained weights as they ship with a bundle: in half precision, with the settings of their inference.

Example:
    python scripts/ship_weights.py output/compact/model.safetensors bundles/unsam/models/compact.safetensors \
        --threshold 0.6 --distance_rule "{'marker_threshold': 0.45}"
"""

import hashlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nucsam_monai.apps.command_line import run_command

logger = logging.getLogger(__name__)


def main(checkpoint: str | Sequence[str], output: str, **settings: Any) -> None:
    """Write the file and log its size and SHA-256, which the model card names.

    Args:
        checkpoint: weights of a training, or of several cycles of one, of which the mean is written.
        output: the file to write.
        settings: values of keys of ``inference.json``, chosen on validation images.
    """
    from nucsam_monai.networks.sam import write_half

    write_half([checkpoint] if isinstance(checkpoint, str) else checkpoint, output, settings)
    content = Path(output).read_bytes()
    logger.info("%s: %.1f MB, sha256 %s", output, len(content) / 1e6, hashlib.sha256(content).hexdigest())


if __name__ == "__main__":
    sys.exit(run_command(main))
