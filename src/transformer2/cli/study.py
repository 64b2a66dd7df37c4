"""`study`: a table or figure of the paper from a grid of ordinary runs, of which only the missing ones are run."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from transformer2.cli.compose import find_config, parse_flags
from transformer2.cli.folder import check_writable
from transformer2.cli.study_plan import Plan
from transformer2.errors import ConfigError, shown
from transformer2.study.schedule import Job, run_jobs

SECTIONS = ("model", "data", "trainer", "adapt")
OPTIONS = ("base", "other_base", "world", "seeds", "jobs", "launcher", "run_dir", "docs")
SWITCHES = ("help", "dry_run", "quiet")

HELP = """\
usage: transformer2 study FILE [FILE ...] [--base BASE] [--seeds 0,1,2] [--jobs N] [--dry_run] [--SECTION.KEY VALUE ...]

Run the missing runs of a study, then build its tables and figures. A study file names a grid of ordinary runs (fit,
test, adapt); runs that are there are reused, by this study and by others, a failed one stops nothing else, and an
interrupted study goes on where it was. Shipped: {shipped}.

  --base BASE          the base model (default tiny: the embedded one); real tasks come with any base but the embedded
  --other_base BASE    a second base, for the studies that move an expert to another model
  --seeds 0,1,2        the seeds of every run (default: the study file's)
  --jobs N             runs at a time (default 1)
  --dry_run            print the command lines and what is there already, and stop
  --world FILE         the tasks and settings behind the names in a study file (default by base: conf/paper/world/)
  --SECTION.KEY VALUE  on top of every run, e.g. --data.data_dir FOLDER --trainer.max_steps 50; SECTION is one of
                       model, data, trainer, adapt
  --launcher COMMAND   what starts a run (default: this Python, -m transformer2), e.g.
                       "torchrun --nproc_per_node 4 -m transformer2"
  --run_dir DIR        where studies and their runs are kept (default runs/studies)
  --docs DIR           write DIR/paper.md and DIR/claims.md from all studies there; without FILE, only that
  --quiet              no progress bar
  --debug              show the traceback of an error

The same command started several times, here or on other machines with the same disk, shares the work
(docs/studies.md).
"""


def study(args: Sequence[str]) -> int:
    """Run, then build."""
    words = list(args)
    files = [words.pop(0) for _ in range(next((i for i, w in enumerate(words) if w.startswith("-")), len(words)))]
    flags = parse_flags(words, OPTIONS, SWITCHES, SECTIONS)
    if "help" in flags.switches:
        shipped = sorted(
            str(p.relative_to(p.parents[2])) for p in find_config("conf/base.yaml").parent.glob("paper/*.yaml")
        )
        print(HELP.format(shipped=", ".join(shipped)), end="")
        return 0
    if flags.configs:
        raise ConfigError(f"study takes its files without --config; write transformer2 study {flags.configs[0]}")
    docs = flags.options.get("docs")
    if not files and docs is None:
        raise ConfigError("study needs a study file, such as conf/paper/table1.yaml (`study --help` names them)")
    jobs = _number("jobs", flags.options.get("jobs", "1"))
    root = Path(flags.options.get("run_dir") or Path("runs") / "studies")
    plans = [Plan(file, root, flags.options, flags.overrides) for file in files]
    launcher = shlex.split(flags.options.get("launcher", "")) or [sys.executable, "-m", "transformer2"]
    if shutil.which(launcher[0]) is None:
        raise ConfigError(f"--launcher {shown(launcher[0])} is no command; give what starts a run")
    if "dry_run" in flags.switches:
        print("\n".join(line for plan in plans for line in plan.lines(launcher)))
        return 0
    if "launcher" not in flags.options:  # who starts runs elsewhere may have their bases elsewhere
        for plan in plans:
            plan.check_bases()
    check_writable(root)
    quiet = "quiet" in flags.switches
    failed = _run(plans, jobs, launcher, quiet) if plans else set()
    whole = [plan.finish(failed) for plan in plans]
    if docs is not None:
        from transformer2.study.page import write_pages

        write_pages(root, Path(docs))
    return 0 if all(whole) else 1


def _run(plans: Sequence[Plan], at_once: int, launcher: Sequence[str], quiet: bool) -> set[Path]:
    from transformer2.callbacks import interrupt

    if (listener := interrupt.current()) is not None:
        listener.on_signal = lambda number: "finished runs are kept; the same command goes on"
        listener.grace = 30.0

    def known(failed: set[Path]) -> tuple[list[Job], int]:
        found: dict[Path, Job] = {}
        waiting: set[str] = set()
        for plan in plans:
            some, unknown = plan.jobs(failed)
            found |= {job.folder: job for job in some}
            waiting |= unknown
        return list(found.values()), len(waiting)

    # As many threads as there are cores for all jobs together; the embedded model chooses by itself where it is alone.
    threads = max(1, (os.cpu_count() or 1) // at_once) if at_once > 1 and "OMP_NUM_THREADS" not in os.environ else None
    return run_jobs(known, at_once, launcher, threads, _outcome, quiet)


def _outcome(job: Job, seconds: float, code: int) -> str:
    """A line on a job that ended."""
    if not job.done:
        text = job.log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if job.log.exists() else []
        why = shown(text[-1], 160) if text and code else f"exit code {code}, without a report of what it was given"
        return f"{job.name}   FAILED after {seconds:.0f} s: {why} (see {job.log})"
    return f"{job.name}   {_scores(job.folder)}{seconds:.0f} s"


def _scores(folder: Path) -> str:
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    found = report.get("strategies", {"": report})
    parts = [
        f"{name + ' ' if name else ''}{100 * r['base']['accuracy']:.1f} -> {100 * r['result']['accuracy']:.1f} %"
        for name, r in found.items()
        if all((r.get(key) or {}).get("accuracy") is not None for key in ("base", "result"))
    ]
    return f"{', '.join(parts)}   " if parts else ""


def _number(name: str, text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 1024:
        raise ConfigError(f"--{name} must be a whole number from 1 to 1024, not {shown(text)}")
    return int(text)
