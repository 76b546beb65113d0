"""P-tuning's prompt encoder, the network that generates the prompt. Written once, for numpy and both backends' arrays.

Liu et al. 2021, arXiv:2103.10385, section 2.2, in PEFT's two forms. Rows e (length, width) of a trained embedding pass through
    mlp     W₂·relu(W₁·relu(W₀·e + b₀) + b₁) + b₂
    lstm    a two-layer bidirectional LSTM, then W₁·relu(W₀·h + b₀) + b₁
to the prompt, (length, width). Names and shapes are those of PEFT's module, which are torch's.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal, Protocol

import numpy as np

from finetune_local.spec.initial import generator, normal

Kind = Literal["mlp", "lstm"]

PREFIX = "prompt_encoder."
EMBEDDING = PREFIX + "embedding.weight"
LAYERS = 2
DIRECTIONS = ("", "_reverse")


class Functions(Protocol):
    """The array functions the encoder needs beyond `@`, `+`, `*`, `.T` and slices."""

    def sigmoid(self, x: Any) -> Any:
        """1/(1 + e⁻ˣ), elementwise."""
        ...

    def tanh(self, x: Any) -> Any:
        """Elementwise tanh."""
        ...

    def relu(self, x: Any) -> Any:
        """max(x, 0), elementwise."""
        ...

    def join(self, parts: list[Any], axis: int) -> Any:
        """Concatenate along an axis."""
        ...


class NumpyFunctions:
    """See Functions."""

    def sigmoid(self, x: Any) -> Any:
        """See Functions; computed by tanh, which does not overflow."""
        return 0.5 * (1 + np.tanh(0.5 * x))

    def tanh(self, x: Any) -> Any:
        """See Functions."""
        return np.tanh(x)

    def relu(self, x: Any) -> Any:
        """See Functions."""
        return np.maximum(x, 0)

    def join(self, parts: list[Any], axis: int) -> Any:
        """See Functions."""
        return np.concatenate(parts, axis)


def encoder_shapes(kind: Kind, length: int, width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Every tensor by name. With d the width and h the hidden width, beside length·d parameters of the embedding:

    mlp h·(d + 1) + h·(h + 1) + d·(h + 1); lstm 2·4h·(d + h + 2) + 2·4h·(2h + h + 2) + 2h·(2h + 1) + d·(2h + 1).
    """
    result: dict[str, tuple[int, ...]] = {EMBEDDING: (length, width)}
    if kind == "lstm":
        for layer in range(LAYERS):
            for end in DIRECTIONS:
                name = f"{PREFIX}lstm_head.{{}}_l{layer}{end}"
                result[name.format("weight_ih")] = (4 * hidden, width if layer == 0 else 2 * hidden)
                result[name.format("weight_hh")] = (4 * hidden, hidden)
                result[name.format("bias_ih")] = result[name.format("bias_hh")] = (4 * hidden,)
    sizes = [width, hidden, hidden, width] if kind == "mlp" else [2 * hidden, 2 * hidden, width]
    for number, (inner, outer) in enumerate(pairwise(sizes)):
        result[f"{PREFIX}mlp_head.{2 * number}.weight"] = (outer, inner)
        result[f"{PREFIX}mlp_head.{2 * number}.bias"] = (outer,)
    return result


def encoder_initial(kind: Kind, length: int, width: int, hidden: int, seed: int) -> dict[str, np.ndarray]:
    """torch's initialisation of these modules: N(0, 1) for the embedding, else U(±1/√inputs) (LSTM: ±1/√h)."""
    shapes = encoder_shapes(kind, length, width, hidden)
    result: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        if name == EMBEDDING:
            result[name] = normal(seed, name, shape, 1.0)
            continue
        inputs = hidden if "lstm_head" in name else shapes[name.replace(".bias", ".weight")][1]
        result[name] = generator(seed, name).uniform(-(inputs**-0.5), inputs**-0.5, shape).astype(np.float32)
    return result


def encode(functions: Functions, tensors: Mapping[str, Any]) -> Any:
    """The prompt (length, width) the encoder generates."""
    x = tensors[EMBEDDING]
    for layer in range(LAYERS if any("lstm_head" in name for name in tensors) else 0):
        x = functions.join([_lstm(functions, tensors, x, layer, end) for end in DIRECTIONS], 1)
    linear = sorted(name.removesuffix(".weight") for name in tensors if "mlp_head" in name and name.endswith("weight"))
    for name in linear:
        x = x @ tensors[name + ".weight"].T + tensors[name + ".bias"]
        x = x if name == linear[-1] else functions.relu(x)
    return x


def _lstm(functions: Functions, tensors: Mapping[str, Any], x: Any, layer: int, end: str) -> Any:
    """One direction of one layer, (length, inputs) to (length, h): torch's gates i, f, g, o, from zero states."""
    name = f"{PREFIX}lstm_head.{{}}_l{layer}{end}"
    recurrent = tensors[name.format("weight_hh")].T
    bias = tensors[name.format("bias_ih")] + tensors[name.format("bias_hh")]
    given = x @ tensors[name.format("weight_ih")].T + bias
    width = recurrent.shape[0]
    places = range(len(given)) if end == "" else range(len(given) - 1, -1, -1)
    states: dict[int, Any] = {}
    cell = hidden = None
    for place in places:
        gates = given[place : place + 1]
        if hidden is not None:
            gates = gates + hidden @ recurrent
        i, f, g, o = (gates[:, part * width : (part + 1) * width] for part in range(4))
        new = functions.sigmoid(i) * functions.tanh(g)
        cell = new if cell is None else functions.sigmoid(f) * cell + new
        hidden = functions.sigmoid(o) * functions.tanh(cell)
        states[place] = hidden
    return functions.join([states[place] for place in range(len(given))], 0)
