"""A file of tensors is read as it was written, or not at all."""

import random

import pytest
import torch
from animate124.files.torch_files import (
    DIGEST,
    check_zip,
    digest,
    is_finite,
    not_finite,
    read_safetensors,
    read_torch_file,
)
from safetensors.torch import save_file

CONTENT = {"state_dict": {"a": torch.arange(300.0), "b": torch.ones(2, 3)}, "global_step": 7}


def same(one, other) -> bool:
    return all(torch.equal(one["state_dict"][k], v) for k, v in other["state_dict"].items())


def test_what_was_written_is_read(tmp_path):
    torch.save(CONTENT, tmp_path / "a.pt")
    assert same(read_torch_file(tmp_path / "a.pt"), CONTENT)
    torch.save(CONTENT, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert same(read_torch_file(tmp_path / "old.pt"), CONTENT)


def test_a_flipped_bit_is_found_wherever_it_changes_what_is_read(tmp_path):
    path = tmp_path / "a.pt"
    torch.save(CONTENT, path)
    whole = path.read_bytes()
    places = random.Random(0).sample(range(len(whole)), 400)
    refused = 0
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        try:
            found = read_torch_file(path)
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
        else:  # the zip's padding, or a date
            assert same(found, CONTENT) and found["global_step"] == 7
    assert refused > 200


def test_a_flipped_bit_of_a_weight_is_refused_where_torch_reads_it(tmp_path):
    path = tmp_path / "a.pt"
    torch.save(CONTENT, path)
    whole = bytearray(path.read_bytes())
    whole[whole.index(CONTENT["state_dict"]["a"].numpy().tobytes()) + 403] ^= 64
    path.write_bytes(whole)
    assert not same(torch.load(path, weights_only=True), CONTENT)
    with pytest.raises(ValueError, match="damaged or cut off"):
        check_zip(path)


def test_a_file_written_without_checksums_is_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(CONTENT, tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert same(read_torch_file(tmp_path / "a.pt"), CONTENT)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", bytes(999)])
def test_something_else_is_refused_by_name(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.pt"):
        read_torch_file(tmp_path / "a.pt")


def test_what_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_torch_file(tmp_path / "a.pt")


def test_safetensors_are_read_as_written_or_refused_by_name(tmp_path):
    path, content = tmp_path / "a.safetensors", {"a": torch.arange(300.0).reshape(3, 100)}
    save_file(content, path)
    assert torch.equal(read_safetensors(path)["a"], content["a"])
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    spoilt = [whole[:-1], whole[: header // 2], b"", b"hello", bytes(99)]
    for place in range(header):  # every flipped bit of the header that another reading comes from
        spoilt += [
            whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :] for bit in (1, 64)
        ]
    refused = 0
    for data in spoilt:
        path.write_bytes(data)
        try:
            read_safetensors(path)
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 0.8 * len(spoilt)  # the rest are names, blanks, another shape of that size
    with pytest.raises(FileNotFoundError):
        read_safetensors(tmp_path / "b.safetensors")


def test_a_digest_in_the_metadata_tells_a_flipped_bit(tmp_path):
    path, content = (
        tmp_path / "a.safetensors",
        {"a": torch.arange(300.0), "b": torch.ones(2).half()},
    )
    save_file(content, path, {DIGEST: digest(content)})
    assert read_safetensors(path).keys() == content.keys()
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for place in range(header, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="its digest is another"):
            read_safetensors(path)


def test_digests_differ_where_anything_does():
    a = torch.arange(4.0)
    cases = [{"a": a}, {"b": a}, {"a": a[:3]}, {"a": a.reshape(2, 2)}, {"a": a.half()}, {"a": -a}]
    cases = [(case, ()) for case in cases] + [({"a": a}, texts) for texts in (("x",), ("x", ""))]
    found = [digest(tensors, *texts) for tensors, texts in cases]
    assert len(set(found)) == len(found)
    assert digest({"a": a.clone(), "b": a}) == digest({"b": a, "a": a})


@pytest.mark.parametrize("read", [read_torch_file, read_safetensors])
def test_a_git_lfs_pointer_is_called_one(tmp_path, read):
    path = tmp_path / "a.bin"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 3819\n")
    with pytest.raises(ValueError, match=r"a\.bin' is a Git LFS pointer.*git lfs pull"):
        read(path)


def test_torchs_advice_to_run_a_files_code_is_not_passed_on(tmp_path):
    torch.save({"a": pytest.Item}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="Python objects") as error:
        read_torch_file(tmp_path / "a.pt")
    assert "weights_only" not in str(error.value)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e5m2]
)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_value_that_is_no_number_is_seen(dtype, value):
    tensors = {"ids": torch.arange(3), "none": torch.zeros(0), "good": torch.ones(4, 5).to(dtype)}
    assert all(is_finite(tensor) for tensor in tensors.values())
    bad = torch.ones(4, 5)
    bad[3, 2] = value
    assert not_finite({**tensors, "bad": bad.to(dtype)}) == ["bad"]
