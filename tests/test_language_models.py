"""SmolLM2 and the file that its weights lie in."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from reference_impls.accounting.count import count
from reference_impls.models import gguf
from reference_impls.models.smollm2 import SmolLM2, from_gguf, load_smollm2

SMALL: dict[str, Any] = {
    "vocabulary": 96, "dim": 32, "depth": 2, "heads": 4, "shared": 2, "hidden": 64, "base": 10_000.0,
}  # fmt: skip


def small() -> SmolLM2:
    torch.manual_seed(0)
    return SmolLM2(**SMALL).eval()


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def written(file: Path, fields: bytes, count: int, tensors: dict[str, tuple[list[int], int, bytes]]) -> Path:
    """A GGUF file; tensors: name -> shape, innermost axis last, type, and bytes."""
    head, data = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), count) + fields, b""
    for name, (shape, kind, raw) in tensors.items():
        axes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        head += text(name) + axes + struct.pack("<IQ", kind, len(data))
        data += raw + b"\0" * (-len(raw) % 32)
    file.write_bytes(head + b"\0" * (-len(head) % 32) + data)
    return file


def test_fields_and_tensors_come_back_from_a_file(tmp_path: Path) -> None:
    exact = np.arange(6, dtype=np.float32)
    eight = np.random.default_rng(0).integers(-127, 128, (2, 32)).astype(np.int8)
    four = np.random.default_rng(1).integers(0, 16, (3, 32)).astype(np.uint8)
    scale, least = np.float16(0.5), np.float16(-3)
    packed = four[:, :16] | four[:, 16:] << 4
    tensors = {
        "a": ([2, 3], gguf.F32, exact.tobytes()),
        "b": ([2, 32], gguf.Q8_0, b"".join(scale.tobytes() + row.tobytes() for row in eight)),
        "c": ([96], gguf.Q4_1, b"".join(scale.tobytes() + least.tobytes() + row.tobytes() for row in packed)),
        "d": ([2], gguf.F16, np.array([1.5, -2], np.float16).tobytes()),
    }
    fields = text("name") + struct.pack("<I", gguf.STRING) + text("é")
    fields += text("merges") + struct.pack("<IIQ", gguf.ARRAY, 4, 2) + struct.pack("<II", 7, 8)
    found = gguf.read(written(tmp_path / "x.gguf", fields, 2, tensors))
    assert found.fields == {"name": "é", "merges": [7, 8]}
    assert found.tensors["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert torch.equal(found.tensors["b"], torch.from_numpy(eight * np.float32(0.5)))
    assert torch.equal(found.tensors["c"], torch.from_numpy(four * np.float32(0.5) - 3).flatten())
    assert found.tensors["d"].tolist() == [1.5, -2]


def test_damaged_files_are_told(tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(b"PK\3\4")
    with pytest.raises(ValueError, match="no GGUF file"):
        gguf.read(file)
    file.write_bytes(b"GGUF" + struct.pack("<I", 1))
    with pytest.raises(ValueError, match="version 1"):
        gguf.read(file)
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 0))
    with pytest.raises(ValueError, match="is damaged"):
        gguf.read(file)
    with pytest.raises(ValueError, match="does not lie in the file"):
        gguf.read(written(file, b"", 0, {"a": ([100], gguf.F32, b"")}))
    with pytest.raises(ValueError, match="of type 99"):
        gguf.read(written(file, b"", 0, {"a": ([1], 99, b"\0" * 4)}))


@torch.no_grad()
def test_no_token_sees_those_after_it_and_macs_are_the_closed_form() -> None:
    model, ids = small(), torch.arange(20).view(2, 10)
    with count() as tally:
        whole = model(ids)
    torch.testing.assert_close(model(ids[:, :6]), whole[:, :6])
    projections = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64
    assert tally.macs == 20 * (2 * (projections + 2 * 10 * 32) + 32 * 96)


@torch.no_grad()
def test_it_is_the_llama_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, tie_word_embeddings=True, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(config).eval()
    names = {
        "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    state = theirs.state_dict()
    given = {"token_embd.weight": state["model.embed_tokens.weight"], "output_norm.weight": state["model.norm.weight"]}
    for i in range(2):
        for name, ours in names.items():
            value = state[f"model.layers.{i}.{name}.weight"]
            given[f"blk.{i}.{ours}.weight"] = side_by_side(value) if ours in ("attn_q", "attn_k") else value
    model = small()
    model.load_state_dict(from_gguf(given))
    ids = torch.randint(0, 96, (2, 9), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(ids), theirs(ids).logits, atol=2e-5, rtol=1e-4)


def side_by_side(weight: Tensor, width: int = 8) -> Tensor:
    """Rows of queries or keys whose rotated pairs lie half a head apart -> as GGUF keeps them, side by side."""
    return weight.view(-1, 2, width // 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


@torch.no_grad()
def test_the_pretrained_model_knows_a_capital(asset: Any) -> None:
    asset("smollm2-135m")
    model, tokenizer = load_smollm2()
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    ids = tokenizer.encode("The capital of France is").ids
    assert tokenizer.decode(ids) == "The capital of France is"
    assert tokenizer.decode([int(model(torch.tensor([ids]))[0, -1].argmax())]) == " Paris"
