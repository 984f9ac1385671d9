"""Configurations build what they built before they were rewritten; see ``config_snapshot.py``."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from nucsam_monai.networks.blocks import UNetGenerator, auto_prompter
from tests.bundles.config_snapshot import CASES, SNAPSHOT, describe_cases, expanded

BUNDLES = sorted({name.split()[0] for name in CASES})


def differences(before: Any, after: Any, path: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted(before.keys() | after.keys())
        return [
            line
            for key in keys
            for line in differences(before.get(key, "-"), after.get(key, "-"), f"{path}/{key}")
        ]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [line for i, (one, other) in pairs for line in differences(one, other, f"{path}/{i}")]
    return [] if before == after else [f"{path}: {str(before)[:300]} -> {str(after)[:300]}"]


@pytest.mark.parametrize("bundle", BUNDLES)
def test_a_bundle_builds_what_it_built_before(
    bundle: str, tmp_path: Path, micro: None, micro_wide: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    with socket.create_server(("localhost", 0)) as server:
        monkeypatch.setenv("MASTER_PORT", str(server.getsockname()[1]))
    monkeypatch.setattr(auto_prompter, "UNetGenerator", UNetGenerator)  # other tests make it thin
    before = expanded(json.loads(SNAPSHOT.read_text()))
    names = [name for name in before if name.split()[0] == bundle]
    after = describe_cases(names, tmp_path)
    found = [line for name in names for line in differences(before[name], after[name], name)]
    assert not found, "\n".join(found[:40])
