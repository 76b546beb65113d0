"""Prefix tuning: trained keys and values in front of every text, in every layer. The base's weights are not changed.

Li & Liang 2021, arXiv:2101.00190, section 4.2; the MLP reparameterisation: section 4.3. With n virtual tokens, L layers and
k = h·d for h key heads of d numbers, the prefix is a matrix (n, L·2·k): per layer its keys, then its values, heads in order. This is
PEFT's `prompt_embeddings`. The text's tokens get positions n, n + 1, …; the prefix's keys are trained after rotation. A
sliding window of w positions sees the part of the prefix inside it.

With the projection, row i is W₂·tanh(W₁·eᵢ + b₁) + b₂ of a trained eᵢ (k,), with W₁ (width, k) and W₂ (L·2·k, width);
W₂ and b₂ are stored per layer. fold() computes the rows and drops the MLP.

A target is a block's attention; its in_features is the number of key heads h, its out_features the head size d.
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
        20, help="Number of trained positions before every text, in every layer.", group="method", ge=1, le=65536
    )
    prefix_projection: bool = setting(
        True, help="Compute the prefix with an MLP during training; it is dropped afterwards.", group="method"
    )
    prefix_width: int = setting(512, help="Width of that MLP.", group="method", ge=1, le=65536)


class Prefix(Tuner):
    """See Tuner."""

    key = "prefix"
    settings = PrefixSettings
    peft_types = ("PREFIX_TUNING",)

    def plan(self, method: str, settings: Settings, base: BaseInfo) -> AdapterPlan:
        """Every block's attention. Raises SpecError if a block has none of a known form, or their key widths differ."""
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
                    "a prefix needs keys and values in every layer, but only {count} of the {count2} blocks of this "
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
                    "prefix format does not support. Use --method prompt or lora.",
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
                    "a prefix cannot be created for it. Add it, or use --method prompt or lora.",
                    kind=kind,
                )
            )
        targets = tuple(Target(blocks[block][0], heads, width // heads) for block in range(count))
        return AdapterPlan(method, self.key, settings, targets)

    def shapes(self, plan: AdapterPlan) -> dict[str, tuple[int, ...]]:
        """n·L·2·k parameters; with a projection of width r: n·k + r·(k + 1) + L·2·k·(r + 1)."""
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
        """With the MLP as torch initialises an embedding and linear layers, as PEFT does: N(0, 1) and U(−1/√in, 1/√in), biases too.

        Without it N(0, 0.1²). PEFT's N(0, 1) raised the initial loss of SmolLM2 from 1.7 to 8.7, this one to 2.5; zeros would keep all
        rows equal forever.
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
        """False: even zero keys take a share of the attention."""
        return False

    def virtual_tokens(self, plan: AdapterPlan) -> int:
        """`prefix_length` positions."""
        return cast(PrefixSettings, plan.settings).prefix_length

    def fold(self, plan: AdapterPlan, tensors: Mapping[str, Array]) -> tuple[AdapterPlan, dict[str, Array]]:
        """The MLP's output, without the MLP."""
        settings = cast(PrefixSettings, plan.settings)
        if not settings.prefix_projection:
            return plan, dict(tensors)
        inner = np.tanh(tensors[EMBEDDING] @ tensors[INNER].T + tensors[INNER_BIAS])
        rows = [inner @ tensors[t.module + OUTER].T + tensors[t.module + OUTER_BIAS] for t in plan.targets]
        folded = settings.model_copy(update={"prefix_projection": False})
        whole = np.concatenate(rows, axis=1).astype(np.float32)
        return AdapterPlan(plan.method, plan.tuner, folded, plan.targets), {ROWS: whole}

    def config(self, plan: AdapterPlan) -> dict[str, object]:
        """PEFT's PrefixTuningConfig as JSON. PEFT cannot save the MLP, so the training form uses own_config()."""
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
        """From PEFT's config. The file does not name modules; the targets get the usual names."""
        n, heads, layers, width = (
            config.num_virtual_tokens, config.num_attention_heads, config.num_layers, config.token_dim
        )  # fmt: skip
        if n is None or heads is None or layers is None or width is None or width % heads:
            raise AdapterError(
                msg(
                    "adapter_config.json does not describe the prefix ({n} tokens in {layers} layers of {heads} heads, "
                    "{width} numbers). Copy the adapter again.",
                    n=n,
                    layers=layers,
                    heads=heads,
                    width=width,
                )
            )
        if config.num_transformer_submodules not in (None, 1):
            raise AdapterError(
                msg("this prefix is for an encoder and a decoder, but only models that continue a text are supported.")
            )
        try:
            settings = PrefixSettings(
                prefix_length=n, prefix_projection=False, prefix_width=config.encoder_hidden_size or 512
            )
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise AdapterError(
                msg("adapter_config.json has a prefix that cannot be used ({error}).", error=reason)
            ) from None
        targets = tuple(Target(f"model.layers.{i}.self_attn", heads, width // heads) for i in range(layers))
        return AdapterPlan("prefix", self.key, settings, targets)

    def merge_refusal(self, plan: AdapterPlan) -> Message | None:
        """Never mergeable: no weight of the base can hold keys and values."""
        return msg(
            "a prefix consists of keys and values before the text, which cannot be merged into the base's "
            "weights. Use it as an adapter, here or in PEFT, or train a LoRA to get a merged model."
        )


def key_width(plan: AdapterPlan) -> int:
    """Size of one position's key in one layer, k = h·d."""
    return plan.targets[0].in_features * plan.targets[0].out_features


def _heads(base: BaseInfo, module: str, width: int) -> int | None:
    """Number of key heads: from the size of a per-head norm if there is one, else from config.json; None if unknown."""
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
        summary="Trains keys and values that precede every text in every layer; a tiny file, not mergeable.",
        paper="arXiv:2101.00190",
    ),
)
