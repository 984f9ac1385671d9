"""A bundle that is kept ready: its own inference, fed with arrays instead of files."""

import json
import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor, list_data_collate
from monai.transforms import Compose, LoadImage, LoadImaged
from monai.utils import convert_to_numpy
from torch import Tensor, nn

from nucsam_monai.apps.monailabel.click_networks import click_network
from nucsam_monai.apps.monailabel.click_segmenter import ClickSegmenter
from nucsam_monai.apps.monailabel.options import Option, OptionValue, options_of_config
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.prediction import NucleiPrediction, prediction_from_instances

logger = logging.getLogger(__name__)

Scalar = bool | int | float | str | None

_WRITES_OR_REPORTS = ("PredictionWriter", "ProgressBar", "StatsHandler")
_PIPELINES_KEPT = 4
_NETWORK_KEYS = ("network_def", "network")


class ServedBundle:
    """One bundle with one set of weights on one device.

    Nothing is built before it is needed. What the evaluator of ``inference.json`` does with an image is done
    here with the same objects; only reading and writing of files are left out.

    Args:
        folder: of the bundle.
        checkpoint: its weights: a file, or the folder of several; what the configuration's ``checkpoint`` means.
        device: where the network runs, for example ``"cpu"`` or ``"cuda:0"``.
        settings: other values of the configuration, as after ``monai.bundle run``: what the weights were
            trained with.

    Raises:
        ConfigurationError: there is no ``inference.json``, or a setting is not a key of it or a text that MONAI
            would evaluate.

    Example:
        >>> bundle = ServedBundle("bundles/unsam", "output/mine/model.safetensors")  # doctest: +SKIP
        >>> len(bundle.predict(image, {"threshold": 0.4}))  # doctest: +SKIP
        37
    """

    def __init__(
        self,
        folder: Path | str,
        checkpoint: Path | str | None,
        device: str = "cpu",
        settings: Mapping[str, Scalar] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.device = torch.device(device)
        self.settings = dict(settings or {})
        self._config = read_inference_config(self.folder)
        check_settings(self.settings, self._config, str(self.folder))
        self._networks: dict[str, nn.Module] | None = None
        self._pipelines: OrderedDict[tuple[tuple[str, OptionValue], ...], _Pipeline] = OrderedDict()
        self._lock = RLock()

    @property
    def options(self) -> tuple[Option, ...]:
        """What requests may set."""
        return options_of_config({**self._config, **self.settings})

    @cached_property
    def domains(self) -> tuple[str, ...]:
        """The domains that the weights know; none for methods without domains."""
        return tuple(self.value("domains")) if "domains" in self._config else ()

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes."""
        return tuple(self.value("class_names")) if "class_names" in self._config else ("nucleus",)

    @property
    def network(self) -> nn.Module:
        """The network with its weights, in evaluation mode."""
        return self._ready_networks()["network_def"]

    @property
    def image_size(self) -> int:
        """Side in pixels of the tiles that the network was trained on."""
        return int(self.value("image_size"))

    @property
    def precision(self) -> str:
        """What the network computes in."""
        return str(self.value("precision"))

    @cached_property
    def click_segmenter(self) -> ClickSegmenter | None:
        """Nuclei of clicks and boxes, with the tiles encoded so far; None for methods without prompts."""
        network = click_network(self.network)
        if network is None:
            return None
        return ClickSegmenter(network, self.prepare, self.image_size, self.precision)

    def predict(
        self, image: np.ndarray, options: Mapping[str, OptionValue] | None = None, domain: str | None = None
    ) -> NucleiPrediction:
        """Segment ``(H, W, 3)`` uint8 RGB.

        Args:
            image: the image.
            options: values of :attr:`options`; others keep their defaults.
            domain: of the image, for methods with domains; None where it is unknown.
        """
        with self._lock:
            return self._pipeline(options or {}).run(image, domain)

    def prepare(self, image: np.ndarray) -> Tensor:
        """Return ``(H, W, 3)`` uint8 RGB as the network takes it, ``(1, 3, H, W)`` on its device."""
        with self._lock:
            return self._pipeline({}).prepare(image)["image"].to(self.device)

    def _pipeline(self, options: Mapping[str, OptionValue]) -> "_Pipeline":
        key = tuple(sorted(options.items()))
        if key not in self._pipelines:
            self._pipelines[key] = _Pipeline(self._parser({**options, **self._ready_networks()}))
            if len(self._pipelines) > _PIPELINES_KEPT:
                self._pipelines.popitem(last=False)
        self._pipelines.move_to_end(key)
        return self._pipelines[key]

    def _ready_networks(self) -> dict[str, nn.Module]:
        with self._lock:
            if self._networks is None:
                parser = self._parser({})
                networks = {key: parser.get_parsed_content(key) for key in _NETWORK_KEYS}
                parser.get_parsed_content("initialize")
                for network in networks.values():
                    network.eval()
                self._networks = networks
                logger.info("%s: weights of %s on %s", self.folder.name, self.checkpoint, self.device)
            return self._networks

    def value(self, key: str) -> Any:
        """Return what a key of the configuration stands for."""
        return self._parser({}).get_parsed_content(key)

    def _parser(self, values: Mapping[str, Any]) -> ConfigParser:
        """Return the configuration with this bundle's values, without a data set and without files to write."""
        parser = ConfigParser(json.loads(json.dumps(self._config)))
        own: dict[str, Any] = {
            "bundle_root": str(self.folder.resolve()),
            "device": self.device,
            **self.settings,
        }
        if self.checkpoint is not None:
            own["checkpoint"] = str(self.checkpoint)
        silent = [one for one in self._config["handlers"] if _name(one) not in _WRITES_OR_REPORTS]
        parser.update({**own, "handlers": silent, "dataset::data": [], **values})
        return parser


class _Pipeline:
    """The evaluator of one configuration."""

    def __init__(self, parser: ConfigParser) -> None:
        preprocessing = parser.get_parsed_content("preprocessing")
        self.preprocessing = Compose(
            [step for step in preprocessing.transforms if not isinstance(step, (LoadImage, LoadImaged))]
        )
        self.evaluator = parser.get_parsed_content("evaluator")
        self.evaluator.logger.setLevel(logging.WARNING)

    def prepare(self, image: np.ndarray, **item: str) -> dict[str, Any]:
        """Return the batch of one image."""
        pixels = MetaTensor(torch.from_numpy(np.ascontiguousarray(image)), meta={"original_channel_dim": -1})
        return dict(list_data_collate([self.preprocessing({"image": pixels, "id": "image", **item})]))

    def run(self, image: np.ndarray, domain: str | None) -> NucleiPrediction:
        """Return the nuclei of one image."""
        self.evaluator.data_loader = [self.prepare(image, **({} if domain is None else {"domain": domain}))]
        self.evaluator.run()
        output = self.evaluator.state.output[0]
        self.evaluator.data_loader = self.evaluator.state.output = None  # these hold the image in memory
        if isinstance(output["pred"], NucleiPrediction):
            return output["pred"]
        return prediction_from_instances(
            convert_to_numpy(output["pred_instances"])[0], foreground=convert_to_numpy(output["pred"])[0]
        )


def read_inference_config(folder: Path) -> dict[str, Any]:
    """Return the content of a bundle's ``inference.json``.

    Raises:
        ConfigurationError: there is none.
    """
    file = folder / "configs" / "inference.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{file}: cannot be read ({error}). Name a bundle that can infer."
        ) from error
    return dict(config)


def check_settings(settings: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Check values for a configuration.

    Raises:
        ConfigurationError: a key is not in ``known``, or a value is no scalar or a text that MONAI evaluates.
    """
    for key, value in settings.items():
        if key not in set(known):
            raise ConfigurationError(f"{where}: its configuration has no key '{key}'.")
        if not isinstance(value, (bool, int, float, str, type(None))) or str(value)[:1] in ("$", "@", "%"):
            raise ConfigurationError(
                f"{where}: {key} {value!r}: expected a number, a switch, null or a text without a leading $, @ or %."
            )


def _name(component: Mapping[str, Any]) -> str:
    return str(component.get("_target_", "")).rsplit(".", 1)[-1]
