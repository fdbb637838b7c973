"""PIM-QAT beyond the checks: training goes through the converter, and what it is for."""

from __future__ import annotations

from dataclasses import replace

import torch

from reference_impls.benchmarks.low_precision import COARSE, DIGITS, deployed, images_of, trained
from reference_impls.layers.pim import Rescaling
from reference_impls.study import train, training
from reference_impls.techniques.pim_qat import PIMQAT
from tests.pim_cases import network
from tests.techniques.test_pim_quantization import PIMQuantizationCases


class PIMQATCases(PIMQuantizationCases):
    """Those of PIM quantisation."""

    technique = PIMQAT()


CASES = PIMQATCases()


def test_training_moves_every_layer_and_undo_leaves_a_plain_model() -> None:
    case = network("typical", 0, "cpu")
    model = case.target.requires_grad_(True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with PIMQAT().apply(model, adc_bits=4, group=18) as handle:
        train(model, case.inputs, torch.tensor([0, 1, 2]), training.Recipe(2, 1e-2), seed=0)
        model(case.inputs)
        xi = handle.trace["layers"]["2"].xi
    assert xi is not None
    assert xi > 0
    assert all(not torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert type(model[2]) is torch.nn.Conv2d


def test_training_through_the_converter_helps_where_it_is_coarse() -> None:
    """The smoke run's networks: 3 epochs of one seed already tell them apart."""
    plan = DIGITS[1]
    parts = images_of(plan, 0)
    array = replace(COARSE, adc_bits=5)
    conventional = trained(plan, parts.train, 0)
    ours = trained(plan, parts.train, 0, array, Rescaling())
    digital = deployed(conventional, COARSE).accuracy(parts.test)
    as_it_is, through = (deployed(model, array).accuracy(parts.test) for model in (conventional, ours))
    assert digital > 0.85
    assert as_it_is < digital - 0.3
    assert through > as_it_is + 0.2
    assert deployed(conventional, replace(array, adc_bits=12)).accuracy(parts.test) > digital - 0.03
