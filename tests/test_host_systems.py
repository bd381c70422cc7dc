"""Systems: parts from a config, weights of earlier trials, optimizers, exports."""

from dataclasses import dataclass, field

import pytest
import threestudio
import torch
from omegaconf import OmegaConf
from threestudio.models.exporters.base import Exporter, ExporterOutput
from threestudio.models.geometry.base import BaseImplicitGeometry
from threestudio.models.renderers.base import VolumeRenderer
from threestudio.systems.base import BaseLift3DSystem
from threestudio.systems.utils import parse_optimizer, parse_scheduler


class ToyGeometry(BaseImplicitGeometry):
    @dataclass
    class Config(BaseImplicitGeometry.Config):
        n_features: int = 3

    def configure(self):
        super().configure()
        self.encoding = torch.nn.Linear(3, self.cfg.n_features)
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.step = None

    def update_step(self, epoch, global_step, on_load_weights=False):
        self.step = global_step

    @staticmethod
    def create_from(other, cfg=None, copy_net=True, **kwargs):
        geometry = ToyGeometry(cfg)
        geometry.load_state_dict(other.state_dict())
        geometry.came_from = (other.cfg.radius, copy_net, other.step)
        return geometry


class ToyRenderer(VolumeRenderer):
    pass


class ToyExporter(Exporter):
    @dataclass
    class Config(Exporter.Config):
        save_type: str = "json"

    def __call__(self):
        scale = self.geometry.scale.item()
        return [ExporterOutput("scale.json", self.cfg.save_type, {"payload": {"scale": scale}})]


class ToySystem(BaseLift3DSystem):
    @dataclass
    class Config(BaseLift3DSystem.Config):
        extra: bool = False
        journal: list = field(default_factory=list)

    def configure(self):
        super().configure()
        if self.cfg.extra:
            self.extra = torch.nn.Linear(1, 1)

    def post_configure(self):
        self.scale_after_loading = self.geometry.scale.item()


@pytest.fixture
def toys(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("threestudio.systems.base.cleanup", lambda: None)
    monkeypatch.setattr(threestudio.registry, "__modules__", {**threestudio.__modules__})
    threestudio.register("toy-geometry")(ToyGeometry)
    threestudio.register("toy-renderer")(ToyRenderer)
    threestudio.register("toy-exporter")(ToyExporter)

    def make(resumed=False, **config):
        parts = {
            "geometry_type": "toy-geometry",
            "material_type": "no-material",
            "background_type": "solid-color-background",
            "renderer_type": "toy-renderer",
        }
        return ToySystem(OmegaConf.create({**parts, **config}), resumed=resumed)

    return make


@pytest.fixture
def earlier(toys, tmp_path):
    """The checkpoint of an earlier trial, with its config."""
    system = toys()
    with torch.no_grad():
        system.geometry.scale.fill_(3.0)
    trial = tmp_path / "outputs" / "toy" / "t@20260101-000000"
    (trial / "ckpts").mkdir(parents=True)
    (trial / "configs").mkdir()
    OmegaConf.save({"system": system.cfg}, trial / "configs" / "parsed.yaml")
    path = trial / "ckpts" / "last.ckpt"
    torch.save({"state_dict": system.state_dict(), "epoch": 0, "global_step": 42}, path)
    return path


def test_a_renderer_sees_the_systems_parts_without_owning_them(toys):
    system = toys()
    assert system.renderer.geometry is system.geometry
    assert system.renderer.background is system.background
    assert not any(name.startswith("renderer.") for name, _ in system.named_parameters())
    assert {k.partition(".")[0] for k in system.state_dict()} == {
        "geometry",
        "background",
        "renderer",
    }


def test_weights_of_the_last_trial_are_taken_over(toys, earlier):
    system = toys(weights="outputs/toy/t@LAST/ckpts/last.ckpt")
    assert system.geometry.scale.item() == 3 and system.geometry.step == 42
    assert system.scale_after_loading == 3  # post_configure comes after the weights
    assert toys(weights=str(earlier), weights_ignore_modules=["geometry"]).geometry.scale == 1


def test_what_weights_lack_or_have_too_much_is_said(toys, earlier, caplog):
    toys(weights=str(earlier), extra=True)
    assert "lacks extra.weight, extra.bias: they keep their initial values" in caplog.text
    caplog.clear()
    ckpt = torch.load(earlier)
    ckpt["state_dict"]["guidance.unet"] = torch.ones(1)
    torch.save(ckpt, earlier)
    toys(weights=str(earlier))
    assert "also has guidance.unet: not used here" in caplog.text
    caplog.clear()
    toys(weights=str(earlier), weights_ignore_modules=["guidance", "geometry"])
    assert caplog.text == ""


def test_foreign_weights_say_so(toys, earlier, tmp_path):
    foreign = tmp_path / "foreign.ckpt"
    torch.save({"state_dict": {"unet.weight": torch.ones(1)}}, foreign)
    with pytest.raises(
        ValueError, match=r"Nothing in .*foreign\.ckpt fits ToySystem\. It has unet"
    ):
        toys(weights=str(foreign))
    with pytest.raises(
        ValueError, match=r"other shapes.*geometry\.encoding\.weight \(has \[3, 3\]"
    ):
        toys(weights=str(earlier), geometry={"n_features": 4})
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        toys(weights="nowhere.ckpt")
    with pytest.raises(
        ValueError, match=r"(?s)doesn't fit ToySystem\. missing: extra.*system\.weights"
    ):
        toys(extra=True).load_state_dict(torch.load(earlier)["state_dict"])


def test_a_geometry_is_converted_from_an_earlier_trial(toys, earlier):
    config = {
        "geometry_convert_from": "outputs/toy/t@LAST/ckpts/last.ckpt",
        "geometry_convert_override": {"radius": 2.0},
    }
    system = toys(**config)
    assert system.geometry.scale.item() == 3
    assert system.geometry.came_from == (2.0, False, 42)
    # weights and resume bring their own geometry
    assert not hasattr(toys(weights=str(earlier), **config).geometry, "came_from")
    assert not hasattr(toys(resumed=True, **config).geometry, "came_from")


def test_steps_of_a_loaded_checkpoint_count(toys):
    system = toys()
    assert (system.true_global_step, system.true_current_epoch) == (0, 0)
    system.set_resume_status(2, 50)
    assert (system.true_global_step, system.true_current_epoch) == (50, 2)
    assert system.C([0, 1.0, 3.0, 100]) == 2


def test_optimizer_groups_carry_their_paths(toys):
    config = OmegaConf.create(
        {
            "name": "AdamW",
            "args": {"betas": [0.9, 0.99], "eps": 1e-8},
            "params": {
                "geometry.encoding": {"lr": 0.1},
                "geometry.scale": {"lr": 0.2, "weight_decay": 0.0},
                "background": {"lr": 0.3},  # a module without parameters is no mistake
            },
        }
    )
    optimizer = parse_optimizer(config, toys())
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [(g["name"], g["lr"], len(g["params"])) for g in optimizer.param_groups] == [
        ("geometry.encoding", 0.1, 2),
        ("geometry.scale", 0.2, 1),
        ("background", 0.3, 0),
    ]
    assert type(optimizer.param_groups[0]["betas"]) in (
        list,
        tuple,
    )  # data only goes into checkpoints
    everything = parse_optimizer(OmegaConf.create({"name": "SGD", "args": {"lr": 1}}), toys())
    assert len(everything.param_groups[0]["params"]) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"params": {"geometry.encodings": {"lr": 1}}},
            r"'geometry\.encodings'.*geometry\.encoding",
        ),
        ({"params": {"material.color": {"lr": 1}}}, r"'material\.color'.*ToySystem has no"),
        ({"name": "Adamm"}, "no optimizer 'Adamm'.*Adam"),
        ({"args": {"learning_rate": 1}}, "learning_rate"),
        ({"name": None}, r"optimizer\.name"),
    ],
)
def test_bad_optimizers_say_what_is_wrong(toys, change, message):
    config = OmegaConf.create({"name": "Adam", "args": {"lr": 0.1}, **change})
    with pytest.raises(ValueError, match=message):
        parse_optimizer(config, toys())


