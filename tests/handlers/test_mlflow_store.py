"""Tracking URIs, new databases, experiments, and the facts that identify a run."""

import hashlib
import json
import logging
import shutil
import subprocess
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from monai.utils import path_to_sqlite_uri, set_determinism

from nucsam_monai.handlers import TrackedRun, resolve_tracking_uri, run_facts, tracking_store, tracking_uri
from nucsam_monai.handlers.run_facts import (
    MAX_TEXT_LENGTH,
    dataset_facts,
    environment_facts,
    flatten_params,
    git_facts,
    scalar_metrics,
    tracked_name,
    weights_facts,
)
from nucsam_monai.handlers.tracking_store import connect, create_database, experiment_id, sqlite_path
from nucsam_monai.utils.errors import ConfigurationError, DatasetError
from nucsam_monai.utils.paths import project_root


def test_the_default_is_the_projects_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri() == f"sqlite:///{project_root() / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert tracking_uri() == "http://tracking:5000"


@pytest.mark.parametrize(
    ("given_uri", "expected"),
    [
        (None, None),
        ("", None),
        (" Off ", None),
        ("x.db", "sqlite:///{cwd}/x.db"),
        ("runs", "sqlite:///{cwd}/runs/mlflow.db"),
        ("/data/runs", "sqlite:////data/runs/mlflow.db"),
        (Path("/data/a b.sqlite"), "sqlite:////data/a%20b.sqlite"),
        ("sqlite:///x.db", "sqlite:///{cwd}/x.db"),
        ("sqlite:////data/a%20b.db", "sqlite:////data/a%20b.db"),
        ("http://host:5000", "http://host:5000"),
        ("postgresql://u:p@host/db", "postgresql://u:p@host/db"),
        ("databricks", "databricks"),
    ],
)
def test_places_become_uris(
    given_uri: str | Path | None, expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_tracking_uri(given_uri) == (expected and expected.format(cwd=tmp_path))


@pytest.mark.parametrize("place", ["file:///data/mlruns", "runs.json", "sqlite:runs.db", "http:/host:5000"])
def test_places_that_mlflow_would_refuse_give_one_clear_error(place: str) -> None:
    with pytest.raises(ConfigurationError, match=r"tracking_uri '.*Expected|Give|give"):
        resolve_tracking_uri(place)


def test_what_lies_at_the_place_is_looked_at(tmp_path: Path, template_database: Path) -> None:
    (tmp_path / "table.db").write_text("id,area_px\n")
    for place in (tmp_path / "table.db", f"sqlite:///{tmp_path / 'table.db'}"):
        with pytest.raises(ConfigurationError, match="not an SQLite database"):
            resolve_tracking_uri(place)
    with pytest.raises(ConfigurationError, match="is a folder"):
        resolve_tracking_uri(f"sqlite:///{tmp_path}")
    shutil.copy(template_database, tmp_path / "without_suffix")
    for place in ("without_suffix", "with.dots.in.name"):
        shutil.copy(template_database, tmp_path / place)
        assert sqlite_path(resolve_tracking_uri(tmp_path / place) or "") == tmp_path / place
    (tmp_path / "folder.v1").mkdir()
    assert (
        sqlite_path(resolve_tracking_uri(tmp_path / "folder.v1") or "")
        == tmp_path / "folder.v1" / "mlflow.db"
    )


def test_the_faster_of_two_processes_makes_the_database(
    tmp_path: Path, template_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = tmp_path / "new" / "mlflow.db"

    def slow_migration(tracking_uri: str) -> None:
        temporary = sqlite_path(tracking_uri)
        assert temporary is not None
        temporary.write_bytes(b"the slower one")
        shutil.copy(template_database, database)

    monkeypatch.setattr(mlflow, "MlflowClient", slow_migration)
    create_database(database)
    assert database.read_bytes() == template_database.read_bytes()
    assert list(database.parent.iterdir()) == [database]


def test_a_failed_migration_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def migration(tracking_uri: str) -> None:
        temporary = sqlite_path(tracking_uri)
        assert temporary is not None
        temporary.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(mlflow, "MlflowClient", migration)
    with pytest.raises(ConfigurationError, match=r"disk full.*--tracking_uri off"):
        connect(path_to_sqlite_uri(tmp_path / "mlflow.db"))
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_links_gets_its_database_by_renaming(
    tmp_path: Path, template_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def migration(tracking_uri: str) -> None:
        shutil.copy(template_database, str(sqlite_path(tracking_uri)))

    def no_links(*_: Any) -> None:
        raise PermissionError("links are not supported")

    monkeypatch.setattr(mlflow, "MlflowClient", migration)
    monkeypatch.setattr(tracking_store.os, "link", no_links)
    create_database(tmp_path / "mlflow.db")
    assert (tmp_path / "mlflow.db").read_bytes() == template_database.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def test_a_store_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    uri = path_to_sqlite_uri(tmp_path / "missing" / "mlflow.db")
    (tmp_path / "missing").write_text("a file where the folder should be")
    with pytest.raises(ConfigurationError, match="--tracking_uri off"):
        connect(uri)


def test_an_experiment_that_another_process_creates_meanwhile_is_used(store_uri: str) -> None:
    client = mlflow.MlflowClient(store_uri)
    existing = client.create_experiment("nucsam/demo")

    class Blind:
        """Sees the experiment only at the second look."""

        looks = 0

        def get_experiment_by_name(self, name: str) -> Any:
            self.looks += 1
            return client.get_experiment_by_name(name) if self.looks > 1 else None

        def create_experiment(self, *arguments: Any, **options: Any) -> str:
            return client.create_experiment(*arguments, **options)

    assert experiment_id(Blind(), "nucsam/demo", store_uri) == existing


def test_artifacts_of_a_server_are_the_servers_business() -> None:
    class Server:
        location: str | None = "not asked"

        def get_experiment_by_name(self, _name: str) -> None:
            return None

        def create_experiment(self, _name: str, artifact_location: str | None) -> int:
            self.location = artifact_location
            return 4

    server = Server()
    assert experiment_id(server, "nucsam/demo", "http://host:5000") == "4"
    assert server.location is None


def test_a_deleted_experiment_is_a_clear_error_and_no_run(store_uri: str) -> None:
    client = mlflow.MlflowClient(store_uri)
    client.delete_experiment(client.create_experiment("nucsam/demo"))
    with pytest.raises(ConfigurationError, match="mlflow experiments restore"):
        TrackedRun("nucsam/demo", store_uri).open()


@pytest.mark.parametrize("name", ["", "/", "../escape", "a//b"])
def test_an_experiment_name_is_a_relative_folder(store_uri: str, name: str) -> None:
    with pytest.raises(ConfigurationError, match="expected a name"):
        experiment_id(mlflow.MlflowClient(store_uri), name, store_uri)


def test_an_unknown_workflow_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="train, evaluate, benchmark"):
        TrackedRun("nucsam/demo", None, workflow="training")


def test_missing_weights_begin_no_run(store_uri: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"weights 'sam': no file"):
        TrackedRun("nucsam/demo", store_uri, weights={"sam": tmp_path / "none.pth"}).open()
    assert mlflow.MlflowClient(store_uri).get_experiment_by_name("nucsam/demo") is None


def test_digests_of_weights(tmp_path: Path) -> None:
    (tmp_path / "sam.bin").write_bytes(b"weights")
    facts = weights_facts({"sam": tmp_path / "sam.bin", "model": None, "other": ""})
    assert facts == {"weights_sha256.sam": hashlib.sha256(b"weights").hexdigest()}


def test_parameters_are_flattened_to_text() -> None:
    params = {
        "network": {"channels": (32, 64), "norm": None, "object": torch.nn.Linear(1, 1)},
        "lr": np.float32(0.5),
        "device": torch.device("cpu"),
        "milestones": [np.int64(3), 5],
        "mixed": [1, object()],
        "train#amp": True,
        "long": "x" * 7000,
        "empty": {},
    }
    assert flatten_params(params) == {
        "network.channels": "[32, 64]",
        "network.norm": "None",
        "lr": "0.5",
        "device": "cpu",
        "milestones": "[3, 5]",
        "train_amp": "True",
        "long": "x" * MAX_TEXT_LENGTH,
    }


def test_more_parameters_than_one_request_takes(store_uri: str) -> None:
    params = {f"p{i}": i for i in range(205)}
    with TrackedRun("nucsam/demo", store_uri, params=params) as run:
        pass
    assert len(mlflow.MlflowClient(store_uri).get_run(run.run_id).data.params) == 205


def test_only_scalars_are_metrics() -> None:
    metrics = {
        "pq": torch.tensor(0.5),
        "aji": np.float64(0.25),
        "count": 3,
        "one": torch.tensor([2.0]),
        "mIoU@0.5": 1.0,
        "per_class": {"a": 1, "b": {"c": np.array(2)}},
        "curve": torch.zeros(2),
        "none": None,
        "name": "text",
    }
    assert scalar_metrics(metrics) == {
        "pq": 0.5,
        "aji": 0.25,
        "count": 3.0,
        "one": 2.0,
        "mIoU_0.5": 1.0,
        "per_class/a": 1.0,
        "per_class/b/c": 2.0,
    }


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40) | st.text("ab./# ", max_size=12))
@example("a" * 300)
def test_every_name_becomes_one_that_mlflow_takes(name: str) -> None:
    cleaned = tracked_name(name)
    mlflow.utils.validation._validate_metric_name(cleaned)
    assert tracked_name(cleaned) == cleaned


