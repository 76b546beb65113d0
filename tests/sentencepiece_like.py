"""A tiny Llama whose tokenizer is of SentencePiece's kind, as Llama 2's: spaces as ▁, unknown characters as bytes, BOS first."""

from __future__ import annotations

import json
from pathlib import Path

from tiny import tiny_model

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
_TEXT = (
    "The quick brown fox jumps over the lazy dog and the dog does not mind at all.",
    "What is the capital of France? The capital of France is Paris.",
    "Write a short poem about the sea. Use simple words.",
)


def make_sentencepiece_like(folder: Path, vocab: int = 512) -> Path:
    """Write the model into `folder`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors, trainers

    tiny_model(folder, "llama", vocab=vocab)
    first = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    trained = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=vocab - len(first), special_tokens=["<unk>"], show_progress=False)
    trained.train_from_iterator([word for line in _TEXT * 4 for word in line.split()], trainer)
    learned = json.loads(trained.to_str())["model"]
    names = [t for t, _ in sorted(learned["vocab"].items(), key=lambda pair: pair[1]) if t != "<unk>"]
    vocabulary = {text: i for i, text in enumerate([*first, *names])}
    bpe = models.BPE(
        vocab=vocabulary,
        merges=[tuple(merge) for merge in learned["merges"]],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = trained.normalizer
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in first[:3]])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), "utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    (folder / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    return folder
