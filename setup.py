"""Maps the source folders to one import name: `polymath.<folder>` is `<folder>`, for every subpackage there is."""

from setuptools import find_packages, setup

FOLDERS = ("specs", "compiler", "runtime", "te_kernels", "recipes")

packages = [package for folder in FOLDERS for package in [folder, *(f"{folder}.{sub}" for sub in find_packages(folder))]]
setup(
    packages=[f"polymath.{package}" for package in packages],
    package_dir={f"polymath.{package}": package.replace(".", "/") for package in packages},
    package_data={
        "": ["*.json", "*.yaml", "*.jinja", "*.txt", "*.html", "*.css", "*.js", "py.typed"],
        "polymath.runtime.data": ["builtin/*/*"],
    },
)
