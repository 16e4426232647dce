"""A small BERT with random weights and its tokenizer, as Hugging Face's are written; and a small Llama."""

from pathlib import Path

import numpy as np
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


def write_gguf(folder: Path) -> Path:
    """A Llama of the kind that llama.cpp reads, with a token for each byte, and one for two."""
    import gguf
    import tokenizers

    folder.mkdir(parents=True)
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens, d, ff, layers = ["<|endoftext|>", *letters, letters[0] + letters[1]], 32, 32, 2
    writer = gguf.GGUFWriter(file := folder / "tiny.gguf", "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(d)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(ff)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(d // 2)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, *[1] * (len(letters) + 1)])
    writer.add_token_merges([f"{letters[0]} {letters[1]}"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    random = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd": (len(tokens), d),
        "output_norm": (d,),
        "output": (len(tokens), d),
    }
    for i in range(layers):
        shapes |= {f"blk.{i}.{name}": (d, d) for name in ("attn_q", "attn_k", "attn_v", "attn_output")}
        shapes |= {f"blk.{i}.{name}": (d,) for name in ("attn_norm", "ffn_norm")}
        shapes |= {f"blk.{i}.ffn_gate": (ff, d), f"blk.{i}.ffn_up": (ff, d), f"blk.{i}.ffn_down": (d, ff)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.normal(size=shape, scale=0.2).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


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
