import json
from pathlib import Path

import pytest
from experiments import expand, read_experiment
from experiments.preflight import check, option_problems
from experiments.steps import config_paths, handlers_key
from monai.bundle import ConfigParser

from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.paths import bundle_root
from tests.scripts.experiments.stub import experiment_of, places_of
from tests.scripts.experiments.test_reading import FILES, forms_of


def test_everything_that_is_missing_is_listed_with_where_to_get_it(tmp_path: Path, dataset_dir: str) -> None:
    methods = [
        {
            "name": "A",
            "bundle": "unsam",
            "settings": {"sam_checkpoint": "sam_vit_h_4b8939.pth", "shedule": "x"},
        },
        {"name": "B", "bundle": "nobundle"},
        {"name": "C", "bundle": "sac", "overlays": ["papers"]},
        {"name": "D", "bundle": "unsam", "checkpoint": "mine.safetensors"},
        {"name": "E", "bundle": "promptnucseg", "checkpoint": "empty"},
    ]
    (tmp_path / "weights" / "empty").mkdir(parents=True)
    data = ["bright", "monuseg", "own", {"name": "dark", "split_protocols": ["fold1"]}]
    experiment = experiment_of(tmp_path, methods=methods, forms={"small": {"datasets": data}})
    with pytest.raises(ConfigurationError) as error:
        check(experiment, expand(experiment), places_of(tmp_path, dataset_dir))
    for part in (
        "nucsam datasets monuseg",
        "dataset 'own'",
        "nucsam datasets folder",
        "protocol 'fold1': dataset 'dark' has none",
        "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_h_4b8939.pth",
        "mine.safetensors",
        "weights: no *.safetensors in",
        "unknown key 'shedule'. Did you mean 'schedule'?",
        "bundle 'nobundle'",
        "no configuration",
    ):
        assert part in str(error.value)
    assert str(error.value).count("\n- ") == 9


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_ready_files_name_only_keys_that_their_bundles_have(path: Path) -> None:
    problems: set[str] = set()
    for form in forms_of(path):
        grid = expand(read_experiment(path, form))
        used = [(step.bundle, step.options, ("train",)) for step in (*grid.pretrainings, *grid.trainings)]
        tested = (*grid.evaluations, *(measurement.evaluation for measurement in grid.measurements))
        used += [(pair.bundle, pair.options, ("train", "evaluate")) for pair in tested]
        seen = []
        for bundle, options, names in used:
            if (bundle, options) in seen or not _is_there(bundle):
                continue
            seen.append((bundle, options))
            problems |= set(option_problems(bundle, options, (*names, *options.overlays)))
    assert not problems


@pytest.mark.parametrize("bundle", ["unsam", "sac", "promptnucseg", "sam_eunet3p", "baselines"])
def test_a_handler_can_be_added_to_the_evaluation_of_every_bundle(bundle: str, tmp_path: Path) -> None:
    key, added = handlers_key(bundle), {"_target_": "Added"}
    (tmp_path / "settings.json").write_text(json.dumps({f"+{key}": [added]}))
    files = config_paths(bundle, ("train", "evaluate"))
    before = ConfigParser(ConfigParser.load_config_files(files))
    after = ConfigParser(ConfigParser.load_config_files([*files, str(tmp_path / "settings.json")]))
    assert after[key] == [*before[key], added]


def test_the_plan_of_every_form_says_which_data_and_weights_are_missing(tmp_path: Path) -> None:
    places = places_of(tmp_path, str(tmp_path / "data"))
    for path, form in [(file, name) for file in FILES for name in forms_of(file)]:
        experiment = read_experiment(path, form)
        missing = set()
        if experiment.protocol != "cost_only":
            missing |= {f"dataset '{dataset.name}'" for dataset in experiment.datasets}
        with pytest.raises(ConfigurationError) as error:
            check(experiment, expand(experiment), places)
        lines = str(error.value).split("\n- ")[1:]
        assert all(line.startswith(("dataset '", "weights: no ")) for line in lines), (path, form, lines)
        # Compact SAMs, which the real forms start from, are published nowhere.
        advice = (
            ["Get it: "] if form == "paper" else ["Get it: ", "Put it there, or name another --weights_dir"]
        )
        assert all(any(one in line for one in advice) for line in lines if "/demo/" not in line)
        assert missing <= {line.partition(":")[0] for line in lines}


def _is_there(bundle: str) -> bool:
    try:
        return bool(bundle_root(bundle))
    except ConfigurationError:
        return False
