"""What is declared once: a setting (`setting()`), and a module that defines one method, format or target (`declared()`).

CLI options, the JSON schema, the docs and the window's forms are generated from the settings' fields.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticKnownError

from finetune_local.system.errors import SpecError, UnknownName
from finetune_local.system.messages import Message, join_messages, message_of, msg, quoted


class Keyed(Protocol):
    """What a module of a folder declares, under the name of its file."""

    @property
    def key(self) -> str:
        """The file's name."""
        ...


class Ordered(Keyed, Protocol):
    """A declaration with a place in lists."""

    @property
    def order(self) -> int:
        """Lowest first."""
        ...


S = TypeVar("S", bound="Settings")
D = TypeVar("D", bound=Keyed)
R = TypeVar("R", bound=Ordered)


class Settings(BaseModel):
    """Base of all groups of settings: immutable; unknown names, infinity and NaN are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


def setting(
    default: Any,
    *,
    help: str,  # noqa: A002 - the field's standard term
    group: str,
    flag: str | None = None,
    metavar: str | None = None,
    common: bool = False,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
) -> Any:
    """Declare a setting. A default of None means "automatic" (see defaults.py).

    `group` is its heading; `flag` the CLI option if it is not derived from the field's name.
    """
    extra: dict[str, Any] = {"group": group}
    if flag is not None:
        extra["flag"] = flag
    if metavar is not None:
        extra["metavar"] = metavar
    if common:
        extra["common"] = True
    return Field(default, description=help, ge=ge, gt=gt, le=le, lt=lt, json_schema_extra=extra)


def extra_of(field: FieldInfo) -> Mapping[str, Any]:
    """What `setting()` stores in addition to pydantic's attributes: group, flag, metavar."""
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def flag_of(name: str, field: FieldInfo) -> str:
    """A field's CLI option: `--learning-rate` for `learning_rate`, unless it declares another."""
    return str(extra_of(field).get("flag") or "--" + name.replace("_", "-"))


def did_you_mean(word: str, known: Iterator[str] | list[str] | tuple[str, ...]) -> str:
    """ " Did you mean 'rank'?" for a near miss, else the empty string; appended to a sentence."""
    near = nearest(word, known)
    return msg(" Did you mean '{name}'?", name=near) if near else ""


def choices(name: str, known: Iterable[str]) -> dict[str, str]:
    """The values of a sentence about an unknown name: `name`, `did_you_mean` and `names`, the known ones."""
    names = list(known)
    return {"name": name, "did_you_mean": did_you_mean(name, names), "names": ", ".join(names)}


def nearest(word: str, known: Iterator[str] | list[str] | tuple[str, ...]) -> str | None:
    """The known word with the most similar spelling; None if none is similar, or if the word is known."""
    words = list(known)
    return None if word in words else next(iter(difflib.get_close_matches(word, words, n=1, cutoff=0.6)), None)


def parse(kind: type[S], values: Mapping[str, Any], where: str) -> S:
    """Validate plain values as settings of `kind`.

    Raises SpecError with one sentence per problem, all at once, UnknownName if one of them is an unknown setting. `where`
    names the place ("[training]").
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        unknown = any(problem["type"] == "extra_forbidden" for problem in error.errors())
        raise (UnknownName if unknown else SpecError)(join_messages("\n", sentences(error, kind, where))) from None


def sentences(error: ValidationError, kind: type[BaseModel], where: str) -> list[Message]:
    """One sentence per problem of a pydantic validation error."""
    result: list[Message] = []
    for problem in error.errors():
        path = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = list(_names_at(kind, problem["loc"][:-1]))
            hint = did_you_mean(str(problem["loc"][-1]), known)
            allowed = "" if hint else msg(" Known settings: {names}.", names=", ".join(known))
            result.append(msg("there is no setting '{name}'.{hint}{allowed}", name=path, hint=hint, allowed=allowed))
        elif isinstance(problem.get("ctx", {}).get("error"), Exception):
            result.append(message_of(problem["ctx"]["error"]))
        else:
            text = _pydantic_message(problem)
            result.append(msg("'{path}' is {value}, but {text}.", path=path, value=repr(problem["input"]), text=text))
    return [msg("{place}: {error}", place=where, error=sentence) for sentence in result]


def _pydantic_message(problem: ErrorDetails) -> Message:
    """Pydantic's message about a value, by its template ("should be greater than {gt}")."""
    values = {name: str(value) for name, value in problem.get("ctx", {}).items()}
    choices, either, last = values.get("expected", "").rpartition(" or ")
    if either:
        values["expected"] = msg("{choices} or {last}", choices=choices, last=last)
    try:
        template = PydanticKnownError(problem["type"], problem.get("ctx")).message_template  # type: ignore[arg-type]
        return Message(template.removeprefix("Input "), values)
    except (KeyError, TypeError):  # our error, or a value that is not text
        return quoted(problem["msg"].removeprefix("Value error, ").removeprefix("Input "))


def one_line(error: Exception) -> str:
    """An error's message on one line, for use inside a sentence."""
    return " ".join(str(error).split())


def _names_at(kind: type[BaseModel], path: tuple[int | str, ...]) -> Iterator[str]:
    for part in path:
        annotation = kind.model_fields[str(part)].annotation if str(part) in kind.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return
        kind = annotation
    yield from kind.model_fields


def declared(package: str, attribute: str, kind: type[D]) -> dict[str, D]:
    """The `attribute` of each module of `package` by its key, in the order of the modules' names.

    Adding a method, an objective, a format, a target or a metric is adding a file: no list names it. Raises RuntimeError if a
    module's key is not its file's name.
    """
    found: dict[str, D] = {}
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        one = getattr(importlib.import_module(f"{package}.{module.name}"), attribute)
        if not isinstance(one, kind) or one.key != module.name:
            raise RuntimeError(
                f"{package}.{module.name}: {attribute} is not a {kind.__name__} with the key {module.name!r}"
            )
        found[one.key] = one
    return found


def in_order(found: Mapping[str, R]) -> dict[str, R]:
    """Sorted by their `order`, lowest first, then by key."""
    return dict(sorted(found.items(), key=lambda item: (item[1].order, item[0])))
