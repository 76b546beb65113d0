"""A folder for Ollama: the GGUF, a Modelfile that says how the model is prompted, and a README with the commands.

The GGUF is that of gguf.py and is verified in the same way. Ollama also needs a template in its own language (ollama/template.py), the
texts that end an answer, and the system text the adapter was trained with.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_local.adapters.companions import prompt_setup
from finetune_local.export.gguf.quants import QUANTS
from finetune_local.export.gguf.vocabulary import read_vocabulary, special_ids, starts_with_bos
from finetune_local.export.ollama.template import NotRecognised, Turns, turns_of
from finetune_local.export.targets import ADVICE, Command, Source, Target
from finetune_local.export.targets.gguf import LM_STUDIO
from finetune_local.export.targets.gguf import TARGET as GGUF
from finetune_local.export.verification.verify import Verification
from finetune_local.export.weights import EMBEDDING
from finetune_local.system.errors import DataError, typed
from finetune_local.system.files import written_aside
from finetune_local.system.messages import Progress, msg

if TYPE_CHECKING:
    from finetune_local.data.tokenizers.tokenizer import Tokenizer

MODELFILE, README = "Modelfile", "README.md"
_ROWS = 200


@dataclass(frozen=True)
class ModelfileSetup:
    """How Ollama prompts the model: the content of the Modelfile. `notes` say what is missing from it, and why."""

    template: str | None
    system: str | None
    stops: tuple[str, ...]
    notes: tuple[str, ...] = ()


class Ollama(Target):
    """See Target."""

    key = "ollama"
    title = "Ollama"
    summary = "A folder with a GGUF file and a Modelfile, ready to import with one command."
    order = 20
    quants = QUANTS
    folder_title = msg("a folder for Ollama")
    mark = MODELFILE
    receivers = GGUF.receivers

    def is_folder(self, quant: str) -> bool:
        """See Target."""
        return True

    def file_name(self, name: str, quant: str) -> str:
        """See Target."""
        return f"{name}-{quant.upper()}-ollama"

    def check_source(self, source: Source) -> None:
        """See Target."""
        GGUF.check_source(source)

    def size(self, source: Source, quant: str) -> int:
        """See Target."""
        return GGUF.size(source, quant)

    def check_values(self, source: Source, out: Path, quant: str) -> None:
        """See Target."""
        GGUF.check_values(source, out, quant)

    def write(self, source: Source, out: Path, quant: str, progress: Progress) -> list[Path]:
        """See Target."""
        name = model_name(source.name)
        setup = modelfile_setup(source)
        with written_aside(out, ADVICE) as folder:
            folder.mkdir()
            file = folder / f"{name}-{quant.upper()}.gguf"
            GGUF.write(source, file, quant, progress)
            (folder / MODELFILE).write_text(modelfile(file.name, setup), "utf-8", newline="\n")
            (folder / README).write_text(_readme(source, name, setup), "utf-8", newline="\n")
        return sorted(out.iterdir())

    def recommended(self, sizes: Mapping[str, int]) -> str | None:
        """See Target."""
        return GGUF.recommended(sizes)

    def check(
        self, source: Source, out: Path, quant: str, backend: str, progress: Progress, skip: Collection[str] = ()
    ) -> Verification:
        """The GGUF's verification; the Modelfile's template was compared with the model's own when it was made."""
        (file,) = out.glob("*.gguf")
        return GGUF.check(source, file, quant, backend, progress, skip)

    def commands(self, out: Path, files: Sequence[Path]) -> list[Command]:
        """See Target."""
        gguf = next((file for file in files if file.suffix == ".gguf"), None)
        name = gguf.stem.rpartition("-")[0] if gguf is not None else out.name
        create = f"ollama create {name} -f {typed(str(out / MODELFILE))}"
        return [
            Command("ollama_create", "Import it into Ollama", create),
            Command("ollama_run", "Chat with it there", f"ollama run {name}"),
            LM_STUDIO,
        ]


def model_name(text: str) -> str:
    """A valid name of a model in Ollama made from a text: letters, digits, dots, hyphens, underscores."""
    name = re.sub(r"[^a-z0-9._-]+", "-", text.lower())
    return re.sub(r"([.-])[.-]+", r"\1", name).strip("-._")[:80] or "my-model"


