from dataclasses import replace

import pytest

from nucsam_monai.metrics import (
    evaluate,
)
from nucsam_monai.utils.errors import ConfigurationError
from tests.metrics.evaluation_samples import CLASSES, EMPTY, FEW, SAMPLES
from tests.pickling_pool import without_processes


@pytest.mark.parametrize(
    ("samples", "options", "message"),
    [
        ([], {}, "found no sample"),
        ([SAMPLES[0], SAMPLES[0]], {}, "image 00 occurs twice"),
        ([replace(SAMPLES[0], y_pred=EMPTY[1:])], {}, r"image 00: y has shape \(96, 96\)"),
        (
            [replace(SAMPLES[0], y_classes=None)],
            {"class_names": CLASSES},
            "image 00: y_classes: .* have no class",
        ),
        ([replace(SAMPLES[0], scores={})], {"radius_px": 6}, "image 00: scores: .* have no score"),
        ([SAMPLES[0]], {"protocols": ["detection"]}, "radius_px: detection needs a positive radius"),
        ([SAMPLES[0]], {"radius_px": -1}, "radius_px"),
        (
            [SAMPLES[0]],
            {"protocols": ["instances"]},
            r"expected some of foreground, .* found \['instances'\]",
        ),
        ([SAMPLES[0]], {"protocols": []}, "expected some of foreground"),
        ([SAMPLES[0]], {"class_names": "ab"}, "expected a list of different names"),
        ([SAMPLES[0]], {"class_names": ["a", "a"]}, "expected a list of different names"),
        ([SAMPLES[0]], {"workers": 0}, "workers: expected at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(samples, options, message):
    with pytest.raises(ConfigurationError, match=message):
        evaluate(samples, bootstrap=FEW, **options)


def test_error_of_a_worker_reaches_the_caller(monkeypatch):
    without_processes(monkeypatch)
    broken = [*SAMPLES[:2], replace(SAMPLES[2], y_pred=EMPTY[1:]), *SAMPLES[3:]]
    with pytest.raises(ConfigurationError, match="image 02: y has shape"):
        evaluate(broken, bootstrap=FEW, workers=2)
