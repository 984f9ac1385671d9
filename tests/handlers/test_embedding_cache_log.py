import logging

import pytest
import torch
from ignite.engine import Engine

from nucsam_monai.handlers import EmbeddingCacheLog
from nucsam_monai.networks.sam import EmbeddingCache


def train(caplog, images, epochs):
    """Look up each of the numbered images in a cache, one a step, keep what is new, and return what is logged."""
    caplog.set_level(logging.INFO)
    cache = EmbeddingCache(None, max_memory_bytes=10**6)

    def step(_engine, image):
        if cache.get(str(image)) is None:
            cache.put(str(image), {"embedding": torch.zeros(1)}, {})

    trainer = Engine(step)
    EmbeddingCacheLog(cache).attach(trainer)
    trainer.run(images, max_epochs=epochs)
    return [message for message in caplog.messages if message.startswith("embedding cache")]


@pytest.mark.parametrize(("images", "steps"), [(range(9), 3), ([0, 1], 2), ([0], 1)])
def test_the_first_epoch_is_announced_once_and_early(caplog, images, steps):
    said = train(caplog, images, epochs=2)
    assert said[0].startswith(f"embedding cache: {steps} steps took")
    assert said[0].endswith(
        f"SAM ran for {steps} of {steps} images so far, and the others were in the cache."
    )
    assert sum("this epoch takes about" in message for message in said) == 1


def test_every_epoch_is_counted_for_itself(caplog):
    said = train(caplog, [0, 1, 0, 2], epochs=2)
    counts = [message.split("; ")[1] for message in said if "epoch 1 " in message or "epoch 2 " in message]
    assert counts == [
        "SAM ran for 3 images, 1 were in the cache.",
        "SAM ran for 0 images, 4 were in the cache.",
    ]
