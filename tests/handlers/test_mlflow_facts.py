"""The facts that identify a run: parameters, metrics, source revision, seed, weights and dataset."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from monai.utils import set_determinism

from nucsam_monai.handlers import TrackedRun, run_facts
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
from nucsam_monai.utils.errors import DatasetError
from nucsam_monai.utils.paths import project_root


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


def test_the_command_is_recorded_without_passwords(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = [
        "python",
        "-m",
        "monai.bundle",
        "--output_dir",
        "plate 1",
        "--tracking_uri",
        "https://me:secret@host/x",
    ]
    monkeypatch.setattr(sys, "orig_argv", typed)
    expected = "python -m monai.bundle --output_dir 'plate 1' --tracking_uri https://host/x"
    assert environment_facts(tmp_path)["command"] == expected


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


def test_a_named_split_has_its_own_digest_and_count(tmp_path: Path) -> None:
    protocols = {"fold2": {"training": ["c"], "validation": [], "test": ["a", "b"]}}
    content = json.dumps({"name": "toy", "protocol": "fold1", "protocols": protocols, "test": [1]})
    (tmp_path / "dataset.json").write_text(content)
    default, chosen = dataset_facts(tmp_path, "test"), dataset_facts(tmp_path, "test", {"toy": "fold2"})
    assert (default.protocol, default.items) == ("fold1", 1)
    assert (chosen.protocol, chosen.items) == ("fold2", 2)
    assert chosen == dataset_facts(tmp_path, "test", "fold2")
    assert default == dataset_facts(tmp_path, "test", {"other": "fold2"})
    assert default.sha256 != chosen.sha256


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_damaged_description_is_a_dataset_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(DatasetError, match=r"dataset\.json.*Convert the dataset again"):
        dataset_facts(tmp_path, "test")


def test_a_missing_dataset_folder_is_a_dataset_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such dataset folder"):
        dataset_facts(tmp_path / "none", "test")
