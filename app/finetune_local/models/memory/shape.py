"""The shape of a model that is not on this machine: enough to plan an adapter and to estimate memory.

A Shape has the properties that ModelFolder reads from headers, so both use the same formulas (models/memory/estimate.py).
Architectures with Llama's layout: Llama, Mistral, Qwen2 and 3, Gemma 1 to 3 (text).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

from finetune_local.spec.plan import BaseInfo, WeightInfo


class Measured(Protocol):
    """What is known of a base without loading it: from a folder's headers or a Shape's numbers."""

    @property
    def family(self) -> str:
        """model_type."""
        ...

    @property
    def text_config(self) -> Mapping[str, Any]:
        """The language model's sizes, as config.json names them."""
        ...

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        ...

    @property
    def blocks(self) -> int:
        """Number of transformer blocks."""
        ...

    @property
    def vocabulary(self) -> int:
        """Rows of the output matrix."""
        ...

    @property
    def parameters(self) -> int:
        """Number of parameters; a tied output matrix counts once."""
        ...

    def weights(self) -> Mapping[str, WeightInfo]:
        """Shape and dtype of every tensor."""
        ...

    def info(self) -> BaseInfo:
        """The facts that tuners use."""
        ...


@dataclass(frozen=True)
class Shape:
    """Sizes of a model. `qkv_bias`: biases on queries, keys and values (Qwen2); `qk_norm`: norms on queries and keys (Qwen3,
    Gemma 3); `four_norms`: norms also after attention and MLP (Gemma 2 and 3).
    """

    family: str
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context_length: int
    tied: bool = True
    qkv_bias: bool = False
    qk_norm: bool = False
    four_norms: bool = False

    @property
    def blocks(self) -> int:
        """See Measured."""
        return self.layers

    @property
    def vocabulary(self) -> int:
        """See Measured."""
        return self.vocab

    @property
    def text_config(self) -> Mapping[str, Any]:
        """See Measured."""
        return {
            "model_type": self.family,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab,
            "max_position_embeddings": self.context_length,
            "tie_word_embeddings": self.tied,
        }

    @cached_property
    def parameters(self) -> int:
        """See Measured."""
        return _count(self._around()) + self.layers * _count(self._block())

    def weights(self) -> Mapping[str, WeightInfo]:
        """See Measured; with Llama's names."""
        return self._weights

    @cached_property
    def _weights(self) -> Mapping[str, WeightInfo]:
        block = self._block()
        inside = {f"model.layers.{i}.{name}": shape for i in range(self.layers) for name, shape in block.items()}
        return {name: WeightInfo(shape, "BF16") for name, shape in {**self._around(), **inside}.items()}

    def info(self) -> BaseInfo:
        """See Measured."""
        return BaseInfo(self.weights(), self.context_length, self.family, self.kv_heads, self.head_dim)

    def scaled(self, parameters: int) -> Shape:
        """A shape of about this many parameters with the same proportions: width and depth are scaled by the same factor.

        For models of which only the number of parameters is known.
        """
        low, high = 1 / 64, 64.0
        for _ in range(40):
            factor = math.sqrt(low * high)
            low, high = (factor, high) if self._by(factor).parameters < parameters else (low, factor)
        return min((self._by(low), self._by(high)), key=lambda shape: abs(shape.parameters - parameters))

    def _by(self, factor: float) -> Shape:
        kv_heads = max(1, round(self.kv_heads * factor))
        return replace(
            self,
            hidden_size=max(8, round(self.hidden_size * factor)),
            intermediate_size=max(8, round(self.intermediate_size * factor)),
            layers=max(1, round(self.layers * factor)),
            heads=kv_heads * max(1, self.heads // self.kv_heads),
            kv_heads=kv_heads,
        )

    def _around(self) -> dict[str, tuple[int, ...]]:
        """Parameters outside the blocks: embedding, final norm, untied head."""
        table = (self.vocab, self.hidden_size)
        head = {} if self.tied else {"lm_head.weight": table}
        return {"model.embed_tokens.weight": table, "model.norm.weight": (self.hidden_size,), **head}

    def _block(self) -> dict[str, tuple[int, ...]]:
        hidden, inner = self.hidden_size, self.intermediate_size
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        block: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj.weight": (queries, hidden),
            "self_attn.k_proj.weight": (keys, hidden),
            "self_attn.v_proj.weight": (keys, hidden),
            "self_attn.o_proj.weight": (hidden, queries),
            "mlp.gate_proj.weight": (inner, hidden),
            "mlp.up_proj.weight": (inner, hidden),
            "mlp.down_proj.weight": (hidden, inner),
            "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
        }
        if self.qkv_bias:
            block |= {f"self_attn.{name}_proj.bias": (n,) for name, n in (("q", queries), ("k", keys), ("v", keys))}
        if self.qk_norm:
            block |= {f"self_attn.{name}_norm.weight": (self.head_dim,) for name in ("q", "k")}
        if self.four_norms:
            block |= {f"{name}_feedforward_layernorm.weight": (hidden,) for name in ("pre", "post")}
        return block


def _count(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())
