"""What evaluation measures, against closed forms and ground truth."""

import json
import math
import runpy
import sys

import pytest
import torch
from animate124.evaluation import measures, motion_classifier, suite
from animate124.evaluation.truth import TAU, Subject, front
from animate124.toyworld.banks import HELD_OUT

SUBJECT = Subject("fox", "jump", HELD_OUT + 1)


@pytest.fixture(scope="module")
def truth():
    return SUBJECT.pictures(front(len(TAU)), TAU)


def test_psnr_of_a_known_error():
    black = torch.zeros(2, 4, 4, 3)
    assert measures.psnr(black + 0.1, black) == pytest.approx(20, abs=1e-4)


def test_motion_energy_and_jitter_of_a_sine():
    n = 64
    wave = torch.sin(2 * math.pi * torch.arange(n) / n)
    clip = 0.5 + 0.2 * wave[:, None, None, None].expand(n, 4, 4, 3)
    assert measures.motion_energy(clip) == pytest.approx(0.2 / math.sqrt(2), rel=1e-4)
    curvature = 2 - 2 * math.cos(2 * math.pi / n)  # of the second difference of a sine
    assert measures.jitter(clip) == pytest.approx(0.2 / math.sqrt(2) * curvature, rel=0.02)
    assert measures.motion_energy(clip[:1].expand(8, -1, -1, -1)) == 0


def test_truth_keeps_its_identity_in_any_motion_and_others_do_not(truth):
    poses = SUBJECT.poses()
    assert measures.identity_distance(truth, poses) < 1e-3
    other = Subject("robot", "jump", HELD_OUT + 1)
    strange = other.pictures(front(1), torch.zeros(1))
    one_strange_frame = torch.cat([truth[:4], strange])
    assert measures.identity_distance(one_strange_frame, poses) > 0.1


def test_the_classifier_names_true_motions_of_unseen_characters():
    model = motion_classifier.load(measures.CLASSIFIER)
    assert motion_classifier.accuracy(model, n=14) >= 0.9


def test_worn_clips_keep_their_frames_but_for_order_and_looks():
    clips = torch.rand(3, motion_classifier.FRAMES, 3, 32, 32)
    worn = motion_classifier.worn(clips, torch.Generator().manual_seed(0))
    assert worn.shape == clips.shape and worn.min() >= 0 and worn.max() <= 1
    still = clips[:, :1].expand_as(clips)
    moved = motion_classifier.worn(still, torch.Generator().manual_seed(0))
    grain = moved.std(dim=1).mean()
    assert grain < 0.1  # shuffling equal frames moves nothing


def test_training_learns_something_in_seconds(monkeypatch):
    monkeypatch.setattr(motion_classifier, "worn", lambda clips: clips)
    torch.manual_seed(0)
    model = motion_classifier.train(80, 14, batch=14)
    clips, labels = motion_classifier.true_clips(14, first_seed=0, seed=0)
    assert (model(clips).argmax(1) == labels).float().mean() > 0.7


def test_suite_characters_are_unseen_and_cover_all_species_and_five_motions():
    species, motions, seeds = zip(*suite.SUITE, strict=True)
    assert len(set(species)) == 8 and len(set(motions)) == 5 and len(set(seeds)) == 8
    assert min(seeds) >= HELD_OUT


def test_an_unknown_motion_is_named_with_those_that_exist(capsys):
    with pytest.raises(SystemExit):
        suite.main(["--motion", "fly"])
    assert "'walk'" in capsys.readouterr().err


def test_classifier_accuracy_on_held_out_truth_is_recorded():
    assert json.loads((measures.CLASSIFIER / "config.json").read_text())["accuracy"] > 0.95


def test_the_commands_old_name_works(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluate", "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("animate124.toyworld.evaluate", run_name="__main__")
    assert "--suite" in capsys.readouterr().out