def test_metrics_that_are_not_finite_are_kept(store_uri: str) -> None:
    with TrackedRun("nucsam/demo", store_uri) as run:
        run.log_metrics({"loss": float("nan")}, step=3)
    (point,) = mlflow.MlflowClient(store_uri).get_metric_history(run.run_id, "loss")
    assert point.step == 3
    assert np.isnan(point.value)


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_source_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_facts(tmp_path) == {}
    git(tmp_path, "init", "-q")
    assert git_facts(tmp_path) == {}  # no commit yet
    (tmp_path / "code.py").write_text("1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "one")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "untracked.txt").write_text("")
    expected = {"git_commit": commit, "mlflow.source.git.commit": commit, "git_dirty": "false"}
    assert git_facts(tmp_path) == expected
    (tmp_path / "code.py").write_text("2\n")
    assert git_facts(tmp_path) == {**expected, "git_dirty": "true"}


def test_without_git_there_is_no_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_facts.shutil, "which", lambda _: None)
    assert git_facts(project_root()) == {}


def test_a_git_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], timeout: float, **_: Any) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(run_facts.subprocess, "run", hang)
    assert git_facts(project_root()) == {}


def test_the_seed_is_recorded_where_one_was_set(tmp_path: Path) -> None:
    set_determinism(seed=11)
    try:
        assert environment_facts(tmp_path)["seed"] == "11"
    finally:
        set_determinism(seed=None)
    assert "seed" not in environment_facts(tmp_path)


