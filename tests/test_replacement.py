"""The one mechanism by which techniques replace what modules compute, and tokens that look whole to others."""

from __future__ import annotations

import copy
import itertools
import pickle
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel

from reference_impls.contract.replacement import original_forward, replace, replaced_by
from reference_impls.hosts.tokens import ReducedTokens, carried, reduced, rows
from tests.support import generator


def times(factor, module, below, x):
    return factor * below(x)


@pytest.fixture
def layer() -> nn.Linear:
    return nn.Linear(3, 3)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, generator=generator())


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
def test_replacements_are_undone_in_any_order(layer: nn.Linear, x: Tensor, order: tuple[int, ...]) -> None:
    y, factors = layer(x), [2, 3, 5]
    undo = [replace(layer, partial(times, factor), f"by {factor}") for factor in factors]
    product = 30
    for i in order:
        torch.testing.assert_close(layer(x), product * y)
        assert replaced_by(layer) == tuple(f"by {factor}" for factor in factors if product % factor == 0)
        undo[i]()
        undo[i]()
        product //= factors[i]
    assert torch.equal(layer(x), y)
    assert type(layer) is nn.Linear
    assert vars(layer).keys() == vars(nn.Linear(3, 3)).keys()


@pytest.mark.parametrize("copied", [copy.deepcopy, AveragedModel, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_keep_the_replacement_on_weights_of_their_own(copied, x: Tensor) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    undo = replace(model[0], partial(times, 2), "twice")
    y, other = model(x), copied(model)
    nn.init.zeros_(model[0].weight)
    assert torch.equal(other(x), y)
    undo()
    assert torch.equal(other(x), y)
    assert type(other) is not type(model) or type(other[0]).__name__ == "Linear"


def test_replicas_of_data_parallelism_use_their_own_weights(layer: nn.Linear, x: Tensor) -> None:
    replace(layer, lambda module, below, x: below(x) * module.weight.sum(), "scaled")
    replica = layer._replicate_for_data_parallel()
    replica.weight, replica.bias = torch.ones(3, 3), layer.bias
    torch.testing.assert_close(replica(x), (x.sum(1, keepdim=True) + layer.bias) * 9)


def test_what_another_library_put_on_the_instance_comes_back(layer: nn.Linear, x: Tensor) -> None:
    layer.forward = lambda x: x + 7
    undo = replace(layer, partial(times, 2), "twice")
    assert torch.equal(layer(x), 2 * (x + 7))
    assert torch.equal(original_forward(layer)(x), x + 7)
    undo()
    assert torch.equal(layer(x), x + 7)


def test_a_library_may_wrap_the_replaced_forward_and_outlive_it(layer: nn.Linear, x: Tensor) -> None:
    """As accelerate does: what it remembers is the forward of a class that is gone after the undo."""
    y, undo = layer(x), replace(layer, partial(times, 2), "twice")
    layer.forward = lambda x, inner=layer.forward: inner(x) + 1
    assert torch.equal(layer(x), 2 * y + 1)
    undo()
    assert torch.equal(layer(x), y + 1)


def test_a_parametrisation_may_come_after(layer: nn.Linear, x: Tensor) -> None:
    undo = replace(layer, partial(times, 2), "twice")
    parametrize.register_parametrization(layer, "weight", nn.Tanh())
    y = nn.functional.linear(x, layer.weight, layer.bias)
    assert torch.equal(layer(x), 2 * y)
    undo()
    assert torch.equal(layer(x), y)


class Pairs:
    """Two tokens, each for two of four."""

    group = torch.tensor([[0, 1, 1, 0]])


def pair() -> tuple[Tensor, Tensor]:
    """Reduced tokens, and the whole ones that they stand for."""
    x = torch.randn(1, 2, 3, generator=generator())
    return reduced(x, Pairs()), rows(x, Pairs.group)


def test_reduced_tokens_look_whole_to_every_reader() -> None:
    tokens, expected = pair()
    assert tokens.shape == expected.shape
    assert tokens.size(1) == 4
    assert torch.equal(tokens + 0, expected)
    assert torch.equal(torch.stack([tokens, expected])[0], expected)
    assert torch.equal(tokens[:, 3], expected[:, 3])
    assert tokens.tolist() == expected.tolist()
    assert (tokens.numpy() == expected.numpy()).all()
    assert torch.equal(pickle.loads(pickle.dumps(tokens)), expected)
    assert torch.equal(copy.deepcopy(tokens), expected)
    assert "ReducedTokens" not in repr(tokens)
    x, reduction = carried(tokens)
    assert type(x) is Tensor
    assert x.shape == (1, 2, 3)
    assert isinstance(reduction, Pairs)


def test_reduced_tokens_stay_so_on_the_way_to_the_next_block() -> None:
    tokens, _ = pair()
    for moved in (tokens.detach(), tokens.clone(), tokens.to(torch.float64), tokens.contiguous(), tokens.cpu()):
        assert isinstance(moved, ReducedTokens)
        assert carried(moved)[0].shape == (1, 2, 3)
    assert tokens.to(torch.float64).dtype == torch.float64


def test_writing_to_reduced_tokens_is_refused() -> None:
    tokens, expected = pair()
    writes = [partial(tokens.add_, 1), partial(tokens.__iadd__, 1), partial(tokens.__setitem__, 0, 0.0)]
    for write in (*writes, partial(torch.add, expected, 1, out=tokens)):
        with pytest.raises(NotImplementedError, match="cannot be written to"):
            write()


def test_gradients_reach_the_tokens_behind_reduced_ones() -> None:
    weight, gradients = torch.randn(4, 3, generator=generator(2)), []
    for which in (0, 1):
        x = torch.randn(1, 2, 3, generator=generator(), requires_grad=True)
        tokens = (reduced(x * 1, Pairs()), rows(x * 1, Pairs.group))[which]
        assert tokens.requires_grad
        (tokens * weight).sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)
