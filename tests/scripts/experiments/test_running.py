import json
from dataclasses import replace
from pathlib import Path

import pytest
from experiments import expand, main, plan, run_experiment
from experiments.running import run_command, run_grid, run_step
from experiments.steps import SETTINGS_FILE, Evaluation, folder_of, is_done, prepare

from nucsam_monai.utils.errors import ConfigurationError
from tests.scripts.experiments.stub import StubCommands, experiment_of, places_of

STEPS = 8  # two methods, two datasets, each trained and tested


def test_what_is_done_is_not_done_again(tmp_path: Path, dataset_dir: str) -> None:
    experiment, places, first = experiment_of(tmp_path), places_of(tmp_path, dataset_dir), StubCommands()
    assert run_grid(expand(experiment), places, run=first) == []
    assert len(first.calls) == len(set(first.calls)) == STEPS
    again = StubCommands()
    assert run_grid(expand(experiment), places, run=again) == []
    assert again.calls == []
    assert plan(experiment, places).count("\ndone ") == STEPS


@pytest.mark.parametrize("killed_at", range(1, STEPS + 1))
def test_killed_anywhere_it_repeats_only_the_step_it_was_in(
    tmp_path: Path, dataset_dir: str, killed_at: int
) -> None:
    grid, places = expand(experiment_of(tmp_path)), places_of(tmp_path, dataset_dir)
    killed, rest = StubCommands(killed_at=killed_at), StubCommands()
    with pytest.raises(KeyboardInterrupt):
        run_grid(grid, places, run=killed)
    assert run_grid(grid, places, run=rest) == []
    assert rest.calls[0] == killed.calls[-1]
    assert len(killed.calls) + len(rest.calls) == STEPS + 1
    assert all(is_done(step, places) for step in (*grid.trainings, *grid.evaluations))


def test_several_at_a_time_do_the_same(tmp_path: Path, dataset_dir: str) -> None:
    grid = expand(experiment_of(tmp_path))
    alone, together = StubCommands(), StubCommands()
    run_grid(grid, places_of(tmp_path / "one", dataset_dir), run=alone)
    run_grid(grid, places_of(tmp_path / "two", dataset_dir), jobs=3, run=together)
    assert sorted(alone.calls) == sorted(together.calls)


def test_a_failing_training_costs_its_own_pairs_only(tmp_path: Path, dataset_dir: str) -> None:
    experiment, places = experiment_of(tmp_path), places_of(tmp_path, dataset_dir)
    failing = StubCommands(failing="baselines_on_dark")
    with pytest.raises(ConfigurationError) as error:
        run_experiment(experiment, places, run=failing)
    assert "training baselines on dark, seed 0: exit code 3, see" in str(error.value)
    assert "B on dark, seed 0: its training is not done" in str(error.value)
    report = places.output_dir / experiment.full_name / "report" / "results.md"
    assert "Not complete: 3 of 4 steps are done" in report.read_text()
    rest = StubCommands()
    assert run_grid(expand(experiment), places, run=rest) == []
    assert len(rest.calls) == 2


def test_experiments_share_their_trainings(tmp_path: Path, dataset_dir: str) -> None:
    places, other = places_of(tmp_path, dataset_dir), StubCommands()
    run_grid(expand(experiment_of(tmp_path)), places, run=StubCommands())
    run_grid(expand(experiment_of(tmp_path, name="other", metrics=["hd"])), places, run=other)
    assert other.calls == []


def test_a_step_with_other_settings_or_data_or_weights_is_another_step(
    tmp_path: Path, dataset_dir: str
) -> None:
    places = places_of(tmp_path, dataset_dir)
    weights = tmp_path / "weights" / "sam.pth"
    weights.parent.mkdir()
    weights.write_text("a")

    def folder(**settings: object) -> Path:
        methods = [{"name": "A", "bundle": "unsam", "settings": settings}]
        return folder_of(expand(experiment_of(tmp_path, methods=methods)).trainings[0], places)

    first = folder(sam_checkpoint="sam.pth")
    assert folder(sam_checkpoint="sam.pth") == first
    assert folder(sam_checkpoint="sam.pth", lr=1) != first
    weights.write_text("other weights")
    assert folder(sam_checkpoint="sam.pth") != first
    training = expand(experiment_of(tmp_path)).trainings[0]
    assert folder_of(replace(training, seed=1), places) != folder_of(training, places)


