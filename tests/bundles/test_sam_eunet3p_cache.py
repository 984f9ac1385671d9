"""The embedding cache of SAM-guided eU-Net3+: the same training, without running SAM twice for an image."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from ignite.engine import Engine, Events

from nucsam_monai.networks.sam import EmbeddingCache
from tests.bundles.conftest import Training
from tests.bundles.eunet3p_runs import EUNET3P
from tests.bundles.runs import network_of

COPIES = 2


class CountedRun(NamedTuple):
    """What a training did.

    Attributes:
        losses: of its steps.
        encoded: digests of the images that SAM ran for, in training.
        images: how many images were trained.
        cache: the network's.
    """

    losses: list[float]
    encoded: list[int]
    images: int
    cache: EmbeddingCache | None


def run(training: Training, output: Path, cache: str | None, **settings: Any) -> CountedRun:
    """Train three epochs of two augmented copies of each image; the validation's images are not counted."""
    shared = {**training.settings, "epochs": 3, "val_interval": 99, "augmented_copies": COPIES}
    workflow = EUNET3P.bundle(**{**shared, "embedding_cache": cache, "output_dir": str(output), **settings})
    network, losses, encoded = network_of(workflow), [], []
    network.image_encoder.patch_embed.register_forward_pre_hook(
        lambda _, inputs: encoded.extend(
            hash(image.numpy().tobytes()) for image in inputs[0] if network.training
        )
    )
    seen: list[int] = []

    def note(engine: Engine) -> None:
        losses.append(engine.state.output["loss"].item())
        seen.append(len(engine.state.batch["image"]))

    workflow.trainer.add_event_handler(Events.ITERATION_COMPLETED, note)
    workflow.run()
    workflow.finalize()
    return CountedRun(losses, encoded, sum(seen), network.embedding_cache)


@pytest.fixture(scope="module")
def uncached(eunet3p_training: Training, tmp_path_factory: pytest.TempPathFactory) -> CountedRun:
    return run(eunet3p_training, tmp_path_factory.mktemp("uncached"), None)


@pytest.mark.parametrize(("storage", "rounding"), [("fp32", 1e-4), ("fp16", 1e-3)])
def test_the_cache_changes_no_loss_and_sam_sees_no_image_twice(
    eunet3p_training: Training, uncached: CountedRun, tmp_path: Path, storage: str, rounding: float
) -> None:
    settings = {"cache": str(tmp_path / "embeddings"), "embedding_cache_storage": storage}
    first = run(eunet3p_training, tmp_path / "first", **settings)
    assert uncached.cache is None
    assert len(uncached.encoded) == uncached.images
    assert len(first.encoded) == len(set(first.encoded)) == len(set(uncached.encoded))
    assert 8 < len(first.encoded) <= 8 * COPIES < uncached.images
    assert first.losses == pytest.approx(uncached.losses, rel=rounding)

    again = run(eunet3p_training, tmp_path / "again", **settings)
    assert again.encoded == []
    assert again.losses == pytest.approx(first.losses, rel=1e-4)


def test_embeddings_that_do_not_fit_are_computed_again(
    eunet3p_training: Training, uncached: CountedRun, tmp_path: Path
) -> None:
    settings = {"embedding_cache_gb": 1e-9, "embedding_cache_storage": "fp32"}
    found = run(eunet3p_training, tmp_path / "train", str(tmp_path / "embeddings"), **settings)
    assert found.losses == pytest.approx(uncached.losses, rel=1e-4)
    assert len(found.encoded) == uncached.images
    assert list((tmp_path / "embeddings").rglob("*.safetensors")) == []


def test_the_first_epoch_says_how_long_it_takes(
    eunet3p_training: Training, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        run(eunet3p_training, tmp_path / "train", str(tmp_path / "embeddings"), augmented_copies=1)
    said = [message for message in caplog.messages if message.startswith("embedding cache:")]
    announced = [message for message in said if "this epoch takes about" in message]
    assert len(announced) == 1
    assert "SAM ran for 6 of 6 images so far" in announced[0]
    epochs = [message for message in said if message.startswith("embedding cache: epoch")]
    assert [message.split("; ")[1] for message in epochs] == [
        "SAM ran for 8 images, 0 were in the cache.",
        "SAM ran for 0 images, 8 were in the cache.",
        "SAM ran for 0 images, 8 were in the cache.",
    ]
