"""NaN and infinity are found wherever a tensor can hold them, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from llmopt.errors import RequestError
from llmopt.formats import values
from llmopt.formats.safetensors import TORCH_DTYPES
from llmopt.formats.safetensors_header import read_file_headers
from llmopt.formats.tensor_header import DTYPE_BYTES, Headers, TensorHeader
from llmopt.formats.values import check_values
from llmopt.grids import ggml
from llmopt.specs.ggml import GGML_TYPES

FLOATS = ["F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2", "F8_E8M0"]


def headers(folder: Path, **tensors: torch.Tensor) -> Headers:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    return Headers(folder, {}, read_file_headers(folder / "model.safetensors"))


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_bit_pattern_of_a_float_is_judged_as_torch_does(tmp_path: Path, dtype: str) -> None:
    width = DTYPE_BYTES[dtype]
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 256, (1 << 14, width), dtype=np.uint8)
    patterns[: 1 << 13, -1] |= 0x7F  # many of the exponent's bits
    tensor = torch.from_numpy(patterns.reshape(-1)).view(TORCH_DTYPES[dtype])
    fine = torch.isfinite(tensor.to(torch.float64))
    check_values(headers(tmp_path / "fine", w=tensor[fine].clone()))
    whole = headers(tmp_path / "all", w=tensor)
    bad = int((~fine).sum())
    assert bad
    first = int((~fine).nonzero()[0])
    with pytest.raises(
        RequestError, match=rf"{bad:,} of its 16,384 values, the first at \[{first}\]"
    ):
        check_values(whole)


@pytest.mark.parametrize("type_id", [spec.id for spec in GGML_TYPES.values() if spec.block > 1])
def test_blocks_are_judged_by_what_they_decode_to(tmp_path: Path, type_id: str) -> None:
    spec = GGML_TYPES[type_id]
    raw = np.random.default_rng(1).integers(0, 256, (4096, spec.nbytes), dtype=np.uint8)
    decoded = ggml.decode(type_id, torch.from_numpy(raw))
    fine = decoded.isfinite().all(1).numpy()
    header = TensorHeader("w", type_id, (int(fine.sum()), spec.block), tmp_path / "raw", 0, 0)
    (tmp_path / "raw").write_bytes(raw[fine].tobytes())
    good = TensorHeader(**{**vars(header), "end": int(fine.sum()) * spec.nbytes})
    check_values(Headers(tmp_path, {}, {"w": good}))
    if fine.all():
        assert type_id == "NVFP4"  # the only one whose every byte is a number
        return
    (tmp_path / "raw").write_bytes(raw.tobytes())
    whole = TensorHeader(**{**vars(header), "end": raw.nbytes})
    with pytest.raises(RequestError) as error:
        check_values(Headers(tmp_path, {}, {"w": whole}))
    # a float that is too large for any weight may be taken for infinite, never the other way round
    count = int(str(error.value).split("values: ")[1].split(" of its")[0].replace(",", ""))
    assert count == int((~fine).sum())


def test_a_value_behind_many_pieces_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(values, "_PIECE", 96)
    weight = torch.ones(50, 7)
    weight[41, 3] = -torch.inf
    weight[49, 6] = torch.nan
    with pytest.raises(
        RequestError, match=r"tensor w .* 2 of its 350 values, the first at \[41, 3"
    ):
        check_values(headers(tmp_path, a=torch.ones(3), w=weight))


def test_what_is_no_float_and_what_masks_attention_passes(tmp_path: Path) -> None:
    check_values(
        headers(
            tmp_path,
            codes=torch.full((4,), 255, dtype=torch.uint8),
            ids=torch.tensor([-1]),
            empty=torch.ones(0, 4),
            **{"layers.0.attention.masked_bias": torch.tensor(-torch.inf).half()},
        )
    )
