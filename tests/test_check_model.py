"""`animate124 check-model`: whether formulas and weights fit together."""

import json
import re
import shutil
from pathlib import Path

import animate124
import pytest
import threestudio
from animate124.evaluation import check_model
from animate124.toyworld.random_priors import make_random_priors

TOYS = Path(animate124.__file__).parent / "load" / "toy-priors"
SHARE = re.compile(r"noise at (\S+) of the way: (-?\d+)% of it explained")


def shares(capsys):
    return {float(level): int(share) for level, share in SHARE.findall(capsys.readouterr().out)}


@pytest.mark.parametrize("name", ["sd", "zero123", "text-to-video"])
def test_the_toy_priors_fit(name, capsys):
    assert check_model.main([str(TOYS / name), "--size", "64", "--frames", "4"]) == 0
    found = shares(capsys)
    assert set(found) == {0.25, 0.5, 0.75} and min(found.values()) > 70


def test_the_toy_prior_of_rectified_flow_fits(capsys):
    model = str(TOYS / "image-to-video-flow")
    assert check_model.main([model, "--size", "64", "--frames", "9"]) == 0
    assert min(shares(capsys).values()) > 60


def test_random_weights_dont(tmp_path, capsys):
    make_random_priors(tmp_path)
    model = str(tmp_path / "text-to-video")
    assert check_model.main([model, "--size", "64", "--frames", "4"]) == 1
    assert max(shares(capsys).values()) < 20


def test_nor_does_a_formula_of_another_prediction(tmp_path, capsys):
    shutil.copytree(TOYS / "text-to-video", tmp_path / "other")
    path = tmp_path / "other" / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prediction_type": "v_prediction"}))
    assert check_model.main([str(path.parents[1]), "--size", "64", "--frames", "4"]) == 1
    assert min(shares(capsys).values()) < 50


def test_what_cant_be_read_is_one_message(tmp_path, capsys):
    assert check_model.main([str(TOYS / "image-to-video")]) == 2
    assert "no model_index.json that states a pipeline" in capsys.readouterr().err
    assert check_model.main([str(tmp_path / "none")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_what_is_asked_for_is_looked_at_before_anything_is_loaded(capsys):
    model = str(TOYS / "image-to-video-flow")
    with pytest.raises(SystemExit):
        check_model.main([model, "shift"])
    assert "'shift' is not key=value" in capsys.readouterr().err
    assert check_model.main([model, "--frames", "8"]) == 2
    said = capsys.readouterr()
    assert "num_frames=5 or 9" in said.err and not said.out


def test_an_asked_guidance_has_its_familys_reader_of_prompts():
    flow = check_model.family_of(str(TOYS / "image-to-video-flow"), None)
    assert check_model.family_of("no folder", flow.guidance) == flow
    assert check_model.family_of("no folder", "another") == check_model.Family("another")


def test_what_reads_a_family_is_registered():
    for family in check_model.FAMILIES.values():
        for name in family:
            assert threestudio.find(name)
