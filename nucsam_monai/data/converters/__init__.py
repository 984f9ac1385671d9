"""One converter per public dataset: ``convert(source, output_dir, ...)`` writes a dataset folder."""

from collections.abc import Callable, Mapping

from nucsam_monai.data.converters import dsb2018, monuseg, nucls
from nucsam_monai.data.converters.summary import ConversionSummary

CONVERTERS: Mapping[str, Callable[..., ConversionSummary]] = {
    "dsb2018": dsb2018.convert,
    "monuseg": monuseg.convert,
    "nucls": nucls.convert,
}
"""``{dataset name: converter}``."""

__all__ = ["CONVERTERS", "ConversionSummary"]
