import pytest
import torch
from monai.inferers import SimpleInferer
from torch import nn

from nucsam_monai.inferers import AutocastInferer, autocast, precision
from nucsam_monai.utils.errors import ConfigurationError

CPU = torch.device("cpu")


def type_inside(name, device=CPU):
    with autocast(name, device):
        return nn.Linear(2, 2)(torch.ones(1, 2)).dtype


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_named_precisions(name, dtype):
    assert type_inside(name) == dtype


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
@pytest.mark.parametrize("probe", ["_is_amx_tile_supported", "_is_avx512_bf16_supported"])
def test_auto_takes_bfloat16_where_the_cpu_computes_it(monkeypatch, probe, native, dtype):
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda value=native and name == probe: value, raising=False)
    assert type_inside("auto") == dtype


def test_auto_is_float32_where_torch_cannot_tell(monkeypatch):
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert type_inside("auto") == torch.float32


@pytest.mark.parametrize("native", [True, False])
def test_auto_asks_the_gpu_without_emulation(monkeypatch, native):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: asked.append(options) or native)
    assert precision._computes_bfloat16(torch.device("cuda")) is native
    assert asked == [{"including_emulation": False}]


def test_auto_is_float32_on_other_devices():
    assert not precision._computes_bfloat16(torch.device("mps"))


def test_unknown_precision_is_refused():
    with pytest.raises(ConfigurationError, match="auto, fp32, bf16, fp16"):
        autocast("int8", CPU)


def test_autocast_inferer_hands_on_arguments_and_leaves_nothing_behind():
    inferer = AutocastInferer(SimpleInferer(), "bf16")
    layer = nn.Linear(2, 2)
    seen = inferer(torch.ones(1, 2), lambda x, *args, **kwargs: (layer(x).dtype, args, kwargs), 5, domain="a")
    assert seen == (torch.bfloat16, (5,), {"domain": "a"})
    assert not torch.is_autocast_enabled("cpu")


def test_gradients_that_would_vanish_in_fp16_are_refused() -> None:
    inferer = AutocastInferer(SimpleInferer(), "fp16")
    with pytest.raises(ConfigurationError, match="train in bf16 or fp32"):
        inferer(torch.ones(1, 2), nn.Linear(2, 2))
    with torch.no_grad():
        assert inferer(torch.ones(1, 2), nn.Linear(2, 2)).dtype == torch.float16
