"""Configs: schedules, resolvers, overrides, keys that nothing reads, trial folders."""

import os
from dataclasses import dataclass, field

import pytest
import threestudio
from omegaconf import OmegaConf
from threestudio.utils.config import (
    C_max,
    ExperimentConfig,
    config_to_primitive,
    dump_config,
    load_config,
    parse_overrides,
    parse_structured,
    trial_folder_name,
)
from threestudio.utils.misc import C, find_last_path

SHORT, LONG = [1.0, 3.0, 100], [50, 1.0, 3.0, 150]
KNOTS = [10, 1.0, 3.0, 20, 2.0, 40, 8.0, 80]  # (10, 1) (20, 3) (40, 2) (80, 8)


@pytest.mark.parametrize(
    ("schedule", "epoch", "step", "expected"),
    [
        (0.5, 3, 7, 0.5),
        (2, 3, 7, 2),
        (SHORT, 0, 0, 1.0),
        (SHORT, 0, 25, 1.5),
        (SHORT, 0, 1000, 3.0),
        (LONG, 0, 50, 1.0),
        (LONG, 0, 0, 1.0),
        (LONG, 0, 100, 2.0),
        (LONG, 0, 151, 3.0),
        ([0, 1.0, 3.0, 10.0], 5, 1000, 2.0),  # a float end counts epochs
        ([1.0, 3.0, 10.0], 0, 1000, 1.0),
        (KNOTS, 0, 0, 1.0),
        (KNOTS, 0, 15, 2.0),
        (KNOTS, 0, 20, 3.0),
        (KNOTS, 0, 30, 2.5),
        (KNOTS, 0, 40, 2.0),
        (KNOTS, 0, 60, 5.0),
        (KNOTS, 0, 999, 8.0),
        ([5, 1.0, 3.0, 5], 0, 4, 1.0),  # a jump
        ([5, 1.0, 3.0, 5], 0, 5, 3.0),
    ],
)
def test_schedule_table(schedule, epoch, step, expected):
    assert C(schedule, epoch, step) == pytest.approx(expected)
    if isinstance(schedule, list):
        assert C(OmegaConf.create(schedule), epoch, step) == pytest.approx(expected)


def test_exponential_schedules_multiply():
    assert C([1.0, 100.0, 10], 0, 5, interpolation="exp") == pytest.approx(10.0)
    with pytest.raises(ValueError, match="positive"):
        C([0.0, 1.0, 10], 0, 5, interpolation="exp")


@pytest.mark.parametrize(("schedule", "largest"), [(3, 3), (SHORT, 3.0), (LONG, 3.0), (KNOTS, 8.0)])
def test_the_largest_value_of_a_schedule_is_C_max(schedule, largest):
    assert C_max(schedule) == largest
    assert max(C(schedule, 0, step) for step in range(200)) == largest


@pytest.mark.parametrize("bad", ["0.5", [1.0, 2.0], [1, 2, 3, 4, 5], [0, "a", 1, 2], {"a": 1}])
def test_what_is_no_schedule_says_the_forms(bad):
    with pytest.raises(ValueError, match=r"is no schedule.*\[v0, v1, s1\]"):
        C(bad, 0, 0)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("${calc_exp_lr_decay_rate:0.1,100}", 0.1**0.01),
        ("${add:1,2}", 3),
        ("${sub:1,2}", -1),
        ("${mul:3,2}", 6),
        ("${div:3,2}", 1.5),
        ("${idiv:3,2}", 1),
        ("${basename:load/panda/image.png}", "image.png"),
        ("${rmspace:a panda is dancing,_}", "a_panda_is_dancing"),
        ("${tuple2:3}", [3.0, 3.0]),
        ("${gt0:0.5}", True),
        ("${cmaxgt0:${schedule}}", True),
        ("${not:true}", False),
        ("${cmaxgt0orcmaxgt0:0,${schedule}}", True),
        ("${cmaxgt0orcmaxgt0:0,0}", False),
    ],
)
def test_resolvers(expression, expected):
    cfg = OmegaConf.create({"value": expression, "schedule": [0, 0.0, 1.0, 10]})
    assert config_to_primitive(cfg)["value"] == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-3", 1e-3),
        ("true", True),
        ("null", None),
        ("", None),
        ("[0, 1.5, a]", [0, 1.5, "a"]),
        ("{a: 1}", {"a": 1}),
        ("'3'", "3"),
        ("a panda is dancing", "a panda is dancing"),
        ("a fox: the movie # 2", "a fox: the movie # 2"),
        ("<token> = *star*, @home", "<token> = *star*, @home"),
        ("- dash", "- dash"),
    ],
)
def test_override_values(text, value):
    assert parse_overrides([f"a.b={text}"]) == [("a.b", value)]


