"""A network is exported to a file that gives the same logits on another image, or not at all."""

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nucsam_monai.engines import export_network
from nucsam_monai.utils.errors import ConfigurationError
from tests.tiny_bundles import SEGMENTING, Weights, micro, no_traces, weights

__all__ = ["micro", "no_traces", "weights"]

FINDS_BEFORE_IT_SEGMENTS = ("cfrsam", "detectors", "promptnucseg", "sac")


class Brightness(nn.Module):
    """A network that compares the image with its own mean, or with that of the first image it ever saw."""

    def __init__(self, frozen: bool) -> None:
        super().__init__()
        self.frozen = frozen

    def forward(self, image: Tensor) -> Tensor:
        mean = image.mean()
        return image[:, :1] - (torch.tensor(mean.item()) if self.frozen else mean)


@pytest.mark.parametrize("suffix", ["pt2", "ts", pytest.param("onnx", marks=pytest.mark.slow)])
def test_the_difference_on_another_image_is_said(
    suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        export_network(Brightness(frozen=False), tmp_path / f"model.{suffix}", 32)
    assert (tmp_path / f"model.{suffix}").stat().st_size > 0
    assert "on another image its logits differ by" in caplog.text


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_graph_that_keeps_what_its_example_showed_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="not written, as its logits differ from the network's by"):
        export_network(Brightness(frozen=True), tmp_path / "model.ts", 32)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"expected the suffix .pt2, .ts, .onnx, found '.pth'"):
        export_network(Brightness(frozen=False), tmp_path / "model.pth", 32)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", SEGMENTING)
def test_every_bundle_is_exported_or_refused_with_the_reason(
    name: str, weights: dict[str, Weights], tmp_path: Path
) -> None:
    network = weights[name].segmenter().network
    if name not in FINDS_BEFORE_IT_SEGMENTS:
        export_network(network, tmp_path / "model.ts", 32)
        return
    for suffix in ("ts", "pt2"):
        with pytest.raises(ConfigurationError, match="which no graph can hold"):
            export_network(network, tmp_path / f"model.{suffix}", 32)
    assert list(tmp_path.iterdir()) == []


def test_sac_without_points_of_its_own_is_exported(weights: dict[str, Weights], tmp_path: Path) -> None:
    sac = weights["sac"]
    without = Weights(sac.bundle, sac.path, {**sac.settings, "n_points_test": 0})
    export_network(without.segmenter().network, tmp_path / "model.ts", 32)
