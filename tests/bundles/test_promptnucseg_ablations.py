"""Every switch of PromptNucSeg's ablations is a key of the configuration and does what its name says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigWorkflow

from nucsam_monai.networks.sam import build_sam
from tests.bundles.conftest import TwoStageTraining
from tests.bundles.promptnucseg_runs import PROMPTNUCSEG, joint_metrics
from tests.bundles.runs import network_of

Effect = Callable[[ConfigWorkflow], bool]


def content(workflow: ConfigWorkflow, key: str) -> Any:
    return workflow.parser.get_parsed_content(key)


def batch_of(workflow: ConfigWorkflow) -> dict[str, Any]:
    return workflow.trainer.state.batch


def prompter_loss(workflow: ConfigWorkflow) -> Any:
    return content(workflow, "prompter_stage::loss")


TRAINING: dict[str, tuple[str, dict[str, Any], Effect]] = {
    "no auxiliary mask": (
        "prompter",
        {"aux_mask": False, "mask_filter": False},
        lambda run: network_of(run).prompter.mask_head is None,
    ),
    "no deform step": (
        "prompter",
        {"deform_step": False},
        lambda run: network_of(run).prompter.deformation is None,
    ),
    "samples as released": (
        "prompter",
        {"sample_align": "released"},
        lambda run: network_of(run).prompter.options.sample_align == "released",
    ),
    "norm as regression": ("prompter", {"reg_loss": "l2"}, lambda run: prompter_loss(run).regression == "l2"),
    "another background weight": (
        "prompter",
        {"background_weight": 0.2},
        lambda run: prompter_loss(run).background_weight == 0.2,
    ),
    "four levels, wide steps": (
        "prompter",
        {"levels": 4, "anchor_step": 16},
        lambda run: network_of(run).prompter(torch.zeros(1, 3, 32, 32)).points.shape == (1, 4, 2),
    ),
    **{
        f"{count} negatives": (
            "segmentor",
            {"neg_train": count},
            lambda run, count=count: batch_of(run)["points"].shape[1] == 1 + count,
        )
        for count in (0, 1, 2)
    },
    "Dice over all masks": (
        "segmentor",
        {"dice": "pooled"},
        lambda run: content(run, "loss").masks.dice == "pooled",
    ),
    "loss at the size of the image": (
        "segmentor",
        {"loss_at": "image"},
        lambda run: content(run, "loss").loss_at == "image",
    ),
    "decoder alone": (
        "segmentor",
        {"finetune": "decoder"},
        lambda run: (
            not any(p.requires_grad for p in network_of(run).segmentor.sam.image_encoder.parameters())
        ),
    ),
    "classes of the segmentor": (
        "segmentor",
        {"classifier": "segmentor"},
        lambda run: network_of(run).segmentor.classes == 2 and "class_ids" in batch_of(run),
    ),
}

TESTING: dict[str, tuple[dict[str, Any], Effect]] = {
    "SAM's own resizing": ({"whole_image": True}, lambda w: content(w, "joint::inferer").whole_image),
    "no mask filter": (
        {"mask_filter": False},
        lambda run: not content(run, "joint::find_points").mask_filter,
    ),
    "negatives": ({"neg_test": 1}, lambda run: content(run, "joint::inferer").negatives == 1),
    "six views": ({"tta": True}, lambda run: len(content(run, "joint::inferer").views) == 6),
    "another overlap": ({"overlap_px": 16}, lambda run: content(run, "joint::inferer").overlap_px == 16),
    "another threshold": (
        {"nms_threshold": 0.3},
        lambda run: content(run, "joint::inferer").nms_threshold == 0.3,
    ),
    "another radius": (
        {"point_radius_px": 9.0},
        lambda run: content(run, "joint::find_points").radius_px == 9.0,
    ),
}


@pytest.mark.parametrize("switch", TRAINING)
def test_a_switch_trains_a_step(promptnucseg_training: TwoStageTraining, tmp_path: Path, switch: str) -> None:
    stage, settings, took_effect = TRAINING[switch]
    shared = {**promptnucseg_training.settings, "samples_per_epoch": 3, "epochs": 1, "val_interval": 1}
    shared |= {"output_dir": str(tmp_path), "batch_size": 3, "warmup_epochs": 0}
    if switch == "decoder alone":
        torch.save(build_sam("micro", 32).state_dict(), tmp_path / "sam.pth")
        shared |= {"sam_checkpoint": str(tmp_path / "sam.pth")}
    workflow = PROMPTNUCSEG.bundle(**{**shared, **settings}, run_id=stage)
    before = [parameter.clone() for parameter in network_of(workflow).parameters()]
    workflow.run()
    assert took_effect(workflow)
    after = list(network_of(workflow).parameters())
    assert all(torch.isfinite(parameter).all() for parameter in after)
    assert any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("switch", TESTING)
def test_a_switch_of_the_evaluation(
    promptnucseg_training: TwoStageTraining, tmp_path: Path, switch: str
) -> None:
    settings, took_effect = TESTING[switch]
    shared = {**promptnucseg_training.settings, "checkpoint": str(promptnucseg_training.folder)}
    workflow = PROMPTNUCSEG.evaluate(
        **{**shared, "output_dir": str(tmp_path), "oracle_prompts": True, **settings}
    )
    assert took_effect(workflow)
    assert (tmp_path / "summary.json").is_file()


def test_classes_of_the_segmentor_are_those_of_the_result(
    promptnucseg_training: TwoStageTraining, tmp_path: Path
) -> None:
    settings = {**promptnucseg_training.settings, "epochs": 1, "classifier": "segmentor"}
    workflow = PROMPTNUCSEG.train(**settings, output_dir=str(tmp_path))
    assert content(workflow, "joint::inferer").segmenter_classifies
    assert "val_mpq" in joint_metrics(workflow)
