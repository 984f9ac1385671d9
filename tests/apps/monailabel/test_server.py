"""A real server on loopback, asked by MONAI Label's own client and by the calls of QuPath's extension."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import tifffile
import torch
from PIL import Image

from nucsam_monai.apps.monailabel.annotations import parse_polygons
from nucsam_monai.data.converters.polygons import paint_polygons
from nucsam_monai.io import read_image, read_label_map
from nucsam_monai.segmenter import Scalar
from tests.apps.monailabel.analytic import discs
from tests.bundles.runs import REPOSITORY
from tests.tiny_bundles import Weights, random_weights

client_module = pytest.importorskip("monailabel.client")

SETTINGS: dict[str, dict[str, Scalar]] = {
    "unsam": {"sam_variant": "vit_tiny", "image_size": 64, "precision": "fp32"},
    "sac": {"sam_variant": "vit_tiny", "image_size": 64, "precision": "fp32", "generator_input_size": None},
    "promptnucseg": {"sam_variant": "vit_tiny", "image_size": 64, "precision": "fp32", "overlap_px": 16},
}
STARTS_WITHIN_S = 120
BUNDLE_NAMES = list(SETTINGS)


@dataclass(frozen=True)
class Server:
    url: str
    studies: Path
    runs_dir: Path
    weights: dict[str, Weights]
    log: Path

    def post(self, path: str, **given: Any) -> requests.Response:
        return requests.post(self.url + path, timeout=300, **given)

    def put(self, path: str, **given: Any) -> requests.Response:
        return requests.put(self.url + path, timeout=60, **given)

    def get(self, path: str, **given: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=60, **given)

    def image(self, name: str) -> np.ndarray:
        return read_image(self.studies / name)


def write_studies(folder: Path) -> None:
    rng = np.random.default_rng(1)
    for name, (height, width) in {
        "png": (90, 130),
        "jpg": (130, 90),
        "tif": (70, 100),
        "slide": (300, 420),
    }.items():
        image = discs(height, width, [tuple(xy) for xy in rng.integers(8, 82, (9, 2)).tolist()], 7)
        image = np.clip(image + rng.integers(-20, 21, image.shape), 0, 255).astype(np.uint8)
        if name == "slide":
            tifffile.imwrite(
                folder / "slide.tif", image, photometric="rgb", tile=(64, 64), compression="zlib"
            )
        elif name == "tif":
            tifffile.imwrite(folder / "plain.v1.tif", image, photometric="rgb")
        else:
            Image.fromarray(image).save(folder / f"image {name}.{name}")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("label")
    studies = folder / "studies"
    studies.mkdir()
    write_studies(studies)
    (folder / "outside.png").write_bytes((studies / "image png.png").read_bytes())
    (studies / "link.png").symlink_to(folder / "outside.png")
    weights = {}
    for name, settings in SETTINGS.items():
        (folder / name).mkdir()
        weights[name] = random_weights(name, settings, folder / name)
    settings_file = folder / "settings.json"
    settings_file.write_text(
        json.dumps({name: {**SETTINGS[name], "checkpoint": str(one.path)} for name, one in weights.items()})
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    conf = {
        "models": ",".join(BUNDLE_NAMES),
        "settings": str(settings_file),
        "runs_dir": str(folder / "runs"),
        "max_upload_mb": "4",
        "max_megapixels": "1",
        "tracking_uri": "off",
    }
    command = [
        sys.executable,
        "-m",
        "monailabel.main",
        "start_server",
        "--app",
        "nucsam_monai/apps/monailabel",
    ]
    command += ["--studies", str(studies), "--host", "127.0.0.1", "--port", str(port)]
    command += [part for key, value in conf.items() for part in ("--conf", key, value)]
    environment = {**os.environ, "HOME": str(folder), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log)
    try:
        yield wait_for(
            Server(f"http://127.0.0.1:{port}", studies, folder / "runs", weights, folder / "server.log"),
            process,
        )
    finally:
        process.terminate()
        process.wait(30)


def wait_for(server: Server, process: subprocess.Popen) -> Server:
    until = time.monotonic() + STARTS_WITHIN_S
    while time.monotonic() < until and process.poll() is None:
        try:
            if server.get("/info/").ok:
                return server
        except requests.ConnectionError:
            time.sleep(0.3)
    pytest.fail(f"the server did not start:\n{server.log.read_text()[-4000:]}")


@pytest.fixture
def client(server: Server, tmp_path: Path) -> Any:
    return client_module.MONAILabelClient(server.url, str(tmp_path))


def expected(server: Server, name: str, image: np.ndarray) -> np.ndarray:
    return server.weights[name].segmenter().segment(image).instances


def painted(content: bytes, shape: tuple[int, int], offset: tuple[int, int] = (0, 0)) -> np.ndarray:
    return paint_polygons([one.corners - offset for one in parse_polygons(content, "answer")], shape)


def same_nuclei(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether outlines without holes and islands are those of a label map."""
    ids = np.unique(other[other > 0])
    boxes = [np.argwhere(other == nucleus) for nucleus in ids.tolist()]
    found = [np.unique(one[tuple(box.T)]) for box in boxes]
    return all((values > 0).any() for values in found)


