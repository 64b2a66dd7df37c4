"""Commands that start a Python process: with this one's import path, or with nothing but the standard library."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["isolated_python", "python_worker"]

PACKAGE = str(Path(__file__).resolve().parents[1])
BOOT = """\
import sys, importlib.util as util
folder = {package!r}
spec = util.spec_from_file_location("transformer2", folder + "/__init__.py", submodule_search_locations=[folder])
sys.modules["transformer2"] = package = util.module_from_spec(spec)
spec.loader.exec_module(package)
from transformer2.sandbox.{module} import main
main({argument!r})
"""


def python_worker(module: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """Command and environment that run `main()` of a module as a worker, with this process's import path."""
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    code = f"from {module} import main; main()"
    return [sys.executable, "-P", "-c", code, *arguments], {**os.environ, "PYTHONPATH": path}


def isolated_python(module: str, argument: object, *options: str) -> list[str]:
    """Command of a Python that runs `main(argument)` of a module next to this one.

    The package is found by its file: a folder of this machine that came before the standard library on the import path
    could replace any of its modules, in a process that is not isolated.
    """
    code = BOOT.format(package=PACKAGE, module=module, argument=argument)
    return [sys.executable, "-P", "-s", *options, "-c", code]
