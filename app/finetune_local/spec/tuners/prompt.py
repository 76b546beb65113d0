"""Prompt tuning and P-tuning: trained vectors in front of every text. The base's weights are not changed.

Prompt tuning: Lester et al. 2021, arXiv:2104.08691, section 2; ensembles: section 6, with a majority vote.
P-tuning: Liu et al. 2021, arXiv:2103.10385; an encoder network generates the prompt during training
(spec/numerics/prompt_encoder.py).

`prompt_embeddings` is (length, width), for an ensemble (ensemble_size, length, width), in the units the first block reads, as in
PEFT. The target is the embedding: in_features is the width, out_features the vocabulary size. PEFT's file does not name the
module, so a plan read from disk has an unnamed target and the backends find the embedding themselves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, cast

import numpy as np
from pydantic import model_validator

from finetune_local.spec.initial import generator
from finetune_local.spec.numerics.prompt_encoder import Kind, NumpyFunctions, encode, encoder_initial, encoder_shapes
from finetune_local.spec.peft_config import PeftConfig
from finetune_local.spec.plan import AdapterPlan, BaseInfo, Target
from finetune_local.spec.tuners import Array, Preset, Source, Tuner, VirtualIds
from finetune_local.system.errors import AdapterError, SpecError
from finetune_local.system.fields import Settings, setting
from finetune_local.system.messages import Message, msg

ROWS = "prompt_embeddings"
COMMON = 5000
"""Initial vectors are drawn from this many of the first tokens, as in the paper (section 3.2): in BPE vocabularies these are the
most frequent ones. Rows at the end may belong to no token.
"""

_EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "embed_in.weight",
    "tok_embeddings.weight",
)


class PromptSettings(Settings):
    """Settings of prompt tuning and P-tuning."""

    prompt_length: int = setting(
        20,
        help="Number of trained vectors before every text, read like tokens.",
        group="method",
        ge=1,
        le=65536,
    )
    prompt_init: Literal["vocabulary", "text", "random"] | None = setting(
        None,
        help="Initial prompt. Automatic: --prompt-text if given, else tokens of the vocabulary.",
        group="method",
    )
    prompt_text: str | None = setting(
        None, help="Text that initialises the prompt, repeated or cut to its length.", group="method", metavar="TEXT"
    )
    prompt_members: int = setting(
        1, help="Number of prompts trained together, which vote on every answer.", group="method", ge=1, le=64
    )
    prompt_encoder: Literal["none", "mlp", "lstm"] = setting(
        "none", help="Network that computes the prompt during training (P-tuning); dropped afterwards.", group="method"
    )
    prompt_encoder_width: int | None = setting(
        None, help="Width of that network. Automatic: the model's.", group="method", ge=1, le=65536
    )

    @model_validator(mode="after")
    def _sensible(self) -> PromptSettings:
        """Refuse contradictory settings."""
        if self.prompt_encoder != "none":
            if self.prompt_members > 1:
                raise ValueError(
                    msg(
                        "--prompt-encoder trains a single prompt, so it cannot be combined with --prompt-members. Use only "
                        "one of them."
                    )
                )
            if self.prompt_init or self.prompt_text:
                raise ValueError(
                    msg(
                        "with --prompt-encoder the prompt starts from random values. Remove --prompt-init and --prompt-text, "
                        "or use --method prompt."
                    )
                )
        elif self.prompt_encoder_width is not None:
            raise ValueError(
                msg("--prompt-encoder-width is the width of an encoder: add --prompt-encoder mlp or lstm.")
            )
        if self.prompt_init == "text" and not self.prompt_text:
            raise ValueError(msg("--prompt-init text needs a text: add --prompt-text 'Answer with the code only.'"))
        if self.prompt_text and self.prompt_init not in (None, "text"):
            raise ValueError(
                msg(
                    "--prompt-text cannot be combined with --prompt-init {kind}. Use only one of them.",
                    kind=self.prompt_init,
                )
            )
        if self.prompt_text and self.prompt_members > 1:
            raise ValueError(
                msg(
                    "prompts that start from the same text stay identical, so their vote is meaningless. Remove "
                    "--prompt-text, or use --prompt-members 1."
                )
            )
        return self

    @property
    def begins(self) -> str:
        """`prompt_init`, resolved if it is automatic."""
        return self.prompt_init or ("text" if self.prompt_text else "vocabulary")


class Prompt(Tuner):
    """See Tuner."""

    key = "prompt"
    settings = PromptSettings
    peft_types = ("PROMPT_TUNING", "P_TUNING")

    def plan(self, method: str, settings: Settings, base: BaseInfo) -> AdapterPlan:
        """The embedding. Raises SpecError if the base has none of a known name."""
        found = [
            name for name in sorted(base.weights) if name.endswith(_EMBEDDINGS) and len(base.weights[name].shape) == 2
        ]
        if not found:
            names = ", ".join(end.removesuffix(".weight") for end in _EMBEDDINGS)
            raise SpecError(
                msg(
                    "a prompt takes the place of embeddings, and this model has none with a known name ({names}). Use "
                    "--method lora.",
                    names=names,
                )
            )
        vocabulary, width = base.weights[found[0]].shape
        return AdapterPlan(method, self.key, settings, (Target(found[0].removesuffix(".weight"), width, vocabulary),))

    def lr_factor(self, settings: Settings) -> float:
        """High for the vectors, which must move across the embedding space; low for an encoder network, which moves them faster."""
        return 0.25 if _kind(cast(PromptSettings, settings)) else 20.0

    def shapes(self, plan: AdapterPlan) -> dict[str, tuple[int, ...]]:
        """ensemble_size·length·width parameters; with an encoder see encoder_shapes()."""
        settings, width = cast(PromptSettings, plan.settings), plan.targets[0].in_features
        if kind := _kind(settings):
            return encoder_shapes(kind, settings.prompt_length, width, settings.prompt_encoder_width or width)
        if settings.prompt_members > 1:
            return {ROWS: (settings.prompt_members, settings.prompt_length, width)}
        return {ROWS: (settings.prompt_length, width)}

    def initial(self, plan: AdapterPlan, seed: int, source: Source) -> Mapping[str, Array]:
        """Embeddings of sampled tokens or of a text, or random vectors of the same spread; an encoder as torch initialises it."""
        settings, target = cast(PromptSettings, plan.settings), plan.targets[0]
        length = settings.prompt_length
        if kind := _kind(settings):
            hidden = settings.prompt_encoder_width or target.in_features
            return encoder_initial(kind, length, target.in_features, hidden, seed)
        weight = source.weight(target.module + ".weight")
        scale = np.float32(source.embedding_scale)
        if settings.begins == "text":
            return {ROWS: (weight[_tokens_of(str(settings.prompt_text), length, source)] * scale).astype(np.float32)}
        members = []
        for member in range(settings.prompt_members):
            random = generator(seed, f"{ROWS}.{member}")
            if settings.begins == "random":
                rows = random.standard_normal((length, target.in_features)) * weight[:COMMON].std()
            else:
                known = np.flatnonzero(np.abs(weight[:COMMON]).max(axis=1))
                rows = weight[random.choice(known, length, replace=length > len(known))]
            members.append((rows * scale).astype(np.float32))
        return {ROWS: np.stack(members) if len(members) > 1 else members[0]}

    def neutral(self, plan: AdapterPlan) -> bool:
        """False: any vector in front of a text changes the outputs."""
        return False

    def virtual_ids(self, plan: AdapterPlan) -> VirtualIds:
        """`prompt_length` ids per prompt."""
        settings = cast(PromptSettings, plan.settings)
        return VirtualIds(settings.prompt_length, settings.prompt_members)

    def fold(self, plan: AdapterPlan, tensors: Mapping[str, Array]) -> tuple[AdapterPlan, dict[str, Array]]:
        """The encoder's output, without the encoder."""
        settings = cast(PromptSettings, plan.settings)
        if not _kind(settings):
            return plan, dict(tensors)
        folded = settings.model_copy(update={"prompt_encoder": "none", "prompt_encoder_width": None})
        rows = encode(NumpyFunctions(), tensors).astype(np.float32)
        return AdapterPlan("p-tuning", self.key, folded, plan.targets), {ROWS: rows}

    def config(self, plan: AdapterPlan) -> dict[str, object]:
        """PEFT's PromptTuningConfig or PromptEncoderConfig as JSON; own_config() for ensembles and encoders."""
        settings = cast(PromptSettings, plan.settings)
        if _kind(settings) or settings.prompt_members > 1:
            return super().config(plan)
        encoded = plan.method == "p-tuning"
        return {
            "peft_type": "P_TUNING" if encoded else "PROMPT_TUNING",
            "task_type": "CAUSAL_LM",
            "inference_mode": True,
            "num_virtual_tokens": settings.prompt_length,
            "token_dim": plan.targets[0].in_features,
            "num_transformer_submodules": 1,
            **({"encoder_reparameterization_type": "MLP"} if encoded else {"prompt_tuning_init": "RANDOM"}),
        }

    def read(self, config: PeftConfig, shapes: Mapping[str, tuple[int, ...]]) -> AdapterPlan:
        """From PEFT's config and the shape of the prompt."""
        if config.num_transformer_submodules not in (None, 1):
            raise AdapterError(
                msg("this prompt is for an encoder and a decoder, but only models that continue a text are supported.")
            )
        shape = shapes.get(ROWS, ())
        if len(shape) != 2 or shape[0] < 1:
            raise AdapterError(msg("the adapter has no two-dimensional '{name}'. Copy it again.", name=ROWS))
        if config.num_virtual_tokens != shape[0]:
            raise AdapterError(
                msg(
                    "adapter_config.json says {number} virtual tokens, but the prompt in the file has {count}. Copy the "
                    "adapter again.",
                    number=config.num_virtual_tokens,
                    count=shape[0],
                )
            )
        method = "p-tuning" if config.peft_type == "P_TUNING" else "prompt"
        return AdapterPlan(method, self.key, PromptSettings(prompt_length=shape[0]), (Target("", shape[1], 0),))

    def merge_refusal(self, plan: AdapterPlan) -> Message | None:
        """Never mergeable: no weight of the base can hold vectors in front of the text."""
        return msg(
            "a prompt consists of vectors before the text, which cannot be merged into the base's weights. Use "
            "it as an adapter, here or in PEFT, or train a LoRA to get a merged model."
        )


