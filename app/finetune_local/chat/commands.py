"""The slash commands of a chat: their effects on the session and their replies. Nothing is printed here."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from finetune_local.chat.session import ChatSession
from finetune_local.inference.engine import adapter_list
from finetune_local.inference.sampling import Sampling
from finetune_local.system.errors import DiskFailed, SpecError
from finetune_local.system.fields import did_you_mean
from finetune_local.system.messages import msg, system_reason
from finetune_local.system.paths import located
from finetune_local.system.private import share


@dataclass(frozen=True)
class Outcome:
    """A command's reply and what the caller does next."""

    text: str = ""
    then: Literal["go on", "retry", "quit"] = "go on"


def run_command(chat: ChatSession, line: str) -> Outcome:
    """Execute a line that begins with "/". Raises SpecError for an unknown command, UserErrors of the command."""
    name, _, rest = line[1:].strip().partition(" ")
    if name not in COMMANDS:
        raise SpecError(
            msg(
                "there is no command /{name}.{did_you_mean} /help lists them.",
                name=name,
                did_you_mean=did_you_mean("/" + name, ["/" + c for c in COMMANDS]),
            )
        )
    return COMMANDS[name].run(chat, rest.strip())


@dataclass(frozen=True)
class Command:
    """A command: arguments and help text for /help, and its function."""

    arguments: str
    help: str
    run: Callable[[ChatSession, str], Outcome]


def _adapter(chat: ChatSession, name: str) -> Outcome:
    if not name:
        active = chat.opened.active or "base (none)"
        return Outcome(f"adapter: {active}. /adapter NAME swaps one in, /adapter base takes it out.")
    if name == "base":
        return Outcome(f"the base answers now ({chat.use(None):.1f} ms)")
    notes: list[str] = []
    if name not in chat.opened.adapters:
        before = chat.opened.active
        name = chat.opened.load(name, notes.append)  # also activates it; the switch alone is timed below
        chat.opened.activate(before)
    notes.append(f"adapter '{name}' answers now ({chat.use(name):.1f} ms)")
    return Outcome("\n".join(notes))


def _adapters(chat: ChatSession, _rest: str) -> Outcome:
    marks = {(True, True): "answers now", (True, False): "in memory", (False, False): "on disk"}
    listed = [f"{a['name']}  ({marks[a['loaded'], a['active']]})" for a in adapter_list(chat.opened)]
    return Outcome("\n".join(listed) or "no adapters yet: train one, or `finetune-local adapters import FOLDER`")


def _system(chat: ChatSession, text: str) -> Outcome:
    if not text:
        return Outcome(f"system prompt: {chat.conversation.system or 'none'}. /system none removes it.")
    chat.set_system("" if text == "none" else text)
    return Outcome("system prompt removed" if text == "none" else "system prompt set")


def _clear(chat: ChatSession, _rest: str) -> Outcome:
    chat.clear()
    return Outcome("a new conversation; the system prompt stays")


def _undo(chat: ChatSession, _rest: str) -> Outcome:
    return Outcome(
        "the last question and its answer are taken back" if chat.undo() else "there is nothing to take back"
    )


def _retry(_chat: ChatSession, _rest: str) -> Outcome:
    return Outcome(then="retry")


def _save(chat: ChatSession, name: str) -> Outcome:
    where = f"every turn is kept in {chat.history.path}" if chat.history else "this conversation is not kept"
    if not name:
        return Outcome(f"{where}. /save FILE appends the conversation to a file that can be trained on.")
    messages = [{"role": "system", "content": chat.conversation.system}] if chat.conversation.system else []
    messages += [{"role": turn.role, "content": turn.content} for turn in chat.turns]
    place = located(name)
    new = not place.exists()
    try:
        with place.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
        if new:
            share(place)
    except OSError as error:
        raise DiskFailed(
            msg("/save {name}: {strerror}. Choose another file.", name=name, strerror=system_reason(error))
        ) from None
    return Outcome(f"{len(chat.turns)} turns appended to {name} as one line")


def _set(chat: ChatSession, rest: str) -> Outcome:
    name, _, value = rest.replace("=", " ").partition(" ")
    if name:
        chat.set_sampling(name, value.strip())
    shown: Mapping[str, object] = chat.sampling.model_dump()
    return Outcome("  ".join(f"{key}={'auto' if setting is None else setting}" for key, setting in shown.items()))


def _help(_chat: ChatSession, _rest: str) -> Outcome:
    lines = [(f"/{name} {c.arguments}".rstrip(), c.help) for name, c in COMMANDS.items()]
    width = max(len(usage) for usage, _ in lines)
    return Outcome("\n".join(f"{usage:<{width}}  {text}" for usage, text in lines))


def _quit(_chat: ChatSession, _rest: str) -> Outcome:
    return Outcome(then="quit")


COMMANDS: Mapping[str, Command] = {
    "adapter": Command("NAME|base", "swap an adapter in without reloading, or take it out", _adapter),
    "adapters": Command("", "list the adapters in memory and on disk", _adapters),
    "system": Command("TEXT|none", "set the system prompt", _system),
    "clear": Command("", "begin a new conversation", _clear),
    "undo": Command("", "take back the last question and its answer", _undo),
    "retry": Command("", "answer the last question again", _retry),
    "save": Command("[FILE]", "say where the conversation is kept, or append it to a file", _save),
    "set": Command("NAME VALUE", f"change how answers are drawn: {', '.join(Sampling.model_fields)}", _set),
    "help": Command("", "this list", _help),
    "quit": Command("", "leave", _quit),
}