def test_a_folder_without_description_is_identified_by_names_and_sizes(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "b.png").write_bytes(b"12")
    (tmp_path / "a.png").write_bytes(b"123")
    facts = dataset_facts(tmp_path, "test")
    listing = "test\na.png\t3\nimages/b.png\t2\n"
    assert facts.sha256 == hashlib.sha256(listing.encode()).hexdigest()
    assert (facts.items, facts.name, len(facts.digest)) == (2, tmp_path.name, 36)
    (tmp_path / "a.png").write_bytes(b"1234")
    assert dataset_facts(tmp_path, "test").sha256 != facts.sha256


def test_a_described_dataset_is_identified_by_its_description(tmp_path: Path) -> None:
    content = json.dumps({"name": "toy", "test": [1, 2, 3]})
    (tmp_path / "dataset.json").write_text(content)
    facts = dataset_facts(tmp_path, "test")
    assert facts.sha256 == hashlib.sha256(f"test\n{content}".encode()).hexdigest()
    assert (facts.name, facts.items) == ("toy", 3)
    assert dataset_facts(tmp_path, "training").items == 0


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_damaged_description_is_a_dataset_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(DatasetError, match=r"dataset\.json.*Convert the dataset again"):
        dataset_facts(tmp_path, "test")


def test_a_missing_dataset_folder_is_a_dataset_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such dataset folder"):
        dataset_facts(tmp_path / "none", "test")


def test_an_opened_run_says_where_it_is(store_uri: str, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.INFO, logger="nucsam_monai"),
        TrackedRun("nucsam/demo", store_uri, name="mine"),
    ):
        pass
    assert f"MLflow run 'mine' of 'nucsam/demo' in {store_uri}" in caplog.text
