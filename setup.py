"""Adds the bundles and scripts, which lie next to the package in the repository, to what is installed."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["nucsam_monai*"]), "nucsam_monai.bundles", "nucsam_monai.scripts"],
    package_dir={"nucsam_monai.bundles": "bundles", "nucsam_monai.scripts": "scripts"},
    package_data={
        "nucsam_monai": ["py.typed", "apps/*.html"],
        "nucsam_monai.bundles": [
            "inference_wsi.json",
            "*/LICENSE",
            "*/configs/*",
            "*/docs/*",
            "*/models/compact*.safetensors",
        ],
        "nucsam_monai.scripts": ["*.py", "*/*.py", "*/*.yaml", "*/*/*.yaml"],
    },
)
