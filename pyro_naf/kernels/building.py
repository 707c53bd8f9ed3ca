"""The commands of setuptools that put the compiled loops into a wheel, where there is a compiler.

pyproject.toml names them. They are loaded by path, before torch is there.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

#: As torch's compiler of C++ compiles the loops, but for the processor's own instructions. OpenMP's
#: library is not linked: torch has loaded one, and a wheel may not bring a second.
COMPILE = (
    "-std=c++17 -O3 -DNDEBUG -fPIC -fopenmp -fno-trapping-math -fno-signed-zeros -fno-math-errno "
    "-ffp-contract=fast"
)
LINK = "-shared -static-libstdc++ -static-libgcc -s"


def load_prebuilt() -> ModuleType:
    """Load the module that names levels and files without the package around it."""
    spec = importlib.util.spec_from_file_location("prebuilt", Path(__file__).parent / "prebuilt.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compiler() -> list[str] | None:
    """Find the command of a C++ compiler, or None: the environment's CXX, g++ or clang++."""
    for command in (os.environ.get("CXX", ""), "g++", "clang++"):
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            return words
    return None


def compile_loops(folder: Path, levels: Sequence[str] | None = None) -> list[Path]:
    """Compile the loops for these levels of instructions, by default all, in a folder.

    Levels for which there is no compiler, or it fails, are left out.
    """
    prebuilt, command = load_prebuilt(), compiler()
    made: list[Path] = []
    if command is None:
        return made
    for level in prebuilt.levels() if levels is None else levels:
        path = folder / prebuilt.name(level, prebuilt.SOURCE.read_bytes())
        compiled = path.with_suffix(".o")
        to_object = [*COMPILE.split(), f"-march={level}", "-c", str(prebuilt.SOURCE)]
        try:
            subprocess.run([*command, *to_object, "-o", str(compiled)], check=True)
            subprocess.run([*command, *LINK.split(), str(compiled), "-o", str(path)], check=True)
            made.append(path)
        except subprocess.CalledProcessError:
            print(f"no compiled loops for {level}: the compiler failed; machines compile their own")
        finally:
            compiled.unlink(missing_ok=True)
    return made


class BuildPy(build_py):
    """Copies the package, and compiles the loops beside; not for an editable install."""

    def run(self) -> None:
        """Build, and compile the loops in C++ where there is a compiler."""
        super().run()
        if not self.editable_mode:
            folder = Path(self.build_lib) / "pyro_naf" / "kernels"
            for stale in folder.glob("*.so"):  # of an earlier build of another source
                stale.unlink()
            compile_loops(folder)


class BdistWheel(bdist_wheel):
    """A wheel for this system where it carries compiled loops, of any Python 3."""

    def finalize_options(self) -> None:
        """Mark a wheel that carries compiled loops as one for this platform."""
        if compiler() is not None and load_prebuilt().levels():
            self.distribution.has_ext_modules = lambda: True
        super().finalize_options()

    def get_tag(self) -> tuple[str, str, str]:
        """Python, ABI and platform: the loops are called by ctypes, whatever the Python."""
        python, abi, system = super().get_tag()
        return (python, abi, system) if self.root_is_pure else ("py3", "none", system)
