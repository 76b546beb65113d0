"""GGUF's tokenizer: tokens, merges, pre-tokenizer, special tokens and the chat template.

Everything is read from tokenizer.json. llama.cpp knows pre-tokenizers by name only: the name is found by comparing the steps of
the tokenizer's pre-tokenizer, and a tokenizer is refused if no name stands for exactly those steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_local.adapters.companions import prompt_setup, stops_of
from finetune_local.export.weights import EMBEDDING
from finetune_local.models.folder import TOKENIZER, ModelFolder, read_json
from finetune_local.spec.base.tokenizer_files import CONFIG, added_by_config, in_force
from finetune_local.system.errors import ModelError
from finetune_local.system.messages import msg

if TYPE_CHECKING:
    from finetune_local.data.tokenizers.tokenizer import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # llama.cpp's token types

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Pre-tokenizer steps, whether whole words are looked up before merges, and llama.cpp's name for the two.
_CUTS: Mapping[tuple[tuple[object, ...], bool], str] = {
    ((("bytes", True),), False): "gpt-2",
    ((("digits", True), ("bytes", True)), False): "smollm",
    ((("split", _WORDS.replace("DIGITS", "")), ("bytes", False)), False): "qwen2",
    ((("split", _WORDS.replace("DIGITS", "{1,3}")), ("bytes", False)), True): "llama-bpe",
    ((("split", _WORDS.replace("DIGITS", "{1,3}")), ("bytes", False)), False): "smaug-bpe",
    ((("split", _TEKKEN), ("bytes", False)), True): "tekken",
}


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id (one per row of the embedding), their types, and the extra tables of their kind of tokenizer."""

    model: str  # "gpt2": byte-level BPE; "llama": SentencePiece's BPE
    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    space_prefix: bool = False


