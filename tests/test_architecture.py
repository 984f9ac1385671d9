"""The import rules of the package: who may know whom."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "nucsam_monai"

MAY_IMPORT = {
    "utils": set(),
    "data": {"utils", "io"},
    "transforms": {"utils", "io"},
    "networks": {"utils"},
    "losses": {"utils", "networks"},
    "inferers": {"utils", "networks"},
    "systems": {"utils", "data", "transforms", "networks", "losses"},
    "metrics": {"utils"},
    "io": {"utils"},
    "wsi": {"utils", "io"},
}
WITHOUT_TORCH = ("utils", "io", "wsi")


@cache
def nodes_of(file: Path) -> list[ast.AST]:
    """Return the module, then all below it; parsing the package takes a second, so it is done once."""
    return list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))


def imported_modules(file: Path) -> set[str]:
    names: set[str] = set()
    for node in nodes_of(file):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("folder", sorted(MAY_IMPORT))
def test_folder_imports_only_what_it_may(folder: str) -> None:
    allowed = MAY_IMPORT[folder] | {folder}
    for file in (PACKAGE / folder).rglob("*.py"):
        for module in imported_modules(file):
            parts = module.split(".")
            if parts[0] == "nucsam_monai" and len(parts) > 1:
                assert parts[1] in allowed, f"{file.name} imports {module}"
            assert parts[0] not in {"bundles", "scripts", "tests"}, f"{file.name} imports {module}"


@pytest.mark.parametrize("folder", WITHOUT_TORCH)
def test_folder_never_imports_torch(folder: str) -> None:
    for file in (PACKAGE / folder).rglob("*.py"):
        assert not {module for module in imported_modules(file) if module.split(".")[0] == "torch"}, file


def test_only_applications_know_applications() -> None:
    for file in PACKAGE.rglob("*.py"):
        if file.relative_to(PACKAGE).parts[0] != "apps":
            imported = {module for module in imported_modules(file) if module.startswith("nucsam_monai.apps")}
            assert not imported, f"{file} imports {imported}"


def test_only_applications_come_through_the_front_door() -> None:
    for file in PACKAGE.rglob("*.py"):
        if file.relative_to(PACKAGE).parts[0] not in ("apps", "segmenter.py", "__init__.py"):
            assert "nucsam_monai.segmenter" not in imported_modules(file), file


def test_experiments_leave_torch_to_the_commands_they_start() -> None:
    for file in (PACKAGE.parent / "scripts" / "experiments").glob("*.py"):
        roots = {module.split(".")[0] for module in imported_modules(file)}
        assert file.stem == "cost" or not roots & {"torch", "ignite"}, file


def test_importing_the_package_and_all_scripts_is_light() -> None:
    code = """
import importlib, pathlib, sys
import nucsam_monai, nucsam_monai.metrics
sys.path.insert(0, "scripts")
for file in sorted(pathlib.Path("scripts").glob("*.py")):
    if '__name__ == "__main__"' in file.read_text():
        importlib.import_module(file.stem)
heavy = ("torch", "monai", "mlflow", "pandas", "scipy.stats", "matplotlib", "nucsam_monai.segmenter")
sys.exit(", ".join(name for name in heavy if name in sys.modules) or 0)
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_no_module_needs_what_only_some_runs_need() -> None:
    optional = {
        "mlflow",
        "matplotlib",
        "pandas",
        "timm",
        "itk",
        "joblib",
        "sklearn",
        "onnx",
        "pooch",
        "requests",
    }
    for file in PACKAGE.rglob("*.py"):
        for node in nodes_of(file)[0].body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & optional, f"{file}: {names}"


def test_nothing_is_unpickled() -> None:
    for file in PACKAGE.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        for node in nodes_of(file) if "torch.load" in text or "allow_pickle" in text else ():
            if isinstance(node, ast.Call):
                call = ast.unparse(node)
                if call.startswith("torch.load("):
                    assert "weights_only=True" in call, f"{file}: {call}"
                assert "allow_pickle=True" not in call, f"{file}: {call}"
        assert "pickle" not in {module.split(".")[0] for module in imported_modules(file)}, file


@pytest.mark.parametrize("folder", ["nucsam_monai", "scripts"])
def test_no_function_is_longer_than_a_page(folder: str) -> None:
    for file in sorted((PACKAGE.parent / folder).rglob("*.py")):
        for node in nodes_of(file):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
                length = node.end_lineno - node.lineno + 1
                if body is not node.body:
                    length -= node.body[0].end_lineno - node.body[0].lineno + 1
                assert length <= 60, f"{file}: {node.name} has {length} lines besides its docstring"


def test_the_package_has_no_asserts() -> None:
    for file in sorted(PACKAGE.rglob("*.py")):
        nodes = nodes_of(file)
        assert not [node.lineno for node in nodes if isinstance(node, ast.Assert)], file
