"""How a task words its questions: a system message and a template of the user message, both options of the task."""

from __future__ import annotations

import re
from collections.abc import Sequence

from transformer2.errors import ConfigError, nearest
from transformer2.types import Message

__all__ = ["Wording"]

_FIELD = re.compile(r"\{\{|\}\}|\{([A-Za-z_]\w*)\}")  # other braces stand for themselves: \boxed{}, \frac{1}{2}


class Wording:
    """A system message and a template of the user message.

    Args:
        task: Name of the task, for messages.
        system: System message; None (or nothing but blanks) sends none.
        prompt: User message with `{field}` for each field; `{{` and `}}` are braces.
        fields: Names of the fields, each of which the template must show.
        optional: Names of fields that it may show.

    Raises:
        ConfigError: A field that is unknown or missing (named), or no text.
    """

    def __init__(
        self, task: str, system: str | None, prompt: str, fields: Sequence[str], optional: Sequence[str] = ()
    ) -> None:
        if not isinstance(prompt, str) or not isinstance(system, str | None):
            name, value = ("system", system) if isinstance(prompt, str) else ("prompt", prompt)
            raise ConfigError(f"task {task!r}: {name} {value!r:.60} is not text; YAML wants it in quotes of its own")
        shown = [name for name in _FIELD.findall(prompt) if name]
        for name in shown:
            if name not in (*fields, *optional):
                raise ConfigError(
                    f"task {task!r}: prompt has the unknown field {{{name}}}{nearest(name, (*fields, *optional))} "
                    f"For braces themselves write {{{{{name}}}}}"
                )
        if missing := [f"{{{name}}}" for name in fields if name not in shown]:
            raise ConfigError(f"task {task!r}: prompt lacks {', '.join(missing)}; the model must see it")
        self.system, self.prompt = system if system and system.strip() else None, prompt

    def fill(self, **values: str) -> str:
        """The user message."""
        return _FIELD.sub(lambda m: values[m[1]] if m[1] else m[0][0], self.prompt)

    def messages(self, **values: str) -> tuple[Message, ...]:
        """The chat messages of a question."""
        return self.around(self.fill(**values))

    def around(self, content: str) -> tuple[Message, ...]:
        """The chat messages with a user message that is filled in already."""
        system = () if self.system is None else ({"role": "system", "content": self.system},)
        return (*system, {"role": "user", "content": content})
