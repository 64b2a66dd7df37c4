"""Run inside an empty environment, outside the checkout, with only the wheel installed (nox -s build)."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = str(Path(sys.executable).with_name("transformer2"))


def run(*args: str) -> str:
    print("$ transformer2", *args, flush=True)
    done = subprocess.run([SCRIPT, *args], capture_output=True, text=True, timeout=600)
    if done.returncode:
        sys.exit(f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def main() -> None:
    import transformer2

    where = Path(transformer2.__file__).parent
    assert "site-packages" in where.parts, where
    assert not (where / "callbacks").is_symlink() and (where / "callbacks" / "expert_checkpoint.py").is_file()
    assert (where / "conf" / "tiny_math.yaml").is_file() and (where / "py.typed").is_file()
    assert {f.name for f in (where / "serving/page").iterdir()} == {"index.html", "page.css", "page.js", "icon.svg"}
    for model in ("tiny/model", "tiny/model_b", "tiny/vision/model"):
        assert (where / model / "model.safetensors").is_file(), model
    weights = sum(f.stat().st_size for f in (where / "tiny").rglob("*") if f.is_file())
    assert weights <= 8e6, weights
    import transformer2.callbacks  # importable from the wheel

    for command in ("--help", "fit --help", "adapt --help", "decompose --help", "experts --help", "report --help"):
        assert run(*command.split()).startswith("usage: transformer2")
    print(run("fit", "--config", "conf/tiny_math.yaml", "--trainer.max_steps", "2", "--run_dir", "run"))
    report = json.loads(Path("run/report.json").read_text())
    assert report["task"] == "tiny_math" and report["n"] >= 256, report
    assert Path("run/expert/adapter_model.safetensors").is_file()
    print("1 passed, 0 failed")


if __name__ == "__main__":
    main()
