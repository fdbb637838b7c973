"""Sufficiency: how much of the computation on a datum comes after its answer has stopped changing.

The measure needs a network that can answer at several depths (exits). It needs no labels: the reference is the answer
of the last exit. It is a ceiling for early exit without any change of an answer, since a rule that decides at run time
cannot see the later exits.

A network without exits is given them by a probe that nothing is trained for: the class whose mean feature is nearest.
Means and answers never come from the same items.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reference_impls.contract import Redundancy, check_tensor
from reference_impls.contract.precision import widened


def settled(answers: Tensor) -> Tensor:
    """The earliest exit from which on every exit gives the last exit's answer.

    answers: (E, B) integers, the predicted class at each exit. Returns (B,) int64 in [0, E - 1].
    Raises: TypeError for answers that are not integers; ValueError for another shape, or without an exit or a sample.
    """
    answers = check_tensor("answers", answers, "E B", floating=False)
    if answers.is_floating_point() or answers.is_complex():
        raise TypeError(f"answers must hold integers, the class that each exit predicts, got {answers.dtype}")
    if 0 in answers.shape:
        raise ValueError(f"answers must hold at least one exit and one sample, got shape {tuple(answers.shape)}")
    agrees = answers == answers[-1]  # (E, B)
    return len(answers) - agrees.flip(0).long().cumprod(0).sum(0)


def sufficiency(answers: Tensor, macs: Sequence[int]) -> Redundancy:
    r"""Mean over samples of $\sum_{e > s} c_e / \sum_{e > 0} c_e$, where $s$ is the exit at which the answer settles.

    The first stage is left out of the denominator, because no exit comes before it: 1 means that the first exit already
    gives every final answer, 0 that every answer changes up to the last exit. `where` holds the share of samples whose
    answer has settled by each exit.

    answers: (E, B) integers, the predicted class at each exit. macs: cost $c_e$ of each of the E stages, in any unit.
    Raises: TypeError for answers that are not integers; ValueError for fewer than two exits, no sample, or costs that
        do not fit the exits.
    """
    exits = settled(answers)
    costs = torch.tensor([float(c) for c in macs], dtype=torch.float64)
    if len(answers) < 2 or len(costs) != len(answers):
        raise ValueError(f"sufficiency needs at least 2 exits and a cost for each, got {len(answers)} and {len(costs)}")
    if not bool((costs >= 0).all() & costs.isfinite().all()) or costs[1:].sum() <= 0:
        raise ValueError(f"costs must be finite, not negative, and not all 0 after the first, got {list(macs)}")
    after = costs.sum() - costs.cumsum(0)  # (E,) cost after each exit
    shares = after[exits.cpu()] / after[0]  # (B,)
    where = {f"exit {e + 1}": (exits <= e).double().mean().item() for e in range(len(answers))}
    measure = "share of the computation after the answer has settled"
    return Redundancy(min(shares.mean().item(), 1.0), measure, where)


def probe(features: Tensor, answers: Tensor, folds: int = 4) -> tuple[Tensor, Tensor]:
    """What the nearest class mean says of each item by its features, and how sure that is.

    features: (B, D); answers: (B,) integers, the classes of the means: the network's own final answers, so that no
    labels are needed. The items of each class go to the folds by turns; those of a fold are compared by cosine, after
    the mean feature is subtracted, with means over the other folds. Returns (B,) answers, -1 where no class is known,
    and (B,) the margin between the nearest and the second nearest mean, in [0, 2]; 2 where one class alone is known.

    Raises: TypeError, ValueError for shapes that do not fit, or fewer than two folds.
    """
    check_tensor("features", features, "B D")
    check_tensor("answers", answers, "B", floating=False)
    if len(features) != len(answers) or folds < 2:
        raise ValueError(
            f"a probe needs an answer for each item, and two folds: {len(features)}, {len(answers)}, {folds}"
        )
    x = widened(features)
    said, margin = torch.full((len(x),), -1, dtype=torch.long), torch.zeros(len(x))
    turn = [int((answers[:i] == answers[i]).sum()) for i in range(len(answers))]
    fold = torch.tensor(turn, dtype=torch.long) % folds
    for f in range(folds):
        mine, others = fold == f, fold != f
        classes = answers[others].unique()
        if not mine.any() or not len(classes):
            continue
        centre = x[others].mean(0)
        means = torch.stack([x[others & (answers == c)].mean(0) - centre for c in classes])
        here = torch.nn.functional.normalize(x[mine] - centre, dim=1)
        near = here @ torch.nn.functional.normalize(means, dim=1).T  # (m, K)
        best = near.topk(min(2, len(classes)), dim=1)
        said[mine] = classes[best.indices[:, 0]]
        margin[mine] = best.values[:, 0] - best.values[:, 1] if len(classes) > 1 else 2.0
    return said, margin
