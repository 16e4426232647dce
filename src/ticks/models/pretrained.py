"""Transformers that are already trained, with what a task of ours needs on top of them.

Shapes: B batch, T time, D features, C classes, V vocabulary. Hugging Face's come through transformers (extra `tuning`).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ticks.arguments import ArgumentError
from ticks.installed import is_run, place_of
from ticks.models.generate import sample
from ticks.models.heads import ClassificationHead

Load = Callable[[str], nn.Module]
MASKED = 0.15  # the share of tokens (arXiv 1810.04805)


class PretrainedClassifier(nn.Module):
    """Token ids (B, T) -> logits (B, C): the features of a trained Transformer, pooled, and a new linear layer.

    `name` is a folder, a name of Hugging Face's, a GGUF file, `package:NAME`, or the directory of a run, which `load`
    makes a model of. `pad_id` is where no token is. `pooling` is "mean", "max", "first" or "last". ArgumentError for a
    model that cannot be loaded or has another vocabulary.
    """

    def __init__(
        self,
        name: str | None,
        *,
        vocab_size: int,
        n_classes: int,
        pad_id: int | None = None,
        block_size: int | None = None,
        mask_id: int | None = None,
        pooling: str = "mean",
        dropout: float = 0.1,
        load: Load | None = None,
    ) -> None:
        super().__init__()
        self.source = name
        self.pad_id, self.mask_id = pad_id, mask_id
        self.body = _loaded(name, load, "AutoModel")
        _check(self.body, name, vocab_size, block_size)
        self.head = ClassificationHead(width_of(self.body), n_classes, pooling=pooling, dropout=dropout)
        nn.init.normal_(self.head.linear.weight, std=0.02)
        nn.init.zeros_(self.head.linear.bias)

    def forward(self, tokens_BxT: Tensor) -> Tensor:
        present = self._present(tokens_BxT)
        return self.head(features(self.body, tokens_BxT, present), present)

    def _present(self, tokens_BxT: Tensor) -> Tensor:
        return torch.ones_like(tokens_BxT, dtype=torch.bool) if self.pad_id is None else tokens_BxT != self.pad_id

    def predict_tokens(self, tokens_BxT: Tensor) -> tuple[Tensor, Tensor]:
        """Its own input tokens through the embedding: logits (N, V) and the tokens (N,). A decoder predicts each next
        one; where tokens see both sides, MASKED of them are masked first."""
        present = self._present(tokens_BxT)
        embedding: Tensor = embedding_of(self.body).weight  # type: ignore[assignment]
        if is_causal(self.body):
            known = present[:, 1:]
            x_NxD = features(self.body, tokens_BxT, present)[:, :-1][known]
            return (x_NxD @ embedding.T).float(), tokens_BxT[:, 1:][known]
        hidden = (torch.rand(tokens_BxT.shape, device=tokens_BxT.device) < MASKED) & present
        mask_id = self.pad_id if self.mask_id is None else self.mask_id
        x_NxD = features(self.body, tokens_BxT.masked_fill(hidden, mask_id or 0), present)[hidden]
        return (x_NxD @ embedding.T).float(), tokens_BxT[hidden]


class PretrainedLanguageModel(nn.Module):
    """Token ids (B, T) -> logits (B, T, V) of a trained decoder. `name` and `load` as for `PretrainedClassifier`."""

    def __init__(
        self, name: str | None, *, vocab_size: int, block_size: int | None = None, load: Load | None = None
    ) -> None:
        super().__init__()
        self.source = name
        self.body = _loaded(name, load, "AutoModelForCausalLM")
        _check(self.body, name, vocab_size, block_size)
        self.block_size = block_size or 1 << 30

    def forward(self, tokens_BxT: Tensor) -> Tensor:
        if hasattr(self.body, "config"):
            return self.body(input_ids=tokens_BxT, use_cache=False).logits
        return self.body(tokens_BxT)

    def generate(
        self, tokens_BxT: Tensor, n: int, *, temperature: float = 0.8, generator: torch.Generator | None = None
    ) -> Tensor:
        """`tokens_BxT` continued by `n` sampled tokens: (B, T + n)."""
        return sample(self, tokens_BxT, n, context=self.block_size, temperature=temperature, generator=generator)


def features(body: nn.Module, tokens_BxT: Tensor, present: Tensor) -> Tensor:
    """What a Transformer makes of tokens, before any head: (B, T, D)."""
    if hasattr(body, "config"):
        return body(input_ids=tokens_BxT, attention_mask=present.long()).last_hidden_state
    return body.features(tokens_BxT, present)  # type: ignore[operator]


def embedding_of(body: Any) -> nn.Module:
    """Of its tokens."""
    return body.get_input_embeddings() if hasattr(body, "config") else body.embedding


def is_causal(body: Any) -> bool:
    """Whether a token sees only those before it."""
    config = getattr(body, "config", None)
    if config is None:
        return bool(body.blocks[0].attention.causal)
    kinds = ("gpt", "llama", "opt", "qwen", "mistral", "gemma", "phi", "neox", "bloom", "falcon")
    return bool(getattr(config, "is_decoder", False)) or any(kind in config.model_type for kind in kinds)


def width_of(body: nn.Module) -> int:
    """D."""
    config: Any = getattr(body, "config", None)
    return int(config.hidden_size if config is not None else body.d_model)  # type: ignore[arg-type]


def _loaded(name: str | None, load: Load | None, kind: str) -> nn.Module:
    """The model, in training as new ones are. ArgumentError if it cannot be loaded."""
    if name is not None and is_run(name) and load is not None:
        return load(name)
    folder, options = place_of(name)
    try:
        import transformers
    except ImportError:
        raise ModuleNotFoundError('pretrained models need transformers: pip install -e ".[tuning]"') from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        body = getattr(transformers, kind).from_pretrained(folder, **options)
    except ImportError:
        raise ModuleNotFoundError('GGUF files need gguf and accelerate: pip install -e ".[smollm]"') from None
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ArgumentError("name", name, f"cannot be loaded: {reason}") from None
    if getattr(body.config, "is_encoder_decoder", False) and kind == "AutoModel":
        body = body.get_encoder()
    if getattr(body, "pooler", None) is not None:
        body.pooler = None  # a head of its own training's, which nothing here uses
    return body.train()


def _check(body: Any, name: str | None, vocab_size: int, block_size: int | None) -> None:
    """ArgumentError for tokens or lengths that the model does not know."""
    embedding: Any = embedding_of(body)
    if embedding.num_embeddings < vocab_size:
        raise ArgumentError(
            "name", name, f"knows {embedding.num_embeddings:,} tokens, the data have {vocab_size:,}:"
            " take its own, data/tokenizer=pretrained",
        )  # fmt: skip
    config = getattr(body, "config", None)
    most = getattr(config, "max_position_embeddings", None) if config is not None else body.block_size
    if block_size is not None and most is not None and block_size > most:
        raise ArgumentError("name", name, f"reads {most} tokens, fewer than the data's block_size of {block_size}")
