from pathlib import Path

import pytest
import yaml
from experiments import read_experiment
from experiments.description import BundleOptions, read_printed
from experiments.shared import compared_systems, system_printed_as

from nucsam_monai.utils.errors import ConfigurationError
from tests.scripts.experiments.stub import TWO_METHODS, experiment_of

FILES = sorted(
    path
    for path in (Path(__file__).parents[3] / "scripts" / "experiments").rglob("*.yaml")
    if path.name not in ("printed.yaml", "shared.yaml", "systems.yaml")
)


def test_every_table_that_was_promised_is_there() -> None:
    found = {f"{path.parent.name}/{path.stem}" for path in FILES}
    numbered = {"unsam": 6, "sac": 8, "promptnucseg": 8, "sam_eunet3p": 1, "cfrsam": 12}
    promised = {f"{paper}/table_{n}" for paper, count in numbered.items() for n in range(1, count + 1)}
    assert len(promised) == 35
    promised |= {"unsam/figure_5", "sac/figure_5", "promptnucseg/shared_encoder", "promptnucseg/overlap"}
    real = ("leaderboard", "zero_shot", "equal_minutes", "equal_minutes_zero_shot", "between_datasets")
    promised |= {f"real/{name}" for name in (*real, "cfrsam_transfer")}
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


def test_every_printed_row_is_a_method_here_or_a_system_with_a_reason() -> None:
    unknown = []
    for path in FILES:
        paper = read_experiment(path, forms_of(path)[0])
        rows = read_printed(paper.printed).values if paper.printed else {}
        beside = {method.printed or method.name for method in paper.methods}
        for row in set(rows) - beside:
            system = system_printed_as(row)
            if system is None or not system.reason:
                unknown.append(f"{path.parent.name} {path.stem}: {row}")
    assert not unknown


def test_methods_datasets_and_forms_are_taken_from_the_shared_file(tmp_path: Path) -> None:
    shared = {
        "methods": {"A": {"bundle": "unsam", "settings": {"lr": 1, "tau": 2}}, "many": {"system": "SAMed"}},
        "datasets": {"a": {"name": "a", "folder": "far/a"}},
        "forms": {
            "small": {
                "bundles": {"unsam": {"settings": {"epochs": 3}}},
                "methods": {"A": {"x": 5}, "elsewhere": {"x": 6}},
            }
        },
    }
    (tmp_path / "shared.yaml").write_text(yaml.safe_dump(shared))
    methods = [{"name": "A", "settings": {"tau": 3}}, "many", {"name": "B", "method": "A"}, "U-Net"]
    forms = {"small": {"datasets": ["a", "b"], "only": ["A", "many", "B"]}}
    experiment = experiment_of(tmp_path, shared="shared.yaml", methods=methods, forms=forms)
    first, many, again = experiment.methods
    assert (first.options, first.x) == (BundleOptions((), {"lr": 1, "tau": 3}), 5.0)
    assert many.bundle == "sac"
    assert many.options.settings == compared_systems()["SAMed"].method["settings"]
    assert again.options == BundleOptions((), {"lr": 1, "tau": 2})
    assert [dataset.folder for dataset in experiment.datasets] == ["far/a", "b"]
    assert experiment.bundles == {"unsam": BundleOptions((), {"epochs": 3})}
    with pytest.raises(ConfigurationError, match="only of the form: 'C' is none of the methods"):
        experiment_of(tmp_path, forms={"small": {"datasets": ["a"], "only": ["C"]}})


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