def test_info_names_models_options_trainers_and_strategies(server: Server, client: Any) -> None:
    info = client.info()
    assert set(info["models"]) == {"unsam", "sac", "promptnucseg", "sac_click", "promptnucseg_click"}
    assert info["models"]["promptnucseg_click"]["nuclick"]
    assert info["models"]["unsam"]["pathology"]
    config = info["models"]["unsam"]["config"]
    assert config["device"][-1] == "cpu"
    assert config["weights"] == ["original"]
    assert config["domain"][0] == "automatic"
    assert {"threshold", "overlap"} <= config.keys()
    assert "tta" in info["models"]["promptnucseg"]["config"]
    assert set(info["trainers"]) == set(BUNDLE_NAMES)
    assert "least_certain" in info["strategies"]
    assert info["datastore"]["total"] == 4  # not the link to a file elsewhere


@pytest.mark.parametrize("name", BUNDLE_NAMES)
@pytest.mark.parametrize(
    ("image_id", "file"),
    [("image png", "image png.png"), ("image jpg", "image jpg.jpg"), ("plain.v1", "plain.v1.tif")],
)
def test_label_images_are_those_of_the_bundle(
    name: str, image_id: str, file: str, server: Server, client: Any
) -> None:
    label, params = client.infer(name, image_id, {"device": "cpu"})
    found = read_label_map(label)
    assert found.shape == server.image(file).shape[:2]
    assert (found == expected(server, name, server.image(file))).all()
    assert params["nuclei"] == found.max()


def test_an_upload_is_segmented_and_not_kept(server: Server, client: Any, tmp_path: Path) -> None:
    image = server.image("image png.png")[:50, :80]
    Image.fromarray(image).save(tmp_path / "upload.png")
    before = sorted(server.studies.rglob("*"))
    label, _ = client.infer("unsam", "", {}, file=str(tmp_path / "upload.png"))
    assert (read_label_map(label) == expected(server, "unsam", image)).all()
    assert sorted(server.studies.rglob("*")) == before


@pytest.mark.parametrize("suffix", [".nrrd", ".nii.gz", ".tif"])
def test_formats_of_viewers(suffix: str, server: Server, tmp_path: Path) -> None:
    from nucsam_monai.apps.monailabel.images import read_label

    answer = server.post(
        "/infer/unsam?image=image%20png&output=image",
        data={"params": json.dumps({"result_extension": suffix})},
    )
    (tmp_path / f"label{suffix}").write_bytes(answer.content)
    assert (
        read_label(tmp_path / f"label{suffix}", 10**6)
        == expected(server, "unsam", server.image("image png.png"))
    ).all()


