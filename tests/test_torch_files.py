"""A file of tensors is read as it was written, or not at all."""

import random

import pytest
import torch
from animate124.files.torch_files import check_zip, read_torch_file

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