def learning_rates(config, steps):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    parsed = parse_scheduler(OmegaConf.create(config), optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        parsed["scheduler"].step()
    return rates, parsed["interval"]


def test_schedulers():
    halve = {"name": "ExponentialLR", "args": {"gamma": 0.5}}
    constant = {"name": "ConstantLR", "args": {"factor": 0.25, "total_iters": 100}}
    assert learning_rates({**halve, "interval": "step"}, 3) == ([1, 0.5, 0.25], "step")
    assert learning_rates({"name": "ChainedScheduler", "schedulers": [halve, halve]}, 3) == (
        [1, 0.25, 0.0625],
        "epoch",
    )
    sequence = {"name": "SequentialLR", "schedulers": [constant, halve], "milestones": [2]}
    assert learning_rates(sequence, 4)[0] == [0.25, 0.25, 1, 0.5]
    with pytest.raises(ValueError, match="interval should be"):
        learning_rates({**halve, "interval": "steps"}, 1)
    with pytest.raises(ValueError, match=r"no scheduler 'ExponentialLr'.*ExponentialLR"):
        learning_rates({"name": "ExponentialLr"}, 1)


def test_an_export_is_saved_by_its_type(toys, tmp_path):
    system = toys(exporter_type="toy-exporter")
    system.set_save_dir(str(tmp_path / "save"))
    system.set_resume_status(0, 7)
    system.on_predict_start()
    system.on_predict_epoch_end()
    assert (tmp_path / "save" / "it7-export" / "scale.json").read_text() == '{"scale": 1.0}'
    bad = toys(exporter_type="toy-exporter", exporter={"save_type": "hologram"})
    bad.on_predict_start()
    with pytest.raises(ValueError, match="'hologram', which SaverMixin cannot"):
        bad.on_predict_epoch_end()


def test_guidance_pictures_stand_beside_the_render(toys, tmp_path):
    cv2 = pytest.importorskip("cv2")
    system = toys()
    system.set_save_dir(str(tmp_path))
    names = ("imgs_noisy", "imgs_1step", "imgs_1orig", "imgs_final")
    pictures = {name: torch.full((2, 4, 4, 3), i / 4) for i, name in enumerate(names)}
    system.guidance_evaluation_save(torch.ones(2, 8, 6, 3), {**pictures, "texts": ["", ""]})
    picture = cv2.imread(str(tmp_path / "it0-train.png"))
    assert picture.shape == (16, 30, 3)
    assert [picture[12, x, 0] for x in (3, 9, 15, 21, 27)] == [255, 0, 64, 128, 191]
