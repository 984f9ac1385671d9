"""Every switch of UN-SAM's ablations is a key of the configuration and does what its name says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigWorkflow

from nucsam_monai.losses.unsam import BatchFocalLoss
from nucsam_monai.networks.unsam import ReleasedSelfPromptGenerator
from tests.bundles.conftest import Training
from tests.bundles.runs import network_of
from tests.bundles.unsam_runs import bundle, evaluate


def content(workflow: ConfigWorkflow, key: str) -> Any:
    return workflow.parser.get_parsed_content(key)


SWITCHES: dict[str, tuple[dict[str, Any], Callable[[ConfigWorkflow], bool]]] = {
    "no bypass": (
        {"network_def#encoder#bypass": False},
        lambda run: network_of(run).bypass is None,
    ),
    "common embedding per domain": (
        {"network_def#encoder#common_scope": "per_domain", "schedule": "sequential"},
        lambda run: content(run, "train#sampler").schedule == "sequential",
    ),
    "no self-prompts": (
        {"network_def#spgen#enabled": False},
        lambda run: network_of(run).spgen is None,
    ),
    "prompts from the ground truth": (
        {"network_def#spgen#enabled": False, "prompt": "gt_points"},
        lambda run: "points" in run.trainer.state.batch,
    ),
    "released generator": (
        {"network_def#spgen#variant": "released"},
        lambda run: isinstance(network_of(run).spgen, ReleasedSelfPromptGenerator),
    ),
    "added hint": (
        {"network_def#spgen#inject": "add"},
        lambda run: network_of(run).spgen_options.inject == "add",
    ),
    "added hint with a gradient": (
        {"network_def#spgen#inject": "add", "network_def#spgen#detach": False},
        lambda run: not network_of(run).spgen_options.detach,
    ),
    "lower threshold": (
        {"network_def#spgen#tau": 0.5},
        lambda run: network_of(run).spgen_options.tau == 0.5,
    ),
    "one query for all domains": (
        {"network_def#decoder#domain_queries": False},
        lambda run: not network_of(run).decoder_options.domain_queries,
    ),
    "joint queries": (
        {"network_def#decoder#joint_queries": True},
        lambda run: network_of(run).decoder_options.joint_queries,
    ),
    "query from SAM": (
        {"network_def#decoder#query_init": "sam"},
        lambda run: network_of(run).decoder_options.query_init == "sam",
    ),
    "sequential schedule": (
        {"schedule": "sequential"},
        lambda run: run.trainer.state.epoch == 2,
    ),
    "pooled Dice": (
        {"mask_loss#dice": "pooled"},
        lambda run: content(run, "mask_loss").dice.batch,
    ),
    "released loss": (
        {"mask_loss#variant": "released"},
        lambda run: isinstance(content(run, "loss").mask.focal, BatchFocalLoss),
    ),
    "no loss on the hint": (
        {"loss#spgen_weight": 0.0},
        lambda run: content(run, "loss").spgen_weight == 0,
    ),
    "released normalisation": (
        {"pixel_std": "released"},
        lambda run: torch.equal(
            content(run, "target_transforms")[0].std, content(run, "target_transforms")[0].mean
        ),
    ),
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_trains_a_step(training: Training, tmp_path: Path, switch: str) -> None:
    settings, took_effect = SWITCHES[switch]
    shared = {**training.settings, "samples_per_epoch": 1, "val_interval": 99, "fit": "resize"}
    workflow = bundle(**{**shared, "output_dir": str(tmp_path), **settings})
    before = [parameter.clone() for parameter in network_of(workflow).parameters()]
    workflow.run()
    assert took_effect(workflow)
    after = list(network_of(workflow).parameters())
    assert all(torch.isfinite(parameter).all() for parameter in after)
    assert any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_an_unseen_domain_is_answered_by_the_mean_of_the_branches(training: Training, tmp_path: Path) -> None:
    settings = {**training.settings, "checkpoint": str(training.weights)}
    source = Path(str(settings["dataset_dir"])) / "dark"
    settings |= {"dataset_dir": str(source), "unseen_domain": "mean", "output_dir": str(tmp_path)}
    inferer = evaluate(**settings).parser.get_parsed_content("validate::inferer")
    assert inferer.branches("another stain") == [{"domain": "bright"}, {"domain": "dark"}]
    assert inferer.branches("dark") == [{"domain": "dark"}]
