"""What pyproject.toml cannot say: the folder `export` is installed under a name of its own."""

from setuptools import find_packages, setup

TOOLS, FOLDER = "paddle_recomp_export", "export"
inner = [f"{TOOLS}.{name}" for name in find_packages(FOLDER)]

setup(
    packages=[*find_packages(include=["paddle_recomp*"]), TOOLS, *inner],
    package_dir={TOOLS: FOLDER},
)
