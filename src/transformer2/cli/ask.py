"""`ask`: answer your own prompts."""

from __future__ import annotations

import json
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformer2.cli.adaptive import MODEL_HELP, SAMPLING_HELP, load, model_of, sampling_of, start_all
from transformer2.cli.compose import flags_of
from transformer2.cli.folder import check_writable
from transformer2.cli.values import number
from transformer2.errors import ConfigError, DataError, UserError, shown
from transformer2.files import check_directory, once_each, read_file
from transformer2.seeds import row_seed

if TYPE_CHECKING:
    from transformer2.adaptive.chat import Chat
    from transformer2.adaptive.model import SelfAdaptive
    from transformer2.adaptive.request import AdaptiveAnswer, Job

HELP = f"""\
usage: transformer2 ask [options] PROMPT ...
       transformer2 ask [options] < prompts.txt
       transformer2 ask [options] --file prompts.jsonl [--out answers.jsonl]

Answer prompts: a first pass chooses an expert for each, a second one answers. Without options, the embedded model,
which knows a small world of its own:
  transformer2 ask "Skokap carries 24 pens, eats 2, finds 7, sells 6. How many?"
  transformer2 ask --compare "Design plirop(x): lift by 4, scale by 2, lower by 3, drop by 1."

  PROMPT                  one or several; without any, or for -, each line of standard input is one
  --image FILE ...        a picture to show with every prompt, where the base takes pictures; may be repeated
  --file FILE             prompts as JSON lines: text, {{"prompt": text}}, or {{"messages": [...]}} with roles, and
                          "image": the path of a picture, from where the file is, or a list of them, and a "system"
                          message of its own
  --out FILE              where their answers go (default answers.jsonl); a file that exists is not overwritten
  --compare               the base's answer beside the adapted one
  --json                  print answers as JSON lines, with what was chosen, probabilities and seconds
  --system TEXT           a system message before every prompt
{SAMPLING_HELP}  --stop TEXT             end an answer before this text
  --max_rows N            prompts under way at a time (default 64)

{MODEL_HELP}"""
LARGEST_FILE = 1 << 30  # bytes
COLUMNS = {
    "answer", "base_answer", "choice", "completion_tokens", "error", "finish_reason", "prompt_tokens", "seconds",
}  # fmt: skip


def ask(args: Sequence[str]) -> int:
    """Answer prompts of the command line, of standard input, or of a file."""
    flags = flags_of(args, HELP, takes_words=True)
    options, images, use = flags.options, flags.repeated.get("image", []), flags.options.get("use")
    arguments, sampling = model_of(flags), sampling_of(options)
    max_rows = number(options, "max_rows", 64, 1)
    file, out = options.get("file"), Path(options.get("out", "answers.jsonl")).expanduser()
    if file is None and "out" in options:
        raise ConfigError("--out is where the answers to --file go; give both, or redirect the output")
    if file is not None:
        if flags.words:
            raise ConfigError("give prompts or --file, not both")
        if images:
            raise ConfigError('--image is for prompts; rows of --file name their own: {"prompt": text, "image": path}')
        if out.exists():
            raise ConfigError(f"--out: {shown(out)} exists; give another name")
        if _part_of(out).exists():
            raise ConfigError(
                f"{shown(_part_of(out))} holds the answers of an interrupted run; move it away, or give another --out"
            )
        check_directory(out.parent, "--out: its folder", "make it first", ConfigError)
        check_writable(out.parent, "--out")
    if file is not None:
        rows, chats = _of_file(Path(file).expanduser(), options.get("system"))
    else:  # `-`, or nothing, is for the lines of standard input
        prompts = [prompt for word in flags.words or ["-"] for prompt in (_lines() if word == "-" else [word])]
        rows, chats = _of_words(prompts, images, options.get("system"))
    if not rows:
        raise ConfigError('no prompt was given; write transformer2 ask "..."')

    model = load(arguments, max_rows=max_rows)
    uses = ["base", use] if "compare" in flags.switches else [use]
    if file is not None:
        return _to_file(model, rows, chats, uses, sampling, out)
    for row, answers in zip(rows, _answers(model, chats, uses, sampling, all_or_none=True), strict=True):
        if isinstance(answers, UserError):
            raise answers
        if "json" in flags.switches:
            print(json.dumps({**row, **_columns(answers)}, ensure_ascii=False), flush=True)
            continue
        if len(rows) > 1:
            print(f"> {row['prompt']}")
        for answer in answers:
            named = f"{answer.choice.name}: " if len(answers) > 1 else ""
            print(f"{named}{answer.text}", flush=True)
        print(f"  [{summary(answers[-1])}]", file=sys.stderr, flush=True)
    return 0


