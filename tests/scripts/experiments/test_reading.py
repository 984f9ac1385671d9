from pathlib import Path

import pytest
import yaml
from experiments import read_experiment
from experiments.description import BundleOptions, read_printed

from nucsam_monai.utils.errors import ConfigurationError
from tests.scripts.experiments.stub import TWO_METHODS, experiment_of

FILES = sorted(
    path
    for path in (Path(__file__).parents[3] / "scripts" / "experiments").rglob("*.yaml")
    if path.name != "printed.yaml"
)


def test_every_table_that_was_promised_is_there() -> None:
    found = {f"{path.parent.name}/{path.stem}" for path in FILES}
    promised = {f"unsam/table_{n}" for n in range(1, 7)} | {f"sac/table_{n}" for n in range(1, 9)}
    promised |= {f"promptnucseg/table_{n}" for n in (1, 4, 6, 7, 8)} | {
        "sam_eunet3p/table_1",
        "unsam/figure_5",
    }
    promised |= {f"cfrsam/table_{n}" for n in (1, *range(5, 13))}
    promised |= {
        f"real/{name}" for name in ("leaderboard", "zero_shot", "between_datasets", "cfrsam_transfer")
    }
    assert found == promised


def forms_of(path: Path) -> list[str]:
    return list(yaml.safe_load(path.read_text())["forms"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_ready_file_reads_in_its_forms_and_names_rows_of_its_printed_table(path: Path) -> None:
    forms = {form: read_experiment(path, form) for form in forms_of(path)}
    assert {experiment.name for experiment in forms.values()} == {f"{path.parent.name}_{path.stem}"}
    first = "real" if path.parent.name == "real" else "paper"
    assert {first, "small"} <= set(forms) <= {"paper", "real", "small"}
    paper = forms[first]
    if paper.printed is None:
        return
    printed = read_printed(paper.printed)
    beside = [method.printed or method.name for method in paper.methods]
    assert any(row in printed.values for row in beside)
    assert all(method.printed in printed.values for method in paper.methods if method.printed)
    columns = {column for row in printed.values.values() for column in row}
    assert {metric for _, metric in columns} <= set(paper.metrics)
    assert {name for name, _ in columns} <= {data.name for data in paper.datasets} | {"cost"}


def test_all_mistakes_are_said_at_once(tmp_path: Path) -> None:
    wrong = {
        **TWO_METHODS,
        "protocoll": "in_domain",
        "protocol": "indomain",
        "reference": "C",
        "methods": [{"name": "A", "bundle": "unsam", "setings": {}}, {"name": "A"}],
        "forms": {"small": {"datasets": [{"name": "x", "splits": ["tests"]}], "seeds": "0"}},
    }
    with pytest.raises(ConfigurationError) as error:
        experiment_of(tmp_path, **wrong)
    for part in (
        "unknown key 'protocoll'. Did you mean 'protocol'?",
        "protocol 'indomain'",
        "reference 'C'",
        "unknown key 'setings'. Did you mean 'settings'?",
        "without 'bundle'",
        "A named twice",
        "split 'tests'",
        "seeds: expected a list of whole numbers",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"forms": {}}, "form 'small'"),
        ({"protocol": "zero_shot"}, "without 'train_datasets'"),
        (
            {"forms": {"small": {"datasets": ["a"], "train_datasets": ["b"]}}},
            "belongs to protocol 'zero_shot'",
        ),
        (
            {"protocol": "zero_shot", "forms": {"small": {"datasets": ["a"], "train_datasets": ["a"]}}},
            "its test is not zero-shot",
        ),
        (
            {
                "protocol": "zero_shot",
                "forms": {
                    "small": {"datasets": [{"name": "a", "train_datasets": ["a"]}], "train_datasets": ["b"]}
                },
            },
            "'a' is trained on, so its test is not zero-shot",
        ),
        (
            {"forms": {"small": {"datasets": [{"name": "a", "train_datasets": ["b"]}]}}},
            "'a': 'train_datasets' belongs to protocol 'zero_shot'",
        ),
        (
            {
                "protocol": "zero_shot",
                "forms": {
                    "small": {"datasets": ["a"], "train_datasets": [{"name": "b", "train_datasets": ["c"]}]}
                },
            },
            "cannot have any themselves",
        ),
        ({"forms": {"small": {"datasets": ["a"], "methods": {"C": None}}}}, "'C' is none of the methods"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        experiment_of(tmp_path, **changes)


def test_other_data_take_the_place_of_those_of_the_form(tmp_path: Path) -> None:
    forms = {"small": {"datasets": ["a", {"name": "b", "train_datasets": ["a"]}], "train_datasets": ["c"]}}
    experiment_of(tmp_path, protocol="zero_shot", forms=forms)
    experiment = read_experiment(tmp_path / "toy.yaml", "small", train_datasets=["mine/d"])
    assert experiment.form == "small-d"
    trained = [[source.name for source in experiment.trained_before(use)] for use in experiment.datasets]
    assert trained == [["d"], ["d"]]
    assert read_experiment(tmp_path / "toy.yaml", "small", ["d"]).trained_before(experiment.datasets[0])
    with pytest.raises(ConfigurationError, match="'d' is trained on"):
        read_experiment(tmp_path / "toy.yaml", "small", ["d"], ["d"])


def test_a_form_changes_methods_and_leaves_some_out(tmp_path: Path) -> None:
    forms = {"small": {"datasets": ["a"], "methods": {"A": {"settings": {"lr": 1}, "x": 2}, "B": None}}}
    (method,) = experiment_of(tmp_path, forms=forms).methods
    assert (method.name, method.options, method.x) == ("A", BundleOptions((), {"lr": 1}), 2.0)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_experiment(tmp_path / "none.yaml", "small")
    (tmp_path / "list.yaml").write_text("[1]")
    with pytest.raises(ConfigurationError, match="expected an object"):
        read_experiment(tmp_path / "list.yaml", "small")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ConfigurationError, match="not valid"):
        read_experiment(tmp_path / "broken.json", "small")