def test_a_checkpoint_is_chosen_by_dataset_and_known_by_the_weights_in_it(
    tmp_path: Path, dataset_dir: str
) -> None:
    places = places_of(tmp_path, dataset_dir)
    methods = [{"name": "A", "bundle": "promptnucseg", "checkpoint": "mine_{dataset}"}]
    grid = expand(experiment_of(tmp_path, methods=methods))
    for name in ("bright", "dark"):
        folder = tmp_path / "weights" / f"mine_{name}"
        folder.mkdir(parents=True)
        (folder / "prompter.safetensors").write_text("prompter")
        (folder / "segmentor.safetensors").write_text(f"segmentor of {name}")

    def settings_of(pair: Evaluation) -> dict[str, object]:
        prepare(pair, places)
        return json.loads((folder_of(pair, places) / SETTINGS_FILE).read_text())

    assert [settings_of(pair)["checkpoint"] for pair in grid.evaluations] == [
        str(tmp_path / "weights" / f"mine_{name}") for name in ("bright", "dark")
    ]
    before = [folder_of(pair, places) for pair in grid.evaluations]
    (tmp_path / "weights" / "mine_dark" / "segmentor_state.safetensors").write_text(
        "of the training, not of the model"
    )
    assert [folder_of(pair, places) for pair in grid.evaluations] == before
    (tmp_path / "weights" / "mine_dark" / "segmentor.safetensors").write_text("another segmentor")
    after = [folder_of(pair, places) for pair in grid.evaluations]
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False]


def test_two_processes_keep_out_of_each_others_way(tmp_path: Path, dataset_dir: str) -> None:
    places = places_of(tmp_path, dataset_dir)
    training = expand(experiment_of(tmp_path)).trainings[0]
    inner = []

    def run(arguments, log, lock) -> int:
        inner.append(run_step(training, places, run=StubCommands()))
        return 1

    run_step(training, places, run=run)
    assert "another process is at work" in inner[0].error
    assert not is_done(training, places)


def test_a_command_writes_its_log_and_returns_its_code(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert run_command(["sh", "-c", "echo out; echo err >&2; exit 3"], log, None) == 3
    assert {"out", "err"} <= set(log.read_text().split())


def test_the_settings_of_a_training_on_several_datasets(tmp_path: Path, dataset_dir: str) -> None:
    places = places_of(tmp_path, dataset_dir)
    grid = expand(experiment_of(tmp_path, protocol="multi_domain"))
    arguments = prepare(grid.trainings[0], places)
    settings = json.loads((folder_of(grid.trainings[0], places) / SETTINGS_FILE).read_text())
    assert arguments[1:5] == ["-m", "monai.bundle", "run", "training"]
    assert settings["dataset_dir"] == dataset_dir
    assert settings["domains"] == ["bright", "dark"]
    assert "split_protocol" not in settings
    assert settings["resume"] is True
    with pytest.raises(ConfigurationError, match="holds no weights"):
        prepare(grid.evaluations[0], places)


def test_a_pretraining_is_what_the_training_starts_from(tmp_path: Path, dataset_dir: str) -> None:
    bundles = {"unsam": {"settings": {"sam_checkpoint": "{pretraining}/sam.safetensors"}}}
    forms = {"small": {"datasets": ["bright"], "pretraining": {"bundle": "compact_sam"}, "bundles": bundles}}
    experiment, places = experiment_of(tmp_path, forms=forms), places_of(tmp_path, dataset_dir)
    commands = StubCommands()
    grid = expand(experiment)
    assert run_grid(grid, places, run=commands) == []
    before = folder_of(grid.pretrainings[0], places)
    assert commands.calls[0] == before.name
    for step in (grid.trainings[0], grid.evaluations[0]):
        settings = json.loads((folder_of(step, places) / SETTINGS_FILE).read_text())
        assert settings["sam_checkpoint"] == f"{before}/sam.safetensors"


def test_other_data_is_another_form(tmp_path: Path, dataset_dir: str) -> None:
    experiment_of(tmp_path)
    options = {"data_dir": dataset_dir, "output_dir": str(tmp_path), "store": "off", "only_plan": True}
    text = main(str(tmp_path / "toy.yaml"), datasets="dark", **options)
    assert text.startswith("toy-small-dark: A toy")
    assert "B on dark, seed 0" in text
    assert "bright" not in text
    with pytest.raises(ConfigurationError, match="unknown option --dataset"):
        main(str(tmp_path / "toy.yaml"), dataset="dark", **options)
