"""What evaluation says of a moving scene's looks: laws that the truth and its ruins obey."""

import pytest
import torch
from animate124.data.cameras import Cameras
from animate124.evaluation import likeness, measures, sharpness, sheet
from animate124.evaluation.specks import NEAR, specks
from animate124.evaluation.truth import TAU, VIEWS, Subject, around, front
from animate124.evaluation.wear import blurred, ruined
from animate124.system.trained import Scene
from animate124.toyworld.banks import HELD_OUT
from animate124.toyworld.characters import SPECIES

SUBJECT = Subject("fox", "jump", HELD_OUT + 11)
FEW = TAU[::4]


class TrueScene(Scene):
    """Looks as a subject truly does."""

    static = False

    def __init__(self, subject):
        self.subject = subject

    def look(self, cameras, tau, height, width):
        colours, outlines = self.subject.colours_and_outlines(cameras, tau, size=height)
        return {"comp_rgb": colours, "opacity": outlines}


@pytest.fixture(scope="module", autouse=True)
def four_times():
    """Fewer frames than a suite's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("animate124.evaluation.truth.TAU", FEW)
        patch.setattr(sheet, "TAU", FEW)
        patch.setattr(likeness, "OTHERS", likeness.OTHERS[:3])
        yield


@pytest.fixture(scope="module")
def truth():
    """Pictures of the frames that `around` names, and their opacity."""
    return SUBJECT.colours_and_outlines(*around())


def test_frames_are_every_view_at_every_time():
    cameras, tau = around()
    assert tau.tolist() == FEW.tolist() * len(VIEWS)
    seen = zip(cameras.elevation_deg.tolist(), cameras.azimuth_deg.tolist(), strict=True)
    assert list(seen) == [view for view in VIEWS for _ in FEW]
    assert VIEWS[0] == (0, 0)  # the reference camera


def test_the_truths_looks_are_the_ceiling():
    found = measures.looks(SUBJECT, TrueScene(SUBJECT))
    for key in ("identity_share", "identity_share_worst", "sharpness"):
        assert found[key] == pytest.approx(1, abs=1e-5)
    assert found["identity"] == found["identity_ceiling"] > found["identity_floor"]
    assert found["specks"] == 0


def test_shares_are_the_way_from_the_others_to_the_truth():
    truth, others = torch.tensor([1.0, 0.8]), torch.tensor([[0.4, 0.2], [0.2, 0.0]])
    found = likeness.shares(torch.tensor([0.7, 0.4]), truth, others)
    assert found["identity_floor"] == pytest.approx(0.2)
    assert found["identity_share"] == pytest.approx((0.55 - 0.2) / (0.9 - 0.2))
    assert found["identity_floor_worst"] == pytest.approx(0.1)
    assert found["identity_share_worst"] == pytest.approx((0.4 - 0.1) / (0.8 - 0.1))
    assert likeness.shares(truth, truth, others)["identity_share_worst"] == pytest.approx(1)
    nobody = [likeness.shares(other, truth, others)["identity_share"] for other in others]
    assert sum(nobody) == pytest.approx(0, abs=1e-6)


def test_a_stranger_is_near_the_floor_and_a_smear_far_from_the_ceiling(truth):
    colours, _ = truth
    stranger = Subject("fox", "jump", HELD_OUT + 12)
    found = likeness.likeness(SUBJECT, stranger.colours_and_outlines(*around())[0], colours)
    assert abs(found["identity_share"]) < 0.5
    torch.manual_seed(0)
    smear = ruined(colours.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    assert likeness.likeness(SUBJECT, smear, colours)["identity_share"] < 0.6


def strength(pictures, truth):
    """Of pictures with the truth's outlines, as a share of the truth's."""
    colours, outlines = truth
    return sharpness.edge_strength(pictures, outlines) / sharpness.edge_strength(colours, outlines)


def soft(pictures, n):
    return blurred(pictures.permute(0, 3, 1, 2), n).permute(0, 2, 3, 1)


def test_blur_takes_sharpness_and_grain_does_not_bring_it_back(truth):
    colours, _ = truth
    grain = 0.05 * torch.randn(colours.shape, generator=torch.Generator().manual_seed(0))
    mild, strong = strength(soft(colours, 2), truth), strength(soft(colours, 4), truth)
    assert strong < 0.6 < mild < 0.8
    assert strength(soft(colours, 4) + grain, truth) < strong + 0.06
    assert strength(colours + grain, truth) == pytest.approx(1, abs=0.05)
    assert strength(1 - 0.5 * (1 - colours), truth) == pytest.approx(0.5, rel=1e-3)  # washed out


def test_an_edges_strength_is_its_height_over_its_width():
    ramp = ((torch.arange(64.0) - 28) / 8).clamp(0, 1)  # 0 to 1 over 8 pixels
    picture = ramp.expand(1, 64, 64)[..., None] * torch.tensor([1.0, 0.0, 0.0])
    energy = sharpness.coherent_energy(picture)[0, 32, :, 0]
    assert energy[32] == pytest.approx(1 / 64, rel=1e-4)
    assert energy[:24].max() == 0 and energy[40:].max() < 1e-6
    torch.testing.assert_close(
        sharpness.coherent_energy(picture.transpose(1, 2))[0, :, 32, 0], energy
    )


def test_only_the_inside_of_a_body_counts_as_sharp():
    outlines = torch.zeros(1, 64, 64, 1)
    outlines[:, 20:40, 20:40] = 1
    assert sharpness.inside(outlines).sum() == 16 * 16
    pictures = torch.ones(1, 64, 64, 3)
    pictures[:, 20:40, 20:40] = torch.rand(20, 20, 3)
    alone = sharpness.edge_strength(pictures, outlines)
    pictures[:, :10] = torch.rand(1, 10, 64, 3)  # specks far away
    assert sharpness.edge_strength(pictures, outlines) == alone > 0


def test_specks_are_the_share_of_opacity_away_from_the_body():
    opacity = torch.zeros(2, 64, 64, 1)
    opacity[:, 20:40, 20:40] = 1
    assert specks(opacity) == 0
    opacity[0, 2:6, 2:6] = 0.5  # a speck
    opacity[1, 20:40, 40 : 40 + NEAR] = 0.2  # a soft edge
    away, whole = 16 * 0.5, float(opacity.sum())
    assert specks(opacity) == pytest.approx(away / whole)
    haze = opacity.clamp_min(0.01)
    assert specks(haze) > specks(opacity)
    assert specks(torch.zeros(1, 64, 64, 1)) == 0


@pytest.mark.parametrize("species", SPECIES)
def test_no_true_character_has_specks(species):
    subject = Subject(species, "dance", HELD_OUT + 20)
    assert specks(subject.colours_and_outlines(front(len(FEW)), FEW)[1]) == 0


def test_a_sheet_shows_the_truth_above_ours(monkeypatch):
    monkeypatch.setattr(sheet, "LARGE", 32)
    monkeypatch.setattr(sheet, "RING", Cameras.of(15.0, torch.tensor([0.0, 180.0])))
    scene = TrueScene(SUBJECT)
    rows = sheet.faces(SUBJECT, scene)
    assert rows.shape == (6, 2, 3, 32, 32)
    torch.testing.assert_close(rows[::2], rows[1::2])
    assert (rows[0, 0] != rows[0, 1]).any()  # it moves
    monkeypatch.setattr(TrueScene, "static", True)
    assert len(sheet.faces(SUBJECT, scene)) == 2