def read_vocabulary(model: ModelFolder, adapter: Path | None = None, rows: int | None = None) -> Vocabulary:
    """The effective tokenizer, for `rows` of the embedding (None: the base's). Raises ModelError if llama.cpp would tokenize differently."""
    files = in_force(model.path, adapter)
    values = read_json(files[TOKENIZER], "")
    try:
        return _vocabulary(model, files, values, rows or model.weights()[EMBEDDING].shape[0])
    except (TypeError, KeyError, AttributeError, ValueError, IndexError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ModelError(
            msg("{path}: it is damaged ({error}). Copy it again.", path=files[TOKENIZER], error=reason)
        ) from None


def _vocabulary(model: ModelFolder, files: Mapping[str, Path], values: dict[str, Any], rows: int) -> Vocabulary:
    bpe = values.get("model") or {}
    if bpe.get("type") != "BPE":
        raise _unknown(model, msg("its type, {kind},", kind=bpe.get("type")))
    merges = tuple(" ".join(merge) if isinstance(merge, list) else str(merge) for merge in bpe.get("merges") or [])
    if (
        files[TOKENIZER].parent != files.get(CONFIG, files[TOKENIZER]).parent
    ):  # an adapter's tokens beside the base's own
        known = {token.get("id") for token in values.get("added_tokens") or []}
        more = [{**token, "id": i} for i, token in added_by_config(files).items() if i not in known]
        values["added_tokens"] = [*(values.get("added_tokens") or []), *more]
    tokens, types = _tokens(model, values, bpe, rows)
    if bpe.get("byte_fallback"):
        _check_sentencepiece(model, values)
        return Vocabulary("llama", "default", tokens, types, (), _scores(tokens, merges), _prefix(values))
    return Vocabulary("gpt2", _cut_name(model, values, bpe), tokens, types, merges)


def add_vocabulary(writer: Any, model: ModelFolder, adapter: Path | None, rows: int | None = None) -> None:
    """Write all keys of the tokenizer. Raises ModelError."""
    vocabulary = read_vocabulary(model, adapter, rows)
    setup = prompt_setup(model.path, adapter)
    tokenizer = setup.tokenizer
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    writer.add_add_space_prefix(vocabulary.space_prefix)
    special = special_ids(model, vocabulary, adapter)
    for name, token in special.items():
        getattr(writer, f"add_{name}_token_id")(token)
    bos = special.get("bos")
    writer.add_add_bos_token(bos is not None and starts_with_bos(tokenizer, bos))
    writer.add_add_eos_token(False)
    if setup.template:
        writer.add_chat_template(setup.template)


def special_ids(model: ModelFolder, vocabulary: Vocabulary, adapter: Path | None = None) -> dict[str, int]:
    """Ids of bos, eos, eot, eom, unk and pad, if the model has them.

    eos is the token that ends an answer, unless the template renders the tokenizer's own eos; further end tokens become eot and eom.
    """
    settings = {}
    if (config := in_force(model.path, adapter).get(CONFIG)) is not None:
        settings = read_json(config, "")
    by_text = {text: i for i, text in enumerate(vocabulary.tokens)}
    found: dict[str, int] = {}
    for name in ("bos", "eos", "unk", "pad"):
        text = settings.get(f"{name}_token")
        text = text.get("content") if isinstance(text, dict) else text
        token = by_text.get(text) if isinstance(text, str) and text else model.text_config.get(f"{name}_token_id")
        if isinstance(token, list):
            token = token[0] if token else None
        if isinstance(token, int) and 0 <= token < len(vocabulary.tokens):
            found[name] = token
    stops = stops_of(prompt_setup(model.path, adapter))
    if stops.token is not None or "eos" not in found:
        found["eos"] = stops.ids[0]
    # The end of turn goes first, since chat programs look at eot.
    found |= dict(zip(("eot", "eom"), (i for i in stops.ids if i != found["eos"]), strict=False))
    return found


def starts_with_bos(tokenizer: Tokenizer, bos: int) -> bool:
    """Whether llama.cpp must add BOS: if the tokenizer does, unless the chat template omits it. (llama.cpp does not add it twice.)"""
    from finetune_local.data.conversation import Message, RowRejected

    if tokenizer.beginning[:1] != (bos,):
        return False
    try:
        return not tokenizer.template or tokenizer.prompt_ids([Message("user", "a")])[:1] == [bos]
    except RowRejected:
        return True


def _tokens(
    model: ModelFolder, values: Mapping[str, Any], bpe: Mapping[str, Any], rows: int
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    tokens = [f"[PAD{i}]" for i in range(rows)]
    types = [UNUSED] * rows
    added = {int(token["id"]): token for token in values.get("added_tokens") or []}
    # Special tokens without a row occur in no text (models/vocabulary.py); llama.cpp needs as many tokens as rows.
    added = {i: token for i, token in added.items() if i < rows or token.get("special") is not True}
    largest = max([*bpe["vocab"].values(), *added])
    if largest >= rows:
        raise ModelError(
            msg(
                "'{name}': its tokenizer has {tokens} tokens, but the embedding has {rows} rows. A token was added "
                "without resizing the model; llama.cpp rejects such a file. Resize the model with transformers "
                "(resize_token_embeddings) first.",
                name=model.name,
                tokens=largest + 1,
                rows=rows,
            )
        )
    for text, i in bpe["vocab"].items():
        tokens[i], types[i] = text, NORMAL
        if bpe.get("byte_fallback") and len(text) == 6 and text.startswith("<0x"):
            types[i] = BYTE
    for token in added.values():
        _check_added(model, token)
    for i, token in added.items():
        tokens[i], types[i] = token["content"], CONTROL if token.get("special") else USER_DEFINED
    if (unknown := bpe.get("unk_token")) in bpe["vocab"]:
        types[bpe["vocab"][unknown]] = UNKNOWN
    return tuple(tokens), tuple(types)


def _check_added(model: ModelFolder, token: Mapping[str, Any]) -> None:
    """Raise ModelError for an added token that strips spaces beside it or matches whole words only: llama.cpp supports neither."""
    if token.get("lstrip") or token.get("rstrip"):
        what = msg("absorbs the spaces beside it")
    elif token.get("single_word"):
        what = msg("matches whole words only")
    else:
        return
    raise ModelError(
        msg(
            "'{name}': its added token “{token}” {what}, which llama.cpp does not support: it would tokenize "
            "texts with it differently. Export with --to merged, then try llama.cpp's convert_hf_to_gguf.py on "
            "the folder.",
            name=model.name,
            token=token.get("content"),
            what=what,
        )
    )


def _cut_name(model: ModelFolder, values: Mapping[str, Any], bpe: Mapping[str, Any]) -> str:
    normalizer = values.get("normalizer")
    if normalizer and normalizer.get("type") != "NFC":
        raise _unknown(model, msg("how it prepares text ({kind})", kind=normalizer.get("type")))
    steps = tuple(_step(step) for step in _steps(values.get("pre_tokenizer"), "pretokenizers"))
    name = _CUTS.get((steps, bool(bpe.get("ignore_merges"))))
    if name is None:
        raise _unknown(model, msg("how it splits text into words"))
    return name


def _step(step: Mapping[str, Any]) -> tuple[object, ...]:
    kind = step.get("type")
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return "bytes", bool(step.get("use_regex", True))
    if kind == "Digits":
        return "digits", bool(step.get("individual_digits"))
    if kind == "Split" and str(step.get("behavior")).lower() == "isolated" and not step.get("invert"):
        return "split", (step.get("pattern") or {}).get("Regex")
    return "other", str(kind)


def _steps(step: Mapping[str, Any] | None, inner: str) -> list[Mapping[str, Any]]:
    """The steps of a sequence, or a single step as a list."""
    if step is None:
        return []
    return [s for part in step[inner] for s in _steps(part, inner)] if step.get("type") == "Sequence" else [step]


def _check_sentencepiece(model: ModelFolder, values: Mapping[str, Any]) -> None:
    normal = [s.get("type") for s in _steps(values.get("normalizer"), "normalizers")]
    cuts = _steps(values.get("pre_tokenizer"), "pretokenizers")
    plain = set(normal) <= {"Prepend", "Replace"} and all(s.get("type") == "Metaspace" for s in cuts)
    if not plain or any(s.get("split", True) for s in cuts):
        raise _unknown(model, msg("how it splits text into words"))


def _prefix(values: Mapping[str, Any]) -> bool:
    """Whether the tokenizer adds a space before a text."""
    prepends = any(s.get("type") == "Prepend" for s in _steps(values.get("normalizer"), "normalizers"))
    cuts = _steps(values.get("pre_tokenizer"), "pretokenizers")
    return prepends or any(s.get("prepend_scheme", "always") != "never" for s in cuts)


def _scores(tokens: tuple[str, ...], merges: tuple[str, ...]) -> tuple[float, ...]:
    """SentencePiece merges the pair with the highest score. The score is minus the rank of the first merge that produces the token."""
    rank: dict[str, int] = {}
    for i, merge in enumerate(merges):
        rank.setdefault(merge.replace(" ", ""), i)
    return tuple(-float(rank.get(text, len(merges))) for text in tokens)


def _unknown(model: ModelFolder, what: str) -> ModelError:
    return ModelError(
        msg(
            "'{name}': no llama.cpp tokenizer is known to match {what} in {file}. It is not guessed, because "
            "another tokenizer would change the answers. Export with --to merged, then try llama.cpp's "
            "convert_hf_to_gguf.py on the folder.",
            name=model.name,
            what=what,
            file=model.path / TOKENIZER,
        )
    )
