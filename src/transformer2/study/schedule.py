"""Runs a study's jobs in subprocesses: what is there is kept, what was cut resumes, what fails stops nothing else.

Several commands, on one machine or on many with a common disk, may work on the same runs: each takes those that no
other has. A run is claimed by a lock that its own process holds too, so that it stays claimed when we are killed.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tqdm import tqdm

from transformer2.errors import UserError, shown
from transformer2.files import LAST, PREVIOUS, file_digest
from transformer2.svf.format import WEIGHTS, name_of

POLL = 0.2  # seconds between two looks at what runs
LOOK = 5.0  # seconds between two looks at what others have done
REFUSED = 2  # the exit code of a command that says what is wrong with its input
EDITED = "a file that it is given was edited while the study ran; run the study again"
GRACE = 12.0  # seconds that runs have to save on a signal


@dataclass(frozen=True)
class Job:
    """A run to be made.

    Attributes:
        name: What it is called for people: `svf-math s0`.
        args: The command line without `transformer2`, and without where the run is kept.
        folder: The run folder.
        needs: Folders of the runs that it uses.
        experts: Expert folders that it is given.
        folder_now: The name of the folder by what the files that it is given hold at this moment.
    """

    name: str
    args: tuple[str, ...]
    folder: Path
    needs: tuple[Path, ...] = ()
    experts: tuple[Path, ...] = ()
    folder_now: Callable[[], str] | None = None

    @property
    def changed(self) -> bool:
        """Whether a file that it is given was edited since the study began; its folder would hold another run."""
        try:
            return self.folder_now is not None and self.folder_now() != self.folder.name
        except UserError:
            return True

    @property
    def done(self) -> bool:
        """Whether it has a report, which is written last, of the experts that it would be given today."""
        return _report_of(self.folder) is not None and not self.stale

    @property
    def stale(self) -> bool:
        """Whether its report is of experts that were trained again since."""
        said = _report_of(self.folder) or ()
        for expert in self.experts:
            weights = {digest for name, digest in said if name in (name_of(expert), f"first pass: {name_of(expert)}")}
            if weights and (digest := file_digest(expert / WEIGHTS)) is not None and weights != {digest}:
                return True
        return False

    @property
    def traceable(self) -> bool:
        """Whether its report says which experts it was given; those of earlier versions do not."""
        return not self.experts or bool(_report_of(self.folder))

    @property
    def log(self) -> Path:
        """What it printed."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def cut(self) -> Path:
        """The folder of a run that was cut, to resume from."""
        return self.folder.with_name(f".{self.folder.name}.cut")

    @property
    def old(self) -> Path:
        """The folder of a stale run, which is kept until there is a new one."""
        return self.folder.with_name(f".{self.folder.name}.old")

    def command(self) -> list[str]:
        """The arguments to start or resume it with; what a killed run left behind is kept for it, or removed."""
        cut = self.cut
        if self.stale:
            shutil.rmtree(self.old, ignore_errors=True)
            self.folder.rename(self.old)
        if self._older_than_its_experts(cut):
            shutil.rmtree(cut)
        if self.args[0] == "adapt" and (self.folder / "config.yaml").is_file():
            (self.folder / "report.json").unlink(missing_ok=True)  # a damaged one
            flags = zip(self.args[1::2], self.args[2::2], strict=True)  # its experts may have moved, and it with them
            experts = [word for flag in flags if flag[0] in ("--adapt.experts", "--adapt.classifier") for word in flag]
            return ["adapt", "--resume", str(self.folder), *experts, "--quiet"]
        if (self.folder / LAST).exists() and not self._older_than_its_experts(self.folder):
            shutil.rmtree(cut, ignore_errors=True)
            self.folder.rename(cut)
        shutil.rmtree(self.folder, ignore_errors=True)
        checkpoint = self._checkpoint()
        resumed = [] if checkpoint is None else ["--ckpt_path", str(checkpoint)]
        return [*self.args, *resumed, "--run_dir", str(self.folder), "--quiet"]

    def _older_than_its_experts(self, folder: Path) -> bool:
        """Whether its checkpoint cannot have begun with the experts that are there now."""
        try:
            at = os.stat(folder / LAST).st_mtime
            return any(os.stat(expert / WEIGHTS).st_mtime > at for expert in self.experts)
        except OSError:
            return False

    def clear(self) -> None:
        """Remove what a finished run was resumed from or replaces, and keep the first half of its curves."""
        shutil.rmtree(self.old, ignore_errors=True)
        for events in self.cut.glob("events.out.tfevents*"):
            shutil.copy2(events, self.folder)
        shutil.rmtree(self.cut, ignore_errors=True)

    def forget_checkpoint(self) -> None:
        """Give up the checkpoint that a run could not resume from; next time the one before it, or none, is taken."""
        if (path := self._checkpoint()) is not None:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _checkpoint(self) -> Path | None:
        """The newest one of a run that was cut."""
        return next((path for name in (LAST, PREVIOUS) if (path := self.cut / name).exists()), None)