def _kind(settings: PromptSettings) -> Kind | None:
    return None if settings.prompt_encoder == "none" else settings.prompt_encoder


def _tokens_of(text: str, length: int, source: Source) -> list[int]:
    """The text's token ids, repeated or cut to `length`. Raises SpecError if there are none."""
    ids = source.ids(text) if source.ids else []
    if not ids:
        raise SpecError(
            msg("--prompt-text {text} has no tokens to start from. Write some words, or remove it.", text=repr(text))
        )
    return (ids * math.ceil(length / len(ids)))[:length]


TUNER = Prompt()

PRESETS = (
    Preset(
        key="p-tuning",
        title="P-tuning",
        summary="Trains a small network that computes the prompt; the result is a plain prompt, not mergeable.",
        paper="arXiv:2103.10385",
        defaults={"method.prompt_encoder": "mlp"},
    ),
    Preset(
        key="prompt",
        title="Prompt tuning",
        summary="Trains a few vectors that precede every text like tokens; the smallest file, not mergeable.",
        paper="arXiv:2104.08691",
    ),
    Preset(
        key="prompt-ensemble",
        title="Prompt ensemble",
        summary="Trains several prompts together and lets them vote on every answer; multiplies the compute.",
        paper="arXiv:2104.08691",
        defaults={"method.prompt_members": 5},
    ),
)
