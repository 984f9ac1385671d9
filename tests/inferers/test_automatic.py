"""The automatic mode on random weights, beside the official model with the same weights."""

import csv
import functools
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import PromptEncoder, Sam
from segment_anything.utils.amg import mask_to_rle_pytorch

from nucsam_monai.engines import PrepareDomainBatch
from nucsam_monai.handlers import PredictionWriter
from nucsam_monai.inferers import AutocastInferer, AutomaticMaskInferer
from nucsam_monai.inferers.automatic import instances_of_records, stock_sam
from nucsam_monai.networks.sam import build_sam
from nucsam_monai.transforms import LabelMapToPredictiond, NormalizeSAMd
from nucsam_monai.utils.errors import ConfigurationError
from tests.networks.conftest import MICRO
from tests.oracles.official_decoder import official_decoder
from tests.oracles.official_sam import official_encoder

SIDE = 64
ALL_MASKS = {
    "points_per_side": 4,
    "pred_iou_thresh": -100.0,
    "stability_score_thresh": 0.0,
    "box_nms_thresh": 1.0,
}
SIZES = [(SIDE, SIDE), (40, 90), (130, 50)]


@functools.cache
def network():
    torch.manual_seed(0)
    sam = build_sam(MICRO, SIDE).eval()
    parts = [*sam.mask_decoder.parameters(), *sam.prompt_encoder.parameters()]
    with torch.no_grad():  # with the usual small weights all points give one mask
        for weight in parts:
            if weight.ndim > 1:
                weight.normal_(0, 0.4)
    return sam


