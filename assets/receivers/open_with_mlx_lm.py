"""Plain mlx-lm opens a model folder and says what it reads, where it stops and what it computes.

A script, run by its path: it imports nothing of the app. Its one argument is a file with the request (see app/finetune_local/export/engines/process.py); the
answer is written beside it, as reply.json and one .npy of logits for each probe.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
_LONGEST = 4  # tokens of an answer that is begun to see where it ends
_BEGINNING = 8  # tokens of a prompt are enough for that, as the answer is forced


def main() -> None:
    """Answer the request, or say why not."""
    file = Path(sys.argv[1])
    try:
        reply = answer(json.loads(file.read_text("utf-8")), file.parent)
    except ImportError as error:
        reply = {"missing": str(error)}
    except MemoryError:
        reply = {"memory": "there is not enough memory"}
    except (Exception, SystemExit) as error:  # noqa: BLE001 - some of mlx-lm's classes end the process
        words = f"{type(error).__name__}: {error}"[:2000]
        if "not supported" in words and "Model type" in words:
            reply = {"unknown": words}
        else:
            scarce = any(sign in words.lower() for sign in ("out of memory", "allocate", "malloc"))
            reply = {"memory" if scarce else "error": words}
    file.with_name("reply.json").write_text(json.dumps(reply), "utf-8")


def answer(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """All that is asked for."""
    import mlx.core as mx
    import mlx_lm
    import numpy as np
    from mlx_lm.generate import stream_generate

    model, tokenizer = mlx_lm.load(request["folder"])
    if request["dtype"] == "float32":
        model.set_dtype(mx.float32)
    reply: dict[str, Any] = {"version": mlx_lm.__version__, "thinks": bool(tokenizer.has_thinking)}
    reply["chats"] = [rendered(tokenizer, chat) for chat in request["chats"]]
    reply["texts"] = [list(tokenizer.encode(text, add_special_tokens=special)) for text, special in request["texts"]]
    reply["ends"] = sorted(int(i) for i in tokenizer.eos_token_ids)
    reply["tokenizer_end"] = tokenizer.eos_token_id

    def length(prompt: list[int], token: int) -> int:
        def force(_: Any, logits: Any) -> Any:
            return mx.where(mx.arange(logits.shape[-1]) == token, 0.0, -1e9)[None]

        made = list(stream_generate(model, tokenizer, prompt, max_tokens=_LONGEST, logits_processors=[force]))
        return int(made[-1].generation_tokens)

    prompt = request["probes"][0]["ids"][:_BEGINNING]
    reply["lengths"] = [length(prompt, token) for token in request["stops"]]
    reply["continues"] = length(prompt, request["plain_token"]) == _LONGEST
    for number, probe in enumerate(request["probes"]):
        ids = [*probe["ids"], *probe["answer"]]
        logits = model(mx.array([ids]))[0, -len(probe["answer"]) - 1 :].astype(mx.float32)
        np.save(folder / f"logits-{number}.npy", np.array(logits))
    reply["modules"] = sorted(name for name in sys.modules if name.startswith("finetune_local"))
    return reply


def rendered(tokenizer: Any, chat: dict[str, Any]) -> dict[str, Any]:
    """A chat's text and ids, or why the template refuses it."""
    options = {"tools": chat["tools"], "add_generation_prompt": chat["generation_prompt"]}
    try:
        text = tokenizer.apply_chat_template(chat["messages"], tokenize=False, **options)
        ids = tokenizer.apply_chat_template(chat["messages"], tokenize=True, **options)
    except Exception as error:  # noqa: BLE001 - a template may raise anything
        return {"refused": f"{type(error).__name__}: {error}"[:500]}
    return {"text": text, "ids": list(ids)}


if __name__ == "__main__":
    main()
