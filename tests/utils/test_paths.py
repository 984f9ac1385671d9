from pathlib import Path

import pytest

from nucsam_monai.utils import paths
from nucsam_monai.utils.errors import ConfigurationError


@pytest.fixture
def places(tmp_path: Path, monkeypatch) -> Path:
    """Working directory, NUCSAM_BUNDLES and package parent are folders of their own without bundles."""
    for name in ("work", "bundles_variable", "package_parent"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("NUCSAM_BUNDLES", str(tmp_path / "bundles_variable"))
    monkeypatch.setattr(paths, "_PACKAGE_PARENT", tmp_path / "package_parent")
    return tmp_path


def make_bundle(folder: Path) -> Path:
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "metadata.json").write_text("{}")
    return folder


def test_places_are_searched_in_the_documented_order(places: Path, monkeypatch) -> None:
    package = make_bundle(places / "package_parent" / "bundles" / "unsam")
    assert paths.bundle_root("unsam") == str(package.resolve())
    variable = make_bundle(places / "bundles_variable" / "unsam")
    assert paths.bundle_root("unsam") == str(variable.resolve())
    below = make_bundle(places / "work" / "bundles" / "unsam")
    assert paths.bundle_root("unsam") == str(below.resolve())
    itself = make_bundle(places / "elsewhere" / "unsam")
    monkeypatch.chdir(itself)
    assert paths.bundle_root("unsam") == str(itself.resolve())


def test_folder_without_metadata_is_not_a_bundle(places: Path) -> None:
    (places / "work" / "bundles" / "unsam").mkdir(parents=True)
    package = make_bundle(places / "package_parent" / "bundles" / "unsam")
    assert paths.bundle_root("unsam") == str(package.resolve())


def test_missing_bundle_names_every_place(places: Path) -> None:
    with pytest.raises(ConfigurationError, match="--bundle_root") as caught:
        paths.bundle_root("unsam")
    for place in ("work", "bundles_variable", "package_parent"):
        assert str(places / place) in str(caught.value)


def test_project_root_is_the_checkout_or_the_working_directory(places: Path) -> None:
    assert paths.project_root() == places / "work"
    (places / "package_parent" / "pyproject.toml").write_text("")
    assert paths.project_root() == places / "package_parent"
