"""The table of losses: what a weight, a view and a guidance have to do with each other."""

from types import SimpleNamespace

import pytest
import threestudio
from animate124.system import animate124, terms
from omegaconf import OmegaConf
from threestudio.utils.config import parse_structured


def config(loss, **settings):
    given = OmegaConf.create({"loss": loss, **settings})
    return parse_structured(animate124.Animate124.Config, given)


def test_an_unknown_weight_is_an_error_that_names_close_ones():
    with pytest.raises(KeyError, match=r"lambda_sds_vdieo.*lambda_sds_video"):
        config({"lambda_sds_vdieo": 1.0})


@pytest.mark.parametrize("weight", [0.5, [0, 0.0, 1.0, 100]])
def test_a_weight_without_its_guidance_says_which_one_to_name(weight):
    with pytest.raises(ValueError, match=r"lambda_cn_sds.*guidance_cn_type.*controlnet-tile"):
        config({"lambda_cn_sds": weight})
    config({"lambda_cn_sds": 0.0})


def test_guidances_of_one_view_are_those_that_share_it():
    two = OmegaConf.create({"lambda_sd": 1.0, "lambda_3d_sd": [0, 0.0, 1.0, 100]})
    ours = ["guidance", "guidance_3d", "guidance_cn"]
    assert terms.of_one_view(two, ours) == {"guidance", "guidance_3d"}
    assert terms.of_one_view(two, ["guidance"]) == set()
    clips = {"lambda_3d_sd": 1.0, "lambda_sds_video": 1.0, "lambda_sd": 0.0}
    assert terms.of_one_view(clips, ours) == set()
    assert terms.of_one_view({**clips, "lambda_cn_sds": 3.0}, ours) == {"guidance", "guidance_cn"}


@pytest.mark.parametrize("weight", [0.5, [0, 0.0, 1.0, 100]])
def test_a_prior_of_clips_is_not_shown_single_pictures(weight):
    video = {"guidance_type": "animate124-zeroscope-guidance"}
    clips = SimpleNamespace(dynamic=True)
    both = config({"lambda_sd": weight, "lambda_sds_video": 1.0}, **video)
    words = r"lambda_sd is .*zeroscope.* clips alone.*lambda_sds_video weighs.*image-guidance"
    with pytest.raises(ValueError, match=words):
        animate124.Animate124.check_with_data(both, clips)
    for loss in ({"lambda_sd": 0.0, "lambda_sds_video": 1.0}, {"lambda_sds_video": 1.0}):
        terms.check_views(config(loss, **video))
    terms.check_views(config({"lambda_sd": 1.0}, guidance_type="animate124-image-guidance"))


@pytest.mark.parametrize(
    ("weight", "single", "rings"),
    [
        ("lambda_3d_sd", {"n_cameras": 0}, 0.0),
        ("lambda_3d_sd", {"n_cameras": 24}, 0.5),
        ("lambda_sds_video", {"n_cameras": 24, "n_clips": 0}, 0.0),
        ("lambda_3d_sd", {"n_cameras": 0, "n_clips": 8}, 0.0),
    ],
)
def test_targets_are_kept_only_for_cameras_that_come_again(weight, single, rings):
    prior = "guidance_3d" if weight == "lambda_3d_sd" else "guidance"
    kept = config({weight: 1.0}, **{prior: {"target_uses": 5}, f"{prior}_type": "any"})
    data = SimpleNamespace(single_view=SimpleNamespace(**single), prob_multi_view=rings)
    words = rf"{prior}.target_uses is 5.*n_cameras.*n_clips.*target_uses=1"
    with pytest.raises(ValueError, match=words):
        terms.check_targets(kept, data)
    kept[prior]["target_uses"] = 1
    terms.check_targets(kept, data)
    again = SimpleNamespace(n_cameras=24, n_clips=8)
    data = SimpleNamespace(single_view=again, prob_multi_view=0.0)
    for weight, prior in (("lambda_3d_sd", "guidance_3d"), ("lambda_sds_video", "guidance")):
        used = {f"{prior}_type": "any", prior: {"target_uses": 5}}
        terms.check_targets(config({weight: 1.0}, **used), data)


def test_each_guidance_that_an_error_suggests_is_there_and_looks_at_its_terms_view():
    for term in terms.GUIDANCE_TERMS:
        settings = {f"{term.guidance}_type": term.usual, "loss": {term.weight: 1.0}}
        terms.check_views(config(**settings))
        assert threestudio.find(term.usual)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"random_camera": None}, "reference.*lambda_rgb"),
        ({"reference": None}, "random_camera.*lambda_sd"),
        ({"rays_o": None}, "'rays_o'.*image-video-combined"),
    ],
)
def test_a_batch_without_the_views_that_losses_need_is_an_error(batch, words):
    with pytest.raises(KeyError, match=words):
        terms.views_of(batch, {"lambda_rgb": 1.0, "lambda_sd": 1.0})


def test_a_regulariser_without_its_render_output_is_an_error():
    with pytest.raises(KeyError, match=r"lambda_orient.*normal.*return_comp_normal"):
        terms.regulariser("lambda_orient", {"opacity": None, "weights": None, "t_dirs": None})
