"""Dynamic sparse training beyond the checks: exact counts, masked state, growth, a loop of one's own, and resuming."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from torch import nn

from reference_impls.accounting.count import count
from reference_impls.contract import Case, Cases, Expectation, Invalid, generator
from reference_impls.hosts.trainer import callback, restore
from reference_impls.hosts.training import Part, Run, ledger
from reference_impls.techniques.data_sieving import Sieving
from reference_impls.techniques.dynamic_sparse_training import (
    METHODS,
    DynamicSparseTraining,
    SparseTraining,
    active_count,
    drop,
    grow,
    sparse_layers,
    spread,
    top,
)
from reference_impls.techniques.layer_freezing import Freezing
from tests.training_cases import Kind, assert_equal, assert_resumes, case, few_or_alike, network, small_training

SPARSE = DynamicSparseTraining()


class DynamicSparseTrainingCases(Cases):
    """A small training whose weights are as drawn, one for each layer (redundant), or all of one size (null)."""

    def build(self, kind: Kind, seed: int, device: str) -> Case:
        training = small_training(seed, device)
        few_or_alike(sparse_layers(training.model).values(), kind)
        return case(training, seed)

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        draws = generator(seed)
        score, among = torch.rand(30, generator=draws), torch.rand(30, generator=draws) > 0.4
        by_hand = sorted((i for i in range(30) if among[i]), key=lambda i: -float(score[i]))[:7]
        chosen = top(score.to(device), 7, among.to(device)).nonzero().flatten().cpu()
        yield Expectation("the seven highest", torch.tensor(sorted(by_hand)), chosen)
        mask = torch.tensor([True, True, True, False, False, False], device=device)
        weight = torch.tensor([3.0, 1.0, 2.0, 9.0, 9.0, 9.0], device=device)
        kept = drop(mask, weight, 2)
        yield Expectation(
            "of 3, 1, 2 the two largest", mask & torch.tensor([1, 0, 1, 1, 1, 1], device=device).bool(), kept
        )
        gradient = torch.tensor([9.0, 4.0, 9.0, 1.0, 5.0, 2.0], device=device)
        grown = torch.tensor([1, 0, 1, 0, 1, 0], device=device).bool()
        yield Expectation("where the gradient is largest", grown, grow(kept, 3, draws, gradient))
        yield Expectation("active of 10 at 0.75", torch.tensor(2), torch.tensor(active_count(10, 0.75)))

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        for method in METHODS:
            handle = SPARSE.apply(small_training(seed, device), sparsity=0.9, method=method)
            model = handle.target.fit()
            for name, layer in sparse_layers(model).items():
                most = active_count(layer.weight.numel(), 0.9)
                counts = [handle.trace["active"][name][-1], max(most, int((layer.weight != 0).sum()))]
                yield Expectation(f"{method}: active weights", torch.tensor([most, most]), torch.tensor(counts))

    def invalid(self, device: str) -> Iterable[Invalid]:
        training = small_training(0, device)
        yield Invalid("a layer of 288 at 0.999", lambda: SPARSE.apply(training, sparsity=0.999), "too small")
        knobs = {"method": "rigl", "pattern": "channel"}
        yield Invalid("channels by gradient", lambda: SPARSE.apply(training, **knobs), "dense gradient")
        shallow = small_training(0, device, model=nn.Sequential(nn.Flatten(), nn.Linear(36, 3)))
        yield Invalid("one layer", lambda: SPARSE.apply(shallow), "three convolutions or linear layers")
        yield Invalid("no labels", lambda: small_training(y=torch.zeros(0, dtype=torch.long)), "as many labels")
        yield Invalid("a class too many", small_training(y=torch.arange(24)).fit, "class 23")
        yield Invalid("classes below 0", lambda: small_training(y=torch.arange(24) - 1), "from 0 on")


CASES = DynamicSparseTrainingCases()

Optimiser = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
OPTIMISERS: dict[str, Optimiser] = {
    "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
    "plain": lambda p: torch.optim.SGD(p, 0.1),
    "adam": lambda p: torch.optim.Adam(p, 0.01),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("method", METHODS)
def test_weights_and_state_outside_the_masks_are_zero_after_every_step_of_a_plain_loop(name: str, method: str):
    data, model = small_training(), network()
    optimiser = OPTIMISERS[name](model.parameters())
    sparse = SparseTraining(model, optimiser, sparsity=0.8, epochs=5, method=method)
    for epoch in range(5):
        for x, y in zip(data.x.split(8), data.y.split(8), strict=True):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimiser.step()
            for key, layer in sparse.layers.items():
                outside = ~spread(sparse.masks[key], layer.weight, "element")
                state = [s for s in optimiser.state[layer.weight].values() if s.shape == layer.weight.shape]
                assert all(not tensor[outside].any() for tensor in (layer.weight, *state))
        sparse.epoch_ended(epoch)
    moved = method != "static"
    start = SparseTraining(network(), OPTIMISERS["plain"](model.parameters()), sparsity=0.8, epochs=5).masks
    assert any(not torch.equal(start[key], sparse.masks[key]) for key in start) == moved


def test_a_grown_weight_starts_at_zero_without_momentum():
    run = Run(SPARSE.apply(small_training(weight_decay=0.0), sparsity=0.8, method="set").target)
    run.advance(3)  # the first epoch, with its update
    sparse = run.parts[0]
    assert isinstance(sparse, SparseTraining)
    layer, mask = sparse.layers["1.0"], spread(sparse.masks["1.0"], sparse.layers["1.0"].weight, "element")
    momentum = run.optimiser.state[layer.weight]["momentum_buffer"]
    grown = mask & (layer.weight == 0)
    assert int(grown.sum()) > 0
    assert not momentum[grown].any()
    run.advance(1)
    rate = run.optimiser.param_groups[1]["lr"]
    torch.testing.assert_close(layer.weight[grown], -rate * layer.weight.grad[grown], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("method", "bounds"), [("em", [(0.92, 0.9), (0.91, 0.9)]), ("em&s", [(0.9, 0.88), (0.9, 0.89)])]
)
def test_the_stages_of_mest_are_those_of_its_authors(method: str, bounds: list[tuple[float, float]]):
    rule = METHODS[method].bounds
    assert rule is not None
    found = [rule(0.9, progress) for progress in (0.1, 0.6, 0.9)]
    assert found == [pytest.approx(one) for one in (*bounds, (0.9, 0.9))]


def test_counts_are_exact_where_all_magnitudes_are_equal():
    among = torch.ones(100, dtype=torch.bool)
    assert int(top(torch.ones(100), 37, among).sum()) == 37
    assert top(torch.ones(100), 37, among)[:37].all()


def test_the_selection_is_that_of_a_stable_sort():
    draws = generator(1)
    for _ in range(100):
        n, count = (int(x) for x in torch.randint(1, 60, (2,), generator=draws))
        score = torch.randint(-3, 4, (n,), generator=draws).float()
        among = torch.rand(n, generator=draws) > 0.4
        order = score.masked_fill(~among, -torch.inf).argsort(descending=True, stable=True)
        due = torch.zeros_like(among)
        due[order[:count]] = True
        assert torch.equal(due & among, top(score, count, among))


def test_masks_do_not_move_before_there_is_a_gradient():
    model = network()
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    sparse = SparseTraining(model, optimiser, sparsity=0.5, epochs=3, method="em")
    before = {name: mask.clone() for name, mask in sparse.masks.items()}
    with pytest.raises(ValueError, match="take a step"):
        sparse.epoch_ended(0)
    assert all(torch.equal(before[name], mask) for name, mask in sparse.masks.items())


@pytest.mark.transformers
def test_the_trainer_of_transformers_holds_the_masks_and_the_frozen_blocks_and_resumes(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = small_training().model

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": nn.functional.cross_entropy(self.network(x), labels)}

    def trained(resume: str | None) -> tuple[SparseTraining, Freezing, nn.Module]:
        data, model = small_training(), Loss()
        optimiser = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        sparse = SparseTraining(model.network, optimiser, sparsity=0.8, epochs=4, method="set")
        freezing = Freezing(model.network.children(), optimiser, ((), (), (0,), (0,)))
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path), num_train_epochs=4, per_device_train_batch_size=8, report_to=[], use_cpu=True,
            save_strategy="epoch", disable_tqdm=True, lr_scheduler_type="constant", max_grad_norm=0.0,
        )  # fmt: skip
        items = [{"x": x, "labels": y} for x, y in zip(data.x, data.y, strict=True)]
        trainer = transformers.Trainer(
            model, arguments, train_dataset=items, optimizers=(optimiser, None), callbacks=[callback(sparse, freezing)]
        )
        if resume:
            restore(resume, sparse, freezing)
        trainer.train(resume_from_checkpoint=resume)
        return sparse, freezing, model

    sparse, freezing, whole = trained(resume=None)
    assert len(sparse.log["1.0"]) == 5
    assert freezing.frozen == (0,)
    first = SparseTraining(small_training().model, OPTIMISERS["plain"](whole.parameters()), sparsity=0.8, epochs=4)
    for name, layer in sparse.layers.items():
        assert not torch.equal(first.masks[name], sparse.masks[name])
        assert not layer.weight[~spread(sparse.masks[name], layer.weight, "element")].any()
    again, _, model = trained(resume=str(tmp_path / "checkpoint-9"))
    assert all(torch.equal(mask, again.masks[name]) for name, mask in sparse.masks.items())
    assert_equal(whole, model)


def test_a_callback_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="give one part"):
        callback()
    with pytest.raises(ValueError, match="needs a sampler"):
        callback(Sieving(9, removed=0.2, exchanged=0.1, epochs=2))
    with pytest.raises(FileNotFoundError, match="parts"):
        restore("no such folder", Part())


def test_channels_give_what_masked_weights_would():
    for pattern in ("channel", "element"):
        model = small_training().model.double().eval()
        sparse = SparseTraining(
            model, torch.optim.SGD(model.parameters(), 0.1), sparsity=0.5, epochs=1, pattern="channel", method="set"
        )
        if pattern == "element":
            sparse.detach()
        x = small_training().x.double().requires_grad_()
        with count() as tally:
            model(x).square().sum().backward()
        outputs = model(x).detach()
        if pattern == "channel":
            gathered, executed = (outputs, x.grad), tally.macs
    torch.testing.assert_close((outputs, x.grad), gathered)
    assert executed < 0.6 * tally.macs


@pytest.mark.parametrize("steps", [1, 3, 7, 11])
@pytest.mark.parametrize("pattern", ["element", "channel"])
def test_training_resumes_bit_for_bit_from_any_step(steps: int, pattern: str, tmp_path: Path):
    training = SPARSE.apply(small_training(), sparsity=0.5, method="set", pattern=pattern).target
    assert_resumes(training, steps, tmp_path)


def test_a_checkpoint_of_another_model_is_refused():
    state = Run(SPARSE.apply(small_training()).target).state_dict()
    other = small_training(model=nn.Sequential(*network()[:3], nn.Sequential(nn.Flatten(), nn.Linear(144, 3))))
    with pytest.raises(ValueError, match="another model"):
        Run(SPARSE.apply(other).target).load_state_dict(state)
    with pytest.raises(ValueError, match="1 parts, the training 0"):
        Run(small_training()).load_state_dict(state)


def test_the_ledger_tells_what_masks_would_save():
    handle = SPARSE.apply(small_training(), sparsity=0.5, method="static")
    handle.target.fit()
    dense, sparse = ledger(handle.target, {}), ledger(handle.target, handle.trace)
    assert sparse.executed == dense.executed == dense.sparse
    layers = {"0.0": 36 * 36, "1.0": 36 * 288, "2.0": 36 * 288, "3.2": 12}  # positions times weights
    assert dense.convention == 24 * 4 * 3 * sum(layers.values())
    assert sparse.convention == 24 * 4 * 3 * (layers["0.0"] + layers["3.2"] + 36 * (144 + 144))
    assert dense.convention - dense.executed == 24 * 4 * layers["0.0"]  # the pictures need no gradient
