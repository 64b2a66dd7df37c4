"""`study`: a table or figure of the paper from a grid of ordinary runs, of which only the missing ones are run."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from transformer2.cli.compose import find_config, flags_of
from transformer2.cli.folder import check_writable
from transformer2.cli.study_plan import Plan
from transformer2.cli.study_run import composed
from transformer2.cli.values import number
from transformer2.errors import ConfigError, shown
from transformer2.files import write_text
from transformer2.study.builders import build
from transformer2.study.output import Table, write_outputs
from transformer2.study.results import FILE, Study, read_study, study_json
from transformer2.study.schedule import Job, dependants, run_jobs
from transformer2.svf.base_folder import base_folder

SECTIONS = ("model", "data", "trainer", "adapt")

HELP = """\
usage: transformer2 study FILE [FILE ...] [--base BASE] [--seeds 0,1,2] [--jobs N] [--dry_run] [--SECTION.KEY VALUE ...]

Run the missing runs of a study, then build its tables and figures. A study file names a grid of ordinary runs (fit,
test, adapt); runs that are there are reused, by this study and by others, a failed one stops nothing else, and an
interrupted study resumes where it was cut. Shipped: {shipped}.

  --base BASE          the base model (default tiny: the embedded one); real tasks come with any base but the embedded
  --other_base BASE    a second base, for the studies that move an expert to another model
  --seeds 0,1,2        the seeds of every run, of those with seeds of their own too (default: the study file's)
  --jobs N             runs at a time (default 1)
  --dry_run            print the command lines and what is there already, and stop
  --world FILE         the tasks and settings behind the names in a study file (default by base: conf/paper/world/)
  --SECTION.KEY VALUE  on top of every run, e.g. --data.data_dir FOLDER --data.test_limit 64; SECTION is one of model,
                       data, trainer, adapt; not what a run of the study file sets by itself
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
    shipped = sorted(f"conf/paper/{p.name}" for p in find_config("conf/base.yaml").parent.glob("paper/*.yaml"))
    flags = flags_of(args, HELP.format(shipped=", ".join(shipped)), SECTIONS, takes_words=True)
    files = flags.words
    if flags.configs:
        raise ConfigError(f"study takes its files without --config; write transformer2 study {flags.configs[0]}")
    docs = flags.options.get("docs")
    if not files and docs is None:
        raise ConfigError("study needs a study file, such as conf/paper/table1.yaml (`study --help` names them)")
    of_runs = [key for key in (*flags.options, *dict(flags.overrides)) if key not in ("docs", "run_dir")]
    if not files and of_runs:
        raise ConfigError(f"--{of_runs[0]} is for the runs of a study file; name the file, or leave the flag out")
    if docs is not None and "dry_run" in flags.switches:
        raise ConfigError("--dry_run writes nothing; leave --docs out")
    jobs = number(flags.options, "jobs", 1, 1, 1024)
    root = Path(flags.options.get("run_dir") or Path("runs") / "studies")
    failed: set[Path] = set()
    plans = [Plan(file, root, failed, flags.options, flags.overrides) for file in files]
    for first, second in combinations(plans, 2):
        if first.folder == second.folder:
            raise ConfigError(
                f"{first.file} and {second.file} would both be kept in {first.folder}; rename one, or run it alone "
                "with another --run_dir"
            )
    for key in sorted(set.intersection(*(plan.unused for plan in plans))) if plans else ():
        raise ConfigError(f"no run of {' and '.join(plan.name for plan in plans)} takes --{key}; leave it out")
    launcher = shlex.split(flags.options.get("launcher", "")) or [sys.executable, "-m", "transformer2"]
    if shutil.which(launcher[0]) is None:
        raise ConfigError(f"--launcher {shown(launcher[0])} is no command; give what starts a run")
    if "dry_run" in flags.switches:
        for plan in plans:
            _print_lines(plan, launcher)
        return 0
    if "launcher" not in flags.options:  # who starts runs elsewhere may have their bases elsewhere
        _check_bases(plans)
    check_writable(root)
    if plans:
        _run(plans, failed, jobs, launcher, "quiet" in flags.switches)
    whole = [_finish(plan) for plan in plans]
    if docs is not None:
        from transformer2.study.page import write_pages

        write_pages(root, Path(docs))
    return 0 if all(whole) else 1


def _print_lines(plan: Plan, launcher: Sequence[str]) -> None:
    """What a run of the study would do."""
    known, waiting = plan.jobs()
    unique = {job.folder: job for job in known}
    done = {folder for folder, job in unique.items() if job.done}
    again = len(done & dependants(unique.values(), unique.keys() - done))
    start = "transformer2" if list(launcher[1:]) == ["-m", "transformer2"] else shlex.join(launcher)
    print(f"{plan.name}: {plan.study.get('title') or plan.name} (base {plan.study.base})")
    for folder, job in unique.items():
        words = shlex.join([*job.args, "--run_dir", str(folder)])
        print(f"  {'done  ' if job.done else 'to run'} {job.name:<28} {start} {words}")
    later = f", {len(waiting)} more once their settings are chosen" if waiting else ""
    of_these = f" ({again} of them made from others; made again where those change)" if again else ""
    print(f"  {len(unique)} runs, {len(done)} done{of_these}{later}")


def _check_bases(plans: Sequence[Plan]) -> None:
    """Refuse a base that is not there, once and before its runs do, one after the other.

    Raises:
        UserError: It is no folder, and the Hub does not give it.
    """
    models = [composed(job.args).get("model") or {} for plan in plans for job in plan.jobs()[0] if not job.done]
    named = {(str(m["base"]), json.dumps(m.get("model_kwargs") or {})): m for m in models if "base" in m}
    for (base, _), model in named.items():
        base_folder(base, model.get("model_kwargs") or {}, weights=False)


def _run(plans: Sequence[Plan], failed: set[Path], at_once: int, launcher: Sequence[str], quiet: bool) -> None:
    from transformer2.callbacks import interrupt

    if (listener := interrupt.current()) is not None:
        listener.on_signal = lambda number: "finished runs are kept; the same command resumes them"
        listener.grace = 30.0

    def known() -> tuple[list[Job], int]:
        jobs, waiting = zip(*(plan.jobs() for plan in plans), strict=True)
        return list({job.folder: job for of_plan in jobs for job in of_plan}.values()), len(set().union(*waiting))

    run_jobs(known, failed, at_once, launcher, quiet)


def _finish(plan: Plan) -> bool:
    """Write study.json, and build what the study is for; whether every run is done."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    write_text(plan.folder / FILE, study_json(plan.found()))
    study = read_study(plan.folder)
    done = sum(run.state == "done" for run in study.runs)
    print(f"{study.name}: {done} of {len(study.runs)} runs done")
    for doubt in _doubts(study):
        print(f"  {doubt}")
    if untraceable := sum(job.done and not job.traceable for job in plan.jobs()[0]):
        print(
            "  reports that do not say which experts they are of, as an earlier transformer2 wrote them: "
            f"{untraceable}; remove the runs whose experts were retrained since"
        )
    for tuned in study.tuning:
        if tuned.chosen is None:
            print(f"  {tuned.name} was not run: none of its tuning runs ended with a validation score")
    outputs = build(study)
    for output in outputs:
        if isinstance(output, Table) and not output.name.endswith("_tuning"):
            print(output.text())
    print("\n".join(f"  {path}" for path in write_outputs(outputs, plan.folder) if path.suffix != ".csv"))
    return done == len(study.runs)


def _doubts(study: Study) -> list[str]:
    """What speaks against comparing its runs: several versions of a library, or several numbers of questions."""
    made: dict[str, set[str]] = {}
    asked: dict[str, set[int]] = {}
    for run in study.runs:
        whole = run.report or {}
        for report in whole.get("strategies", {"": whole}).values():  # of `adapt --strategy all`, one each
            for library, version in (report.get("versions") or {}).items():
                made.setdefault(library, set()).add(version)
            if n := report.get("n"):
                asked.setdefault(run.name, set()).add(n)
    return [
        f"its runs of {name} are of {' and '.join(map(str, sorted(numbers)))} questions"
        for name, numbers in asked.items()
        if len(numbers) > 1
    ] + [
        f"its runs were made with {library} {' and '.join(sorted(versions))}; remove the older ones"
        for library, versions in made.items()
        if len(versions) > 1
    ]