class Running:
    """A job in a subprocess."""

    def __init__(self, job: Job, launcher: Sequence[str], environment: Mapping[str, str], lock: int) -> None:
        self.job, self.start = job, time.monotonic()
        with open(job.log, "ab") as log:
            self.process = subprocess.Popen(
                [*launcher, *job.command()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # a Ctrl-C reaches us alone, and it once
                pass_fds=[lock],
            )
        os.close(lock)

    def outcome(self) -> str:
        """A line on a job that ended: its scores, or why it failed."""
        job, seconds, code = self.job, time.monotonic() - self.start, self.process.returncode
        if job.done:
            return f"{job.name}   {_scores(job.folder)}{seconds:.0f} s"
        text = job.log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if job.log.exists() else []
        why = shown(text[-1], 160) if text and code else f"exit code {code}, without a report of what it was given"
        return f"{job.name}   FAILED after {seconds:.0f} s: {why} (see {job.log})"


def _scores(folder: Path) -> str:
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    parts = [
        f"{name} {100 * r['base']['accuracy']:.1f} -> {100 * r['result']['accuracy']:.1f} %".lstrip()
        for name, r in report.get("strategies", {"": report}).items()
        if all((r.get(key) or {}).get("accuracy") is not None for key in ("base", "result"))
    ]
    return f"{', '.join(parts)}   " if parts else ""


def claim(job: Job) -> int | None:
    """A lock on a job's folder; None where another command has it."""
    locks = job.folder.parent / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    lock = os.open(locks / job.folder.name, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        os.close(lock)
        if isinstance(e, BlockingIOError):
            return None
        raise UserError(f"{locks} is on a disk without file locks ({e.strerror}); give another --run_dir") from e
    return lock


def _report_of(folder: Path) -> set[tuple[str, str]] | None:
    """Name and SHA-256 of the experts that a run's report says it was given; None where there is no report.

    A damaged one is no report, and its run is made again.
    """
    file = folder / "report.json"
    try:
        status = file.stat()
        return _made_from(file, status.st_mtime_ns, status.st_size)
    except OSError:
        return None


@cache
def _made_from(file: Path, mtime: int, size: int) -> set[tuple[str, str]] | None:
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        if not report.keys() & {"result", "strategies", "spectrum"}:
            return None
        parts = [report.get("details", {}), *(part["details"] for part in report.get("strategies", {}).values())]
        found = [item for part in parts for item in part.get("made_from", {}).items()]
        if drift := report.get("drift"):
            found.append((drift["expert"], drift["sha256"]))
        return {(name, digest) for name, digest in found if digest}
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return None


def run_jobs(
    jobs: Callable[[], tuple[Sequence[Job], int]],
    failed: set[Path],
    at_once: int,
    launcher: Sequence[str],
    quiet: bool,
) -> None:
    """Run what is missing.

    Args:
        jobs: Returns the jobs that are known by now, and the number of those that wait for others to be known.
        failed: Folders of the runs that failed, and of those that need them: they are added here.
        at_once: Jobs at a time.
        launcher: What starts `transformer2`, before its arguments.
        quiet: No progress bar and no lines.
    """
    environment = dict(os.environ)
    if at_once > 1:  # as many threads as cores for all jobs together; the embedded model alone chooses by itself
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // at_once)))
    running: dict[Path, Running] = {}
    looked = -math.inf
    # What was there already says nothing of the time left.
    with tqdm(unit="run", initial=sum(j.done for j in jobs()[0]), disable=quiet, dynamic_ncols=True) as bar:
        try:
            while True:
                ended = [run for run in running.values() if run.process.poll() is not None]
                for run in ended:
                    del running[run.job.folder]
                    if run.job.done:
                        run.job.clear()
                    else:
                        failed.add(run.job.folder)
                        if run.process.returncode == REFUSED:
                            run.job.forget_checkpoint()
                    if not quiet:
                        tqdm.write(run.outcome())
                if ended or time.monotonic() - looked > LOOK:
                    looked = time.monotonic()
                    known, waiting = jobs()
                    failed |= dependants(known, failed)
                    finished = {job.folder for job in known if job.done and job.folder not in running}
                    bar.n, bar.total = len(finished), len(known) + waiting - len(failed)
                    open_jobs = [job for job in known if job.folder not in finished | failed]
                    for job in open_jobs:
                        if len(running) == at_once:
                            break
                        if job.folder in running or not finished.issuperset(job.needs):
                            continue
                        if (lock := claim(job)) is None:
                            continue
                        if job.done:  # another command was faster
                            os.close(lock)
                        elif job.changed:
                            os.close(lock)
                            failed.add(job.folder)
                            looked = -math.inf
                            tqdm.write(f"{job.name}   is not run: {EDITED}", file=sys.stderr)
                        else:
                            if job.stale and not quiet:
                                tqdm.write(f"{job.name}   is made again: an expert that it was given was retrained")
                            running[job.folder] = Running(job, launcher, environment, lock)
                    bar.set_postfix_str(", ".join(run.job.name for run in running.values()))
                    if not running and not open_jobs:
                        return
                time.sleep(POLL)
        except BaseException:
            _stop(running.values())
            raise


def dependants(jobs: Iterable[Job], folders: set[Path]) -> set[Path]:
    """Folders of the jobs that need one of these, directly or not."""
    several, found = list(jobs), set[Path]()
    while more := {j.folder for j in several if j.folder not in found and (folders | found) & {*j.needs}}:
        found |= more
    return found


def _stop(running: Collection[Running]) -> None:
    """Have runs save and end, as a signal does; kill those that do not."""
    for run in running:
        run.process.terminate()
    end = time.monotonic() + GRACE
    for run in running:
        try:
            run.process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            run.process.kill()
            run.process.wait()
