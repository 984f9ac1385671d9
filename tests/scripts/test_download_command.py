import hashlib
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from nucsam_monai.data.converters import CONVERTERS
from nucsam_monai.data.download import HOSTED_FILES, HostedFile
from scripts import prepare_dataset
from tests.data.file_server import HOST, serve
from tests.data.originals import dsb_members, write_zip


@pytest.mark.parametrize("dataset", HOSTED_FILES)
def test_hosted_file_is_complete(dataset: str) -> None:
    hosted = HOSTED_FILES[dataset]
    assert urlsplit(hosted.url).scheme == "https"
    assert hosted.url.endswith(f"/{hosted.name}")
    assert re.fullmatch("[0-9a-f]{64}", hosted.sha256)
    assert hosted.name in CONVERTERS[dataset].info.obtain


def test_from_the_server_to_a_dataset_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", HOST)
    archive = write_zip(tmp_path / "original.zip", dsb_members()).read_bytes()
    with serve(archive) as server:
        hosted = HostedFile(server.url, "stage1_train.zip", hashlib.sha256(archive).hexdigest(), len(archive))
        monkeypatch.setattr(prepare_dataset, "hosted_file", {"dsb2018": hosted}.__getitem__)
        monkeypatch.setattr("nucsam_monai.data.download._PLAIN_HTTP_HOSTS", frozenset({HOST}))
        arguments = ["download", "dsb2018", "--output_dir", "my downloads"]
        assert prepare_dataset.main(arguments) == 0
        first = capsys.readouterr().out
        assert prepare_dataset.main(arguments) == 0
        assert "is there already" in capsys.readouterr().out
    assert first.splitlines()[0] == "my downloads/stage1_train.zip: downloaded, sha256 as expected"
    command = re.search(r"nucsam datasets (\S+) --source '(.+)' --output_dir (\S+)", first)
    assert command
    name, source, output = command.groups()
    assert prepare_dataset.main([name, "--source", source, "--output_dir", output]) == 0
    assert prepare_dataset.main(["validate", "data/dsb2018"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["monuseg"], "only dsb2018, tnbc can be downloaded"),
        (
            ["dsb2018", "--output_dri", "x"],
            "unknown option --output_dri; expected --dataset, --output_dir",
        ),
    ],
)
def test_mistake_stops_before_the_network(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    def no_network(*_: object, **__: object) -> bool:
        raise AssertionError

    monkeypatch.setattr(prepare_dataset, "download_file", no_network)
    assert prepare_dataset.main(["download", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_list_says_what_can_be_downloaded(capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare_dataset.main(["list"]) == 0
    printed = capsys.readouterr().out
    assert re.findall(r"; or: download (\S+)", printed) == list(HOSTED_FILES)
