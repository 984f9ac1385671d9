"""Every switch of CFR-SAM's comparisons and ablations is a key, builds and trains a step."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from nucsam_monai import networks
from nucsam_monai.losses import CFRSAMTarget
from nucsam_monai.networks import NucleusPrompts
from nucsam_monai.networks.fine_tuning import LoRA
from nucsam_monai.networks.sam import SAM_VARIANTS
from tests.bundles.cfrsam_runs import CFRSAM
from tests.bundles.conftest import TwoStageTraining

THIN = replace(
    SAM_VARIANTS["vit_tiny"],
    name="thin",
    width=64,
    heads=2,
    embed_channels=32,
    decoder_heads=4,
    decoder_mlp_width=64,
)
NetworkEffect = Callable[[networks.CFRSAM], bool]
WorkflowEffect = Callable[[ConfigWorkflow], bool]

NETWORKS: dict[str, tuple[dict[str, Any], NetworkEffect]] = {
    "everything": ({"tune": "full"}, lambda net: all(p.requires_grad for p in net.parameters())),
    "decoder": ({"tune": "head", "train_sam": False}, lambda net: net.adapters is None),
    "adapter": ({"tune": "adapter"}, lambda net: net.adapter == "msa"),
    "LoRA": ({"tune": "lora"}, lambda net: isinstance(net.adapters[0], LoRA)),
    **{
        f"{kernel} kernels": (
            {"mala_kernel": kernel},
            lambda net, kernel=kernel: net.adapters[0].block.kernel == kernel,
        )
        for kernel in ("static", "none")
    },
    "another rank": ({"mala_rank": 16}, lambda net: net.adapters[0].block.down.out_features == 16),
    "default start": (
        {"mala_init": "torch_default"},
        lambda net: net.adapter_options.init == "torch_default",
    ),
    **{
        f"{kind} of levels": ({"hmfm": kind}, lambda net, kind=kind: net.hmfm_options.fusion == kind)
        for kind in ("add", "average", "concat", "none")
    },
    "mean of levels": ({"hmfm_reduce": "mean"}, lambda net: net.hmfm.options.reduce == "mean"),
    "MLP": ({"bgmr": "mlp"}, lambda net: type(net.bgmr).__name__ == "PixelRefinement"),
    "no refinement": ({"bgmr": "none"}, lambda net: net.bgmr is None),
    "no evidence": ({"bgmr_mcbe": False}, lambda net: not net.bgmr.evidence.scales),
    "no fusion": ({"bgmr_bgff": False}, lambda net: type(net.bgmr.fusion).__name__ == "JoinedConv"),
    "no boundary": ({"bgmr_boundary_sup": False}, lambda net: net.bgmr.boundary is None),
    "as released": (
        {"bgff_attention": "released", "bgff_plain_side": 3},
        lambda net: net.bgmr.fusion.plain_attention.order == "released",
    ),
    "boxes": ({"prompt": "box"}, lambda net: net.prompt == "box"),
    "checkpointing": ({"activation_checkpointing": True}, lambda net: net.training),
    "IoU of the refined mask": ({"iou_target": "refined"}, lambda net: net.training),
    "boundary of all nuclei": ({"boundary_target": "sobel_semantic"}, lambda net: net.training),
    "pooled Dice": (
        {"dice": "pooled", "focal_weight": 20.0, "detach_iou_target": True},
        lambda net: net.training,
    ),
}

TESTING: dict[str, tuple[dict[str, Any], WorkflowEffect]] = {
    "whole tiles": (
        {"refine_margin_px": None},
        lambda run: run.parser.get_parsed_content("segmentor_network").refine_margin_px is None,
    ),
    "a negative": (
        {"neg_test": 1},
        lambda run: run.parser.get_parsed_content("joint::inferer").negatives == 1,
    ),
}


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ConfigParser]:
    """Parse the training's configuration with a thin compact SAM."""
    monkeypatch.setitem(SAM_VARIANTS, THIN.name, THIN)

    def parts(**settings: Any) -> ConfigParser:
        parser = ConfigParser()
        parser.read_config(str(CFRSAM.configs / "train.json"))
        tiny = {
            "device": "cpu",
            "sam_variant": THIN.name,
            "image_size": 64,
            "class_names": ["nucleus"],
            "mala_rank": 8,
        }
        parser.update({**tiny, **settings})
        parser.parse()
        torch.manual_seed(0)
        return parser

    return parts


def example(box: bool) -> tuple[torch.Tensor, NucleusPrompts, CFRSAMTarget]:
    """Two noisy images of a bright disc each, a prompt of each disc, and the discs' masks."""
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    centres = torch.tensor([[18.0, 20.0], [44.0, 36.0]])
    masks = torch.stack([(columns - x) ** 2 + (rows - y) ** 2 <= 11**2 for x, y in centres])
    noise = 0.1 * torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    counts = torch.tensor([1, 1])
    points = torch.stack([centres - 11, centres + 11], dim=1) if box else centres[:, None]
    prompts = NucleusPrompts(points, torch.ones(points.shape[:2], dtype=torch.long), counts)
    return 2 * masks[:, None].float() - 1 + noise, prompts, CFRSAMTarget(masks, masks, counts)


def train_a_step(parser: ConfigParser, box: bool) -> networks.CFRSAM:
    network, loss, optimizer = (
        parser.get_parsed_content(name) for name in ("segmentor_network", "loss", "optimizer")
    )
    image, prompts, target = example(box)
    network.train()
    loss(network(image, prompts=prompts), target).backward()
    optimizer.step()
    return network


@pytest.mark.parametrize("switch", NETWORKS)
def test_a_switch_trains_a_step(parts: Callable[..., ConfigParser], switch: str) -> None:
    settings, took_effect = NETWORKS[switch]
    parser = parts(**settings)
    before = {
        name: value.clone()
        for name, value in parser.get_parsed_content("segmentor_network").named_parameters()
    }
    network = train_a_step(parser, box=settings.get("prompt") == "box")
    assert took_effect(network)
    assert all(torch.isfinite(parameter).all() for parameter in network.parameters())
    moved = {name for name, value in network.named_parameters() if not torch.equal(value, before[name])}
    assert moved
    assert all(network.get_parameter(name).requires_grad for name in moved)


@pytest.mark.parametrize("prompts", ["predicted", "gt_random"])
def test_prompts_of_the_training(cfrsam_training: TwoStageTraining, tmp_path: Path, prompts: str) -> None:
    settings = {**cfrsam_training.settings, "checkpoint": str(cfrsam_training.folder), "epochs": 1}
    settings |= {"train_prompts": prompts, "boundary_target": "sobel_semantic", "output_dir": str(tmp_path)}
    workflow = CFRSAM.train(**settings, run_id="segmentor")
    assert len(workflow.parser.get_parsed_content("train::found")) == (3 if prompts == "predicted" else 0)
    assert "foreground" in workflow.trainer.state.batch
    assert (tmp_path / "segmentor.safetensors").is_file()


@pytest.mark.parametrize("switch", TESTING)
def test_a_switch_of_the_evaluation(cfrsam_training: TwoStageTraining, tmp_path: Path, switch: str) -> None:
    settings, took_effect = TESTING[switch]
    shared = {**cfrsam_training.settings, "checkpoint": str(cfrsam_training.folder)}
    shared |= {"output_dir": str(tmp_path), "oracle_prompts": True}
    workflow = CFRSAM.evaluate(**shared, **settings)
    assert took_effect(workflow)
    assert (tmp_path / "summary.json").is_file()
