"""What `import transformer2` offers, and what it costs."""

import subprocess
import sys


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
        "for name in transformer2.tasks.names(): transformer2.tasks.get(name)\n"
        "print(sorted({'torch', 'peft', 'transformers', 'lightning'} & set(sys.modules)))"
    )
    assert fresh(code) == "[]"


def test_every_public_name_resolves():
    import transformer2

    for name in transformer2.__all__:
        assert callable(getattr(transformer2, name))
    assert {"SVFConfig", "z_rows", "tasks"} <= set(dir(transformer2))


def test_peft_knows_svf_whichever_comes_first():
    for order in ("import transformer2, peft", "import peft, transformer2"):
        build = "print(type(peft.get_peft_config(dict(peft_type='SVF'))).__name__)"
        assert fresh(f"{order}\n{build}") == "SVFConfig"
