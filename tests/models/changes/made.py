"""Small transformers with random weights, of every family; what they compute on fixed inputs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ticks.models import DecoderTransformer, EncoderClassifier, VisionTransformer

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 30}
TOKENS = torch.arange(24).reshape(3, 8) % 29 + 1
PICTURES = torch.linspace(-1, 1, 3 * 3 * 8 * 8).reshape(3, 3, 8, 8)


def _of(config: str, model: str, **sizes: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        return getattr(transformers, model)(getattr(transformers, config)(**sizes))

    return make


BERT = SIZES | {"intermediate_size": 24, "max_position_embeddings": 32}
LLAMA = BERT | {"num_key_value_heads": 2}
THEIRS: dict[str, Callable[[], nn.Module]] = {
    "bert": _of("BertConfig", "BertModel", **BERT),
    "roberta": _of("RobertaConfig", "RobertaModel", **BERT),
    "electra": _of("ElectraConfig", "ElectraModel", **BERT, embedding_size=16),
    "distilbert": _of("DistilBertConfig", "DistilBertModel", dim=16, n_layers=2, n_heads=2, hidden_dim=24,
                      vocab_size=30),
    "gpt2": _of("GPT2Config", "GPT2Model", n_embd=16, n_layer=2, n_head=2, vocab_size=30, n_positions=32),
    "llama": _of("LlamaConfig", "LlamaModel", **LLAMA),
    "qwen2": _of("Qwen2Config", "Qwen2Model", **LLAMA),
    "gemma": _of("GemmaConfig", "GemmaModel", **LLAMA, head_dim=8),
    "gpt_neox": _of("GPTNeoXConfig", "GPTNeoXModel", **BERT),
    "opt": _of("OPTConfig", "OPTModel", **SIZES, ffn_dim=24, word_embed_proj_dim=16, max_position_embeddings=32),
    "t5": _of("T5Config", "T5EncoderModel", d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, vocab_size=30),
    "t5_1.1": _of("T5Config", "T5EncoderModel", d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, vocab_size=30,
                  feed_forward_proj="gated-gelu"),
    "vit": _of("ViTConfig", "ViTModel", **(SIZES | {"intermediate_size": 24, "image_size": 8, "patch_size": 4})),
    "dinov2": _of("Dinov2Config", "Dinov2Model", **(SIZES | {"mlp_ratio": 2, "image_size": 8, "patch_size": 4})),
}  # fmt: skip
OURS: dict[str, Callable[[], nn.Module]] = {
    "decoder": lambda: DecoderTransformer(vocab_size=30, block_size=32, d_model=16, n_layers=2, n_heads=2),
    "encoder": lambda: EncoderClassifier(vocab_size=30, block_size=32, n_classes=3, d_model=16, n_layers=2, n_heads=2),
    "our_vit": lambda: VisionTransformer(image_size=8, n_channels=3, n_classes=3, patch_size=4, d_model=16, n_layers=2,
                                         n_heads=2),
}  # fmt: skip
FAMILIES = OURS | THEIRS


def made(name: str, seed: int = 0) -> nn.Module:
    """A model in evaluation, its weights far from zero, biases and norms too."""
    torch.manual_seed(seed)
    model = FAMILIES[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def output(model: nn.Module, rows: slice = slice(None)) -> Tensor:
    """Of the model on the same inputs each time."""
    pictures = "Vi" in type(model).__name__ or "Dino" in type(model).__name__
    found = model((PICTURES if pictures else TOKENS)[rows])
    return found if isinstance(found, Tensor) else found.last_hidden_state


def stir(model: nn.Module, task: str = "task", seed: int = 1) -> None:
    """A task's parameters away from their initial values."""
    from ticks.models.changes import parameters_of

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in parameters_of(model, task):
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(noise * 0.3)
