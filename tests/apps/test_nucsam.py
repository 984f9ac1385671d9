"""The command ``nucsam``: what each call stands for, and the wheel that brings it."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from nucsam_monai.apps.nucsam import command_of, main
from tests.bundles.runs import BUNDLES, REPOSITORY

RUN = "-m monai.bundle run"
UNSAM = "bundles/unsam"
SAC = "bundles/sac/configs"
PNS = "bundles/promptnucseg/configs"


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)


@pytest.mark.parametrize(
    ("call", "command"),
    [
        (
            "segment 2024 out --weights he --threshold 0.5",
            f"{RUN} run --config_file {UNSAM}/configs/inference.json --input 2024 --output_dir out "
            f"--checkpoint {UNSAM}/models/compact_he.safetensors --threshold 0.5",
        ),
        (
            "train unsam --epochs 3",
            f"{RUN} training --config_file {UNSAM}/configs/train.json --output_dir output/unsam --epochs 3",
        ),
        (
            "train unsam compact --output_dir mine",
            f"{RUN} training --config_file "
            f"""'["{UNSAM}/configs/train.json", "{UNSAM}/configs/compact.json"]' --output_dir mine""",
        ),
        (
            "evaluate unsam --dataset_dir data",
            f"{RUN} evaluating --config_file "
            f"""'["{UNSAM}/configs/train.json", "{UNSAM}/configs/evaluate.json"]' """
            "--output_dir output/unsam_evaluated --dataset_dir data",
        ),
        (  # the recipe of the pretrained weights
            "evaluate promptnucseg --dataset_dir data",
            f"{RUN} evaluating --config_file "
            f"""'["{PNS}/train.json", "{PNS}/shared_encoder.json", "{PNS}/compact.json", "{PNS}/evaluate.json"]' """
            "--output_dir output/promptnucseg_evaluated "
            "--checkpoint bundles/promptnucseg/models/compact.safetensors --dataset_dir data",
        ),
        (
            "evaluate sac paper zero_shot",
            f"{RUN} evaluating --config_file "
            f"""'["{SAC}/train.json", "{SAC}/paper.json", "{SAC}/evaluate.json", "{SAC}/zero_shot.json"]' """
            "--output_dir output/sac_evaluated",
        ),
        ("evaluate --predictions p", "scripts/evaluate_predictions.py --predictions p"),
        ("datasets list", "scripts/prepare_dataset.py list"),
        ("mlflow --port 5001", "-m nucsam_monai.apps.mlflow_server --port 5001"),
        ("slides status out", "scripts/segment_slides.py status out"),
    ],
)
def test_a_call_stands_for_a_command_that_could_be_typed(call: str, command: str) -> None:
    assert shlex.join(command_of(call.split())) == command


def test_without_a_name_the_weights_of_the_last_training_are_taken_if_none_ship(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bundles").symlink_to(BUNDLES)
    assert "--checkpoint" not in command_of(["segment", "a", "--bundle", "sac"])
    for name in ("sac/model", "unsam/model", "cfrsam/prompter", "cfrsam/segmentor"):
        (tmp_path / "output" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "output" / f"{name}.safetensors").touch()
    for bundle, weights in (("sac", "output/sac/model.safetensors"), ("cfrsam", "output/cfrsam")):
        for call in (["segment", "a", "--bundle", bundle], ["evaluate", bundle]):
            assert command_of(call)[-2:] == ["--checkpoint", weights]
    assert "--checkpoint" not in command_of(["segment", "a", "--bundle", "unsam"])


def test_scripts_of_all_commands_exist() -> None:
    for name in ("slides", "datasets", "experiment", "export", "evaluate --predictions"):
        assert Path(command_of([*name.split(), "x"])[0]).is_file()


def test_a_command_whose_package_is_missing_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "joblib", None)
    assert main(["experiment", "table.yaml", "--show_command"]) == 0
    capsys.readouterr()
    assert main(["experiment", "table.yaml"]) == 2
    assert capsys.readouterr().err == (
        "error: nucsam experiment: joblib is not installed. Run: pip install 'nucsam-monai[train]'.\n"
    )


def test_the_command_is_shown_and_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["segment", "my images", "--show_command"]) == 0
    assert "--input 'my images'" in capsys.readouterr().out


def test_models_lists_every_bundle_and_weights_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines if line[0] != " "} == {
        folder.name for folder in BUNDLES.iterdir() if (folder / "configs").is_dir()
    }
    shipped = list(BUNDLES.glob("*/models/compact*.safetensors"))
    assert len([line for line in lines if line[0] == " "]) == len(shipped) > 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("train unsam compakt", "unsam: found no configuration 'compakt'. Expected one of compact"),
        ("segment a --bundle nothing", "bundle 'nothing': not found. The bundles in "),
        ("segment a --weights nothing", "weights 'nothing': neither a file nor a short name"),
    ],
)
def test_a_wrong_call_is_one_sentence(call: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(call.split()) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


@pytest.mark.parametrize("call", ["", "nothing", "label studies --modells x", "models more"])
def test_an_unknown_command_or_argument_is_refused(call: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(call.split())
    assert stopped.value.code == 2


def test_the_command_answers_without_torch() -> None:
    code = "import sys; from nucsam_monai.apps.nucsam import main; main(['models']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_a_reader_that_has_seen_enough_is_not_an_error() -> None:
    command = [sys.executable, "-m", "nucsam_monai.apps.nucsam", "models"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 0


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    unwanted = shutil.ignore_patterns("output", "__pycache__", "*.previous.*")
    for name in ("nucsam_monai", "bundles", "scripts"):
        shutil.copytree(REPOSITORY / name, folder / "source" / name, ignore=unwanted)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder / "source" / name)
    build = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([sys.executable, *build, str(folder / "source")], check=True)
    (file,) = folder.glob("*.whl")
    return file


def test_the_wheel_holds_bundles_weights_and_scripts(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = [path for path in BUNDLES.glob("*/configs/*") if path.suffix in (".json", ".conf")]
    expected += [*BUNDLES.glob("*/models/compact*.safetensors"), *BUNDLES.glob("*/docs/*.md")]
    assert {f"nucsam_monai/{path.relative_to(REPOSITORY)}" for path in expected} <= names
    assert "nucsam_monai/scripts/prepare_dataset.py" in names
    assert not {name for name in names if name.startswith(("bundles/", "scripts/", "tests/"))}


@pytest.mark.slow
def test_the_wheel_segments_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    place = tmp_path / "site"
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--target", str(place), str(wheel)]
    subprocess.run([sys.executable, *install], check=True)
    shutil.copytree(REPOSITORY / "tests" / "data" / "samples" / "images", tmp_path / "my images")
    finished = subprocess.run(
        [sys.executable, "-m", "nucsam_monai.apps.nucsam", "segment", "my images", "found"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(place)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    found = sorted((tmp_path / "found").glob("*.geojson"))
    assert len(found) == 4
    assert all(len(json.loads(file.read_text())["features"]) > 5 for file in found)