@pytest.mark.parametrize("bad", ["--max_steps", "trainer.max_steps", "=3", "--a=3"])
def test_an_override_without_key_and_value_says_the_form(bad):
    with pytest.raises(ValueError, match="overrides are written key=value"):
        parse_overrides([bad])


@dataclass
class Camera:
    elevation_deg: float = 0.0
    size: tuple[int, int] = (64, 64)


@dataclass
class Module:
    radius: float = 1.0
    n_levels: int = 16
    camera: Camera = field(default_factory=Camera)
    inner: dict = field(default_factory=dict)


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def experiment(*overrides, **sections):
    return load_config(
        OmegaConf.to_yaml({"name": "test", "tag": "a_tag", "use_timestamp": False, **sections}),
        cli_args=list(overrides),
        from_string=True,
    )


def test_overrides_win_and_reach_lists_and_new_keys(in_tmp):
    cfg = experiment(
        "system.a=5",
        "system.list[1]=9",
        "system.new.deep=x",
        "system.schedule=[0,1,2,3]",
        system={"a": 1, "list": [1, 2], "schedule": 0.5, "double": "${mul:${system.a},2}"},
    )
    assert config_to_primitive(cfg.system) == {
        "a": 5,
        "list": [1, 9],
        "schedule": [0, 1, 2, 3],
        "double": 10,
        "new": {"deep": "x"},
    }


def test_a_key_with_dots_is_reached_by_its_dots(in_tmp):
    params = {"geometry.encoding": {"lr": 1.0}, "geometry": {"lr": 2.0}}
    cfg = experiment("system.params.geometry.encoding.lr=3", system={"params": params})
    assert cfg.system.params["geometry.encoding"].lr == 3
    assert cfg.system.params.geometry == {"lr": 2.0}


def test_another_scheduler_takes_none_of_the_args_of_the_one_before(in_tmp):
    cosine = {"name": "CosineAnnealingLR", "interval": "step", "args": {"T_max": 300}}
    system = {"scheduler": cosine}
    other = "system.scheduler={name: ExponentialLR, args: {gamma: 0.9}}"
    assert experiment(other, system=system).system.scheduler == {
        "name": "ExponentialLR",
        "interval": "step",
        "args": {"gamma": 0.9},
    }
    same = "system.scheduler={name: CosineAnnealingLR, args: {eta_min: 0.1}}"
    assert experiment(same, system=system).system.scheduler.args == {"T_max": 300, "eta_min": 0.1}
    without = "system.scheduler={args: {T_max: 5}}"
    assert experiment(without, system=system).system.scheduler.args == {"T_max": 5}


def test_parse_structured_fills_in_defaults_also_in_nested_dataclasses(in_tmp):
    cfg = parse_structured(
        Module, experiment(system={"radius": 2, "camera": {"size": [3, 4]}}).system
    )
    assert (cfg.radius, cfg.n_levels, cfg.camera.elevation_deg) == (2.0, 16, 0.0)
    assert list(cfg.camera.size) == [3, 4]
    assert parse_structured(Module).radius == 1.0


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"radus": 1}, r"system\.geometry\.radus \(close keys: radius\).*Module"),
        ({"camera": {"elevation": 1}}, r"system\.geometry\.camera\.elevation .*elevation_deg"),
        ({"xyz": 1}, r"system\.geometry\.xyz \(known keys: radius, n_levels, camera, inner\)"),
        ({"radus": 1, "n_level": 1}, r"keys system\.geometry\.radus .*system\.geometry\.n_level "),
        ({"n_levels": "many"}, r"system\.geometry\.n_levels: .*many"),
        ({"camera": {"size": 3}}, r"system\.geometry\.camera\.size: "),
        ({"radius": "???"}, r"system\.geometry\.radius must be given"),
        ({"camera": 3}, r"system\.geometry\.camera"),
    ],
)
def test_a_bad_key_says_where_it_stands(in_tmp, keys, message):
    @dataclass
    class System:
        geometry: dict = field(default_factory=dict)

    # as a system does it: it gets its part of the config, and hands on a part of that
    system = parse_structured(System, experiment(system={"geometry": keys}).system)
    with pytest.raises(ValueError, match=message):
        parse_structured(Module, system.geometry)


