"""What the configurations of bundles call."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from nucsam_monai import engines
from nucsam_monai.utils.errors import ConfigurationError


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: engines.pick("distance", components=1, distance=2), 2),
        (lambda: engines.pick("unet", "other", hovernet="own"), "other"),
        (lambda: engines.first_given(None, "", "b"), ""),
        (lambda: engines.first_given(None, None), None),
        (lambda: engines.quality_metric(["a"]), "val_pq"),
        (lambda: engines.quality_metric(["a", "b"]), "val_mpq"),
        (lambda: engines.comparable_classes(["a"], ["a"]), ["a"]),
        (lambda: engines.comparable_classes(["a"], ["b"]), ["nucleus"]),
        (lambda: engines.trained_part("out", "prompter"), "out/prompter.safetensors"),
        (lambda: engines.trained_part("out", "prompter", without=True), None),
        (lambda: engines.trained_part(None, "prompter"), None),
        (lambda: engines.trained_model("out", [False, 1]), "out/model.safetensors"),
        (lambda: engines.trained_model("out", [False, 0]), None),
        (lambda: engines.trains_prompt_encoder("all", None), True),
        (lambda: engines.trains_prompt_encoder("all", "sam.pth"), False),
        (lambda: engines.trains_prompt_encoder("decoder", None), False),
        (lambda: engines.domains_of([{"domain": "b"}, {"domain": "a"}, {"domain": "b"}]), "a+b"),
        (lambda: engines.header_of(None), None),
        (lambda: engines.header_of({"prompter": None}), {"prompter": None}),
    ],
)
def test_choices(call: Any, expected: Any) -> None:
    assert call() == expected


def test_weights_are_loaded_only_if_there_are_some() -> None:
    network = nn.Linear(2, 2)
    engines.start(network, None, {})
    engines.start_classes(None, network, {})
    engines.start_encoder(None, network)
    engines.compile_if(False, [network], torch.device("cpu"))
    network.bias.requires_grad_(False)
    assert engines.trained_parameters(network) == [network.weight]


def test_settings_of_a_dataset_need_their_recipe() -> None:
    engines.require_recipe("paper", "paper.json")
    with pytest.raises(ConfigurationError, match=r"Name paper.json between train.json"):
        engines.require_recipe(None, "paper.json")


def test_loaders_know_how_items_are_joined() -> None:
    data = TensorDataset(torch.zeros(3, 2))
    assert engines.single_loader(data).batch_size == 1
    assert engines.single_loader(data, collate_fn="points").collate_fn is engines.collate_points
    with pytest.raises(ConfigurationError, match="expected one of points, nuclei, end_to_end"):
        engines.single_loader(data, collate_fn="lines")


def test_the_learning_rate_rises_from_a_tenth() -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    schedule = engines.warmup_cosine(optimizer, 2, 4)
    rates = []
    for _ in range(4):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(0.1)
    assert rates[2] == pytest.approx(1.0)
    assert rates[3] < 1


def test_the_demo_is_drawn_where_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr("nucsam_monai.data.demo.demo_dataset_dir", lambda: drawn.append(1))
    engines.draw_demo("elsewhere")
    assert not drawn
    engines.draw_demo(engines.demo_folder())
    assert drawn


def test_processes_of_one_machine_take_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert engines.default_device() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert engines.default_device() == torch.device("cuda:1")
    monkeypatch.delenv("LOCAL_RANK")
    assert engines.default_device() == torch.device("cuda")
