"""Machine code that is kept: made once, and anew where anything differs or a file isn't whole."""

import inspect
import multiprocessing

import pytest
import torch
from animate124.guidance import channels_cuda
from animate124.guidance.frozen_unet import differentiable
from animate124.kernels import cuda_program, kept_code
from animate124.toyworld import random_priors
from diffusers import UNet2DConditionModel
from torch import nn


@pytest.fixture
def caches(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return tmp_path / "caches" / "threestudio-animate124" / "kernels"


def get(*made_of, code=b"code"):
    """The code, and whether it was made now."""
    made = []
    found = kept_code.kept_code(made_of, lambda: made.append(1) or code)
    return found, bool(made)


def test_code_is_made_once(caches):
    assert get(b"source", b"sm_90") == (b"code", True)
    assert get(b"source", b"sm_90", code=b"other") == (b"code", False)
    assert get(b"source", b"sm_80", code=b"other") == (b"other", True)
    assert get(b"sources", b"m_90") == (b"code", True)  # no two lists are one
    assert len(list(caches.iterdir())) == 3


@pytest.mark.parametrize("damage", [b"", b"code", lambda held: held[:-1], lambda held: held + b"0"])
def test_a_damaged_file_is_made_anew(caches, damage):
    get(b"source")
    (file,) = caches.iterdir()
    file.write_bytes(damage(file.read_bytes()) if callable(damage) else damage)
    assert get(b"source") == (b"code", True)
    assert get(b"source") == (b"code", False)
    assert [*caches.iterdir()] == [file]


def test_what_fails_is_not_kept(caches):
    def fail():
        raise RuntimeError("NVRTC")

    with pytest.raises(RuntimeError, match="NVRTC"):
        kept_code.kept_code([b"source"], fail)
    assert get(b"source") == (b"code", True)


def test_a_folder_that_cannot_be_written_is_told_of(caches):
    caches.parent.parent.mkdir()
    caches.parent.write_text("a file")
    with pytest.warns(UserWarning, match=r"can't be kept in .*XDG_CACHE_HOME"):
        assert get(b"source") == (b"code", True)


def write(number):
    kept_code.write(kept_code.folder() / "one.cubin", bytes([number]) * 10**6)


def test_many_processes_write_one_file_whole(caches):
    with multiprocessing.get_context("fork").Pool(4) as pool:
        pool.map(write, range(8))
    held = kept_code.read(caches / "one.cubin")
    assert held is not None
    assert len(set(held)) == 1
    assert len(list(caches.iterdir())) == 1


def test_sources_are_compiled_once_for_all_processes(caches, monkeypatch):
    pytest.importorskip("cuda.bindings.nvrtc", reason="needs cuda-bindings")
    asked = 'extern "C" __global__ void nothing(int) {}', "sm_90", None
    code = cuda_program.code_now(*asked)
    assert code.startswith(b"\x7fELF")
    monkeypatch.setattr(cuda_program, "compile_source", lambda *_: b"")
    assert cuda_program.code_now(*asked) == code


def test_a_change_in_what_a_source_includes_is_another_source(caches, tmp_path):
    pytest.importorskip("cuda.bindings.nvrtc", reason="needs cuda-bindings")
    header = tmp_path / "size.cuh"
    codes = []
    for size in (1, 2):
        header.write_text(f"#define SIZE {size}\n")
        text = '#include "size.cuh"\nextern "C" __global__ void f(int* x) { *x = SIZE; }'
        codes.append(cuda_program.code_now(text, "sm_90", tmp_path))
    assert codes[0] != codes[1]


def test_a_network_compiles_what_its_layers_ask_for(monkeypatch):
    """No less, and no more, which would keep processors busy for nobody."""
    config = random_priors.UNET_2D | {"block_out_channels": [16, 32], "norm_num_groups": 4}
    network, asked = UNet2DConditionModel(**config).requires_grad_(False), set()
    ahead = {
        sizes for sizes in channels_cuda.sizes_of(network) if sizes[0] % channels_cuda.WIDE == 0
    }

    def fits(x, channels, groups=1):
        if channels % channels_cuda.WIDE == 0:
            asked.add((channels, groups if groups > 1 else 0))
        return False

    differentiable(network)
    monkeypatch.setattr(channels_cuda, "fits", fits)
    text = torch.randn(1, 3, random_priors.WIDTH, requires_grad=True)
    network(torch.randn(1, 4, 8, 8), torch.tensor([3]), text)
    assert ahead == asked
    assert {groups for _, groups in ahead} == {0, 4}


def test_what_is_compiled_ahead_are_the_programs_sources(monkeypatch):
    ahead, later = [], []
    monkeypatch.setattr(channels_cuda, "fits", lambda *_: True)
    monkeypatch.setattr(channels_cuda, "code_of", lambda source, _: ahead.append(source))
    monkeypatch.setattr(channels_cuda, "architecture_of", lambda _: "sm_90")
    monkeypatch.setattr(channels_cuda, "Program", lambda source, _: later.append(source))
    channels_cuda.compile_ahead(nn.Sequential(nn.GroupNorm(4, 24), nn.LayerNorm(16)))
    for channels, groups in ((16, 0), (24, 4)):
        inspect.unwrap(channels_cuda.program)(channels, groups, torch.device("cuda", 0))
    assert ahead == later