@pytest.mark.parametrize("name", ["unsam", "promptnucseg"])
@pytest.mark.parametrize("output", ["asap", "dsa", "json"])
def test_regions_of_slides_as_qupath_asks_for_them(name: str, output: str, server: Server) -> None:
    location, size = (60, 40), (200, 150)
    body = {"level": 0, "location": location, "size": size, "tile_size": [1024, 1024], "min_poly_area": 0}
    answer = server.post(f"/infer/wsi/{name}?image=slide&output={output}", json=body)
    assert answer.status_code == 200
    region = server.image("slide.tif")[40:190, 60:260]
    truth = expected(server, name, region)
    if output == "json":
        record = answer.json()["annotations"][0]["annotation"]
        assert record["location"] == list(location)
        assert sum(len(element["contours"]) for element in record["elements"]) == truth.max()
        return
    polygons = parse_polygons(answer.content, "answer")
    assert len(polygons) == truth.max()
    assert same_nuclei(painted(answer.content, (150, 200), location), truth)


def test_a_patch_as_qupath_uploads_it(server: Server, tmp_path: Path) -> None:
    patch = server.image("slide.tif")[40:140, 60:180]
    Image.fromarray(patch).save(tmp_path / "patch.png")
    wsi = {"level": 0, "location": [0, 0], "size": [0, 0], "tile_size": [1024, 1024], "min_poly_area": 0}
    with (tmp_path / "patch.png").open("rb") as file:
        answer = server.post(
            "/infer/wsi_v2/unsam?output=asap",
            files={"file": ("patch.png", file)},
            data={"wsi": json.dumps(wsi)},
        )
    assert same_nuclei(painted(answer.content, patch.shape[:2]), expected(server, "unsam", patch))


@pytest.mark.parametrize("name", ["promptnucseg_click", "sac_click"])
def test_clicks(name: str, server: Server, client: Any) -> None:
    clicks = {"foreground": [[20, 30], [70, 60]], "background": [[45, 45]]}
    label, params = client.infer(name, "image png", {**clicks, "boxes": [[100, 20, 116, 36]]})
    assert read_label_map(label).max() == params["nuclei"] <= 3
    answer = server.post(
        f"/infer/wsi/{name}?image=slide&output=asap",
        json={
            "location": [10, 20],
            "size": [128, 128],
            "params": {"foreground": [[70, 90]], "background": []},
        },
    )
    assert len(parse_polygons(answer.content, "answer")) <= 1


def test_batch_keeps_label_images(server: Server) -> None:
    answer = server.post(
        "/batch/infer/unsam?images=all&run_sync=true", json={"device": "cuda", "label_tag": "original"}
    )
    assert answer.status_code == 200
    kept = read_label_map(server.studies / "labels" / "original" / "image png.png")
    assert (kept == expected(server, "unsam", server.image("image png.png"))).all()


def test_images_and_annotations_go_up_and_come_back(server: Server, client: Any, tmp_path: Path) -> None:
    for number in range(2):
        image = discs(64, 80, [(20 + number, 20), (60, 40)], 8)
        Image.fromarray(image).save(tmp_path / f"new{number}.png")
        assert client.upload_image(str(tmp_path / f"new{number}.png"), f"new{number}") == {
            "image": f"new{number}"
        }
        assert requests.head(f"{server.url}/datastore/image?image=new{number}", timeout=30).status_code == 200
        xml = server.post(
            f"/infer/wsi/unsam?image=new{number}&output=asap", json={"params": {"threshold": 0.0}}
        ).content
        (tmp_path / "label.xml").write_bytes(xml)
        assert (
            client.save_label(f"new{number}", str(tmp_path / "label.xml"), "final")["label"] == f"new{number}"
        )
        assert server.get(f"/datastore/label?label=new{number}&tag=final").content == xml
    Image.fromarray(image[:30]).save(tmp_path / "new1.png")
    with (tmp_path / "new1.png").open("rb") as file:
        assert (
            server.put("/datastore/image?image=new1", files={"file": ("new1.png", file)}).status_code == 409
        )


def test_training_adds_a_run_that_is_served_on_request(server: Server, client: Any) -> None:
    answer = server.post(
        "/train/unsam?run_sync=true", json={"max_epochs": 1, "val_split": 0.5, "serve": True}
    )
    assert answer.status_code == 200, answer.text
    run = answer.json()["run"]
    assert (server.runs_dir / "unsam" / run / "model.safetensors").is_file()
    assert client.info()["models"]["unsam"]["config"]["weights"] == [run, "original"]
    tuned = read_label_map(client.infer("unsam", "image png", {})[0])
    original = read_label_map(client.infer("unsam", "image png", {"weights": "original"})[0])
    assert (original == expected(server, "unsam", server.image("image png.png"))).all()
    assert (tuned != original).any()


