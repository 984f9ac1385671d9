"""``compile: true`` trains, resumes and evaluates like ``compile: false``, and with the same files."""

from collections.abc import Iterator
from functools import partial, partialmethod
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.bundles.conftest import Training
from tests.bundles.runs import assert_same_tensors, network_of
from tests.bundles.unsam_runs import bundle, evaluate, train


@pytest.fixture(autouse=True)
def without_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run the traced graphs as they are: building kernels takes long and needs a C++ compiler."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))
    with torch._dynamo.config.patch(recompile_limit=8):
        yield


def compiled_modules(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if module._compiled_call_impl is not None]


def test_training_resuming_and_evaluating_give_what_they_give_without(
    training: Training, tmp_path: Path
) -> None:
    settings = {**training.settings, "compile": True, "output_dir": str(tmp_path / "train")}
    settings["lr_scheduler#t_total"] = 2
    train(**settings)
    resumed = train(**{**settings, "epochs": 2}, resume=True)
    assert resumed.trainer.state.epoch == 2
    assert compiled_modules(network_of(resumed)) == list(network_of(resumed).image_encoder.blocks)
    weights = tmp_path / "train" / "model.safetensors"
    assert_same_tensors(weights, training.weights)

    evaluated = evaluate(
        **{**settings, "output_dir": str(tmp_path / "evaluate")},
        checkpoint=str(weights),
        splits=["validation"],
    )
    assert compiled_modules(network_of(evaluated))
    assert evaluated.evaluator.state.metrics["val_dice"] == training.val_dice


def test_inference_compiles(training: Training, tmp_path: Path) -> None:
    shared = {key: training.settings[key] for key in ("device", "sam_variant", "image_size", "precision")}
    workflow = bundle(
        base="inference",
        **shared,
        compile=True,
        input=str(training.settings["dataset_dir"]),
        output_dir=str(tmp_path),
        checkpoint=str(training.weights),
    )
    assert compiled_modules(network_of(workflow))
    workflow.run()
    assert list(tmp_path.glob("*.geojson"))


def test_nothing_is_compiled_unless_requested(training: Training, tmp_path: Path) -> None:
    assert compiled_modules(network_of(bundle(**training.settings, output_dir=str(tmp_path)))) == []
