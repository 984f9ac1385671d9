from itertools import chain

import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset
from monai.transforms import RandShiftIntensityd
from torch import nn

from nucsam_monai.engines.domain_schedule import DomainBatchSampler
from nucsam_monai.handlers.domain_schedule import DomainScheduleHandler
from nucsam_monai.networks.unsam import DomainBypass
from nucsam_monai.utils.errors import ConfigurationError

EPOCHS = 2


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(1, 1)
        self.bypass = DomainBypass(1, 2, 3, common_scope="per_domain")


class Training:
    """A small training of domains with 5, 2 and 3 images that records what happens."""

    def __init__(self, *, schedule="sequential", seed=0, workers=0, generator=None, wrapped=False, **options):
        items = [
            {"domain": name, "value": torch.tensor([float(i)]), "index": i}
            for i, name in enumerate(["a"] * 5 + ["b"] * 2 + ["c"] * 3)
        ]
        self.sampler = DomainBatchSampler(items, ["a", "b", "c"], 2, EPOCHS, schedule=schedule, seed=seed)
        self.loader = DataLoader(
            Dataset(items, RandShiftIntensityd("value", offsets=1.0, prob=1.0)),
            batch_sampler=self.sampler,
            num_workers=workers,
            generator=generator,
            **options,
        )
        torch.manual_seed(0)
        self.network = Network()
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=0.1)
        self.lr_scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, gamma=0.5)
        self.trainer = Engine(self.step)
        network = nn.DataParallel(self.network) if wrapped else self.network
        DomainScheduleHandler(
            self.sampler, self.loader, self.optimizer, self.lr_scheduler, network, seed=seed
        ).attach(self.trainer)
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, self.end_epoch)
        self.steps = []  # (epoch, images, values after the random transform, learning rate, Adam's steps)
        self.saved = {}

    def step(self, engine, batch):
        self.optimizer.zero_grad()
        self.network.head(batch["value"]).square().mean().backward()
        self.optimizer.step()
        self.steps.append(
            (
                engine.state.epoch,
                batch["index"].tolist(),
                batch["value"].flatten().tolist(),
                self.optimizer.param_groups[0]["lr"],
                int(self.optimizer.state[self.network.head.weight]["step"]),
            )
        )

    def end_epoch(self, engine):
        self.lr_scheduler.step()
        self.saved[engine.state.epoch] = dict(engine.state_dict())

    def run(self):
        self.trainer.run(self.loader, max_epochs=self.sampler.total_epochs)
        return self


def column(training, index, first=1):
    return [step[index] for step in training.steps if step[0] >= first]


def test_every_epoch_has_the_length_of_its_domain():
    training = Training().run()
    assert column(training, 0) == [1] * 3 + [2] * 3 + [3] + [4] + [5] * 2 + [6] * 2
    images = column(training, 1)
    assert sorted(chain(*images[:3])) == sorted(chain(*images[3:6])) == [0, 1, 2, 3, 4]
    assert sorted(images[6]) == sorted(images[7]) == [5, 6]
    assert sorted(chain(*images[8:10])) == sorted(chain(*images[10:])) == [7, 8, 9]


def test_interleaved_epochs_contain_all_images_and_keep_the_optimizer():
    training = Training(schedule="interleaved").run()
    assert column(training, 0) == [1] * 6 + [2] * 6
    assert sorted(chain(*column(training, 1)[:6])) == list(range(10))
    assert column(training, 4) == list(range(1, 13))
    assert column(training, 3) == [0.1] * 6 + [0.05] * 6


def test_every_domain_starts_with_a_new_optimizer_and_learning_rate():
    training = Training().run()
    assert column(training, 4) == [1, 2, 3, 4, 5, 6, 1, 2, 1, 2, 3, 4]
    assert column(training, 3) == pytest.approx([0.1] * 3 + [0.05] * 3 + [0.1, 0.05] + [0.1] * 2 + [0.05] * 2)
    assert training.lr_scheduler.last_epoch == EPOCHS


@pytest.mark.parametrize("wrapped", [False, True])
def test_common_embedding_is_handed_on_at_the_border_of_domains(wrapped):
    training = Training(wrapped=wrapped)
    weights = [blocks[0][0].weight for blocks in training.network.bypass.common]
    marks = []

    @training.trainer.on(Events.EPOCH_STARTED)
    def mark(engine):  # runs after the hand-over
        marks.append([weight.mean().item() for weight in weights])
        nn.init.constant_(weights[(engine.state.epoch - 1) // EPOCHS], engine.state.epoch)

    training.run()
    assert marks[2][1] == 2  # what epoch 2 left in the first domain's copy
    assert marks[3][1] == 3  # not handed on again inside a domain
    assert marks[4][1:] == [4, 4]


def test_networks_without_a_bypass_are_fine():
    training = Training()
    training.network.bypass = None
    assert len(training.run().steps) == 12


@pytest.mark.parametrize("options", [{}, {"generator": torch.Generator()}, {"workers": 1}])
def test_same_seeds_give_the_same_images_and_random_numbers(options):
    torch.manual_seed(123)
    first = Training(seed=4, **options).run()
    torch.manual_seed(321)
    assert Training(seed=4, **options).run().steps == first.steps
    values = {tuple(values) for values in column(first, 2)}
    assert len(values) == len(first.steps)
    if not options:
        assert column(Training(seed=5).run(), 2) != column(first, 2)


@pytest.mark.parametrize(
    ("schedule", "done"), [("interleaved", 1), *(("sequential", done) for done in range(1, 6))]
)
def test_resumed_training_goes_on_as_an_uninterrupted_one(schedule, done):
    whole = Training(schedule=schedule).run()
    resumed = Training(schedule=schedule)
    resumed.trainer.load_state_dict(whole.saved[done])
    assert resumed.trainer.state.epoch == done
    resumed.run()
    for index in (0, 1, 2):
        assert column(resumed, index) == column(whole, index, first=done + 1)


def test_workers_that_outlive_an_epoch_are_refused():
    with pytest.raises(ConfigurationError, match="persistent_workers is true, expected false"):
        Training(workers=1, persistent_workers=True)
