"""`chat`: a conversation in the terminal."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

from transformer2.adaptive.chat import as_pictures
from transformer2.callbacks.interrupt import current
from transformer2.cli.adaptive import MODEL_HELP, SAMPLING_HELP, load, model_of, sampling_of, start_all
from transformer2.cli.ask import summary
from transformer2.cli.compose import flags_of
from transformer2.errors import ConfigError, LengthError, UserError, nearest, shown

if TYPE_CHECKING:
    from transformer2.adaptive.model import SelfAdaptive
    from transformer2.adaptive.request import Job
    from transformer2.pictures import Picture

HELP = f"""\
usage: transformer2 chat [options]

A conversation in the terminal; for every message a first pass chooses an expert. Without options, the embedded model,
which knows a small world of its own; try
  Skokap carries 24 pens, eats 2, finds 7, sells 6. How many?
  Design plirop(x): lift by 4, scale by 2, lower by 3, drop by 1.

In the chat:
  /expert NAME            what answers from now on: auto, base, an expert's name, or mix:math=0.6,code=0.9
  /strategy NAME          how an expert is chosen from now on: prompt, cls, scores, soft (scores, mixed by probability)
  /image FILE             show a picture with the next message, where the base takes pictures; may be repeated
  /compare                switch the base's answer beside the adapted one on and off
  /experts                the experts that are loaded
  /system TEXT            a system message from now on; without text, none
  /new                    forget the conversation
  /help, /quit            also Ctrl-D; Ctrl-C stops an answer, not the chat

  --system TEXT           a system message
{SAMPLING_HELP}
{MODEL_HELP}"""


def chat(args: Sequence[str]) -> int:
    """Read messages and commands, and answer, until the input ends."""
    flags = flags_of(args, HELP, takes_words=True)
    if flags.words:
        raise ConfigError(f"unexpected {shown(repr(flags.words[0]))}; type it in the chat, or use transformer2 ask")
    arguments, sampling = model_of(flags, is_final=False), sampling_of(flags.options)
    conversation = Conversation(load(arguments), sampling, flags.options.get("use"), flags.options.get("system"))
    conversation.welcome()
    with suppress(ImportError):
        import readline  # noqa: F401  # arrow keys and history in `input`
    listener = current()
    if listener is not None:
        listener.stop_handling(signal.SIGINT)
    while True:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            print()
            return 0
        except KeyboardInterrupt:
            print("\n  (Ctrl-D or /quit ends the chat)")
            continue
        except UnicodeDecodeError:
            print("  this line is not UTF-8")
            continue
        if line in ("/quit", "/exit"):
            return 0
        try:
            conversation.say(line)
        except UserError as e:
            print(f"  {e}")
        except KeyboardInterrupt:  # before there was an answer to stop, as while a picture is decoded
            print("  stopped")


class Conversation:
    """The messages so far, and what answers the next one.

    Args:
        model: Answers.
        sampling: Arguments of `SelfAdaptive.start`.
        use: What answers; None leaves it to the strategy.
        system: System message.
    """

    def __init__(self, model: SelfAdaptive, sampling: dict[str, Any], use: str | None, system: str | None) -> None:
        self.model, self.sampling, self.use, self.system = model, sampling, use, system
        model.check_use(use)
        self.messages: list[dict[str, Any]] = []
        self.pictures: list[Picture] = []  # of the next message
        self.compares = False
        self.commands: dict[str, Callable[[str], None]] = {
            "expert": self._expert, "strategy": self._strategy, "compare": self._compare, "experts": self._experts,
            "system": self._system, "image": self._image, "new": self._new, "help": self._help,
        }  # fmt: skip

    def welcome(self) -> None:
        """What there is."""
        experts = ", ".join(self.model.experts) or "none"
        print(f"  experts: {experts}; {self._chosen_by()}. /help lists commands, /quit ends.")

    def say(self, line: str) -> None:
        """Take a line of the user's.

        Raises:
            UserError: A command or message that cannot be taken; the conversation is as before.
        """
        if line.startswith("/"):
            name, _, rest = line[1:].partition(" ")
            if name not in self.commands:
                raise UserError(f"unknown command /{name}{nearest(name, self.commands)} /help lists them")
            self.commands[name](rest.strip())
        elif line:
            self._answer(line)

    def _answer(self, line: str) -> None:
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        shows = [{"type": "image", "image": picture} for picture in self.pictures]
        content: Any = [*shows, {"type": "text", "text": line}] if shows else line
        messages = [*self.messages, {"role": "user", "content": content}]
        uses = ["base", self.use] if self.compares else [self.use]
        # An answer without a budget of its own takes what is left of the context: not a few tokens, if there is more.
        wanted = 0 if self.sampling.get("max_new_tokens") else min(self.model.usual_answer, self.model.longest // 4)
        last = len(messages) - 1
        for first in range(0, last + 1, 2):  # the oldest exchanges make room
            try:
                jobs = start_all(self.model, [*system, *messages[first:]], uses, self.sampling)
            except LengthError:
                if first == last:
                    raise
                continue
            if first == last or jobs[0].sampling.max_new_tokens >= wanted:
                break
            for job in jobs:
                job.cancel()
        messages = messages[first:]
        for _ in range(first // 2):
            print("  (the conversation is too long for the model: its oldest exchange is forgotten)")
        stopped = self._show(jobs)
        answer = jobs[-1].result()
        print(f"  [{summary(answer)}{', stopped' if stopped else ''}]")
        self.messages, self.pictures = [*messages, {"role": "assistant", "content": answer.text}], []

    def _show(self, jobs: Sequence[Job]) -> bool:
        """Print answers as they come, one after the other; whether Ctrl-C stopped them."""
        stopped = False

        def stop(number: int, frame: FrameType | None) -> None:
            nonlocal stopped
            stopped = True
            for job in jobs:  # between two tokens: no step of the model is torn
                job.cancel()

        signal.signal(signal.SIGINT, stop)
        for job in jobs:
            if len(jobs) > 1:
                while job.choice is None and not job.is_done:
                    self.model.step()
                print(f"  {job.choice.name if job.choice else 'none'}:")
            while not job.is_done:
                print(job.take(), end="", flush=True)
                self.model.step()
            job.result()
            print(job.take())
        return stopped

    def _expert(self, name: str) -> None:
        self.model.check_use(name or "auto")
        self.use = name or "auto"
        print(f"  answers: {self.use}")

    def _strategy(self, name: str) -> None:
        if name:
            self.model.set_strategy("scores" if name == "soft" else name, soft=name == "soft")  # type: ignore[arg-type]
            self.use = "auto"
        print(f"  {self._chosen_by()}")

    def _chosen_by(self) -> str:
        """What answers the next message, or chooses it."""
        strategy = f"strategy: {self.model.strategy}{', soft' if self.model.soft else ''}"
        if self.use not in (None, "auto"):
            return f"{strategy}; {self.use} answers until /expert auto"
        return strategy if self.model.choosable else "no expert to choose: the base answers"

    def _image(self, path: str) -> None:
        if not path:
            raise UserError("name a picture: /image sign.png")
        if not self.model.takes_pictures:
            raise UserError("the base takes no pictures; start the chat with one that does (--base tiny_vision, say)")
        (picture,) = as_pictures(path)
        picture.check()
        self.pictures.append(picture)
        print(f"  {len(self.pictures)} shown with the next message")

    def _compare(self, _: str) -> None:
        self.compares = not self.compares
        print(f"  the base's answer is {'shown too' if self.compares else 'not shown'}")

    def _experts(self, _: str) -> None:
        print("\n".join(f"  {name}" for name in ["base", *self.model.experts]))

    def _system(self, text: str) -> None:
        self.system = text or None
        print("  system message " + ("set" if text else "removed"))

    def _new(self, _: str) -> None:
        self.messages, self.pictures = [], []
        print("  a new conversation")

    def _help(self, _: str) -> None:
        print(HELP.partition("In the chat:\n")[2].partition("\n\n")[0])
