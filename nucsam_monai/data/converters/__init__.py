"""Convert public datasets: each module has ``convert(source, output_dir, ...)``, which writes a dataset folder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType

from nucsam_monai.data.converters import (
    conic,
    cpm17,
    cryonuseg,
    dsb2018,
    glas,
    kumar,
    monuseg,
    nucls,
    nuinsseg,
    pannuke,
    segpc,
    tnbc,
)
from nucsam_monai.data.converters.conversion import ConversionSummary, DatasetInfo


@dataclass(frozen=True)
class Converter:
    """Describe a public dataset and the function that converts it."""

    info: DatasetInfo
    convert: Callable[..., ConversionSummary]


def _converters(*modules: ModuleType) -> dict[str, Converter]:
    return {module.INFO.name: Converter(module.INFO, module.convert) for module in modules}


CONVERTERS: Mapping[str, Converter] = _converters(
    dsb2018, monuseg, kumar, tnbc, segpc, cryonuseg, nuinsseg, cpm17, pannuke, conic, glas, nucls
)
"""``{dataset name: converter}``."""

__all__ = ["CONVERTERS", "ConversionSummary", "Converter", "DatasetInfo"]
