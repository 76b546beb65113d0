"""An adapter as it is computed on one base. PEFT stores token tables (embedding and head) in several forms; each becomes one full
copy here, with as many rows as in training:

    modules_to_save: [embed_tokens, lm_head]      the copies themselves
    the model was resized                         the resized tables, saved automatically, also below an update (base_layer)
    trainable_token_indices                       single rows, put into their places in the table

A tied model has one table under both names, so a table saved under one name replaces both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from finetune_local.adapter_format import CONFIG, WEIGHTS, read_adapter, read_peft
from finetune_local.adapters.companions import PromptSetup, beside, chat_ids
from finetune_local.adapters.identity import times
from finetune_local.models.folder import ModelFolder
from finetune_local.models.tensors import read_header, read_tensor
from finetune_local.spec.low_rank.full_copies import TOKEN_ROWS, WEIGHT, is_table, is_token_rows
from finetune_local.spec.low_rank.settings import LowRankSettings
from finetune_local.spec.plan import AdapterPlan, Target
from finetune_local.spec.targets import is_embedding, outside_modules
from finetune_local.spec.tuners import PREFIX, Array, tuner_of
from finetune_local.system.errors import AdapterError
from finetune_local.system.messages import Message, msg

_BENEATH = (".base_layer.weight", ".token_adapter.base_layer.weight")
_ROUNDING = 2.0**-8
"""Relative difference explained by a base that was in bf16 during training."""


@dataclass(frozen=True)
class Rows:
    """The number of rows of the embedding and of the head; equal in a sound model."""

    embedding: int
    head: int


def read_on(folder: Path, model: ModelFolder) -> tuple[AdapterPlan, dict[str, Array]]:
    """The plan and fp32 tensors of an adapter for this base. Raises AdapterError, ModelError."""
    plan, tensors = read_adapter(folder)
    modules = {target.module: target for target in outside_modules(model.weights()).values()}
    if not isinstance(plan.settings, LowRankSettings) or not modules:
        return plan, tensors
    return _Tables(folder, model, plan, tensors).fitted()


def rows_of(plan: AdapterPlan, model: ModelFolder) -> Rows:
    """The rows of a model whose tables are replaced by an adapter's, where it has any."""
    found = {target.module: target.out_features for target in outside_modules(model.weights()).values()}
    found |= {target.module.removesuffix(WEIGHT): target.out_features for target in plan.targets if is_table(target)}
    heads = [rows for module, rows in found.items() if not is_embedding(module)]
    embeddings = [rows for module, rows in found.items() if is_embedding(module)]
    return Rows(min(embeddings, default=0), min(heads, default=0))


def check_rows(plan: AdapterPlan, model: ModelFolder, setup: PromptSetup, folder: Path) -> Message | None:
    """Raise AdapterError if one table lacks rows the other has, or a chat needs a token without a row.

    Returns a sentence if other tokens lack rows: many trainers add a padding token, which no text contains. The tokenizer refuses
    texts that do contain one.
    """
    rows, own = rows_of(plan, model), rows_of(replace(plan, targets=()), model)
    if not rows.embedding:
        return None
    if rows.embedding != rows.head:
        which, other = ("embedding", "head") if rows.embedding != own.embedding else ("head", "embedding")
        grown, left = (rows.embedding, rows.head) if which == "embedding" else (rows.head, rows.embedding)
        raise AdapterError(
            msg(
                "{folder}: it was trained with a different vocabulary size than '{model}' has: its {which} has "
                "{rows} rows, but only the base's {count} rows of the {other} were saved. Save it again with PEFT's "
                "save_pretrained(..., save_embedding_layers=True).",
                folder=folder,
                model=model.name,
                which=which,
                rows=grown,
                other=other,
                count=left,
            )
        )
    names = setup.tokenizer.names()
    beyond = [names[number] for number in sorted(names) if number >= rows.embedding]
    if not beyond or not beside(folder):
        return None
    if not setup.raw and (needed := [i for i in chat_ids(setup.tokenizer) if i >= rows.embedding]):
        raise AdapterError(
            msg(
                "{folder}: its chat template uses the added token {token}, whose row was not saved: '{model}' has "
                "{rows} rows, and the adapter's tokenizer has {tokens} tokens. Save it again with PEFT's "
                "save_pretrained(..., save_embedding_layers=True).",
                folder=folder,
                token=names.get(needed[0], needed[0]),
                model=model.name,
                rows=rows.embedding,
                tokens=len(names),
            )
        )
    setup.tokenizer.rows = rows.embedding
    return msg(
        "its tokenizer has tokens without embedding rows, so no text may contain them: {tokens}",
        tokens=", ".join(beyond[:4]),
    )


