"""Where bfloat16 is worth its name."""

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch

from merc.models.precision import multiplies_bfloat16


@pytest.mark.parametrize("there", [False, True])
def test_a_gpu_is_asked_for_itself_and_not_for_what_it_imitates(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    asked: list[torch.device] = []

    def choose(device: torch.device) -> AbstractContextManager[None]:
        asked.append(device)
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "device", choose)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or there)
    assert multiplies_bfloat16(torch.device("cuda:1")) is there
    assert asked == [torch.device("cuda:1")]


def test_a_cpu_has_what_onednn_has(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert multiplies_bfloat16(cpu) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not multiplies_bfloat16(cpu)