def test_training_in_the_background(server: Server, client: Any) -> None:
    client.train_start("sac", {"max_epochs": 1, "val_split": 0.5})
    until = time.monotonic() + STARTS_WITHIN_S
    while (status := client.train_status())["status"] in (
        "SUBMITTED",
        "RUNNING",
    ) and time.monotonic() < until:
        time.sleep(1)
    assert status["status"] == "DONE", status
    (run,) = (server.runs_dir / "sac").iterdir()
    assert client.info()["models"]["sac"]["config"]["weights"] == ["original", run.name]


def test_the_least_certain_image_comes_next(client: Any) -> None:
    sample = client.next_sample("least_certain", {"model": "promptnucseg"})
    assert sample["id"] in {"image png", "image jpg", "plain.v1", "slide"}
    assert 0 <= sample["uncertainty"] <= 1


def test_a_session_keeps_an_upload(server: Server, client: Any) -> None:
    session = client.create_session(str(server.studies / "image png.png"))["session_id"]
    label, _ = client.infer("sac", "", {}, session_id=session)
    assert (read_label_map(label) == expected(server, "sac", server.image("image png.png"))).all()
    assert client.remove_session(session)
    assert server.get(f"/session/{session}").status_code == 404


def params(**values: Any) -> dict[str, Any]:
    return {"data": {"params": json.dumps(values)}}


