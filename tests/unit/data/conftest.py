"""Small tokenizers trained on the spot, with chat templates in the style of the well-known families (templates/)."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

from finetune_local.data.tokenizers.tokenizer import Tokenizer

settings.register_profile("no deadline", deadline=None)  # the first example pays for imports; timings gate nothing
settings.load_profile("no deadline")

TEMPLATES = Path(__file__).parent / "templates"
SPECIAL = {
    "chatml": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "llama3": ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "llama2": ("<unk>", "<s>", "</s>"),
    "gemma": ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
}
BOS_EOS = {
    "chatml": (None, "<|endoftext|>"),
    "llama3": ("<|begin_of_text|>", "<|end_of_text|>"),
    "llama2": ("<s>", "</s>"),
    "gemma": ("<bos>", "<eos>"),
}
KIND_OF = {
    "chatml": "chatml",
    "chatml_generation": "chatml",
    "qwen3": "chatml",
    "open": "chatml",
    "llama2": "llama2",
    "mistral": "llama2",
    "llama3": "llama3",
    "gemma": "gemma",
}
CORPUS = (
    "What is the capital of France? The capital of France is Paris, and the answer is short.",
    "user assistant system model: a question, then an answer. Yes. No. 2 + 2 = 4.",
    "今天天气很好，我们去公园散步吧。请用一句话回答这个问题。法国的首都是巴黎。",
)


@cache
def _core(kind: str) -> str:
    """tokenizer.json: byte-level as in Llama 3 and Qwen, or words with ▁ and byte fallback as in Llama 2 and Gemma."""
    from tokenizers import Tokenizer as Core
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

    special = list(SPECIAL[kind])
    if kind in ("chatml", "llama3"):
        core = Core(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(
            vocab_size=360, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
        core.train_from_iterator(CORPUS, trainer)
    else:
        pieces = [*special, *(f"<0x{i:02X}>" for i in range(256))]
        trained = Core(models.BPE())
        trained.normalizer = normalizers.Replace(" ", "▁")
        trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=[], show_progress=False)
        # Chinese is left out, so that it goes through the byte tokens.
        trained.train_from_iterator([text for text in CORPUS if text.isascii()], trainer)
        model = json.loads(trained.to_str())["model"]
        words = [w for w in sorted(model["vocab"], key=model["vocab"].__getitem__) if w not in pieces]
        vocabulary = {word: i for i, word in enumerate([*pieces, *words])}
        merges = [tuple(m) for m in model["merges"]]
        unknown = {"llama2": "<unk>", "gemma": "<pad>"}[kind]
        core = Core(models.BPE(vocabulary, merges, unk_token=unknown, byte_fallback=True, fuse_unk=True))
        strip: list[decoders.Decoder] = []
        if kind == "llama2":
            core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
            strip = [decoders.Strip(" ", 1, 0)]
        else:
            core.normalizer = normalizers.Replace(" ", "▁")
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
        core.decoder = decoders.Sequence(steps)
        core.add_special_tokens(special)
    bos = BOS_EOS[kind][0]
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, core.token_to_id(bos))]
        )
    return str(core.to_str())


def write_tokenizer(folder: Path, kind: str, template: str | None, stops: list[str] | None = None) -> Path:
    """A folder with a tokenizer of this kind and, where given, a template of templates/ and a config with stop tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    bos, eos = BOS_EOS[kind]
    values = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos, "clean_up_tokenization_spaces": False}
    if bos:
        values["bos_token"] = bos
    (folder / "tokenizer.json").write_text(_core(kind), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(values), "utf-8")
    if template:
        (folder / "chat_template.jinja").write_text((TEMPLATES / f"{template}.jinja").read_text("utf-8"), "utf-8")
    if stops:
        ids = [SPECIAL[kind].index(s) for s in stops]
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}), "utf-8")
    return folder


@pytest.fixture(scope="session")
def tokenizer_for(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tokenizer]:
    """By the name of a template: a tokenizer of its family with that template. "plain" and "plain-llama2" have none."""
    known: dict[str, Tokenizer] = {}

    def make(name: str) -> Tokenizer:
        if name not in known:
            plain = {"plain": "llama3", "plain-chatml": "chatml", "plain-llama2": "llama2"}.get(name)
            folder = tmp_path_factory.mktemp("tokenizers") / f"分词 {name}"
            known[name] = Tokenizer.load(write_tokenizer(folder, plain or KIND_OF[name], None if plain else name))
        return known[name]

    return make


@pytest.fixture(scope="session")
def tokenizer(tokenizer_for: Callable[[str], Tokenizer]) -> Tokenizer:
    """A ChatML tokenizer, for tests that need just any."""
    return tokenizer_for("chatml")
