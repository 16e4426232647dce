"""A recurrent language model with a norm on its hidden state at every time step.

    gru    r, z = s(W x + U h);  n = tanh(W x + r (U h));               h = N(n + z (h - n))
    lstm   i, f, o = s(W x + U h);  g = tanh(W x + U h);  c = f c + i g;  h = N(o tanh(c))

Each W and U has its own bias, s is the logistic function. The normed h is what the next time step and the next layer
see. Without a norm these are torch's GRU and LSTM (arXiv 1406.1078, Hochreiter and Schmidhuber 1997).

Shapes: B batch, T time, D d_model, V vocabulary, G gates: D each of r, z, n, or of i, f, g, o, in torch's order.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ticks.arguments import at_least, one_of, share
from ticks.models.generate import sample
from ticks.models.initialise import STD
from ticks.models.norm import LayerNorm

GATES = {"gru": 3, "lstm": 4}


class Recurrent(nn.Module):
    """One layer: (B, T, D) -> (B, T, D), from a state of zeros. `cell` is "gru" or "lstm".

    ArgumentError for another one.
    """

    def __init__(self, d_model: int, *, cell: str = "gru", norm: Callable[[int], nn.Module] = LayerNorm) -> None:
        super().__init__()
        one_of(GATES, cell=cell)
        self.cell = cell
        self.input = nn.Linear(d_model, GATES[cell] * d_model)
        self.recurrent = nn.Linear(d_model, GATES[cell] * d_model)
        self.input.matrices = self.recurrent.matrices = GATES[cell]  # type: ignore[assignment]
        self.norm = norm(d_model)

    def forward(self, x_BxTxD: Tensor) -> Tensor:
        h_BxD = c_BxD = x_BxTxD.new_zeros(x_BxTxD.shape[0], x_BxTxD.shape[2])
        states = []
        for input_BxG in self.input(x_BxTxD).unbind(1):  # all time steps in one product
            h_BxD, c_BxD = self.step(input_BxG, h_BxD, c_BxD)
            states.append(h_BxD)
        return torch.stack(states, dim=1)

    def step(self, input_BxG: Tensor, h_BxD: Tensor, c_BxD: Tensor) -> tuple[Tensor, Tensor]:
        """The state and the cell (B, D) after one time step, given W x; a GRU hands its cell on."""
        recurrent_BxG = self.recurrent(h_BxD)
        if self.cell == "gru":
            h_BxD = gru(input_BxG, recurrent_BxG, h_BxD)
        else:
            h_BxD, c_BxD = lstm(input_BxG + recurrent_BxG, c_BxD)
        return self.norm(h_BxD), c_BxD

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """The step alone: a compiler would write the loop out, time step by time step, which takes it minutes."""
        self.step = torch.compile(self.step, *args, **kwargs)  # type: ignore[method-assign]


def gru(input_BxG: Tensor, recurrent_BxG: Tensor, h_BxD: Tensor) -> Tensor:
    """The state (B, D) behind h, given W x and U h."""
    D = h_BxD.shape[1]
    r_BxD, z_BxD = (input_BxG[:, : 2 * D] + recurrent_BxG[:, : 2 * D]).sigmoid().chunk(2, dim=1)
    n_BxD = (input_BxG[:, 2 * D :] + r_BxD * recurrent_BxG[:, 2 * D :]).tanh()
    return n_BxD + z_BxD * (h_BxD - n_BxD)


def lstm(gates_BxG: Tensor, c_BxD: Tensor) -> tuple[Tensor, Tensor]:
    """The state and the cell (B, D) behind c, given W x + U h."""
    i_BxD, f_BxD, g_BxD, o_BxD = gates_BxG.chunk(4, dim=1)
    c_BxD = f_BxD.sigmoid() * c_BxD + i_BxD.sigmoid() * g_BxD.tanh()
    return o_BxD.sigmoid() * c_BxD.tanh(), c_BxD


class RecurrentLanguageModel(nn.Module):
    """Token ids (B, T) -> logits (B, T, V), for any T; the state is zero where a sequence begins.

    `norm` builds a module from d_model, one for each of `n_layers`. The embedding is tied; where it goes in it is
    times sqrt(d_model) (as in arXiv 1706.03762). `dropout` stands behind it and behind every layer. `block_size` is
    the context of `generate`. ArgumentError for what cannot be.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        block_size: int,
        d_model: int = 256,
        n_layers: int = 1,
        cell: str = "gru",
        norm: Callable[[int], nn.Module] = LayerNorm,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        at_least(1, vocab_size=vocab_size, block_size=block_size, d_model=d_model, n_layers=n_layers)
        share(dropout=dropout)
        self.block_size = block_size
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.layers = nn.ModuleList(Recurrent(d_model, cell=cell, norm=norm) for _ in range(n_layers))
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.embedding.weight, std=STD)  # the layers begin as torch's do: uniform up to 1/sqrt(d_model)

    def forward(self, tokens_BxT: Tensor) -> Tensor:
        x_BxTxD = self.dropout(self.embedding(tokens_BxT) * self.embedding.embedding_dim**0.5)
        for layer in self.layers:
            x_BxTxD = self.dropout(layer(x_BxTxD))
        return x_BxTxD @ self.embedding.weight.T

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Its layers' steps."""
        for layer in self.layers:
            layer.compile(*args, **kwargs)

    def generate(
        self, tokens_BxT: Tensor, n: int, *, temperature: float = 0.8, generator: torch.Generator | None = None
    ) -> Tensor:
        """`tokens_BxT` continued by `n` sampled tokens: (B, T + n). The context is the last `block_size` tokens."""
        return sample(self, tokens_BxT, n, context=self.block_size, temperature=temperature, generator=generator)