def summary(answer: AdaptiveAnswer) -> str:
    """What was chosen, how sure the first pass was, and how long both passes took."""
    choice, first, second = answer.choice, answer.seconds["first_pass"], answer.seconds["second_pass"]
    mixed = ", ".join(f"{name} {weight:.2f}" for name, weight in choice.weights.items())
    parts = [f"mix of {mixed}" if choice.name == "mix" else choice.name]
    if choice.probabilities is not None:
        parts.append(", ".join(f"{name} {100 * p:.0f} %" for name, p in choice.probabilities.items()))
    parts.append(f"{first:.1f} s + {second:.1f} s, {answer.completion_tokens} tokens")
    if answer.finish_reason != "stop":
        parts.append("cut at max_new_tokens" if answer.finish_reason == "length" else answer.finish_reason)
    return "; ".join(parts)


def _answers(
    model: SelfAdaptive, chats: Sequence[Chat], uses: Sequence[Any], sampling: dict[str, Any], all_or_none: bool = False
) -> Iterator[list[AdaptiveAnswer] | UserError]:
    """The answers to each chat, one per use, or why there are none; in order, as soon as known, many in one batch.

    With `all_or_none`, a chat that cannot be answered is raised before any is.
    """
    started: deque[list[Job] | UserError] = deque()
    coming = enumerate(chats)

    def start(count: int) -> None:
        for i, chat in islice(coming, count):
            try:
                started.append(start_all(model, chat, uses, {**sampling, "seed": row_seed(sampling["seed"], i)}))
            except UserError as e:
                if all_or_none:
                    raise
                started.append(e)

    try:
        start(4 * model.max_rows)
        for chat in chats[4 * model.max_rows :] if all_or_none else ():  # whether those that follow can be answered
            for job in start_all(model, chat, uses, sampling):
                job.cancel()
        while started:
            jobs = started[0]
            if isinstance(jobs, UserError):
                yield jobs
            else:
                while not all(job.is_done for job in jobs):
                    model.step()
                yield _results(jobs)
            started.popleft()
            start(1)
    finally:
        for jobs in started:
            for job in () if isinstance(jobs, UserError) else jobs:
                job.cancel()


def _results(jobs: Sequence[Job]) -> list[AdaptiveAnswer] | UserError:
    try:
        return [job.result() for job in jobs]
    except UserError as e:
        return e


def _to_file(
    model: SelfAdaptive, rows: Sequence[Any], chats: Sequence[Chat], uses: Sequence[Any], sampling: Any, out: Path
) -> int:
    """One line per answer, in a file with another name until all are there."""
    from tqdm import tqdm

    part, failed = _part_of(out), 0
    with part.open("w", encoding="utf-8") as lines:
        answers = _answers(model, chats, uses, sampling)
        for row, found in tqdm(zip(rows, answers, strict=True), "ask", len(rows), unit="prompt"):
            failed += isinstance(found, UserError)
            columns = {"answer": None, "error": str(found)} if isinstance(found, UserError) else _columns(found)
            lines.write(json.dumps({**row, **columns}, ensure_ascii=False) + "\n")
            lines.flush()
    part.rename(out)
    print(f"{len(rows) - failed} answers saved to {out}")
    if failed:
        raise DataError(f"{failed} of {len(rows)} prompts could not be answered; their lines in {shown(out)} say why")
    return 0


