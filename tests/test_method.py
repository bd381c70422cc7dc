"""The method's promises, on one character that no prior has seen, against ground truth.

Budgets are cut down to what shows the order of things; evaluation/suite.py measures the rest.
"""

from pathlib import Path

import animate124
import pytest
import torch
from animate124.evaluation import measures
from animate124.evaluation.truth import RING, TAU, Subject, front
from animate124.system.trained import load_scene
from animate124.toyworld.banks import HELD_OUT
from animate124.toyworld.subject import write_subject
from threestudio.launch import main, parser

ROOT = Path(animate124.__file__).parent
SUBJECT = Subject("fox", "jump", HELD_OUT + 2)
QUIET = ["trainer.limit_val_batches=0", "trainer.limit_test_batches=0", "trainer.devices=1"]
QUIET += ["trainer.accelerator=cpu", "trainer.enable_progress_bar=false"]
STEPS = {"stage1": 120, "stage2": 70, "stage3": 30}


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Trains a stage from another's trial; returns its trial folder."""
    out = tmp_path_factory.mktemp("method")
    picture = write_subject(out / "subject", SUBJECT.species, seed=SUBJECT.seed)["cut-out"]

    def run(stage, name, *overrides, start=None):
        prompt = SUBJECT.prompt if start else f"a toy {SUBJECT.species}"
        words = [f"exp_root_dir={out}", f"name={name}", f"data.image.image_path={picture}"]
        words += [f"system.prompt_processor.prompt={prompt}", *QUIET, *overrides]
        if start:
            words += [f"system.weights={start}/ckpts/last.ckpt"]
            words += [f"system.prompt_processor.negative_prompt=a {SUBJECT.species}"]
        if stage == "stage3":
            words.append(f"system.prompt_processor_cn.prompt={prompt}")
            words.append("system.prompt_processor_cn.negative_prompt=''")  # there is no token
        config = str(ROOT / "configs" / "toy" / f"{stage}.yaml")
        steps = f"trainer.max_steps={STEPS[stage]}"
        args = parser().parse_args(["--config", config, "--train"])
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(ROOT)  # the toy configs name the priors from here
            return Path(main(args, [*words, steps], "animate124"))

    return run


@pytest.fixture(scope="module")
def static(train):
    return train("stage1", "with")


@pytest.fixture(scope="module")
def moving(train, static):
    return train("stage2", "moving", start=static)


def scene(trial):
    return load_scene(trial / "configs" / "parsed.yaml", trial / "ckpts" / "last.ckpt")


def novel_view_psnr(trial):
    return measures.stills(SUBJECT, scene(trial))["novel_view_psnr"]


def clip(trial):
    return measures.pictures(scene(trial), front(len(TAU)), TAU)


def test_the_3d_prior_makes_the_sides_that_nobody_saw(train, static):
    blind = train("stage1", "without", "system.loss.lambda_3d_sd=0")
    assert novel_view_psnr(static) > novel_view_psnr(blind) + 1


def test_stage_1_stands_still_and_stage_2_moves_as_it_was_told(static, moving):
    assert measures.motion_energy(clip(static)) < 1e-4
    truth = SUBJECT.pictures(front(len(TAU)), TAU)
    seen = clip(moving)
    assert measures.motion_energy(seen) > 0.25 * measures.motion_energy(truth)
    assert measures.moves(SUBJECT, [scene(moving)])["motion_score"] > 0.5
    start = measures.pictures(scene(moving), RING, torch.zeros(len(RING)))
    still = measures.pictures(scene(static), RING, torch.zeros(len(RING)))
    assert measures.psnr(start, still) > 20  # at rest it is what it was


def test_stage_3_keeps_the_motion_and_the_identity(train, moving):
    refined, before = clip(train("stage3", "refined", start=moving)), clip(moving)
    assert measures.motion_energy(refined) > 0.9 * measures.motion_energy(before)
    poses = SUBJECT.poses()
    drift = measures.identity_distance(before, poses)
    assert measures.identity_distance(refined, poses) < 1.15 * drift
