"""The SAM inside a trained network, as a file that other trainings start from."""

from pathlib import Path

import torch.distributed as dist
from ignite.engine import Engine, Events

from nucsam_monai.networks.sam import read_header, save_sam
from nucsam_monai.networks.sam.tensor_files import read_safetensors
from nucsam_monai.networks.segmentor import Segmentor


class SAMExport:
    """Write the whole SAM of the best epoch when a training ends, one that was only resumed to its end too.

    The file is what every bundle takes as ``sam_checkpoint``: the trained tensors of the weights file, and
    those of the network that were not trained.

    Args:
        network: whose ``sam`` was trained.
        weights: the file of the best weights, see :class:`~nucsam_monai.handlers.BestWeightsSaver`.
        path: the ``.safetensors`` file to be written.
    """

    def __init__(self, network: Segmentor, weights: str | Path, path: str | Path) -> None:
        self.network = network
        self.weights = Path(weights)
        self.path = Path(path)

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.COMPLETED, self.export)

    def export(self, _engine: Engine) -> None:
        """Write the file, completely or not at all.

        Raises:
            CheckpointError: there are no weights, because no epoch was validated, or they are damaged.
        """
        if dist.is_available() and dist.is_initialized() and dist.get_rank() > 0:
            return
        header = read_header(self.weights)
        trained = read_safetensors(self.weights)
        state = {
            name: trained.get(f"sam.{name}", tensor) for name, tensor in self.network.sam.state_dict().items()
        }
        facts = {"trained_by": header["method"], **({"epoch": header["epoch"]} if "epoch" in header else {})}
        save_sam(self.path, state, self.network.variant, self.network.image_size, facts)