def test_a_bad_key_two_dicts_deep_says_where_it_stands(in_tmp):
    module = parse_structured(Module, experiment(system={"inner": {"more": {"size2": 1}}}).system)
    with pytest.raises(ValueError, match=r"system\.inner\.more\.size2 \(close keys: size\)"):
        parse_structured(Camera, module.inner.more)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["systm.a=1"], r"systm \(close keys: system"),
        (["seed=many"], "seed: "),
        (["system.a=${rmspace:${system.prompt},_}"], "system.prompt"),
        (["system.a=${nothing:1}"], "nothing"),
        (["system.a=${oc.env:HOME}"], "nothing is read from the environment"),
        (["tag=''"], "set a tag, or use_timestamp=true"),
        (["a=[1"], "not valid YAML"),
    ],
)
def test_bad_experiments_say_what_is_wrong(in_tmp, overrides, message):
    with pytest.raises(ValueError, match=message):
        experiment(*overrides)


TEXTS = [
    "${oc.env:HOME}",
    "${price} for a panda",
    "a ${",
    "\\${x} and \\\\${y}",
    "${rmspace:a b,_}",
    "&panda",
    "*panda",
    "010",
    "1e3",
    "true",
    "null",
    "~",
    "[red] panda",
    "{a: 1}",
    "a: b # c",
    "'tis a panda",
    '"a" and "b"',
    "50% & more | <token> `x` $HOME !",
    "熊猫 🐼",
    "a/b",
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_text_from_the_command_line_to_a_second_start(in_tmp, text):
    @dataclass
    class Speaks:
        prompt: str = ""

    threestudio.register("speaks")(type("Speaker", (), {"Config": Speaks}))
    try:
        words = ["system.speaker_type=speaks", f"system.speaker.prompt={text}", f"tag={text}"]
        first = experiment(*words, "use_timestamp=true")
        dump_config("parsed.yaml", first)
        for cfg in (first, load_config("parsed.yaml")):
            assert cfg.tag == text
            assert parse_structured(Speaks, cfg.system.speaker).prompt == text
            assert config_to_primitive(cfg.system)["speaker"]["prompt"] == text
    finally:
        del threestudio.__modules__["speaks"]


def test_a_tag_with_slashes_is_found_again(in_tmp):
    trial = in_tmp / experiment("tag=half/half/panda", "use_timestamp=true").trial_dir
    (trial / "last.ckpt").touch()
    assert find_last_path("outputs/test/half/half/panda@LAST/last.ckpt").endswith("/last.ckpt")


def test_a_missing_config_says_which_there_are(in_tmp):
    (in_tmp / "animate124-stage1.yaml").write_text("name: a")
    with pytest.raises(FileNotFoundError, match=r"has animate124-stage1\.yaml"):
        load_config(str(in_tmp / "animate124-stage1.yml"))
    (in_tmp / "broken.yaml").write_text("a: [1\nb: 2")
    with pytest.raises(ValueError, match=r"broken\.yaml.*not valid YAML"):
        load_config("broken.yaml")
    (in_tmp / "list.yaml").write_text("- 1")
    with pytest.raises(ValueError, match="is a list"):
        load_config("list.yaml")


def test_a_dumped_config_loads_as_the_same_trial(in_tmp):
    first = experiment("use_timestamp=true", "system.a=1")
    dump_config("parsed.yaml", first)
    again = load_config("parsed.yaml")
    assert again == first
    assert again.trial_dir == first.trial_dir and os.path.isdir(again.trial_dir)
    assert first.trial_name.startswith("a_tag@20")


def test_trial_folders(in_tmp):
    assert experiment().trial_dir == os.path.join("outputs", "test", "a_tag")
    cfg = experiment("exp_root_dir=elsewhere", "tag=black/white")
    assert cfg.trial_dir == os.path.join("elsewhere", "test", "black_white")
    assert os.path.isdir(cfg.trial_dir)


def test_a_prompt_of_a_thousand_words_still_makes_a_folder(in_tmp):
    prompt = "panda " * 1000
    tag = prompt.replace(" ", "_")
    assert trial_folder_name(tag) != trial_folder_name(tag + "x")
    assert len(trial_folder_name("熊猫" * 1000).encode()) <= 200
    trial = in_tmp / experiment(f"tag={tag}").trial_dir
    trial.rename(f"{trial}@20260101-000000")
    (in_tmp / f"{trial}@20260101-000000" / "last.ckpt").touch()
    assert find_last_path(f"outputs/test/{prompt}@LAST/last.ckpt").endswith("/last.ckpt")


def test_processes_of_one_launch_agree_on_the_timestamp(in_tmp, monkeypatch):
    monkeypatch.delenv("THREESTUDIO_TIMESTAMP", raising=False)
    first = ExperimentConfig(name="test", tag="t")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert ExperimentConfig(name="test", tag="t").trial_name == first.trial_name
    # started by torchrun, nothing tells the processes of each other
    monkeypatch.delenv("THREESTUDIO_TIMESTAMP")
    assert ExperimentConfig(name="test", tag="t").trial_name == "t"
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert ExperimentConfig(name="test", tag="t").trial_name == "t"


@pytest.fixture
def trials(in_tmp):
    """Trials of one tag: the newest never began, the second was stopped before a checkpoint."""
    for stamp in ("20260101-000000", "20260102-000000", "20260103-000000", "20260104-000000"):
        trial = in_tmp / "outputs" / "stage1" / f"a_panda@{stamp}"
        (trial / "ckpts").mkdir(parents=True)
        if stamp < "20260103":
            (trial / "ckpts" / "last.ckpt").touch()
        if stamp > "20260104":
            (trial / "ckpts").rmdir()
    (in_tmp / "outputs" / "stage1" / "a_fox@20260105-000000").mkdir()
    return in_tmp / "outputs" / "stage1"


def test_LAST_is_the_newest_trial_that_has_the_file(trials, caplog):
    expected = os.path.join("outputs", "stage1", "a_panda@20260102-000000", "ckpts", "last.ckpt")
    assert find_last_path("outputs/stage1/a_panda@LAST/ckpts/last.ckpt") == expected
    assert (
        "20260103-000000 has no" in caplog.text
    )  # the stopped one is mentioned, the empty one not
    assert find_last_path("outputs/stage1/a panda@LAST/ckpts/last.ckpt") == expected
    assert find_last_path(str(trials / "LAST" / "ckpts")).endswith("20260103-000000/ckpts")


def test_paths_without_LAST_are_left_alone():
    for path in (None, "outputs/my LAST dance/last.ckpt", "BLAST/x.ckpt"):
        assert find_last_path(path) == path


def test_LAST_without_a_trial_says_so(trials):
    with pytest.raises(
        FileNotFoundError, match=r"no trial .*a_pandas@.*has a_panda\..*earlier stage"
    ):
        find_last_path("outputs/stage1/a pandas@LAST/ckpts/last.ckpt")
    with pytest.raises(FileNotFoundError, match=r"no trial at all.*earlier stage"):
        find_last_path("outputs/stage2/a panda@LAST/ckpts/last.ckpt")
    with pytest.raises(FileNotFoundError, match=r"20260103-000000 has no ckpts/best\.ckpt"):
        find_last_path("outputs/stage1/a panda@LAST/ckpts/best.ckpt")


def test_resume_may_be_LAST(trials):
    cfg = load_config(
        "{name: stage1, tag: a_panda, resume: outputs/stage1/a_panda@LAST/ckpts/last.ckpt}",
        from_string=True,
    )
    assert "20260102-000000" in cfg.resume
