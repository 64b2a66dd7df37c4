"""What `import transformer2` offers, and what it costs."""

import os
import subprocess
import sys
from pathlib import Path

import grimp
import pytest


def fresh(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_is_cheap_and_enough():
    heavy = "import sys, transformer2; print(sorted({'torch', 'peft', 'transformers', 'lightning'} & set(sys.modules)))"
    assert fresh(heavy) == "[]"
    assert fresh("import transformer2; print(transformer2.tasks.get('gsm8k').name)") == "gsm8k"
    assert fresh("import transformer2; print(transformer2.tiny.model_path().name)") == "model"


def test_tasks_and_verifiers_import_no_torch():
    code = (
        "import sys, transformer2\n"
        "needed = {'jsonl': {'path': 'mine.jsonl'}}\n"
        "for name in transformer2.tasks.names(): transformer2.tasks.get(name, **needed.get(name, {}))\n"
        "print(sorted({'torch', 'peft', 'transformers', 'lightning'} & set(sys.modules)))"
    )
    assert fresh(code) == "[]"


def test_threads_of_the_command_sleep_unless_told_otherwise(monkeypatch):
    """Read by OpenMP when torch is imported; a thread that spins takes the core of the one it waits for."""
    code = (
        "import os, sys; from transformer2 import __main__; sys.argv = ['transformer2', '--version']\n"
        "try: __main__.run()\n"
        "except SystemExit: print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    )
    assert fresh(code).splitlines()[-1] == "passive False"
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert fresh(code).splitlines()[-1] == "active False"


def test_no_import_cycle_between_packages_even_of_types_alone():
    """The contracts of pyproject.toml look at what runs; this one at imports under TYPE_CHECKING as well."""
    graph = grimp.build_graph("transformer2", cache_dir=None)
    assert graph.nominate_cycle_breakers("transformer2") == set()


def test_every_public_name_resolves():
    import transformer2

    for name in transformer2.__all__:
        assert callable(getattr(transformer2, name))
    assert {"SVFConfig", "z_rows", "tasks"} <= set(dir(transformer2))


EACH_FIRST = """
import importlib, os, sys
from pathlib import Path
import torch, transformers, transformer2

root = Path(transformer2.__file__).parent
assert "peft" not in sys.modules
for package in ("svf", "plan", "rollout", "experts", "adaptation"):
    for path in sorted((root / package).glob("*.py")):
        name = f"transformer2.{package}.{path.stem}"
        child = os.fork()  # torch and transformers, which cost seconds, are imported once
        if not child:
            importlib.import_module(name)
            import peft
            known = type(peft.get_peft_config({"peft_type": "SVF"})).__name__
            os._exit(known != "SVFConfig")
        if os.waitpid(child, 0)[1]:
            print(name)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="one fork for each module")
def test_peft_knows_svf_whichever_module_of_ours_comes_first():
    assert fresh(EACH_FIRST) == ""


PEFT_FIRST_AND_LAST = """
import os, sys
import torch, transformers  # which cost seconds, once

assert not {"peft", "transformer2"} & set(sys.modules)
if not os.fork():
    import peft, transformer2
    print(type(peft.get_peft_config({"peft_type": "SVF"})).__name__, flush=True)
    os._exit(0)
os.wait()
from transformer2.cli import main
main(["plan", "--config", "conf/tiny_math.yaml"])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="torch is imported once for both")
def test_peft_knows_svf_whichever_comes_first_and_in_a_command():
    name, *plan = fresh(PEFT_FIRST_AND_LAST).splitlines()
    assert name == "SVFConfig" and any("SVF, 2688 z" in line for line in plan)


def test_no_file_is_longer_than_can_be_read_at_once():
    """ADR 29."""
    root = Path(__file__).parents[1]
    files = [*(root / "src").rglob("*.py"), *(root / "callbacks").rglob("*.py")]
    sizes = {str(file.relative_to(root)): len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    assert len(files) > 250 and not {name: size for name, size in sizes.items() if size > 350}
