"""The recurrent model: torch's own cells without a norm, and with one its formula, time step by time step."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ticks.models import LayerNorm, RecurrentLanguageModel, RMSNorm
from ticks.models.recurrent import Recurrent
from ticks.optim.groups import grouped

SIZES = {"vocab_size": 11, "block_size": 6, "d_model": 8}
TORCHS = {"gru": (nn.GRU, nn.GRUCell), "lstm": (nn.LSTM, nn.LSTMCell)}
CELLS = pytest.mark.parametrize("cell", TORCHS)


def model(**options: object) -> RecurrentLanguageModel:
    torch.manual_seed(0)
    return RecurrentLanguageModel(**(SIZES | options)).eval()


def layer(cell: str, norm: type[nn.Module] = LayerNorm, d_model: int = 5) -> Recurrent:
    """In float64, with parameters of which none is near 0."""
    torch.manual_seed(0)
    made = Recurrent(d_model, cell=cell, norm=norm).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.7)
    return made


def x_BxTxD() -> Tensor:
    return torch.randn(3, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def parameters_for_torch(mine: Recurrent, last: str = "") -> dict[str, Tensor]:
    names = {"weight_ih": mine.input.weight, "weight_hh": mine.recurrent.weight}
    names |= {"bias_ih": mine.input.bias, "bias_hh": mine.recurrent.bias}
    return {name + last: parameter for name, parameter in names.items()}


@CELLS
def test_without_a_norm_it_is_torchs(cell: str) -> None:
    mine = layer(cell, norm=nn.Identity)
    theirs = TORCHS[cell][0](5, 5, batch_first=True).double()
    theirs.load_state_dict(parameters_for_torch(mine, "_l0"))
    x = x_BxTxD().requires_grad_()
    y, (y_torch, _) = mine(x), theirs(x)
    assert torch.allclose(y, y_torch, atol=1e-12)
    weights = torch.randn(y.shape, dtype=torch.float64)
    grads = torch.autograd.grad((y * weights).sum(), [x, *parameters_for_torch(mine).values()])
    names = [name + "_l0" for name in parameters_for_torch(mine)]
    grads_torch = torch.autograd.grad((y_torch * weights).sum(), [x, *(getattr(theirs, name) for name in names)])
    assert all(torch.allclose(a, b, atol=1e-11) for a, b in zip(grads, grads_torch, strict=True))


@CELLS
@pytest.mark.parametrize("norm", [LayerNorm, RMSNorm])
def test_the_state_is_normed_at_every_time_step(cell: str, norm: type[nn.Module]) -> None:
    mine = layer(cell, norm)
    step = TORCHS[cell][1](5, 5).double()
    step.load_state_dict(parameters_for_torch(mine))
    h = c = torch.zeros(3, 5, dtype=torch.float64)
    states = []
    for x_BxD in x_BxTxD().unbind(1):
        if cell == "gru":
            h = step(x_BxD, h)
        else:
            h, c = step(x_BxD, (h, c))
        h = mine.norm(h)  # the next step sees the normed state, the cell of an LSTM is as it is
        states.append(h)
    assert torch.allclose(mine(x_BxTxD()), torch.stack(states, dim=1), atol=1e-12)


@CELLS
def test_a_layer_norm_gives_each_state_the_mean_and_size_of_its_own(cell: str) -> None:
    mine = Recurrent(16, cell=cell)
    y_BxTxD = mine(torch.randn(2, 9, 16))
    assert torch.allclose(y_BxTxD.mean(2), torch.zeros(2, 9), atol=1e-5)
    assert torch.allclose(y_BxTxD.var(2, correction=0), torch.ones(2, 9), atol=0.05)


@CELLS
def test_gradients_are_those_of_the_function(cell: str) -> None:
    mine = layer(cell, d_model=3)
    names = [name for name, _ in mine.named_parameters()]
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)

    def of(x: Tensor, *parameters: Tensor) -> Tensor:
        return functional_call(mine, dict(zip(names, parameters, strict=True)), x)

    assert torch.autograd.gradcheck(of, (x, *mine.parameters()), atol=1e-6)


@CELLS
def test_it_looks_back_to_the_beginning_and_never_ahead(cell: str) -> None:
    recurrent = model(cell=cell, n_layers=2)
    tokens_BxT = torch.randint(11, (1, 6))
    for t in range(6):
        changed = tokens_BxT.clone()
        changed[0, t] = (changed[0, t] + 1) % 11
        before, after = recurrent(tokens_BxT)[0], recurrent(changed)[0]
        assert torch.equal(before[:t], after[:t])
        assert (before[t:] != after[t:]).any(dim=1).all()


def test_every_sequence_begins_from_zeros() -> None:
    recurrent = model()
    tokens_BxT = torch.randint(11, (3, 6))
    together = recurrent(tokens_BxT)
    assert torch.allclose(together[2], recurrent(tokens_BxT[2:])[0], atol=1e-6)
    assert torch.equal(together, recurrent(tokens_BxT))


def test_the_embedding_is_tied() -> None:
    recurrent, seen = model(), []
    recurrent.layers[-1].register_forward_hook(lambda module, args, y: seen.append(y))
    logits_BxTxV = recurrent(torch.randint(11, (2, 4)))
    assert [name for name, p in recurrent.named_parameters() if 11 in p.shape] == ["embedding.weight"]
    assert torch.equal(logits_BxTxV, seen[0] @ recurrent.embedding.weight.T)


def test_the_first_loss_is_that_of_guessing() -> None:
    recurrent = model(vocab_size=256, d_model=64)
    loss = F.cross_entropy(recurrent(torch.randint(256, (4, 64))).flatten(0, 1), torch.randint(256, (256,)))
    assert abs(loss.item() - 5.545) < 0.1


@CELLS
def test_it_learns_a_repeating_text_and_goes_on_with_it(cell: str) -> None:
    recurrent = model(cell=cell, d_model=16, block_size=16)
    tokens_BxT = (torch.arange(17) % 5).expand(4, 17)
    optimizer = torch.optim.Adam(recurrent.parameters(), lr=0.03)
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.cross_entropy(recurrent(tokens_BxT[:, :-1]).flatten(0, 1), tokens_BxT[:, 1:].flatten())
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    continued = recurrent.generate(torch.tensor([[0, 1, 2, 3, 4]]), 20, temperature=0)
    assert continued[0].tolist() == [t % 5 for t in range(25)]  # beyond the block, too


@CELLS
@pytest.mark.parametrize("norm", [LayerNorm, RMSNorm, nn.Identity])
def test_it_computes_in_bfloat16_where_that_is_wished(cell: str, norm: type[nn.Module]) -> None:
    recurrent, tokens_BxT = model(cell=cell, norm=norm), torch.randint(11, (2, 6))
    with torch.autocast("cpu", torch.bfloat16):
        logits_BxTxV = recurrent(tokens_BxT)
        logits_BxTxV.float().sum().backward()
    assert torch.allclose(logits_BxTxV.float(), recurrent(tokens_BxT), atol=2e-3)


def test_its_gates_are_matrices_of_their_own_for_optimizers_that_know_matrices() -> None:
    groups = grouped(model(cell="lstm"), matrices=True)
    assert {group["matrices"] for group in groups if "matrices" in group} == {4}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cell": "elman"}, "cell='elman' is unknown; known: gru, lstm"),
        ({"d_model": 0}, "d_model=0 must be at least 1"),
        ({"n_layers": 0}, "n_layers=0 must be at least 1"),
        ({"block_size": 0}, "block_size=0 must be at least 1"),
        ({"dropout": 2}, "dropout=2 must be from 0 to 1"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(**wrong)
