"""Transformers that are already trained, with what a task of ours needs on top of them.

Shapes: B batch, T time, D features, C classes, V vocabulary. Hugging Face's come through transformers (extra `tuning`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ticks.arguments import ArgumentError
from ticks.installed import is_run, needs, place_of
from ticks.models.generate import sample
from ticks.models.heads import ClassificationHead

Load = Callable[[str], nn.Module]
MASKED = 0.15  # the share of tokens (arXiv 1810.04805)
UNUSED = ("pooler.",)  # which a checkpoint may lack


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
        self.base = partial(_body_of_features, load=load)  # of what lies at a name, untouched
        self.body = self.base(name)
        self._causal: bool | None = None
        _check(self.body, name, vocab_size, block_size)
        self.head = ClassificationHead(width_of(self.body), n_classes, pooling=pooling, dropout=dropout)
        nn.init.normal_(self.head.linear.weight, std=0.02)
        nn.init.zeros_(self.head.linear.bias)

    def forward(self, tokens_BxT: Tensor) -> Tensor:
        present = self._present(tokens_BxT)
        return self.head(features(self.body, tokens_BxT, present), present)

    def _present(self, tokens_BxT: Tensor) -> Tensor:
        """Where there is a token: all before the last one that is no padding, which may be a start or an end too."""
        if self.pad_id is None:
            return torch.ones_like(tokens_BxT, dtype=torch.bool)
        present_BxT = (tokens_BxT != self.pad_id).flip(1).cumsum(1).flip(1) > 0
        return torch.cat([torch.ones_like(present_BxT[:, :1]), present_BxT[:, 1:]], 1)

    @property
    def predicts_tokens(self) -> bool:
        """Whether its features are as wide as its tokens' embedding, so that this can tell tokens from them."""
        embedding: Any = embedding_of(self.body)
        return embedding.weight.shape[1] == width_of(self.body)

    def predict_tokens(self, tokens_BxT: Tensor) -> tuple[Tensor, Tensor]:
        """Its own input tokens through the embedding: logits (N, V) and the tokens (N,). A decoder predicts each next
        one; where tokens see both sides, MASKED of them are masked first."""
        present = self._present(tokens_BxT)
        embedding: Tensor = embedding_of(self.body).weight  # type: ignore[assignment]
        if self._causal is None:
            self._causal = is_causal(self.body)
        if self._causal:
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
        self.base = partial(_body_of_text, load=load)  # of what lies at a name, untouched
        self.body: Any = self.base(name)
        if not hasattr(self.body, "config") and not hasattr(self.body, "generate"):
            raise ArgumentError("name", name, f"is a {type(self.body).__name__}, which writes no text")
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


@torch.no_grad()
def is_causal(body: nn.Module) -> bool:
    """Whether a token sees only those before it: asked of the model, by changing the last one."""
    device: Any = embedding_of(body).weight.device
    x_2x3 = torch.tensor([[1, 2, 3], [1, 2, 4]], device=device)
    was_training = body.training
    body.eval()
    found = features(body, x_2x3, torch.ones_like(x_2x3, dtype=torch.bool))[:, :2].double()
    body.train(was_training)
    return bool((found[0] - found[1]).abs().max() <= 1e-6 * found.abs().max())


def width_of(body: nn.Module) -> int:
    """D."""
    config: Any = getattr(body, "config", None)
    return int(config.hidden_size if config is not None else body.d_model)  # type: ignore[arg-type]


def _loaded(name: str | None, load: Load | None, kind: str) -> nn.Module:
    """The model in 32 bits, in training as new ones are. ArgumentError if it cannot be loaded, or lacks weights."""
    if name is not None and is_run(name) and load is not None:
        return load(name)
    folder, options = place_of(name)
    try:
        import transformers
    except ImportError:
        raise ModuleNotFoundError('pretrained models need transformers: pip install -e ".[tuning]"') from None
    try:
        with quiet(transformers.utils.logging):
            body, about = getattr(transformers, kind).from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True, **options
            )
    except ImportError as error:
        raise ModuleNotFoundError(needs(error, options)) from None
    except Exception as error:  # many kinds, by what is damaged
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ArgumentError("name", name, f"cannot be loaded: {reason}") from None
    if lost := sorted(str(key) for key in about["missing_keys"] if not str(key).startswith(UNUSED)):
        raise ArgumentError("name", name, f"lacks weights, {lost[0]} and {len(lost) - 1} more: it is not all there")
    if "gguf_file" in options:  # whose numbers are plain ones by now, and can be written as such
        body.hf_quantizer = None
        vars(body.config).pop("quantization_config", None)
    if getattr(body.config, "is_encoder_decoder", False) and kind == "AutoModel":
        body = body.get_encoder()
    if getattr(body, "pooler", None) is not None:
        body.pooler = None  # a head of its own training's, which nothing here uses
    return body.train()


@contextmanager
def quiet(logging: Any) -> Iterator[None]:
    """Without warnings and bars of transformers', whatever it says otherwise."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _body_of_text(name: str | None, load: Load | None) -> nn.Module:
    model: Any = _loaded(name, load, "AutoModelForCausalLM")
    return model.body if isinstance(model, PretrainedLanguageModel) else model  # with the tasks that it has learnt


def _body_of_features(name: str | None, load: Load | None) -> nn.Module:
    """The part of a model that makes features of tokens. ArgumentError if it has none."""
    model: Any = _loaded(name, load, "AutoModel")
    body = model  # with the tasks that it has learnt
    if isinstance(model, PretrainedClassifier):
        body = model.body
    elif isinstance(model, PretrainedLanguageModel):
        body = getattr(model.body, "base_model", model.body)  # without the head that tells tokens
    if not hasattr(body, "config") and not (hasattr(body, "features") and hasattr(body, "embedding")):
        raise ArgumentError("name", name, f"is a {type(body).__name__}, which makes no features of tokens")
    if isinstance(getattr(body, "head", None), ClassificationHead):
        body.head = nn.Identity()  # of another task, which nothing here uses
    return body


def _check(body: Any, name: str | None, vocab_size: int, block_size: int | None) -> None:
    """ArgumentError for tokens or lengths that the model does not know."""
    embedding: Any = embedding_of(body)
    if embedding.num_embeddings < vocab_size:
        raise ArgumentError(
            "name", name, f"knows {embedding.num_embeddings:,} tokens, the data have {vocab_size:,}:"
            " take its own, data/tokenizer=pretrained",
        )  # fmt: skip
    most = _longest(body)
    if block_size is not None and most is not None and block_size > most:
        raise ArgumentError("name", name, f"reads {most} tokens, fewer than the data's block_size of {block_size}")


def _longest(body: Any) -> int | None:
    """How many tokens it reads at most."""
    if not hasattr(body, "config"):
        return body.block_size
    most = getattr(body.config, "max_position_embeddings", None)
    for name, module in body.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return module.num_embeddings - module.padding_idx - 1  # RoBERTa's count from behind the padding
    return most
