"""Which parameters travel together."""

from typing import Any

import pytest
from torch import nn

from ticks.models import DecoderTransformer, EncoderDecoder
from ticks.strategy import Streaming
from ticks.strategy.fragments import fragment_of, layer_of


def chosen(module: nn.Module, fragments: Any) -> dict[str, int]:
    named = list(module.named_parameters())
    names = [name for name, _ in named]
    return dict(zip(names, fragment_of(names, [p.numel() for _, p in named], fragments), strict=True))


class Deep(nn.Module):
    """A list of layers, under any name, inside whatever; another, shorter list; parameters in neither."""

    def __init__(self, n: int, list_name: str = "layers") -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        body = nn.Module()
        setattr(body, list_name, nn.ModuleList([nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
                                                for _ in range(n)]))  # fmt: skip
        self.body = body
        self.heads = nn.ModuleList([nn.Linear(4, 1), nn.Linear(4, 1)])
        self.scale = nn.Parameter(nn.init.ones_(nn.Linear(1, 1).weight))


@pytest.mark.parametrize("list_name", ["layers", "blocks", "h"])
@pytest.mark.parametrize(("n", "fragments"), [(4, 4), (4, 2), (7, 3), (12, 4), (5, 1)])
def test_layer_l_goes_to_fragment_l_mod_p(n: int, fragments: int, list_name: str) -> None:
    for name, fragment in chosen(Deep(n, list_name), fragments).items():
        if name.startswith("body."):
            assert fragment == int(name.split(".")[2]) % fragments, name


def test_ten_layers_are_ordered_by_number_and_not_by_name() -> None:
    fragments = chosen(Deep(11), 11)
    assert [fragments[f"body.layers.{i}.a.weight"] for i in range(11)] == list(range(11))


def test_layers_that_train_are_dealt_out_where_others_are_frozen() -> None:
    """Layers 2, 5 and 8 alone train: three fragments, one each."""
    names = [f"layers.{i}.weight" for i in (2, 5, 8)]
    assert fragment_of(names, [10, 10, 10], 3) == [0, 1, 2]


@pytest.mark.parametrize("module", [nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)), Deep(6)])
def test_a_sequential_is_a_list_of_layers_too(module: nn.Module) -> None:
    fragments = chosen(module, 2)
    assert set(fragments.values()) == {0, 1}
    for name, fragment in fragments.items():  # a layer is never torn apart
        if name.endswith(".weight") and name.replace("weight", "bias") in fragments:
            assert fragments[name.replace("weight", "bias")] == fragment or not name.startswith(("body", "0", "2"))


def test_the_transformers_blocks_are_strided() -> None:
    model = DecoderTransformer(vocab_size=11, block_size=8, d_model=8, n_layers=4, n_heads=2, d_ff=16)
    fragments = chosen(model, 2)
    assert {fragments[name] for name in fragments if ".0." in name or ".2." in name} == {0}
    assert {fragments[name] for name in fragments if ".1." in name or ".3." in name} == {1}


def test_both_stacks_of_an_encoder_decoder_are_shared_out() -> None:
    """Three layers each: the decoder's go on where the encoder's end, so that four fragments hold a layer or two."""
    model = EncoderDecoder(source_vocab_size=11, target_vocab_size=7, source_length=8, target_length=6, d_model=8,
                           n_layers=3, n_heads=2, d_ff=16)  # fmt: skip
    fragments = chosen(model, 4)
    of_stacks = [{fragments[name] for name in fragments if name.startswith(stack) and f".{layer}." in name}
                 for stack in ("encoder.", "decoder.") for layer in range(3)]  # fmt: skip
    assert of_stacks == [{0}, {1}, {2}, {3}, {0}, {1}]


def test_a_list_inside_a_layer_is_no_list_of_layers() -> None:
    names = ["blocks.0.experts.0.w", "blocks.0.experts.1.w", "blocks.1.experts.0.w", "heads.0.w", "norm"]
    assert layer_of(names) == [0, 0, 1, 2, None]


@pytest.mark.parametrize(
    ("names", "fragments"),
    [
        (["layers.0.a", "norm", "layers.1.a"], [0, 0, 1]),
        (["layers.0.a", "layers.0.b", "norm"], [0, 0, 0]),
        (["a", "b"], [0, 1]),
        ([], []),
    ],
)
def test_of_fewer_layers_there_are_as_many_fragments(names: list[str], fragments: list[int]) -> None:
    assert fragment_of(names, [5] * len(names), 4) == fragments


def test_what_is_in_no_layer_joins_the_smallest_fragment() -> None:
    names = ["layers.0.w", "layers.1.w", "layers.2.w", "embedding", "norm", "head"]
    assert fragment_of(names, [100, 10, 40, 35, 1, 60], 3) == [0, 1, 2, 1, 2, 2]


@pytest.mark.parametrize("fragments", [2, 3, 4])
def test_fragments_are_about_equally_large(fragments: int) -> None:
    model = DecoderTransformer(vocab_size=64, block_size=16, d_model=16, n_layers=12, n_heads=2, d_ff=64)
    loads = [0] * fragments
    of, sizes = chosen(model, fragments), {name: p.numel() for name, p in model.named_parameters()}
    for name, fragment in of.items():
        loads[fragment] += sizes[name]
    assert max(loads) - min(loads) < max(size for name, size in sizes.items() if ".0." not in name)
    assert max(loads) < 1.2 * sum(loads) / fragments


def test_without_a_list_of_layers_every_parameter_is_one() -> None:
    assert fragment_of(["a.weight", "a.bias", "b.weight", "c"], [9, 3, 9, 1], 2) == [0, 1, 0, 1]
    assert layer_of(["a.weight", "c"]) == [None, None]


def test_one_fragment_is_everything() -> None:
    assert fragment_of(["a", "layers.0.b"], [1, 2], 1) == [0, 0]


def test_patterns_choose_by_the_first_that_matches() -> None:
    names = ["embed.weight", "blocks.0.w", "blocks.1.w", "blocks.10.w", "head"]
    assert fragment_of(names, [1] * 5, [["blocks.1.*", "head"], ["*"]]) == [1, 1, 0, 1, 0]
    assert fragment_of(names, [1] * 5, [["*"], ["*.w"]][::-1]) == [1, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("names", "fragments", "message"),
    [
        (["a", "b"], [["a"]], "fragments=[['a']]: parameter 'b' matches none of them"),
        (["a", "b"], [["*"], ["c"]], "pattern 'c' matches no parameter; there are a, b"),
        (["a", "b"], [["*"], ["b"]], "nothing would be in fragment 1"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(names: list[str], fragments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        fragment_of(names, [1] * len(names), fragments)


@pytest.mark.parametrize("fragments", [0, -1, []])
def test_a_number_of_fragments_that_makes_no_sense_is_refused(fragments: Any) -> None:
    with pytest.raises(ValueError, match="must be at least 1, or a list of lists of patterns"):
        Streaming(fragments=fragments)
