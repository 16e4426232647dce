"""A small BERT with random weights and its tokenizer, as Hugging Face's are written; and a small Llama."""

from pathlib import Path

import torch

WORDS = (
    "the", "a", "of", "in", "and", "to", "market", "game", "film", "party", "phone", "shares", "team", "star", "vote",
    "network", "he", "she", "it", "was", "is",
)  # fmt: skip


def write_bert(folder: Path, *, hidden: int = 16, seed: int = 0) -> Path:
    import transformers

    size = write_tokenizer(folder)
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=size, hidden_size=hidden, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=256,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def write_llama(folder: Path) -> Path:
    import transformers

    size = write_tokenizer(folder, byte_level=True)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=size, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=24, max_position_embeddings=64, mlp_bias=True,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_tokenizer(folder: Path, *, byte_level: bool = False) -> int:
    """Its number of tokens."""
    import tokenizers
    import transformers

    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]",
               "mask_token": "[MASK]"}  # fmt: skip
    if byte_level:
        special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
        letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        model = tokenizers.models.BPE({c: i for i, c in enumerate([*special.values(), *sorted(letters)])}, [])
        made = tokenizers.Tokenizer(model)
        made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = tokenizers.decoders.ByteLevel()
    else:
        words = {word: i for i, word in enumerate([*special.values(), *WORDS])}
        made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
        made.normalizer = tokenizers.normalizers.Lowercase()
        made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, **special).save_pretrained(folder)
    return made.get_vocab_size()
