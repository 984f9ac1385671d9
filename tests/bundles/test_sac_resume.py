"""An interrupted or compiled training of the SAC bundle ends with the very weights of a plain one."""

from collections.abc import Iterator
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.bundles.conftest import Training
from tests.bundles.runs import assert_same_tensors, network_of
from tests.bundles.sac_runs import SAC


@pytest.mark.parametrize("mode", ["joint", "pretrain", "warmup"])
def test_a_resumed_training_ends_with_the_same_weights(
    sac_training: Training, tmp_path: Path, mode: str
) -> None:
    settings: dict[str, Any] = {**sac_training.settings, "generator_mode": mode, "epochs": 3, "n_expert": 1}
    settings |= {"pretrain_epochs": 2, "generator_warmup_epochs": 2, "samples_per_epoch": 4}
    for name, steps in (("whole", [3]), ("parts", [1, 3])):
        for step in steps:
            SAC.train(
                **{**settings, "train#trainer#max_epochs": step},
                output_dir=str(tmp_path / name),
                resume=step != steps[0],
            )
    for name in ("model.safetensors", "training_state.safetensors"):
        assert_same_tensors(tmp_path / "parts" / name, tmp_path / "whole" / name)


@pytest.fixture
def without_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run the traced graphs as they are: building kernels takes long and needs a C++ compiler."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))
    with torch._dynamo.config.patch(recompile_limit=8):
        yield


@pytest.mark.usefixtures("without_compiler")
@pytest.mark.slow
def test_a_compiled_training_gives_the_same_weights(sac_training: Training, tmp_path: Path) -> None:
    settings = {**sac_training.settings, "epochs": 2, "output_dir": str(tmp_path)}
    compiled = [m for m in network_of(SAC.train(**settings, compile=True)).modules() if m._compiled_call_impl]
    assert len(compiled) == 4
    assert_same_tensors(tmp_path / "model.safetensors", sac_training.weights)
