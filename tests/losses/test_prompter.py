import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from nucsam_monai.losses import PrompterLoss, PrompterTarget
from nucsam_monai.networks import PrompterOutput
from nucsam_monai.utils.errors import ConfigurationError
from tests.oracles.prompter_losses import prompter_loss_terms


def random_batch(seed, counts, anchors=5, classes=2, mask=True):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    images = len(counts)
    output = PrompterOutput(
        points=(10 * normal(images, anchors, 2)).requires_grad_(),
        class_logits=normal(images, anchors, classes + 1).requires_grad_(),
        mask_logits=normal(images, 1, 3, 4).requires_grad_() if mask else None,
    )
    target = PrompterTarget(
        points=[10 * normal(count, 2) for count in counts],
        classes=[torch.randint(classes, (count,), generator=generator) for count in counts],
        mask=(normal(images, 1, 3, 4) > 0).float() if mask else None,
    )
    return output, target


@settings(max_examples=40)
@given(
    st.integers(0, 1000),
    st.lists(st.integers(0, 4), min_size=1, max_size=3),
    st.sampled_from(["squared", "l2"]),
    st.sampled_from(["code", "paper"]),
    st.booleans(),
)
def test_terms_equal_their_definition(seed, counts, regression, normaliser, mask):
    output, target = random_batch(seed, counts, mask=mask)
    loss = PrompterLoss(0.4, regression=regression, normaliser=normaliser)
    terms = loss.terms(output, target)
    expected = prompter_loss_terms(output, target, 0.4, regression=regression, normaliser=normaliser)
    for found, wanted in zip(terms, expected, strict=True):
        assert found.shape == ()
        assert float(found.detach()) == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    assert float(loss(output, target).detach()) == pytest.approx(sum(expected), rel=1e-4)


@pytest.mark.parametrize("regression", ["squared", "l2"])
def test_images_without_nuclei_learn_that_all_is_background(regression):
    output, target = random_batch(0, [0, 0])
    terms = PrompterLoss(regression=regression).terms(output, target)
    assert float(terms.regression.detach()) == 0
    sum(terms).backward()
    assert not output.points.grad.any()
    assert (output.class_logits.grad[..., -1] < 0).all()
    assert torch.isfinite(output.mask_logits.grad).all()


@pytest.mark.parametrize("regression", ["squared", "l2"])
def test_a_point_on_its_nucleus_has_no_gradient(regression):
    nuclei = torch.tensor([[3.0, 4.0]])
    output = PrompterOutput(nuclei[None].clone().requires_grad_(), torch.zeros(1, 1, 2), None)
    target = PrompterTarget([nuclei], [torch.zeros(1, dtype=torch.long)], None)
    PrompterLoss(regression=regression)(output, target).backward()
    assert not output.points.grad.any()


def test_only_matched_points_are_moved():
    output, target = random_batch(3, [2], anchors=5)
    PrompterLoss()(output, target).backward()
    assert output.points.grad.any(dim=-1).sum() == 2


def test_background_weighs_beta():
    output, target = random_batch(4, [0], mask=False)
    assert float(PrompterLoss(0.4, normaliser="paper")(output, target).detach()) == pytest.approx(
        2 * float(PrompterLoss(0.2, normaliser="paper")(output, target).detach())
    )


def test_half_precision_is_matched_in_single():
    output, target = random_batch(5, [3, 1])
    half = PrompterOutput(*(tensor.detach().to(torch.bfloat16) for tensor in output[:3]))
    loss = PrompterLoss()
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(half, target)
    assert found.dtype == torch.float32
    assert float(found) == float(loss(PrompterOutput(*(tensor.float() for tensor in half[:3])), target))


def test_regression_counts_the_nuclei_of_all_processes(monkeypatch):
    output, target = random_batch(6, [1])
    alone = PrompterLoss().terms(output, target).regression.detach()
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda count: count.add_(5))
    # six nuclei on two processes: DDP's mean of both gradients then divides by six
    assert float(PrompterLoss().terms(output, target).regression.detach()) == pytest.approx(float(alone) / 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": []}, "points of 0 and classes of 2 images, expected the 2"),
        (
            {"classes": [torch.zeros(2, dtype=torch.long)] * 2},
            r"image 0: found points \(1, 2\) and 2 classes",
        ),
        ({"mask": None}, "target mask: found none"),
        ({"mask": torch.zeros(2, 1, 6, 8)}, r"found \(2, 1, 6, 8\), expected the \(2, 1, 3, 4\)"),
        ({"classes": [torch.full((1,), 2), torch.zeros(1, dtype=torch.long)]}, "expected 0 to 1"),
    ],
)
def test_targets_that_do_not_fit_are_refused(change, message):
    output, target = random_batch(7, [1, 1])
    with pytest.raises(ConfigurationError, match=message):
        PrompterLoss()(output, target._replace(**change))


def test_more_nuclei_than_anchors_are_refused():
    output, target = random_batch(8, [6], anchors=5)
    with pytest.raises(ConfigurationError, match="6 nuclei in an image of 5 anchor points"):
        PrompterLoss()(output, target)


@pytest.mark.parametrize("options", [{"regression": "l1"}, {"normaliser": "mean"}])
def test_unknown_options_are_refused(options):
    with pytest.raises(ConfigurationError, match="expected"):
        PrompterLoss(**options)


@pytest.mark.parametrize("regression", ["squared", "l2"])
def test_sizes_of_matched_anchors_are_regressed_like_points(regression):
    output, target = random_batch(9, [2, 0, 1])
    sizes = torch.rand(3, 5, 2, generator=torch.Generator().manual_seed(1)).requires_grad_()
    sized = output._replace(sizes=sizes)
    wanted = target._replace(sizes=[torch.full((count, 2), 4.0) for count in (2, 0, 1)])
    loss = PrompterLoss(regression=regression, regression_weight=1.0)
    extra = loss.terms(sized, wanted).regression - loss.terms(output, target).regression
    extra.backward()
    rows = sizes.grad.abs().sum(dim=-1) > 0
    assert rows.sum(dim=1).tolist() == [2, 0, 1]
    errors = (sizes.detach()[rows] - 4).square().sum(dim=-1)
    expected = errors if regression == "squared" else errors.sqrt()
    assert float(extra.detach()) == pytest.approx(float(expected.mean()), rel=1e-4)


def test_missing_sizes_are_refused():
    output, target = random_batch(9, [2, 1])
    sized = output._replace(sizes=torch.ones(2, 5, 2))
    for sizes in (None, [torch.ones(2, 2)], [torch.ones(1, 2), torch.ones(1, 2)]):
        with pytest.raises(ConfigurationError, match="expected width and height of every nucleus"):
            PrompterLoss()(sized, target._replace(sizes=sizes))
