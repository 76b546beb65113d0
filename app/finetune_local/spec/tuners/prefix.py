"""Prefix tuning: trained keys and values that stand before every text, in every layer. The base's weights stay as they are.

Li & Liang 2021, arXiv:2101.00190, sections 4.2 (the prefix) and 4.3 (it is made by an MLP while it trains). With n positions, L layers,
keys (and values) of h heads of d numbers, and k = h·d, the prefix is a matrix (n, L·2·k): for each layer its keys, then its
values, the heads one after another. That is PEFT's `prompt_embeddings`. The text's own tokens get the positions n, n + 1, …;
keys of the prefix are trained as they are used, after any rotation. A layer that sees a window of w positions sees of the
prefix what is inside it.

While it trains with the projection on, row i is W₂·tanh(W₁·eᵢ + b₁) + b₂ of a trained eᵢ (k,), W₁ (width, k), W₂ (L·2·k, width);
W₂ and b₂ are held layer by layer. fold() computes the rows and drops the MLP.

A target is the attention of a block; its in_features are the key heads h, its out_features the numbers d of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np

from finetune_local.spec.initial import generator, kaiming_uniform, normal
from finetune_local.spec.peft_config import PeftConfig
from finetune_local.spec.plan import AdapterPlan, BaseInfo, Target
from finetune_local.spec.targets import block_of
from finetune_local.spec.tuners import Array, Preset, Source, Tuner
from finetune_local.system.errors import AdapterError, SpecError
from finetune_local.system.fields import Settings, setting
from finetune_local.system.messages import Message, msg

ROWS = "prompt_embeddings"
EMBEDDING, INNER, INNER_BIAS = "prefix.embedding.weight", "prefix.inner.weight", "prefix.inner.bias"
OUTER, OUTER_BIAS = ".prefix.outer.weight", ".prefix.outer.bias"
_KEYS = (".k_proj.weight", ".qkv_proj.weight")


class PrefixSettings(Settings):
    """Settings of prefix tuning."""

    prefix_length: int = setting(
        20, help="How many trained positions stand before every text, in every layer.", group="method", ge=1, le=65536
    )
    prefix_projection: bool = setting(
        True, help="Let an MLP make the prefix while it trains; it is dropped afterwards.", group="method"
    )
    prefix_width: int = setting(512, help="Width of that MLP.", group="method", ge=1, le=65536)


class Prefix(Tuner):
    """See Tuner."""

    key = "prefix"
    settings = PrefixSettings
    peft_types = ("PREFIX_TUNING",)

    def plan(self, method: str, settings: Settings, base: BaseInfo) -> AdapterPlan:
        """Every block's attention. Raises SpecError where a block has none of a known form, or they differ in size."""
        blocks: dict[int, tuple[str, int]] = {}
        for name, weight in base.weights.items():
            block = block_of(name)
            for tail in _KEYS:
                if block is not None and name.endswith(tail) and len(weight.shape) == 2:
                    fused = base.kv_heads * base.head_dim
                    blocks[block] = (name.removesuffix(tail), weight.shape[0] if tail == _KEYS[0] else fused)
        count = 1 + max((block for name in base.weights if (block := block_of(name)) is not None), default=-1)
        kind = f" ('{base.model_type}')" if base.model_type else ""
        if not blocks or sorted(blocks) != list(range(count)):
            raise SpecError(
                msg(
                    "a prefix is keys and values for every layer, but only {count} of the {count2} blocks of this "
                    "model{kind} have an attention with a k_proj or qkv_proj. Use --method prompt or lora.",
                    count=len(blocks),
                    count2=count,
                    kind=kind,
                )
            )
        widths = {width for _, width in blocks.values()}
        if len(widths) > 1:
            raise SpecError(
                msg(
                    "the keys of this model{kind} are of different widths in different layers ({listed}), which the "
                    "format of prefixes has no room for. Use --method prompt or lora.",
                    kind=kind,
                    listed=_listed(widths),
                )
            )
        (width,) = widths
        heads = _heads(base, blocks[0][0], width)
        if heads is None:
            raise SpecError(
                msg(
                    "config.json of this model{kind} does not say how many heads its keys have (num_key_value_heads), so "
                    "a prefix cannot be made for it. Add it, or use --method prompt or lora.",
                    kind=kind,
                )
            )
        targets = tuple(Target(blocks[block][0], heads, width // heads) for block in range(count))
        return AdapterPlan(method, self.key, settings, targets)

    def shapes(self, plan: AdapterPlan) -> dict[str, tuple[int, ...]]:
        """n·L·2·k numbers; with the projection, of width r: n·k + r·(k + 1) + L·2·k·(r + 1)."""
        settings = cast(PrefixSettings, plan.settings)
        n, r, k = settings.prefix_length, settings.prefix_width, key_width(plan)
        if not settings.prefix_projection:
            return {ROWS: (n, len(plan.targets) * 2 * k)}
        result: dict[str, tuple[int, ...]] = {EMBEDDING: (n, k), INNER: (r, k), INNER_BIAS: (r,)}
        for target in plan.targets:
            result[target.module + OUTER] = (2 * k, r)
            result[target.module + OUTER_BIAS] = (2 * k,)
        return result

    def initial(self, plan: AdapterPlan, seed: int, source: Source) -> Mapping[str, Array]:
        """With the MLP as PEFT, that is as torch begins an embedding and linear layers: N(0, 1); U(−1/√in, 1/√in), biases too.

        Without it N(0, 0.1²), not PEFT's N(0, 1): on SmolLM2 that raised the loss from 1.7 to 8.7 at once, and this to 2.5. All
        zeros would do no better, and leave all rows the same for ever.
        """
        fan_in = {INNER_BIAS: key_width(plan)}
        width = cast(PrefixSettings, plan.settings).prefix_width
        result: dict[str, Array] = {}
        for name, shape in self.shapes(plan).items():
            if name in (ROWS, EMBEDDING):
                result[name] = normal(seed, name, shape, 0.1 if name == ROWS else 1.0)
            elif len(shape) == 2:
                result[name] = kaiming_uniform(seed, name, shape)
            else:
                bound = fan_in.get(name, width) ** -0.5
                result[name] = generator(seed, name).uniform(-bound, bound, shape).astype(np.float32)
        return result

    def neutral(self, plan: AdapterPlan) -> bool:
        """No: even keys of zeros take a share of the attention."""
        return False

    def virtual_tokens(self, plan: AdapterPlan) -> int:
        """The prefix's."""
        return cast(PrefixSettings, plan.settings).prefix_length

    def fold(self, plan: AdapterPlan, tensors: Mapping[str, Array]) -> tuple[AdapterPlan, dict[str, Array]]:
        """The rows that the MLP gives, without it."""
        settings = cast(PrefixSettings, plan.settings)
        if not settings.prefix_projection:
            return plan, dict(tensors)
        inner = np.tanh(tensors[EMBEDDING] @ tensors[INNER].T + tensors[INNER_BIAS])
        rows = [inner @ tensors[t.module + OUTER].T + tensors[t.module + OUTER_BIAS] for t in plan.targets]
        folded = settings.model_copy(update={"prefix_projection": False})
        whole = np.concatenate(rows, axis=1).astype(np.float32)
        return AdapterPlan(plan.method, plan.tuner, folded, plan.targets), {ROWS: whole}

    def config(self, plan: AdapterPlan) -> dict[str, object]:
        """PEFT's PrefixTuningConfig of a folded prefix as JSON; PEFT has no file for the MLP, so that form is our own."""
        settings = cast(PrefixSettings, plan.settings)
        if settings.prefix_projection:
            return super().config(plan)
        return {
            "peft_type": "PREFIX_TUNING",
            "task_type": "CAUSAL_LM",
            "inference_mode": True,
            "num_virtual_tokens": settings.prefix_length,
            "token_dim": key_width(plan),
            "num_attention_heads": plan.targets[0].in_features,
            "num_layers": len(plan.targets),
            "num_transformer_submodules": 1,
            "prefix_projection": False,
            "encoder_hidden_size": settings.prefix_width,
        }

    def read(self, config: PeftConfig, shapes: Mapping[str, tuple[int, ...]]) -> AdapterPlan:
        """From PEFT's config. The file does not name the modules, so these are the names that most models have."""
        n, heads, layers, width = (
            config.num_virtual_tokens, config.num_attention_heads, config.num_layers, config.token_dim
        )  # fmt: skip
        if n is None or heads is None or layers is None or width is None or width % heads:
            raise AdapterError(
                msg(
                    "adapter_config.json does not say what the prefix is made of ({n} tokens in {layers} layers of "
                    "{heads} heads, {width} numbers). Copy the adapter again.",
                    n=n,
                    layers=layers,
                    heads=heads,
                    width=width,
                )
            )
        if config.num_transformer_submodules not in (None, 1):
            raise AdapterError(
                msg("this prefix is for an encoder and a decoder, and only models that continue a text are known.")
            )
        try:
            settings = PrefixSettings(
                prefix_length=n, prefix_projection=False, prefix_width=config.encoder_hidden_size or 512
            )
        except ValueError as error:
            said = " ".join(str(error).split())
            raise AdapterError(
                msg("adapter_config.json has a prefix that cannot be used ({error}).", error=said)
            ) from None
        targets = tuple(Target(f"model.layers.{i}.self_attn", heads, width // heads) for i in range(layers))
        return AdapterPlan("prefix", self.key, settings, targets)

    def merge_refusal(self, plan: AdapterPlan) -> Message | None:
        """Always."""
        return msg(
            "a prefix is keys and values beside those of the text, and no weight of the base can hold them. Use "
            "the adapter beside the base, here or in PEFT, or train a LoRA for a merged model."
        )


def key_width(plan: AdapterPlan) -> int:
    """Numbers of one position's key in one layer."""
    return plan.targets[0].in_features * plan.targets[0].out_features


def _heads(base: BaseInfo, module: str, width: int) -> int | None:
    """Of the keys: by the size of their norm where each head has one of its own, else as the config says."""
    norm = base.weights.get(module + ".k_norm.weight")
    if norm is not None and len(norm.shape) == 1 and norm.shape[0] < width and width % norm.shape[0] == 0:
        return width // norm.shape[0]
    return base.kv_heads if base.kv_heads and width and width % base.kv_heads == 0 else None


def _listed(widths: set[int]) -> str:
    return ", ".join(str(width) for width in sorted(widths))


TUNER = Prefix()

PRESETS = (
    Preset(
        key="prefix",
        title="Prefix tuning",
        summary="Trains keys and values that stand before every text in every layer; a tiny file, not mergeable.",
        paper="arXiv:2101.00190",
    ),
)
