"""The network that tells individuals apart, against the laws of its loss and of its batches."""

import json
import math

import pytest
import torch
from animate124.evaluation import identity, wear
from animate124.toyworld.banks import HELD_OUT
from animate124.toyworld.characters import SPECIES

N_KINDS = len(SPECIES)


@pytest.fixture(scope="module")
def few():
    """Two individuals of each species."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identity, "MOTIONS_EACH", 1)
        return identity.individuals(2 * N_KINDS, first_seed=0, n_seeds=100, seed=0, device="cpu")


def test_an_individuals_first_picture_is_the_given_one_and_its_others_are_not(few):
    images, kinds = few
    assert kinds.tolist() == [*range(N_KINDS)] * 2
    mirrored = images[:, 0].float() - images[:, 0].float().flip(-1)  # at rest it faces the camera
    assert mirrored.abs().mean() < 6  # but for the lamp, which stands on its left
    assert (images[:, :1] != images[:, 1:]).flatten(2).any(dim=2).all()
    assert (images[..., 0, 0] == 255).all()  # on white


def test_half_of_a_batchs_rivals_are_of_the_same_species(few, monkeypatch):
    images, _ = few
    for name in ("worn", "ruined"):
        monkeypatch.setattr(identity, name, lambda pictures: pictures)
    torch.manual_seed(0)
    one, two, ruins = identity.pairs(images, batch=4)
    given = images[:, 0].float() / 255
    every = images.flatten(0, 1).float().flatten(1) / 255
    owners = [torch.cdist(x.flatten(1), every).argmin(dim=1) // images.shape[1] for x in (one, two)]
    assert torch.equal(*owners) and len(set(owners[0].tolist())) == 4
    assert len({int(owner) % N_KINDS for owner in owners[0]}) == 2
    torch.testing.assert_close(one[::2], given[owners[0][::2]])
    assert (one != two).flatten(1).any(dim=1).all() and torch.equal(two, ruins)


def test_the_loss_is_the_entropy_of_a_guess_where_all_look_alike_and_falls_as_they_part():
    alike = torch.ones(8, 4) / 2
    assert identity.info_nce(alike, alike, alike) == pytest.approx(math.log(9), rel=1e-5)
    apart = torch.eye(9)[:8]
    ruins = torch.eye(9)[8:].expand(8, -1)
    right = math.log(1 + 8 * math.exp(-1 / identity.TEMPERATURE))
    assert identity.info_nce(apart, apart, ruins) == pytest.approx(right, rel=1e-3)
    assert identity.info_nce(apart, apart.roll(1, 0), ruins) > 9
    assert identity.info_nce(apart, apart, apart) == pytest.approx(math.log(2), rel=1e-3)


@pytest.fixture
def squares():
    """A coloured square each, on white."""
    torch.manual_seed(0)
    pictures = torch.ones(12, 3, 64, 64)
    pictures[:, :, 16:48, 16:48] = torch.rand(12, 3, 1, 1)
    return pictures


@pytest.mark.parametrize("way", [wear.worn, wear.ruined])
def test_worn_and_ruined_pictures_stay_on_white(way, squares):
    found = way(squares)
    assert found.shape == squares.shape and found.min() >= -1e-6 and found.max() <= 1 + 1e-6
    assert found[:, :, :4, :4].mean() > 0.95


def test_ruins_are_further_from_the_truth_than_what_is_worn(few):
    whole = few[0].flatten(0, 1).float() / 255
    worn, ruined = ((way(whole) - whole).square().mean() for way in (wear.worn, wear.ruined))
    assert ruined > 3 * worn > 0


def test_a_shift_takes_pixels_from_beside(squares):
    shift = torch.zeros(12, 2, 64, 64)
    shift[:, 0] = 3  # x
    moved = wear.resampled(squares, shift)
    torch.testing.assert_close(moved[..., :-3], squares[..., 3:], atol=1e-5, rtol=0)
    assert wear.warped(squares, torch.zeros(12, 1, 1, 1)).allclose(squares, atol=1e-5)


def test_embeddings_have_length_one_and_fit_in_a_megabyte():
    torch.manual_seed(0)
    model = identity.IdentityNetwork()
    lengths = model(torch.rand(3, 3, identity.SIZE, identity.SIZE)).norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(3))
    assert 2 * sum(p.numel() for p in model.parameters()) <= 1e6


def test_training_writes_what_loads_again_and_chance_is_chance(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "RIVALS", 2)
    monkeypatch.setattr(identity, "MOTIONS_EACH", 1)
    small = ["--steps", "2", "--individuals", "16", "--batch", "4", "--unseen", "16"]
    identity.main(["--out", str(tmp_path), *small])
    found = json.loads((tmp_path / "config.json").read_text())
    assert found["unseen"] == 16 and 0.2 < found["area_under_curve"] <= 1
    model = identity.load(tmp_path)
    torch.testing.assert_close(model.name.bias, model.name.bias.half().float())


def test_who_is_known_by_heart_is_always_found(monkeypatch):
    """A network that reads the individual's number off its pictures; ruined, there is none."""

    class Knowing(identity.IdentityNetwork):
        def forward(self, pictures):
            return torch.eye(256)[(255 * pictures[:, 0, 0, 0]).round().long()]

    def numbered(n, **asked):
        assert asked["first_seed"] == HELD_OUT
        numbers = torch.arange(n)
        pictures = numbers.to(torch.uint8).reshape(n, 1, 1, 1, 1).expand(n, 3, 3, 64, 64)
        return pictures, numbers % N_KINDS

    monkeypatch.setattr(identity, "individuals", numbered)
    monkeypatch.setattr(identity, "ruined", lambda pictures: torch.ones_like(pictures))
    found = identity.accuracy(Knowing(), N_KINDS * identity.RIVALS)
    assert found.pop(f"found_among_{identity.RIVALS}") == 1
    assert set(found.values()) == {1.0}
