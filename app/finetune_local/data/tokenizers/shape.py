"""Whether a tokenizer.json consists of parts with bounded cost: time and memory proportional to the text.

Such a tokenizer is used in this process. tokenizer.json can also contain programs: a pattern that backtracks for hours, replacements that
double a text forty times. Anything unknown runs in a guarded child (core.py), which is slower and returns the same ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

MOST_STEPS = 16
MOST_GROWTH = 64
"""How much longer a text may become by replacements."""

_MOST_ADDED_CHARACTERS = 2**20
_ENDINGS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
_MARKS = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CAPITALS = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_CASED = (rf"[^\r\n\p{{L}}\p{{N}}]?{_CAPITALS}*{_MARKS}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_CAPITALS}+{_MARKS}*")
_SHORT = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
BRANCHES = frozenset(
    {
        *_ENDINGS, _SHORT, _SHORT + "?", *_CASED, *(cased + _SHORT + "?" for cased in _CASED),
        r"[^\r\n\p{L}\p{N}]?\p{L}+", r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+", r"\p{L}+", r"[\p{L}]+", r" ?\p{L}+",
        r"\p{N}", r"[\p{N}]", r"\p{N}+", r"\p{N}{1,3}", r"\p{N}{1,2}", r" ?\p{N}+", r"\d", r"\d+",
        r" ?[^\s\p{L}\p{N}]+", r"[^\s\p{L}\p{N}]+", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*", r"\s*[\r\n]+", r"\s*[\r\n]", r"\s+(?!\S)", r"\s+", r"\s", r"[\r\n]", r" {2,}",
    }
)  # fmt: skip
"""Alternatives of the split patterns in byte-level tokenizers; none has nested repetition."""

_PLAIN_NORMALIZERS = {
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Lowercase",
    "StripAccents",
    "Strip",
    "Nmt",
    "BertNormalizer",
    "ByteLevel",
}
_PLAIN_CUTS = {"ByteLevel", "Whitespace", "WhitespaceSplit", "Digits", "Punctuation", "Metaspace", "BertPreTokenizer"}
_PLAIN_DECODERS = {"ByteLevel", "ByteFallback", "Fuse", "Strip", "Metaspace", "WordPiece", "BPEDecoder"}
_PLAIN_ENDS = {"ByteLevel", "BertProcessing", "RobertaProcessing"}
_MARKS_OF_WORDS = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
"""Word markers of the models; with a prefix, the library splits tokens without a length limit."""

_MODELS = {"BPE", "WordLevel", "Unigram"}


def is_known(values: Mapping[str, Any], rebuilt: bool) -> bool:
    """Whether all parts are known. `rebuilt`: a class sets its own parts, so only the vocabulary and post-processor are the
    file's.
    """
    model = values.get("model")
    known = isinstance(model, dict) and _kind(model) in _MODELS and not any(model.get(key) for key in _MARKS_OF_WORDS)
    added = values.get("added_tokens")
    contents = [t.get("content") for t in added if isinstance(t, dict)] if isinstance(added, list) else []
    if not known or sum(len(c) for c in contents if isinstance(c, str)) > _MOST_ADDED_CHARACTERS:
        return False
    if not _all(values.get("post_processor"), "processors", _end_known):
        return False
    if rebuilt:
        return True
    growth = [1.0]
    return (
        _all(values.get("normalizer"), "normalizers", lambda step: _normalizer_known(step, growth))
        and _all(values.get("pre_tokenizer"), "pretokenizers", _cut_known)
        and _all(values.get("decoder"), "decoders", _decoder_known)
        and growth[0] <= MOST_GROWTH
    )


def pattern_known(pattern: str) -> bool:
    """Whether every alternative of a pattern is one of BRANCHES."""
    return all(branch in BRANCHES for branch in _alternatives(pattern))


def _alternatives(pattern: str) -> list[str]:
    found, depth, at, skip = [""], 0, "", False
    for at in pattern:
        if at == "|" and depth == 0 and not skip:
            found.append("")
            continue
        if not skip:
            depth += (at in "([") - (at in ")]")
        skip = at == "\\" and not skip
        found[-1] += at
    return found


def _all(part: Any, inside: str, known: Callable[[Mapping[str, Any]], bool]) -> bool:
    """Whether a part, or each step of a short sequence, is known."""
    steps = _steps(part, inside)
    return steps is not None and len(steps) <= MOST_STEPS and all(known(step) for step in steps)


def _steps(part: Any, inside: str) -> Sequence[Mapping[str, Any]] | None:
    if part is None:
        return ()
    if not isinstance(part, dict):
        return None
    if part.get("type") != "Sequence":
        return (part,)
    listed = part.get(inside)
    return listed if isinstance(listed, list) and all(isinstance(step, dict) for step in listed) else None


def _kind(step: Mapping[str, Any]) -> str:
    kind = step.get("type")
    return kind if isinstance(kind, str) else ""


def _normalizer_known(step: Mapping[str, Any], growth: list[float]) -> bool:
    kind = _kind(step)
    if kind == "Prepend":
        return _short(step.get("prepend"))
    if kind == "Replace":
        pattern, content = _literal(step.get("pattern")), step.get("content")
        if not pattern or not isinstance(content, str):
            return False
        growth[0] *= max(1.0, len(content) / len(pattern))
        return True
    return kind in _PLAIN_NORMALIZERS


def _cut_known(step: Mapping[str, Any]) -> bool:
    kind = _kind(step)
    if kind == "Split":
        pattern = step.get("pattern")
        regex = pattern.get("Regex") if isinstance(pattern, dict) else None
        return bool(_literal(pattern)) or (isinstance(regex, str) and pattern_known(regex))
    return kind in _PLAIN_CUTS


def _decoder_known(step: Mapping[str, Any]) -> bool:
    if step.get("type") == "Replace":
        return bool(_literal(step.get("pattern"))) and _short(step.get("content"))
    return _kind(step) in _PLAIN_DECODERS


def _end_known(step: Mapping[str, Any]) -> bool:
    if _kind(step) != "TemplateProcessing":
        return _kind(step) in _PLAIN_ENDS
    tokens = step.get("special_tokens")
    if not isinstance(tokens, dict) or not all(isinstance(token, dict) for token in tokens.values()):
        return False
    lists = [step.get("single"), step.get("pair"), *(token.get("ids") for token in tokens.values())]
    if not all(isinstance(one, list) and len(one) <= MOST_STEPS for one in lists):
        return False
    named = [part.get("SpecialToken", {}) for one in lists[:2] for part in one if isinstance(part, dict)]
    # The library panics for a token that is named and not listed.
    return all(isinstance(name, dict) and (not name or str(name.get("id")) in tokens) for name in named)


def _literal(pattern: Any) -> str:
    text = pattern.get("String") if isinstance(pattern, dict) else None
    return text if isinstance(text, str) else ""


def _short(text: Any) -> bool:
    return isinstance(text, str) and len(text) <= MOST_STEPS
