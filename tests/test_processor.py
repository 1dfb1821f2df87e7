"""What is fast where, by what the CPU has and the environment allows."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from llmopt import processor


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in processor._KERNEL_CHOICES:
        monkeypatch.delenv(name, raising=False)


def fake(monkeypatch: pytest.MonkeyPatch, *, capability: str, vnni: bool, amx: bool) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: vnni)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)


@pytest.mark.parametrize(
    ("capability", "vnni", "amx", "bfloat16", "int8"),
    [
        ("DEFAULT", False, False, False, False),
        ("AVX2", False, False, False, False),
        ("AVX512", False, False, False, False),
        ("AVX512", True, False, False, True),
        ("AVX512", True, True, True, True),
        ("AVX2", True, True, False, True),  # ATEN_CPU_CAPABILITY=avx2 on a CPU with AMX
    ],
)
def test_what_the_cpu_has_decides(
    capability: str, vnni: bool, amx: bool, bfloat16: bool, int8: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    fake(monkeypatch, capability=capability, vnni=vnni, amx=amx)
    assert (processor.fast_bfloat16(), processor.fast_int8()) == (bfloat16, int8)


@pytest.mark.parametrize(
    ("limit", "bfloat16", "int8"),
    [
        ("AVX2", False, False),
        ("avx2", False, False),
        ("AVX512_CORE", False, False),
        ("AVX512_CORE_VNNI", False, True),
        ("AVX512_CORE_BF16", False, True),
        ("AVX512_CORE_AMX", True, True),
        ("AVX10_1_512_AMX_FP16", True, True),
        ("ALL", True, True),
        ("DEFAULT", True, True),
        ("", True, True),
    ],
)
@pytest.mark.parametrize("name", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
def test_what_onednn_may_not_use_is_not_there(
    name: str, limit: str, bfloat16: bool, int8: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch, capability="AVX512", vnni=True, amx=True)
    monkeypatch.setenv(name, limit)
    assert (processor.fast_bfloat16(), processor.fast_int8()) == (bfloat16, int8)


def test_another_cpu_or_other_kernels_have_another_identity(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usual = processor.identity()
    assert processor.identity() == usual
    for name in processor._KERNEL_CHOICES:
        with monkeypatch.context() as patch:
            patch.setenv(name, "AVX2")
            assert processor.identity() != usual
    with monkeypatch.context() as patch:
        patch.setattr(processor, "_kind", lambda: "another one")
        assert processor.identity() != usual
    assert all(usual.values())


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with processor.computing_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    with processor.computing_threads(None):
        assert torch.get_num_threads() == before
    assert torch.get_num_threads() == before


def test_parts_are_computed_side_by_side_by_a_thread_each() -> None:
    together = threading.Barrier(2, timeout=20)

    def work(part: int) -> tuple[int, int]:
        together.wait()
        return part, torch.get_num_threads()

    with processor.computing_threads(2):
        assert processor.side_by_side(work, range(6)) == [(part, 1) for part in range(6)]
        assert torch.get_num_threads() == 2
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [torch.get_num_threads()]


def test_an_error_in_a_part_is_raised_and_ends_the_others() -> None:
    seen: list[int] = []

    def work(part: int) -> None:
        seen.append(part)
        if part == 1:
            raise ValueError("part 1")
        time.sleep(0.01)

    with processor.computing_threads(2), pytest.raises(ValueError, match="part 1"):
        processor.side_by_side(work, range(1000))
    assert len(seen) < 1000
