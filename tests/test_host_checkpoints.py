"""Checkpoints are read safely, and written whole or not at all."""

import os
import pickle

import pytest
import torch
from omegaconf import OmegaConf
from threestudio.utils import checkpoints
from threestudio.utils.checkpoints import AtomicCheckpointIO, read_checkpoint
from threestudio.utils.misc import load_module_weights

STATE = {
    "geometry.weight": torch.arange(3.0),
    "geometry.net.bias": torch.zeros(1),
    "geometry2.weight": torch.ones(2),
    "background.color": torch.ones(3),
}


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": STATE, "epoch": 1, "global_step": 7}, path)
    return path


def test_weights_come_with_epoch_and_step(checkpoint):
    state, epoch, step = load_module_weights(checkpoint, map_location="cpu")
    assert (epoch, step) == (1, 7)
    torch.testing.assert_close(state, STATE)


def test_a_module_is_cut_out_by_its_whole_name(checkpoint):
    state, _, _ = load_module_weights(checkpoint, module_name="geometry")
    assert set(state) == {"weight", "net.bias"}
    state, _, _ = load_module_weights(checkpoint, ignore_modules=["geometry"])
    assert set(state) == {"geometry2.weight", "background.color"}
    with pytest.raises(ValueError, match=r"no module 'geo'.*background, geometry, geometry2"):
        load_module_weights(checkpoint, module_name="geo")
    with pytest.raises(ValueError, match="holds weights, but not the state of a training"):
        read_checkpoint(checkpoint, weights=False)
    with pytest.raises(ValueError, match="not both"):
        load_module_weights(checkpoint, module_name="a", ignore_modules=["b"])


def test_a_missing_checkpoint_says_which_there_are(checkpoint):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*first\.ckpt.* has last\.ckpt"):
        read_checkpoint(checkpoint.with_name("first.ckpt"))
    with pytest.raises(FileNotFoundError, match="has no checkpoint"):
        read_checkpoint(checkpoint.parent / "nowhere" / "last.ckpt")


def flipped(whole: bytes, inside: bytes) -> bytes:
    """A bit of the first of these bytes turned over."""
    at = whole.index(inside)
    return whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "zeros", "bit of a weight"])
def test_a_damaged_checkpoint_says_so(checkpoint, damage):
    whole = checkpoint.read_bytes()
    parts = {"cut": whole[: len(whole) // 2], "empty": b"", "text": b"hello", "zeros": bytes(999)}
    parts["bit of a weight"] = flipped(whole, STATE["geometry.weight"].numpy().tobytes())
    checkpoint.write_bytes(parts[damage])
    with pytest.raises(ValueError, match=r"last\.ckpt.*cannot be read.*damaged"):
        read_checkpoint(checkpoint)


def test_a_git_lfs_pointer_is_called_one(checkpoint):
    checkpoint.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ValueError, match=r"last\.ckpt' is a Git LFS pointer.*git lfs pull"):
        read_checkpoint(checkpoint)


@pytest.mark.parametrize("content", [{"unet": torch.ones(1)}, [1, 2], {"state_dict": 3}])
def test_a_file_without_state_dict_says_so(checkpoint, content):
    torch.save(content, checkpoint)
    with pytest.raises(ValueError, match="no `state_dict`"):
        read_checkpoint(checkpoint)


class Bomb:
    """Runs code when it is unpickled the usual way."""

    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("foreign", ["config", "bomb"])
def test_foreign_objects_are_left_out_and_never_run(checkpoint, foreign, tmp_path, monkeypatch):
    # the real threestudio's optimizer settings hold OmegaConf lists, which hold the whole config
    monkeypatch.chdir(tmp_path)
    settings = OmegaConf.create({"optimizer": {"betas": [0.9, 0.99]}}).optimizer.betas
    extra = settings if foreign == "config" else Bomb()
    content = {"state_dict": STATE, "global_step": 7, "optimizer_states": [{"betas": extra}]}
    torch.save(content, checkpoint)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(checkpoint, weights_only=True)
    torch.testing.assert_close(dict(read_checkpoint(checkpoint)["state_dict"]), STATE)
    assert load_module_weights(checkpoint)[2] == 7
    assert not (tmp_path / "exploded").exists()
    with pytest.raises(ValueError, match=r"system\.weights=.*in place of resume="):
        read_checkpoint(checkpoint, weights=False)


def test_saving_that_is_cut_off_leaves_the_old_checkpoint_whole(tmp_path, monkeypatch):
    path, io = tmp_path / "ckpts" / "last.ckpt", AtomicCheckpointIO()
    state = {"state_dict": STATE, "optimizer_states": [], "loops": {}, checkpoints.VERSION: "2"}
    io.save_checkpoint({**state, "global_step": 1}, path)

    def cut_off(checkpoint, file):
        file.write(b"half a checkpoint")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(checkpoints.torch, "save", cut_off)
        io.save_checkpoint({**state, "global_step": 2}, path)
    assert io.load_checkpoint(path)["global_step"] == 1
    io.save_checkpoint({**state, "global_step": 3}, path)
    assert io.load_checkpoint(path, weights_only=None)["global_step"] == 3
    assert os.listdir(path.parent) == ["last.ckpt"]  # the remains were used up


def test_what_was_looked_at_first_waits_for_whoever_loads_it_next(checkpoint):
    io = AtomicCheckpointIO(to_train=False)
    io.read(checkpoint)
    other = checkpoint.with_name("other.ckpt")
    torch.save({"state_dict": {}}, other)
    assert io.load_checkpoint(other)["state_dict"] == {}
    io.read(checkpoint)
    checkpoint.unlink()
    torch.testing.assert_close(dict(io.load_checkpoint(checkpoint)["state_dict"]), STATE)
    with pytest.raises(FileNotFoundError):
        io.load_checkpoint(checkpoint)