def official(sam):
    """The official model, built by the official classes around copies of the weights."""
    prompt_encoder = PromptEncoder(
        embed_dim=MICRO.embed_channels,
        image_embedding_size=(SIDE // MICRO.patch,) * 2,
        input_image_size=(SIDE, SIDE),
        mask_in_chans=MICRO.mask_in_chans,
    )
    prompt_encoder.load_state_dict(sam.prompt_encoder.state_dict())
    decoder = official_decoder(MICRO, sam.mask_decoder.state_dict())
    return Sam(official_encoder(sam.image_encoder), prompt_encoder, decoder).eval()


def pixels(height, width, seed=0):
    """Smooth colours, which the resizing does not wipe out."""
    grid = np.random.default_rng(seed).integers(
        0, 256, (height // 10 + 1, width // 10 + 1, 3), dtype=np.uint8
    )
    return grid.repeat(10, axis=0).repeat(10, axis=1)[:height, :width].copy()


def normalised(image):
    return NormalizeSAMd("image")({"image": torch.from_numpy(image).permute(2, 0, 1)})["image"][None]


def record(mask, iou):
    mask = np.asarray(mask, dtype=bool)
    rle = mask_to_rle_pytorch(torch.from_numpy(mask)[None])[0]
    return {"segmentation": rle, "area": int(mask.sum()), "predicted_iou": iou}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("options", "fewest"), [({}, 48), ({"crop_n_layers": 1}, 1), ({"min_mask_region_area": 20}, 48)]
)
def test_masks_are_those_of_the_official_model(size, options, fewest):
    image = pixels(*size)
    given = {**ALL_MASKS, **options}
    expected, found = (
        sorted(
            SamAutomaticMaskGenerator(model, **given).generate(image),
            key=lambda record: (record["crop_box"], record["point_coords"], record["predicted_iou"]),
        )
        for model in (official(network()), stock_sam(network()))
    )
    assert len(found) == len(expected) >= fewest
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["point_coords"] == theirs["point_coords"]
        assert ours["predicted_iou"] == pytest.approx(theirs["predicted_iou"], abs=1e-3)
        assert (ours["segmentation"] != theirs["segmentation"]).mean() < 1e-3


@pytest.mark.parametrize("size", SIZES)
def test_the_label_map_shows_the_best_mask_of_every_pixel(size):
    image = pixels(*size)
    share = 0.5
    records = SamAutomaticMaskGenerator(official(network()), **ALL_MASKS).generate(image)
    best = np.full(size, -np.inf)
    for found in records:
        if found["area"] <= share * size[0] * size[1]:
            mask = found["segmentation"]
            best[mask] = np.maximum(best[mask], found["predicted_iou"])
    inferer = AutomaticMaskInferer(**ALL_MASKS, max_area_share=share)
    result = inferer(normalised(image), network(), domain="kumar")
    instances, score = result["instances"], result["score"]
    assert instances.shape == score.shape == (1, 1, *size)
    assert (instances.dtype, score.dtype) == (torch.int32, torch.float32)
    assert np.isfinite(best).any()
    assert ((instances[0, 0].numpy() > 0) != np.isfinite(best)).mean() < 1e-3
    expected = np.where(np.isfinite(best), best, 0)
    assert (np.abs(score[0, 0].numpy() - expected) > 1e-3).mean() < 2e-3
    assert instances.unique().tolist() == list(range(int(instances.max()) + 1))
    assert all(len(score[instances == value].unique()) == 1 for value in instances.unique())


def test_a_batch_equals_its_images():
    images = torch.cat([normalised(pixels(40, 56, seed)) for seed in (0, 1)])
    inferer = AutomaticMaskInferer(**ALL_MASKS)
    together = inferer(images, network())
    for number in range(2):
        alone = inferer(MetaTensor(images[number : number + 1]), network())
        for key, value in alone.items():
            assert not isinstance(value, MetaTensor)
            assert torch.equal(value, together[key][number : number + 1])


@pytest.mark.parametrize("options", [{}, {"crop_n_layers": 1}, {"min_mask_region_area": 9}])
def test_an_image_without_masks_has_no_instances(options):
    inferer = AutomaticMaskInferer(**{**ALL_MASKS, "pred_iou_thresh": 100.0}, **options)
    result = inferer(normalised(pixels(30, 50)), network())
    assert not result["instances"].any()
    assert not result["score"].any()
    assert result["instances"].shape == (1, 1, 30, 50)


def test_the_network_is_left_as_it_was():
    before = {name: tensor.clone() for name, tensor in network().state_dict().items()}
    AutomaticMaskInferer(**ALL_MASKS)(normalised(pixels(40, 40)), network())
    after = network().state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(module.training for module in network().modules())
    assert all(parameter.grad is None for parameter in network().parameters())


def test_the_normalisation_is_undone_exactly(monkeypatch):
    seen = []
    monkeypatch.setattr(SamAutomaticMaskGenerator, "generate", lambda self, image: seen.append(image) or [])
    image = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = np.stack([image, image.T, 255 - image], axis=-1)
    AutomaticMaskInferer()(normalised(image), network())
    np.testing.assert_array_equal(seen[0], image)
    assert seen[0].dtype == np.uint8


def test_half_precision_gives_float32_scores():
    result = AutocastInferer(AutomaticMaskInferer(**ALL_MASKS), "bf16")(normalised(pixels(40, 40)), network())
    assert result["score"].dtype == torch.float32
    assert result["instances"].max() > 0


def test_masks_above_the_largest_share_are_dropped():
    half = np.zeros((4, 6), dtype=bool)
    half[:2] = True
    more = half.copy()
    more[2, 0] = True
    instances, scores = instances_of_records([record(more, 0.99), record(half, 0.5)], (4, 6), 0.5)
    np.testing.assert_array_equal(instances, half)
    np.testing.assert_array_equal(scores, half * np.float32(0.5))
    instances, _ = instances_of_records([record(more, 0.99), record(half, 0.5)], (4, 6), 1.0)
    np.testing.assert_array_equal(instances, more)


def test_the_higher_predicted_iou_wins_and_of_equal_ones_the_first():
    records = [record([[1, 1, 0, 0]], 0.75), record([[0, 1, 1, 0]], 0.5), record([[0, 0, 1, 1]], 0.5)]
    instances, scores = instances_of_records(records, (1, 4), 1.0)
    assert scores.tolist() == [[0.75, 0.75, 0.5, 0.5]]
    first, _, second, third = instances[0].tolist()
    assert instances[0].tolist() == [first, first, second, third]
    assert sorted({first, second, third}) == [1, 2, 3]


def test_no_record_gives_an_empty_map():
    instances, scores = instances_of_records([], (2, 3), 0.5)
    assert instances.tolist() == scores.tolist() == [[0, 0, 0]] * 2


def test_the_writer_of_predictions_takes_the_result(tmp_path):
    image = pixels(40, 56)
    item = {
        "id": "a",
        "domain": "x",
        "image": normalised(image)[0],
        "pixels": torch.from_numpy(image).permute(2, 0, 1),
    }
    inferer = AutomaticMaskInferer(**ALL_MASKS)
    SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(Dataset([item]), batch_size=1),
        network=network(),
        inferer=inferer,
        prepare_batch=PrepareDomainBatch(),
        postprocessing=LabelMapToPredictiond("pred"),
        val_handlers=[PredictionWriter(tmp_path)],
    ).run()
    expected = inferer(item["image"][None], network())
    written = tifffile.imread(tmp_path / "a_instances.tif")
    np.testing.assert_array_equal(written, expected["instances"][0, 0])
    with Path(tmp_path / "a_nuclei.csv").open(newline="") as file:
        scores = [float(row["score"]) for row in csv.DictReader(file)]
    by_id = [expected["score"][expected["instances"] == value].max() for value in np.unique(written)[1:]]
    np.testing.assert_allclose(scores, by_id, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"points_per_side": 0},
        {"points_per_batch": 0},
        {"crop_n_layers": -1},
        {"min_mask_region_area": -1},
        {"max_area_share": 0.0},
        {"max_area_share": 1.5},
    ],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        AutomaticMaskInferer(**options)


@pytest.mark.parametrize("factor", [0.0, 1 / 255, float("nan")])
def test_images_that_are_not_normalised_are_refused(factor):
    inputs = torch.from_numpy(pixels(20, 20)).permute(2, 0, 1)[None] * 1.0 + 1
    inputs = inputs if factor == 0 else inputs * factor - 10
    with pytest.raises(ConfigurationError, match="normalised"):
        AutomaticMaskInferer(**ALL_MASKS)(inputs, network())


def test_networks_without_a_square_working_size_are_refused():
    inferer, inputs = AutomaticMaskInferer(**ALL_MASKS), normalised(pixels(20, 20))
    with pytest.raises(ConfigurationError, match="square"):
        inferer(inputs, build_sam(MICRO, (64, 32)))
    with pytest.raises(ConfigurationError, match="found Identity"):
        inferer(inputs, torch.nn.Identity())
