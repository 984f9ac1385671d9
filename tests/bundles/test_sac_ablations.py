"""Every switch of SAC's ablations is a key of the configuration and does what its name says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigWorkflow

from nucsam_monai.networks.fine_tuning import BottleneckAdapters, LoRA
from nucsam_monai.networks.sam import read_header
from tests.bundles.conftest import Training
from tests.bundles.runs import network_of
from tests.bundles.sac_runs import SAC


def content(workflow: ConfigWorkflow, key: str) -> Any:
    return workflow.parser.get_parsed_content(key)


def batch_of(workflow: ConfigWorkflow) -> dict[str, Any]:
    return workflow.trainer.state.batch


SWITCHES: dict[str, tuple[dict[str, Any], Callable[[ConfigWorkflow], bool]]] = {
    "no auto points": ({"n_points": 0}, lambda run: network_of(run).generator is None),
    **{
        f"{count} auto points": (
            {"n_points": count},
            lambda run, count=count: network_of(run).generator.count == count,
        )
        for count in (3, 8, 16, 256)
    },
    "random points": ({"selection": "R"}, lambda run: network_of(run).generator_options.threshold == 0.9),
    "another threshold": ({"tau": 0.7}, lambda run: network_of(run).generator_options.threshold == 0.7),
    **{
        f"{count} expert points": (
            {"n_expert": count},
            lambda run, count=count: batch_of(run)["points"].shape == (1, count, 2),
        )
        for count in (1, 3)
    },
    "no prompts at all": ({"n_points": 0, "n_expert": 0}, lambda run: "points" not in batch_of(run)),
    "SAM-FT": ({"adapter": "none"}, lambda run: network_of(run).adapters is None),
    "LoRA": ({"adapter": "lora"}, lambda run: isinstance(network_of(run).adapters[0], LoRA)),
    "LoRA of rank 4": (
        {"adapter": "lora", "lora_rank": 4},
        lambda run: network_of(run).lora_options.rank == 4,
    ),
    "MSA": (
        {"adapter": "msa"},
        lambda run: isinstance(network_of(run).adapters[0], BottleneckAdapters),
    ),
    "SAMUS": ({"adapter": "samus"}, lambda run: network_of(run).samus is not None),
    "decoder alone": (
        {"adapter": "head"},
        lambda run: not any(p.requires_grad for p in network_of(run).sam.image_encoder.parameters()),
    ),
    "prompt encoder too": (
        {"adapter": "lora", "train_prompt_encoder": True},
        lambda run: all(p.requires_grad for p in network_of(run).sam.prompt_encoder.parameters()),
    ),
    "vanilla SAM with a generator": (
        {"adapter": "none", "finetune": False},
        lambda run: not any(p.requires_grad for p in network_of(run).sam.parameters()),
    ),
    "Dice and cross-entropy": (
        {"loss": "dice_ce"},
        lambda run: isinstance(content(run, "mask_loss").pixel, torch.nn.BCEWithLogitsLoss),
    ),
    "generator first": (
        {"generator_mode": "pretrain", "pretrain_epochs": 1, "epochs": 2},
        lambda run: network_of(run).stage == "segmenter",
    ),
    "points from the ground truth first": (
        {"generator_mode": "warmup", "generator_warmup_epochs": 1},
        lambda run: network_of(run).stage == "truth",
    ),
    "generator at another size": (
        {"generator_input_size": 48},
        lambda run: network_of(run).generator_options.input_size == 48,
    ),
    "nuclei cut by a watershed": (
        {"instances": "watershed", "val_interval": 1},
        lambda run: content(run, "validate::postprocessing").transforms[0].instances == "watershed",
    ),
    "never stopped early": (
        {"early_stopping_patience": None},
        lambda run: content(run, "early_stopping").patience is None,
    ),
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_trains_a_step(sac_training: Training, tmp_path: Path, switch: str) -> None:
    settings, took_effect = SWITCHES[switch]
    shared = {**sac_training.settings, "samples_per_epoch": 1, "batch_size": 1, "val_interval": 99}
    workflow = SAC.bundle(**{**shared, "fit": "resize", "output_dir": str(tmp_path), **settings})
    before = [parameter.clone() for parameter in network_of(workflow).parameters()]
    workflow.run()
    assert took_effect(workflow)
    after = list(network_of(workflow).parameters())
    assert all(torch.isfinite(parameter).all() for parameter in after)
    assert any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_a_training_that_does_not_improve_stops(sac_training: Training, tmp_path: Path) -> None:
    settings = {**sac_training.settings, "samples_per_epoch": 1, "lr": 0.0, "epochs": 9}
    settings |= {"output_dir": str(tmp_path), "early_stopping_patience": 2, "n_points": 0}
    workflow = SAC.train(**settings)
    assert workflow.trainer.state.epoch == 3
    resumed = SAC.train(**settings, resume=True)
    assert resumed.trainer.state.iteration <= 3  # nothing more is trained


def test_the_generators_own_epochs_neither_stop_the_training_nor_leave_its_weights(
    sac_training: Training, tmp_path: Path
) -> None:
    settings = {**sac_training.settings, "samples_per_epoch": 1, "lr": 0.0, "epochs": 9, "batch_size": 1}
    settings |= {"generator_mode": "pretrain", "pretrain_epochs": 3, "early_stopping_patience": 1}
    assert SAC.train(**settings, output_dir=str(tmp_path)).trainer.state.epoch == 5
    assert read_header(tmp_path / "model.safetensors")["epoch"] == "4"


def test_domains_train_one_after_the_other(sac_training: Training, tmp_path: Path) -> None:
    settings = {**sac_training.settings, "samples_per_epoch": 1, "lr": 0.0, "epochs": 3, "batch_size": 1}
    settings |= {"schedule": "sequential", "early_stopping_patience": 1, "output_dir": str(tmp_path)}
    workflow = SAC.train(**settings)
    assert workflow.trainer.state.epoch == 5  # two of each domain, the third of the first one left out
    header = read_header(tmp_path / "model.safetensors")
    assert header["epoch"] == "4"
    assert float(header["val_dice_dark"]) == workflow.evaluator.state.metrics["val_dice_dark"]
