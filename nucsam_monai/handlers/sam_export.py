"""The SAM inside a trained network, as a file that other trainings start from."""

import logging
from pathlib import Path

import torch.distributed as dist
from ignite.engine import Engine, Events

from nucsam_monai.handlers.weights_saver import BestWeightsSaver
from nucsam_monai.networks.promptnucseg import Segmentor
from nucsam_monai.networks.sam import read_header, save_sam
from nucsam_monai.networks.sam.weights import read_safetensors

logger = logging.getLogger(__name__)


class SAMExport:
    """Write the whole SAM of the best epoch when a training ends, one that was only resumed to its end too.

    The file is what every bundle takes as ``sam_checkpoint``: the tensors that were trained, as they were in
    the best epoch, and those that were not.

    Args:
        network: whose ``sam`` was trained.
        best_weights: wrote the trained tensors of the best epoch.
        path: the ``.safetensors`` file to be written.
    """

    def __init__(self, network: Segmentor, best_weights: BestWeightsSaver, path: str | Path) -> None:
        self.network = network
        self.best_weights = best_weights
        self.path = Path(path)

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.COMPLETED, self.export)

    def export(self, _engine: Engine) -> None:
        """Write the file, completely or not at all.

        Raises:
            CheckpointError: the file of the best weights is missing or damaged.
        """
        if dist.is_available() and dist.is_initialized() and dist.get_rank() > 0:
            return
        if not self.best_weights.owns_file:
            logger.warning("%s: not written, because no epoch of this training was validated.", self.path)
            return
        header = read_header(self.best_weights.path)
        trained = read_safetensors(self.best_weights.path)
        state = {
            name: trained.get(f"sam.{name}", tensor) for name, tensor in self.network.sam.state_dict().items()
        }
        facts = {"trained_by": header["method"], "epoch": header["epoch"]}
        save_sam(self.path, state, self.network.variant, self.network.image_size, facts)
