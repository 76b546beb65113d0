"""The guarded child of core.py: builds a tokenizer of unbounded cost and uses it.

A setup is JSON: {"folder"}, or a tokenizer as build.written() returns it.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from finetune_local.data.tokenizers.build import Built, build, from_written, read_files, written
from finetune_local.data.tokenizers.core import facts_of, streamed
from finetune_local.system.errors import ModelError
from finetune_local.system.messages import message_of, msg
from finetune_local.system.untrusted.text import parse_json_object


def prepare(setup: str) -> Built | str:
    """The tokenizer, or a sentence with the reason why there is none."""
    values = parse_json_object(setup)
    try:
        if "folder" not in values:
            built = from_written(values, Path())
        else:
            files = read_files(Path(values["folder"]))
            if files is None:
                raise ModelError(
                    msg("{folder}: its files changed while they were read. Try again.", folder=values["folder"])
                )
            built = build(files)
    except ModelError as error:
        return message_of(error)
    built.core.no_truncation()
    built.core.no_padding()
    return built


def answer(prepared: Built | str, request: dict[str, Any]) -> Any:
    """Requests: facts, write, encode, decode, streamed, token, id, names."""
    if isinstance(prepared, str):
        return {"wrong": prepared}
    core, do = prepared.core, request["do"]
    if do == "encode":
        found = core.encode_batch_fast(request["texts"], add_special_tokens=request["special"])
        return [one.ids for one in found]
    if do == "decode":
        return core.decode(request["ids"], skip_special_tokens=request["skip_special"])
    if do == "streamed":
        return streamed(
            lambda part: str(core.decode(list(part), skip_special_tokens=False)), request["ids"], set(request["ends"])
        )
    if do == "token":
        return core.id_to_token(request["id"])
    if do == "id":
        return core.token_to_id(request["token"])
    if do == "names":
        return [[index, name] for name, index in core.get_vocab(with_added_tokens=True).items()]
    if do == "write":
        return written(prepared)
    facts = facts_of(prepared)
    return {**asdict(facts), "left_out": sorted(facts.left_out), "strips_right": sorted(facts.strips_right)}
