from pathlib import Path

from experiments import expand

from tests.scripts.experiments.stub import TWO_METHODS, experiment_of


def texts(steps) -> list[str]:
    return [str(step) for step in steps]


def test_in_domain_trains_and_tests_on_each_dataset(tmp_path: Path) -> None:
    grid = expand(experiment_of(tmp_path, seeds=[0, 1]))
    assert texts(grid.trainings) == [
        f"training {bundle} on {data}, seed {seed}"
        for bundle in ("unsam", "baselines")
        for data in ("bright", "dark")
        for seed in (0, 1)
    ]
    assert texts(grid.evaluations) == [
        f"{name} on {data}, seed {seed}" for name in "AB" for data in ("bright", "dark") for seed in (0, 1)
    ]
    assert not grid.measurements


def test_multi_domain_trains_once_on_all(tmp_path: Path) -> None:
    grid = expand(experiment_of(tmp_path, protocol="multi_domain"))
    assert texts(grid.trainings) == [
        "training unsam on bright+dark, seed 0",
        "training baselines on bright+dark, seed 0",
    ]
    assert len(grid.evaluations) == 4


def test_zero_shot_tests_what_was_not_trained_on(tmp_path: Path) -> None:
    forms = {"small": {"datasets": ["new"], "train_datasets": ["bright", "dark"]}}
    grid = expand(experiment_of(tmp_path, protocol="zero_shot", forms=forms))
    assert texts(grid.trainings)[0] == "training unsam on bright+dark, seed 0"
    assert texts(grid.evaluations) == ["A on new, seed 0", "B on new, seed 0"]


def test_each_dataset_may_be_tested_after_a_training_on_others(tmp_path: Path) -> None:
    forms = {
        "small": {
            "datasets": ["new", {"name": "bright", "train_datasets": ["dark"]}],
            "train_datasets": ["bright", "dark"],
        }
    }
    grid = expand(
        experiment_of(tmp_path, protocol="zero_shot", forms=forms, methods=TWO_METHODS["methods"][:1])
    )
    assert {str(pair): str(pair.training) for pair in grid.evaluations} == {
        "A on new, seed 0": "training unsam on bright+dark, seed 0",
        "A on bright, seed 0": "training unsam on dark, seed 0",
    }


def test_a_single_training_dataset_keeps_its_own_split_whatever_is_tested(tmp_path: Path) -> None:
    data = [{"name": "old", "split_protocols": ["monuseg37"]}]
    forms = {"small": {"datasets": [{"name": "new", "split_protocols": ["a", "b"]}], "train_datasets": data}}
    grid = expand(experiment_of(tmp_path, protocol="zero_shot", forms=forms))
    assert [training.split_protocol for training in grid.trainings] == ["monuseg37", "monuseg37"]
    assert [pair.split_protocol for pair in grid.evaluations] == ["a", "b", "a", "b"]


def test_methods_that_differ_in_the_test_only_share_their_training(tmp_path: Path) -> None:
    methods = [
        {"name": "A", "bundle": "unsam"},
        {"name": "B", "bundle": "unsam", "test_settings": {"unseen_domain": "mean"}},
        {"name": "C", "bundle": "unsam", "train": False},
        {"name": "D", "bundle": "unsam", "checkpoint": "model.safetensors"},
    ]
    grid = expand(experiment_of(tmp_path, methods=methods))
    assert texts(grid.trainings) == ["training unsam on bright, seed 0", "training unsam on dark, seed 0"]
    assert grid.describe(grid.trainings[0]) == "training unsam on bright, seed 0, for A, B"
    assert grid.describe(grid.evaluations[0]) == "A on bright, seed 0"
    assert len(grid.evaluations) == 8
    assert grid.evaluations[2].training == grid.evaluations[0].training
    assert grid.evaluations[2].options.settings == {"unseen_domain": "mean"}
    assert [pair.training is None for pair in grid.evaluations] == [False] * 4 + [True] * 4


def test_splits_are_trained_and_tested_each(tmp_path: Path) -> None:
    forms = {"small": {"datasets": [{"name": "pannuke", "split_protocols": ["fold1", "fold2"]}]}}
    grid = expand(experiment_of(tmp_path, forms=forms, methods=TWO_METHODS["methods"][:1]))
    assert [training.split_protocol for training in grid.trainings] == ["fold1", "fold2"]
    assert texts(grid.evaluations) == ["A on pannuke (fold1), seed 0", "A on pannuke (fold2), seed 0"]
    assert [pair.training for pair in grid.evaluations] == list(grid.trainings)


def test_options_of_form_dataset_and_method_in_this_order(tmp_path: Path) -> None:
    data = {"name": "a", "bundles": {"unsam": {"overlays": ["of_data"], "settings": {"lr": 2, "epochs": 2}}}}
    forms = {
        "small": {
            "datasets": [data],
            "bundles": {"unsam": {"overlays": ["of_form"], "settings": {"lr": 1, "epochs": 1, "seed": 1}}},
        }
    }
    methods = [{"name": "A", "bundle": "unsam", "settings": {"lr": 3}, "test_settings": {"lr": 4}}]
    grid = expand(experiment_of(tmp_path, forms=forms, methods=methods))
    assert grid.trainings[0].options.overlays == ("of_form", "of_data")
    assert grid.trainings[0].options.settings == {"lr": 3, "epochs": 2, "seed": 1}
    assert grid.evaluations[0].options.settings == {"lr": 4, "epochs": 2, "seed": 1}


def test_a_pretraining_sees_what_the_training_sees(tmp_path: Path) -> None:
    forms = {"small": {"datasets": ["bright", "dark"], "pretraining": {"bundle": "compact_sam"}}}
    grid = expand(experiment_of(tmp_path, forms=forms))
    assert texts(grid.pretrainings) == [
        "training compact_sam on bright, seed 0",
        "training compact_sam on dark, seed 0",
    ]


def test_cost_alone(tmp_path: Path) -> None:
    grid = expand(experiment_of(tmp_path, protocol="cost_only", metrics=["total_m"]))
    assert (grid.trainings, grid.evaluations) == ((), ())
    assert texts(grid.measurements) == ["cost of A", "cost of B"]
