"""PIM-QAT: train through the converters of an in-memory array, so that their coarseness is learned to be lived with.

References:
  jin-2022-pim (arXiv 2209.08617): Jin, Chen, Ren, Li, Wang, Yang. PIM-QAT: Neural Network Quantization for
    Processing-In-Memory (PIM) Systems. 2022. The parts are named in the abstract; the method section was not available
    to us, so the form of the rescaling and the recipe are a reconstruction.

Four parts make the system: the array's forward pass (`pim_quantization`), rescaled gradients through it
(`pim_scale_rescaling`), batch norms estimated again on the real converter (`bn_calibration`), and training at another
precision than is used later, where the converter is noisy (`adjusted_precision_training`).

    with PIMQAT().apply(model, adc_bits=5):                 # weights squeezed by tanh, activations clipped to [0, 1]
        train(model, x, y, recipe, seed=0)                  # any training loop; parameters stay where they are
        recalibrate(model, x)                               # layers.norm, where the chip is not ideal
        logits = model(images)
"""

from __future__ import annotations

from typing import Any, ClassVar

from reference_impls.contract import Choice, Given, Setting, Technique
from reference_impls.layers.pim import Rescaling
from reference_impls.techniques.pim_quantization import PIMQuantization


class PIMQAT(PIMQuantization, Technique):
    """PIM quantisation set up to be trained through, with rescaled gradients."""

    id = "pim-qat"
    execution = "simulated"
    trains = True
    own_rescaling = Rescaling()
    knobs: ClassVar = {
        **PIMQuantization.knobs,
        "weights": Choice("tanh", options=("max", "tanh"), about="how weights become codes: `layers.quantised`"),
        "clip": Given(1.0, about="of activations: a number, {layer: Span}, or None for what holds the batch"),
    }

    def settings(self) -> list[Setting]:
        def of(scheme: str, **knobs: Any) -> Setting:
            return Setting(scheme, {"scheme": scheme, "group": 9, "adc_bits": 6, **knobs}, adaptive=True)

        off = Setting("digital", {"on_array": False}, off=True)
        return [off, of("bit-serial"), of("differential"), of("native")]