class _Tables:
    """The token tables of one adapter on one base."""

    def __init__(self, folder: Path, model: ModelFolder, plan: AdapterPlan, tensors: dict[str, Array]) -> None:
        self._folder, self._model, self._plan, self._tensors = folder, model, plan, tensors
        self._config = read_peft(folder)
        self._stored = read_header(folder / WEIGHTS)
        modules = list(outside_modules(model.weights()))
        self._modules = [module for module in modules if is_embedding(module)] + [
            module for module in modules if not is_embedding(module)
        ]
        saved = self._config.modules_to_save
        self._chosen = {m for m in modules if m.rsplit(".", 1)[-1] in saved or m in saved}

    def fitted(self) -> tuple[AdapterPlan, dict[str, Array]]:
        beneath = {module: self._beneath(module) for module in self._modules}
        if self._model.tied:
            shared = next((table for table in beneath.values() if table is not None), None)
            beneath = {module: shared if table is None else table for module, table in beneath.items()}
        rows = self._token_rows()
        tables = {module: self._table(module, beneath[module], rows.get(module)) for module in self._modules}
        found = {module: table for module, table in tables.items() if table is not None}
        if len(found) == 2 and self._model.tied:
            one, other = found.values()
            if one.shape == other.shape and np.array_equal(one, other):
                found = dict.fromkeys(found, one)  # one array under two names
        targets = [t for t in self._plan.targets if not is_token_rows(t) and self._stays(t.module, found)]
        targets += [Target(module + WEIGHT, table.shape[1], table.shape[0]) for module, table in found.items()]
        plan = replace(self._plan, targets=tuple(targets))
        names = tuner_of(plan).shapes(plan)
        tensors = {name: tensor for name, tensor in self._tensors.items() if name in names}
        return plan, tensors | {PREFIX + module + WEIGHT: table for module, table in found.items()}

    def _stays(self, module: str, found: Mapping[str, Array]) -> bool:
        """Whether a target stays in the plan: it is not at a table, or it updates a table that is not stored as a full copy."""
        if module.removesuffix(WEIGHT) not in self._modules:
            return True
        return module not in found and not module.endswith(WEIGHT)

    def _table(self, module: str, beneath: Array | None, rows: tuple[list[int], Array] | None) -> Array | None:
        """The full copy for a module; None if the base's own table is used, with the adapter's update if there is one."""
        name = module + WEIGHT
        copy = self._tensors.get(PREFIX + name)
        if copy is not None:
            self._check_table(module, copy)
        if copy is None and beneath is not None:
            self._check_table(module, beneath)
            copy = beneath
            if not self._base_holds(module, beneath):
                copy = tuner_of(self._plan).merge(name, beneath, self._plan, self._tensors)
            elif rows is None:
                return None
        if rows is not None:
            copy = self._with_rows(module, self._own(module) if copy is None else copy, *rows)
        if copy is None or (copy.shape == self._shape(module) and np.array_equal(copy, self._own(module))):
            return None
        return np.ascontiguousarray(copy, np.float32)

    def _check_table(self, module: str, table: Array) -> None:
        """Raise AdapterError if a table's width differs from the base's, or an update has a different number of rows."""
        width = self._shape(module)[1]
        update = next((t for t in self._plan.targets if t.module == module), None)
        if table.ndim != 2 or table.shape[1] != width or (update and (update.out_features, width) != table.shape):
            raise AdapterError(
                msg(
                    "{folder}: its table {module} is {shape}, which does not fit '{model}' or the adapter's update of "
                    "it. The adapter was trained on another base, or is damaged.",
                    folder=self._folder,
                    module=module,
                    shape=times(table.shape),
                    model=self._model.name,
                )
            )

    def _beneath(self, module: str) -> Array | None:
        """The table below the adapter in training, if it was saved."""
        for end in _BENEATH:
            if (stored := self._stored.get(PREFIX + module + end)) is not None:
                return read_tensor(stored, PREFIX + module + end)
        return None if module in self._chosen else self._tensors.get(PREFIX + module + WEIGHT)

    def _base_holds(self, module: str, beneath: Array) -> bool:
        if beneath.shape != self._shape(module):
            return False
        return bool(np.allclose(beneath, self._own(module), rtol=_ROUNDING, atol=1e-6))

    def _own(self, module: str) -> Array:
        """The base's table; for a tied head the embedding's. Read on every call, since it may take gigabytes."""
        return self._model.read(self._stored_as(module))

    def _shape(self, module: str) -> tuple[int, ...]:
        return self._model.weights()[self._stored_as(module)].shape

    def _stored_as(self, module: str) -> str:
        name = module + WEIGHT
        return name if name in self._model.weights() else self._modules[0] + WEIGHT

    def _token_rows(self) -> dict[str, tuple[list[int], Array]]:
        """The trained rows of each table and their token ids. Raises AdapterError."""
        listed: Any = self._config.trainable_token_indices or {}
        embedding, *heads = self._modules
        listed_ids = {embedding: listed} if isinstance(listed, list) else {
            module: ids for name, ids in listed.items() for module in self._modules if module.endswith(name)
        }  # fmt: skip
        found: dict[str, tuple[list[int], Array]] = {}
        for module in self._modules:
            tensor = self._tensors.get(PREFIX + module + TOKEN_ROWS)
            if tensor is None:
                continue
            ids = listed_ids.get(module, listed_ids.get(embedding))
            if not isinstance(ids, list) or len(ids) != len(tensor) or not all(_is_id(i) for i in ids):
                raise AdapterError(
                    msg(
                        "{path}: 'trainable_token_indices' does not name the {count} rows of {module} that are in the file. "
                        "Copy the adapter again.",
                        path=self._folder / CONFIG,
                        count=len(tensor),
                        module=module,
                    )
                )
            found[module] = ids, tensor
        if self._model.tied and embedding in found:
            found |= {head: found[embedding] for head in heads if head not in found}
        return found

    def _with_rows(self, module: str, table: Array, ids: list[int], rows: Array) -> Array:
        """The table with rows put into their places, extended if they lie past its end. Raises AdapterError if that leaves a gap."""
        if rows.shape[1] != table.shape[1]:
            raise AdapterError(
                msg(
                    "{folder}: the rows of {module} have a width of {width}, but {other} in '{model}'. It was trained on "
                    "another base.",
                    folder=self._folder,
                    module=module,
                    width=rows.shape[1],
                    model=self._model.name,
                    other=table.shape[1],
                )
            )
        size = max(len(table), 1 + max(ids, default=-1))
        if not set(range(len(table), size)) <= set(ids):
            raise AdapterError(
                msg(
                    "{folder}: it was trained with more tokens than '{model}' has, up to id {id}, and not all of their "
                    "rows were saved. Save it again with PEFT's save_pretrained(..., save_embedding_layers=True).",
                    folder=self._folder,
                    model=self._model.name,
                    id=size - 1,
                )
            )
        result = np.concatenate([table, np.zeros((size - len(table), table.shape[1]), np.float32)])
        result[ids] = rows
        return result


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**24
