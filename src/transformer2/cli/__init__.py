"""The command line: a light front that imports nothing until it knows what was asked for.

Exit codes: 0 done, 1 a bug, 2 a user error (one line; `--debug` shows the traceback), 129 / 130 / 143 interrupted by
SIGHUP / SIGINT / SIGTERM after saving.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback

from transformer2.callbacks.interrupt import listening
from transformer2.cli.folder import check_ranks
from transformer2.errors import UserError, nearest, shown

COMMANDS = {
    "fit": ("train one expert by REINFORCE and score it on the test split", "transformer2.cli.train:fit"),
    "validate": ("score a model or expert on the validation split", "transformer2.cli.train:validate"),
    "test": ("score a model or expert on the test split", "transformer2.cli.train:test"),
    "adapt": ("adapt to an unseen task with experts, beside controls", "transformer2.cli.adapt:adapt"),
    "ask": ("answer prompts of your own", "transformer2.cli.ask:ask"),
    "chat": ("a conversation in the terminal", "transformer2.cli.chat:chat"),
    "decompose": (
        "build the SVD basis cache of a base model (fit does it by itself)",
        "transformer2.cli.tools:decompose",
    ),
    "spectrum": ("how singular values are spread, and how z drifts over them", "transformer2.cli.spectrum:spectrum"),
    "export": ("write base and experts as one model: a folder or a GGUF file", "transformer2.cli.export:export"),
    "plan": ("what fits on which devices, and how long a step takes", "transformer2.cli.plan:plan"),
    "study": ("rebuild a table of the paper from a grid of runs", "transformer2.cli.study:study"),
    "report": ("print a run's table and draw its learning curve", "transformer2.cli.tools:report"),
    "serve": ("answer over HTTP, as OpenAI's API", "transformer2.cli.serve:serve"),
    "sandbox": ("say how well model-written code is isolated here", "transformer2.cli.sandbox:sandbox"),
    "experts": ("show, compare, mix and shuffle expert folders", "transformer2.cli.tools:experts"),
}

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOTDIR)
REMEDY = "free some space, check permissions, or give another --run_dir"

HELP = """\
usage: transformer2 COMMAND [options]

Self-adaptive language models: experts are scales of singular values.

commands:
{commands}

  transformer2 COMMAND --help   options of one command
  transformer2 --version

start here:
  transformer2 ask "Skokap carries 24 pens, eats 2, finds 7, sells 6. How many?"
  transformer2 fit --config conf/tiny_math.yaml      train an expert on the embedded model, minutes on a laptop
  transformer2 adapt                                 mix the shipped experts on a task that none of them was trained on
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments after the program's name; None reads sys.argv.

    Returns:
        The exit code.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        lines = (f"  {name:<{width}}  {line}" for name, (line, _) in COMMANDS.items())
        print(HELP.format(commands="\n".join(lines)), end="")
        return 0
    if args[0] == "--version":
        from importlib.metadata import version

        print(version("transformer2"))
        return 0
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a user's task lies beside the command; appended last, it shadows nothing
    debug = "--debug" in args
    args = [a for a in args if a != "--debug"]
    return _guarded(args[0], args[1:], debug)


def _guarded(command: str, args: list[str], debug: bool) -> int:
    try:
        with listening() as listener:
            try:
                check_ranks()
                if command not in COMMANDS:
                    near = nearest(command, COMMANDS)
                    raise UserError(f"unknown command {command!r}{near} `transformer2 --help` lists them")
                module, _, function = COMMANDS[command][1].partition(":")
                code = getattr(importlib.import_module(module), function)(args)
            except BaseException:
                if not listener.number:
                    raise
                if debug:
                    traceback.print_exc()
            return listener.end() if listener.number else code
    except UserError as e:
        if debug:
            traceback.print_exc()
        text = " ".join(str(e).split())
        print(f"transformer2: {text if len(text) < 480 else f'{text[:280]} ... {text[-180:]}'}", file=sys.stderr)
        return 2
    except SystemExit as e:
        if e.code != 0:  # 0: --help was asked for
            raise
        return 0
    except BrokenPipeError:
        # The reader of our output (head, less) left: nothing went wrong here.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as e:
        if debug or e.errno not in NO_ROOM:
            raise
        print(f"transformer2: {shown(e.filename or 'a file')} cannot be used ({e.strerror}); {REMEDY}", file=sys.stderr)
        return 2