def _part_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.part")


def _columns(answers: Sequence[AdaptiveAnswer]) -> dict[str, Any]:
    answer = answers[-1]
    choice = {key: value for key, value in vars(answer.choice).items() if value is not None}
    return {
        **({"base_answer": answers[0].text} if len(answers) > 1 else {}),
        "answer": answer.text,
        "choice": choice,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "seconds": {name: round(value, 3) for name, value in answer.seconds.items()},
    }


def _lines() -> list[str]:
    if sys.stdin.isatty():
        return []
    try:
        lines = sys.stdin.read().removeprefix("\ufeff").split("\n")  # Windows writes a byte order mark
        return [line.strip() for line in lines if line.strip()]
    except UnicodeDecodeError as e:
        raise DataError("standard input is not UTF-8; convert it first") from e


def _of_words(prompts: Sequence[str], images: Sequence[str], system: str | None) -> tuple[list[Any], list[Chat]]:
    """Prompts as rows and as chats, each with all of the pictures.

    Raises:
        DataError: A picture cannot be used.
    """
    from transformer2.adaptive.chat import as_pictures

    pictures = as_pictures(images)
    for picture in pictures:
        picture.check()
    rows = [{"prompt": prompt, **({"image": list(images)} if images else {})} for prompt in prompts]
    return rows, [_chat(prompt, system, images=pictures) for prompt in prompts]


def _of_file(path: Path, system: str | None) -> tuple[list[Any], list[Chat]]:
    """The rows of a file of prompts, and their chats.

    Raises:
        DataError: The file or a line cannot be read, or a picture is missing; the message names it.
    """
    from transformer2.adaptive.chat import PictureSource, as_pictures
    from transformer2.pictures import PictureFile, check_names

    source = PictureSource(path.parent)
    try:
        text = read_file(path, LARGEST_FILE, DataError).decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise DataError(f"{shown(path)} is not UTF-8 (byte {e.start}); convert it first") from e
    rows: list[Any] = []
    chats: list[Chat] = []
    for count, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=once_each)
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as e:
            what = "holds half a character (\\ud800 to \\udfff), which no file can; correct it"
            raise DataError(f"{shown(path)}, line {count} {what}") from e
        except (ValueError, RecursionError) as e:  # a number of 5,000 digits is no JSONDecodeError
            raise DataError(
                f"{shown(path)}, line {count} is not JSON ({getattr(e, 'msg', e)}); write one prompt a line"
            ) from e
        row = {"prompt": row} if isinstance(row, str) else row
        known = isinstance(row, dict) and ("prompt" in row) != ("messages" in row)
        if not known or not isinstance(row.get("prompt", ""), str) or not isinstance(row.get("messages", []), list):
            raise DataError(f'{shown(path)}, line {count} must be text, {{"prompt": text}} or {{"messages": [...]}}')
        if taken := sorted(row.keys() & COLUMNS):
            raise DataError(f"{shown(path)}, line {count}: {taken[0]!r} is a name of ours in the output; rename it")
        try:
            check_names(row)
            asked, own = row.get("messages", row.get("prompt")), row.get("system")
            pictures = as_pictures(row.get("image"), source)
            chats.append(_chat(asked, system if own is None else own, source, pictures))
            for picture in chats[-1].images:
                if isinstance(picture, PictureFile) and not os.path.isfile(picture.path):
                    raise DataError(f"picture {shown(picture.path)} is not there; correct its path")
        except UserError as e:
            raise DataError(f"{shown(path)}, line {count}: {e}") from e
        rows.append(row)
    return rows, chats


def _chat(prompt: Any, system: str | None, source: Any = None, images: Sequence[Any] = ()) -> Chat:
    from transformer2.adaptive.chat import Chat

    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return Chat.of(messages if system is None else [{"role": "system", "content": system}, *messages], source, images)
