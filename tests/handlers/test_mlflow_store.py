"""Tracking URIs, new databases and experiments."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import quote

import mlflow
import pytest
from monai.utils import path_to_sqlite_uri

from nucsam_monai.handlers import TrackedRun, resolve_tracking_uri, tracking_store, tracking_uri
from nucsam_monai.handlers.tracking_store import connect, create_database, experiment_id, sqlite_path
from nucsam_monai.utils.errors import ConfigurationError
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
        (Path("/data/a b.sqlite"), "sqlite:////data/a b.sqlite"),
        (Path("/data/ü%?#.db"), "sqlite:////data/ü%25%3F%23.db"),
        ("sqlite:///x.db", "sqlite:///{cwd}/x.db"),
        ("sqlite:////data/a%20b.db", "sqlite:////data/a b.db"),
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


def test_no_quoted_folder_appears_next_to_the_store(tmp_path: Path, template_database: Path) -> None:
    folder = tmp_path / "My Work ü"
    folder.mkdir()
    shutil.copy(template_database, folder / "mlflow.db")
    for place in (folder, folder / "mlflow.db", f"sqlite:///{quote(str(folder))}/mlflow.db"):
        uri = resolve_tracking_uri(place)
        assert uri is not None
        assert experiment_id(connect(uri), "nucsam/x", uri)
    assert [path.name for path in tmp_path.iterdir()] == ["My Work ü"]


@pytest.mark.parametrize("place", ["file:///data/mlruns", "runs.json", "sqlite:runs.db", "http:/host:5000"])
def test_places_that_mlflow_would_refuse_give_one_clear_error(place: str) -> None:
    with pytest.raises(ConfigurationError, match=r"tracking_uri '.*Expected|Give|give"):
        resolve_tracking_uri(place)


def test_what_is_at_the_place_is_looked_at(tmp_path: Path, template_database: Path) -> None:
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


def test_a_server_that_does_not_answer_is_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    retries, timeout = tracking_store._PATIENCE
    monkeypatch.setenv(timeout, "7")  # what the user sets counts
    monkeypatch.setenv(retries, "")  # is undone after the test
    monkeypatch.delenv(retries)
    connect("http://127.0.0.1:9")
    assert (os.environ[retries], os.environ[timeout]) == ("2", "7")


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


def test_an_opened_run_says_where_it_is(store_uri: str, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.INFO, logger="nucsam_monai"),
        TrackedRun("nucsam/demo", store_uri, name="mine"),
    ):
        pass
    assert f"MLflow run 'mine' of 'nucsam/demo' in {resolve_tracking_uri(store_uri)}" in caplog.text