HOSTILE: list[tuple[str, str, dict[str, Any], int]] = [
    ("POST", "/infer/unsam?image=..%2Foutside", {}, 400),
    ("POST", "/infer/unsam?image=%2Fetc%2Fpasswd", {}, 400),
    ("POST", "/infer/unsam?image=unknown", {}, 404),
    ("POST", "/infer/unsam?image=link", {}, 404),
    ("POST", "/infer/unsam", {}, 400),
    ("POST", "/infer/nothing?image=slide", {}, 404),
    ("POST", "/infer/unsam?image=slide", params(image="/etc/passwd"), 404),
    ("POST", "/infer/unsam?image=slide", params(image=["x"]), 404),
    ("POST", "/infer/unsam?image=slide", params(model="../x"), 404),
    ("POST", "/infer/unsam?image=slide", params(domain="$__import__('os').system('touch /tmp/owned')"), 400),
    ("POST", "/infer/unsam?image=slide", params(threshold="$1"), 400),
    ("POST", "/infer/unsam?image=slide", params(weights="../../x"), 400),
    ("POST", "/infer/unsam?image=slide", params(device="cuda:99"), 400),
    ("POST", "/infer/unsam?image=slide", params(result_extension="/../../x.png"), 400),
    ("POST", "/infer/unsam?image=slide", params(location=[10**9, 0]), 400),
    ("POST", "/infer/unsam?image=slide", params(level=7), 400),
    ("POST", "/infer/unsam?image=slide", params(foreground=[[5, 5]]), 400),
    ("POST", "/infer/unsam?image=slide", {"data": {"params": "{"}}, 400),
    ("POST", "/infer/unsam?image=slide", {"data": {"params": "[1]"}}, 400),
    ("POST", "/infer/promptnucseg_click?image=slide", params(foreground=[[1e9, 5]]), 400),
    ("POST", "/infer/promptnucseg_click?image=slide", params(), 400),
    ("POST", "/infer/wsi_v2/unsam?image=slide", {"data": {"wsi": "{"}}, 400),
    ("POST", "/infer/wsi_v2/unsam?image=slide", {"data": {"wsi": '{"size": "x"}'}}, 422),
    ("POST", "/infer/wsi/unsam?image=slide&output=exe", {"json": {}}, 422),
    ("POST", "/infer/wsi/unsam?image=slide", {"json": {"params": {"image": "/etc/passwd"}}}, 404),
    ("POST", "/infer/unsam", {"files": {"file": ("x.png", b"not a picture")}}, 422),
    ("POST", "/infer/unsam", {"files": {"file": ("x.exe", b"MZ")}}, 422),
    ("POST", "/infer/unsam", {"files": {"file": ("x" + ".a" * 200, b"x")}}, 400),
    ("POST", "/infer/unsam", {"files": {"file": ("x.png", b"\0" * (5 << 20))}}, 413),
    ("PUT", "/datastore/image?image=..%2Fx", {"files": {"file": ("x.png", b"x")}}, 400),
    ("PUT", "/datastore/image", {"files": {"file": ("../../x.png", b"x")}}, 422),
    ("PUT", "/datastore/image?image=x", {"files": {"file": ("x.py", b"x")}}, 415),
    ("PUT", "/datastore/label?image=slide&tag=..%2F..%2Fx", {"files": {"label": ("x.png", b"x")}}, 400),
    ("PUT", "/datastore/label?image=slide&tag=final", {"files": {"label": ("x.sh", b"x")}}, 415),
    (
        "PUT",
        "/datastore/label?image=slide&tag=final",
        {"files": {"label": ("x.xml", b"<!DOCTYPE a><a/>")}},
        400,
    ),
    ("PUT", "/datastore/label?image=unknown&tag=final", {"files": {"label": ("x.xml", b"<a/>")}}, 404),
    ("GET", "/datastore/image?image=datastore_v2", {}, 404),
    ("GET", "/datastore/image?image=link", {}, 404),
    ("DELETE", "/datastore/image?id=unknown", {}, 404),
    ("GET", "/session/..%2F..%2Fx", {}, 404),
    ("PUT", "/session/?uncompress=true", {"files": {"files": ("x.zip", b"PK")}}, 400),
    ("PUT", "/model/unsam", {"files": {"file": ("x.pt", b"x")}}, 404),
    ("GET", "/proxy/dicom/x", {}, 404),
    ("POST", "/train/nothing?run_sync=true", {"json": {}}, 400),
    ("POST", "/train/unsam?run_sync=true", {"json": {"max_epochs": "$1"}}, 400),
    ("POST", "/train/unsam?run_sync=true", {"json": {"bundle_path": "/tmp"}}, 400),
    ("POST", "/train/unsam?run_sync=true", {"json": {"start": "../x"}}, 400),
    ("POST", "/activelearning/nothing", {"json": {}}, 400),
    ("POST", "/activelearning/least_certain", {"json": {"model": "x"}}, 404),
    ("GET", "/info/", {"headers": {"Host": "evil.example"}}, 403),
    ("POST", "/train/unsam", {"headers": {"Origin": "https://evil.example"}, "json": {}}, 403),
]


@pytest.mark.parametrize(("method", "path", "given", "status"), HOSTILE)
def test_hostile_requests(method: str, path: str, given: dict[str, Any], status: int, server: Server) -> None:
    before = {file for file in server.studies.parent.rglob("*") if file.suffix not in (".log", ".lock")}
    answer = requests.request(method, server.url + path, timeout=60, **given)
    assert answer.status_code == status, answer.text[:500]
    assert answer.json()["detail"]
    assert str(server.studies) not in answer.text
    after = {file for file in server.studies.parent.rglob("*") if file.suffix not in (".log", ".lock")}
    assert after == before


def test_a_bomb_is_refused(server: Server, tmp_path: Path) -> None:
    Image.new("1", (8000, 8000)).save(tmp_path / "bomb.png")
    for path, key in (("/infer/unsam", "file"), ("/datastore/image?image=bomb", "file")):
        with (tmp_path / "bomb.png").open("rb") as file:
            ask = server.post if path.startswith("/infer") else server.put
            answer = ask(path, files={key: ("bomb.png", file)})
        assert answer.status_code == 422
        assert "allowed" in answer.json()["detail"]


def test_the_log_holds_no_token(server: Server) -> None:
    tokens = [line for line in server.log.read_text().splitlines() if "Authorization: Bearer" in line]
    assert len(tokens) == 1
    token = tokens[0].split("Bearer ")[1].split("'")[0]
    assert token not in server.get("/logs/?html=false&lines=10000").text