def modelfile_setup(source: Source) -> ModelfileSetup:
    """How Ollama prompts a model. Raises ModelError if the tokenizer cannot be read."""
    prompt = prompt_setup(source.model.path, source.adapter)
    tokenizer = prompt.tokenizer
    stops = tuple(tokenizer.token(i) for i in sorted(prompt.stop_ids))
    if prompt.raw:
        return ModelfileSetup(
            "{{ .Prompt }}", None, stops, (msg("It continues raw texts: there is no chat template."),)
        )
    notes = []
    template, system = None, constant_system(source.adapter)
    try:
        turns = _turns(source, tokenizer)
        template, system = turns.go(), system or turns.default
    except NotRecognised as reason:
        notes.append(
            msg(
                "No TEMPLATE: Ollama's template language cannot express the model's chat template ({reason}). Ollama "
                "renders the one in the GGUF instead; versions before July 2026 guess, so compare their answers with "
                "those here.",
                reason=reason,
            )
        )
    if system is not None and not _writable(system):
        system = None
        notes.append(
            msg(
                "No SYSTEM: the system text of the data has characters that a Modelfile cannot contain. Enter it in "
                "each chat."
            )
        )
    if template is not None and not _writable(template):
        template = None
        notes.append(msg("No TEMPLATE: the model's chat template has characters that a Modelfile cannot contain."))
    return ModelfileSetup(
        template, system, tuple(stop for stop in stops if _writable(stop) and '"' not in stop), tuple(notes)
    )


def constant_system(adapter: Path | None) -> str | None:
    """The system text with which every row of an adapter's data starts; None if rows have none or differ."""
    from finetune_local.adapters.library import run_folder, run_tables
    from finetune_local.data.conversation import Conversation
    from finetune_local.data.dataset.prepare import conversations
    from finetune_local.data.readers.read import read, reading

    run = run_folder(adapter) if adapter is not None else None
    if adapter is None or run is None:
        return None
    rows = conversations(run / "data", limit=_ROWS)
    if not rows:
        data = run_tables(adapter).get("data", {})
        try:
            for row in read(list(data.get("files", ())), reading(data)):
                if isinstance(row, Conversation):
                    rows.append(row)
                if len(rows) >= _ROWS:
                    break
        except DataError:  # the files were moved or changed since
            return None
    texts = {row.messages[0].content if row.messages and row.messages[0].role == "system" else "" for row in rows}
    return (texts.pop() or None) if len(texts) == 1 else None


def modelfile(gguf: str, setup: ModelfileSetup) -> str:
    """The text of the Modelfile. https://github.com/ollama/ollama/blob/main/docs/modelfile.mdx"""
    lines = [*(f"# {note}" for note in setup.notes), f"FROM ./{gguf}"]
    if setup.template is not None:
        lines.append(f'TEMPLATE """{setup.template}"""')
    if setup.system is not None:
        lines.append(f'SYSTEM """{setup.system}"""')
    lines += [f'PARAMETER stop "{stop}"' for stop in setup.stops]
    return "\n".join(lines) + "\n"


def _turns(source: Source, tokenizer: Tokenizer) -> Turns:
    model, adapter = source.model, source.adapter
    rows = source.weights.shapes()[EMBEDDING][0]
    bos = special_ids(model, read_vocabulary(model, adapter, rows), adapter).get("bos")
    return turns_of(
        tokenizer.render,
        tokenizer.render_turns,
        "" if bos is None else tokenizer.token(bos),
        bos is not None and starts_with_bos(tokenizer, bos),
    )


def _writable(text: str) -> bool:
    """Whether Ollama's parser reads a text between triple quotes unchanged: it drops control characters, and quotes end the text."""
    return '"""' not in text and not text.startswith('"') and all(c.isprintable() or c in "\n\t" for c in text)


def _readme(source: Source, name: str, setup: ModelfileSetup) -> str:
    notes = "".join(f"{note}\n\n" for note in setup.notes)
    origin = f"{source.model.name} + {source.weights.run}" if source.weights.run else source.model.name
    return (
        f"# {name}\n\n{origin}, exported by finetune-local for [Ollama](https://ollama.com). In this folder, type:\n\n"
        f"在本文件夹中输入以下命令：\n\n```sh\nollama create {name} -f {MODELFILE}\nollama run {name}\n```\n\n{notes}"
        "The .gguf file alone also opens in llama.cpp and LM Studio.\n\n其中的 .gguf 文件也可直接用于 llama.cpp 和 LM Studio。\n"
    )


TARGET = Ollama()
