"""Plain transformers opens a model folder and says what it reads, where it stops and what it computes.

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
    except Exception as error:  # noqa: BLE001 - whatever it is, the app shall hear of it
        lack = "out of memory" in str(error).lower()
        reply = {"memory" if lack else "error": f"{type(error).__name__}: {error}"[:2000]}
    file.with_name("reply.json").write_text(json.dumps(reply), "utf-8")


def answer(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """All that is asked for."""
    import numpy as np
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(request["folder"])
    reply: dict[str, Any] = {"version": transformers.__version__}
    reply["chats"] = [rendered(tokenizer, chat) for chat in request["chats"]]
    reply["texts"] = [tokenizer(text, add_special_tokens=special)["input_ids"] for text, special in request["texts"]]
    model = AutoModelForCausalLM.from_pretrained(request["folder"], dtype=getattr(torch, request["dtype"]))
    model.eval().to(request["device"])
    ends = model.generation_config.eos_token_id
    reply["ends"] = ends if isinstance(ends, list) else [] if ends is None else [ends]
    reply["tokenizer_end"] = tokenizer.eos_token_id

    class Force(transformers.LogitsProcessor):  # type: ignore[misc]
        """Makes one token certain, so that any model can be seen to stop, or to go on."""

        def __init__(self, token: int) -> None:
            self.token = token

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            scores = torch.full_like(scores, -1e9)
            scores[:, self.token] = 0.0
            return scores

    def length(prompt: list[int], token: int) -> int:
        ids = torch.tensor([prompt], device=request["device"])
        with torch.no_grad():
            made = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=_LONGEST,
                do_sample=False,
                logits_processor=transformers.LogitsProcessorList([Force(token)]),
            )
        return int(made.shape[1]) - len(prompt)

    prompt = request["probes"][0]["ids"][:_BEGINNING]
    reply["lengths"] = [length(prompt, token) for token in request["stops"]]
    reply["continues"] = length(prompt, request["plain_token"]) == _LONGEST
    for number, probe in enumerate(request["probes"]):
        ids = [*probe["ids"], *probe["answer"]]
        with torch.no_grad():
            logits = model(torch.tensor([ids], device=request["device"]), use_cache=False).logits[0]
        np.save(folder / f"logits-{number}.npy", logits[-len(probe["answer"]) - 1 :].float().cpu().numpy())
    reply["modules"] = sorted(name for name in sys.modules if name.startswith("finetune_local"))
    return reply


def rendered(tokenizer: Any, chat: dict[str, Any]) -> dict[str, Any]:
    """A chat's text and ids, or why the template refuses it."""
    options = {"tools": chat["tools"], "add_generation_prompt": chat["generation_prompt"]}
    try:
        text = tokenizer.apply_chat_template(chat["messages"], tokenize=False, **options)
        made = tokenizer.apply_chat_template(chat["messages"], tokenize=True, return_dict=True, **options)
    except Exception as error:  # noqa: BLE001 - a template may raise anything
        return {"refused": f"{type(error).__name__}: {error}"[:500]}
    return {"text": text, "ids": list(made["input_ids"])}


if __name__ == "__main__":
    main()
