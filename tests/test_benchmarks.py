"""The benchmarks: models have the sizes of the real ones, and the scripts run on a CPU."""

import importlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from animate124.exporter.morph_glb import write_moving_glb
from animate124.pipeline.batch import AtWork
from PIL import Image

from moving_meshes import bending_tube
from node_packages import khronos_issues
from trials import write_trial

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MILLIONS = {  # of parameters, as counted in the published models
    ("sd", "unet"): 859.520964,
    ("sd", "vae"): 83.653863,
    ("sd", "text_encoder"): 123.060480,
    ("zero123", "unet"): 859.532484,  # Stable Diffusion's with 4 more input channels
    ("zero123", "image_encoder"): 303.966208,
    ("text-to-video", "text_encoder"): 340.387840,
    ("controlnet-tile", ""): 361.279120,
}


def write_tube(path):
    write_moving_glb(path, bending_tube(frames=3, around=8, along=9)[0])
    return path


FAMILIES = {  # likewise, of video models
    "wan": {"transformer": 1418.9968, "vae": 126.892531},
    "wan-ti2v": {"transformer": 4999.787712, "vae": 704.688668},
    "wan-vace": {"transformer": 2153.972032, "vae": 126.892531},
    "skyreels": {"transformer": 1564.428608, "image_encoder": 632.0768},
    "ltx": {"transformer": 1923.385472, "vae": 419.193649},
    "cogvideox": {"transformer": 1693.783872, "vae": 215.583907},
    "cogvideox-image": {"transformer": 5570.47968, "vae": 215.583907},
    "svd": {"unet": 1524.623082, "vae": 97.742847, "image_encoder": 632.0768},
    "animatediff": {"motion_adapter": 417.1376, "sparsectrl": 496.73088},
}


def output_of(script, *options, folder):
    result = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *options],
        cwd=folder,
        env={**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


def test_full_size_models_have_the_real_ones_sizes(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from full_size_models import COMPONENTS, build

    for key, millions in MILLIONS.items():
        with torch.device("meta"):
            model = build(*COMPONENTS[key])
        assert sum(p.numel() for p in model.parameters()) == round(millions * 1e6), key


def test_video_families_have_the_real_ones_sizes(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from full_size_models import build
    from video_families import part_of

    for name, counts in FAMILIES.items():
        for part, millions in counts.items():
            with torch.device("meta"):
                model = build(*part_of(name, part, tiny=False))
            count = sum(p.numel() for p in model.parameters())
            assert count == round(millions * 1e6), (name, part)


def test_the_fastest_prior_that_sees_a_picture_on_a_small_card(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from priors import FAMILIES, figures_of

    seen = {"modelscope": (180.0, 9.4), "wan": (200.0, 8.0), "wan-ti2v": (270.0, 14.0)}
    seen |= {"skyreels": (300.0, 8.0), "ltx": (270.0, 11.0)}
    assert not any("image_conditioned" in name for name in figures_of(seen, None))  # as yet
    figures = figures_of(dict.fromkeys(FAMILIES, (400.0, 5.0)) | seen, None)
    assert figures["prior.wan.ms"] == (200.0, "ms") and figures["prior.wan.gb"] == (8.0, "GB")
    assert figures["prior.image_conditioned.gb"] == (11.0, "GB, with ltx")
    assert figures["prior.image_conditioned.ratio_to_modelscope"][0] == 1.5
    capped = figures_of({"wan": (210.0, 7.0)}, 12.0)
    assert capped == {"prior.wan.vram12.ms": (210.0, "ms"), "prior.wan.vram12.gb": (7.0, "GB")}


@pytest.mark.parametrize(
    ("script", "words", "says"),
    [
        ("step", "--stage 2 --steps 0", "'0' is not a whole number, 1 or more"),
        ("step", "--stage 2 --warm-up -1", "'-1' is not a whole number, 1 or more"),
        ("many_scenes", "--gpu 0,1 --scenes 0", "'0' is not a whole number, 1 or more"),
        ("growth", "--stage 2 --sizes 8 0", "'0' is not a whole number, 1 or more"),
        ("scale", "--limit 0", "'0' is not a finite number, above 0"),
        ("whole", "--vram nan", "'nan' is not a finite number, above 0"),
        ("whole", "--steps-share 0", "'0' is not a finite number, 1 or less and above 0"),
        ("whole", "--steps-share 1.1", "'1.1' is not a finite number, 1 or less and above 0"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(monkeypatch, capsys, script, words, says):
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *words.split()])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(script).main()
    assert ended.value.code == 2 and says in capsys.readouterr().err


@pytest.mark.slow
def test_a_tiny_step_of_a_family_is_timed(tmp_path):
    options = ["wan-ti2v", "--tiny", "--warm-up", "1", "--steps", "2", "--figures", "figures.json"]
    output_of("priors.py", *options, folder=tmp_path)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["prior.wan-ti2v.ms"]["value"] > 0


def test_what_several_gpus_do_is_a_share_of_as_many_times_one(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from scale import figures_of

    figures = figures_of("stage2", {1: (10.0, 99.0), 2: (19.0, 101.0), 4: (30.0, 120.0)})
    assert figures["scale.stage2.two_gpus"][0] == 0.95
    assert figures["scale.stage2.four_gpus"][0] == 0.75
    assert figures["scale.stage2.four_gpus.batches"] == (30.0, "a second")
    assert "scale.stage2.one_gpu" not in figures


def test_a_run_that_fails_loses_its_own_row_alone(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import scale

    def measure(stage, devices, args, file):
        if (stage, devices) == (2, 2):
            raise subprocess.TimeoutExpired("step.py", args.limit)
        return 10.0 * devices, 100.0

    monkeypatch.setattr(scale, "measure", measure)
    file = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["scale.py", "--stages", "2", "3", "--figures", str(file)])
    with pytest.raises(SystemExit, match="True"):
        scale.main()
    said, held = capsys.readouterr().out, json.loads(file.read_text())
    assert "stage 2, 2: failed" in said and "20.00 batches a second, 100.0% of 2" in said
    assert "scale.stage2.one_gpu.batches" in held and held["scale.stage3.two_gpus"]["value"] == 1


def test_a_size_without_memory_is_a_row_and_those_beside_it_are_measured(monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import growth

    asked = []

    def apart(function, own, args):
        asked.append(own)
        if "data.single_view.num_frames=16" in own:
            return "out of memory"
        return growth.Measured(100.0 * len(asked), 1.0, 7 * len(asked))

    monkeypatch.setattr(growth, "apart", apart)
    monkeypatch.setattr(sys, "argv", ["growth.py", "--stage", "2", "--toy"])
    monkeypatch.setattr(growth, "record", None)
    monkeypatch.setattr(growth, "FIGURES", None)
    growth.main()
    rows = dict(re.findall(r"^ +(\d+) +(\S.*)$", capsys.readouterr().out, re.MULTILINE))
    assert rows["16"].startswith(("out", "256")) and rows["32"].startswith(("32", "1024"))
    # 4 frames, and pixels and lattices; what the config has is all axes' and asked for once
    assert len(asked) == 4 + 3 + 2

    command = ["growth.py", "--stage", "2", "--toy", "--axes", "frames", "--sizes", "16", "16"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match="No size could be measured"):
        growth.main()
    assert capsys.readouterr().out.count("out of memory") == 1  # a size that is asked for twice


def test_what_was_not_measured_is_not_drawn(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from growth import draw

    with pytest.raises(SystemExit, match=r"No two sizes of growth\.stage3 were"):
        draw("growth.stage3", {}, tmp_path / "growth.png")


def test_steps_that_fit_a_time_count_those_that_make_their_target(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from equal_time import Cost

    # 8 clips, a target serves 4 of a clip's 10 visits: made in rounds 0, 4 and 8
    assert Cost(paint=5.0, fit=1.0).of(80, 8, 4) == 80 + 4 * 24
    assert Cost(paint=5.0, fit=1.0).of(30, 16, 1) == 5 * 30


def test_growth_is_a_power_of_work_and_is_read_again_as_it_was_written(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from growth import Point, exponents, figures_of, read

    points = [Point(n, n**2, 5.0 * n**3, 2.0 * n) for n in (2, 4, 8)]
    assert exponents(points) == pytest.approx({"ms": 1.5, "gb": 0.5})
    figures = {k: {"value": v} for k, (v, _) in figures_of("growth.stage2.pixels", points).items()}
    others = {k: {"value": 1.0} for k, _ in figures_of("growth.stage2.frames", points[:1]).items()}
    assert read("growth.stage2.pixels", figures | others) == points


def test_how_busy_gpus_were_is_read_as_a_batch_says_it(monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from many_scenes import read

    at_work = AtWork(["0", "3"])
    with at_work.on(0), at_work.on(1):
        time.sleep(0.1)
    with at_work.on(1):
        time.sleep(0.1)
    at_work.say()
    seconds, shares = read(capsys.readouterr().out)
    assert seconds == pytest.approx(at_work.ended - at_work.began, abs=0.05)
    assert shares[1] > 0.9 and shares[0] == pytest.approx(at_work.seconds[0] / seconds, abs=0.3)
    with pytest.raises(ValueError, match="didn't say"):
        read("Summary")


@pytest.mark.slow
def test_growth_is_measured_and_drawn(tmp_path):
    options = ["--stage", "2", "--tiny", "--figures", "figures.json"]
    sizes = ["--axes", "frames", "--sizes", "2", "4", "--warm-up", "1", "--steps", "1"]
    said = output_of("growth.py", *options, *sizes, folder=tmp_path)
    assert re.search(r"^ +4 +4 +[\d.]+ ", said, re.MULTILINE) and "ms as work^" in said
    output_of("growth.py", *options, "--draw", "growth.png", folder=tmp_path)
    with Image.open(tmp_path / "growth.png") as picture:
        assert picture.height > 400


@pytest.mark.slow
def test_batches_of_two_processes_are_counted(tmp_path):
    options = ["--tiny", "--stages", "1", "--compile", "false", "--warm-up", "1", "--steps", "2"]
    output_of("scale.py", *options, "--figures", "figures.json", folder=tmp_path)
    held = json.loads((tmp_path / "figures.json").read_text())
    assert 0 < held["scale.stage1.two_gpus"]["value"] < 1.5


def test_a_tiny_step_is_timed_and_split(tmp_path):
    options = ["--stage", "1", "--tiny", "--baseline", "--warm-up", "1", "--steps", "2"]
    said = output_of("step.py", *options, "--split-steps", "1", folder=tmp_path)
    assert re.search(r"image batch: [\d.]+ ms, .* of 2 steps", said)
    split = dict(re.findall(r"^  (\S.*?) +([\d.]+)$", said, re.MULTILINE))
    for part in ("Zero123", "image or video"):
        for what in ("VAE forward", "UNet", "VAE backward"):
            assert float(split[f"{part} {what}"]) > 0
    parts = sum(float(ms) for label, ms in split.items() if label not in ("step", "of it march"))
    assert parts > 0.9 * float(split["step"])


def test_the_viewers_pictures_are_counted(tmp_path):
    write_trial(tmp_path / "run" / "stage2", rise=0.1)
    options = ["run", "--size", "24", "--seconds", "0.2"]
    said = output_of("view.py", *options, folder=tmp_path)
    found = re.findall(r"(\w+) 24 x 24: ([\d.]+) pictures a second", said)
    assert [mode for mode, _ in found] == ["colour", "opacity", "normal", "depth"]
    assert all(float(number) > 0 for _, number in found)


def test_a_vae_is_timed_with_and_without_a_gradient_through_it(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from probes import Probes

    class Prior:
        def to_latents(self, pictures):
            return 2 * pictures

    prior, probes = Prior(), Probes()
    probes.encoder(prior, "its")
    pictures = torch.rand(1, 3, 4, 4, requires_grad=True)
    with torch.no_grad():  # of a target that is denoised
        prior.to_latents(pictures)
    assert {label: len(spans) for label, spans in probes.spans.items()} == {"its VAE forward": 1}
    prior.to_latents(1 * pictures).sum().backward()
    assert len(probes.spans["its VAE forward"]) == 2 and len(probes.spans["its VAE backward"]) == 1


def test_the_checks_are_timed_and_written_down(tmp_path):
    (tmp_path / "figures.json").write_text('{"another": 1}')
    options = ["--stage", "1", "--tiny", "--warm-up", "1", "--blocks", "1"]
    output_of("checks.py", *options, "--figures", "figures.json", folder=tmp_path)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures.pop("another") == 1
    parts = {key.rpartition("/")[2]: figure for key, figure in figures.items()}
    step, alone = parts["step with"]["value"], parts["checks alone"]["value"]
    assert 0 < alone < step and parts["checkpoint checksums"]["value"] > 0
    assert parts["step more"]["unit"] == "%" and parts["step with"]["commit"]


def test_copies_of_a_step_are_counted_by_the_lines_that_ask_for_them(tmp_path):
    options = ["--stage", "1", "--tiny", "--warm-up", "1", "--steps", "1"]
    said = output_of("step_kernels.py", *options, folder=tmp_path)
    operators, copies = said.split("operators")[1].split("copies by line")
    assert "aten::" in operators and "in all" in operators
    assert "distillation.py" in copies  # the priors' latents


def test_the_unets_are_timed_and_right(tmp_path):
    said = output_of("unets.py", "--tiny", "--repeats", "1", folder=tmp_path)
    rows = [line.strip("| ").split(" | ") for line in said.splitlines()[3:]]
    assert [row[1] for row in rows] == ["as it is", "channels_last", "ours"] * 4
    assert all(float(row[-1]) < 0.05 for row in rows)  # of bfloat16


def test_gradients_that_arent_needed_are_timed_apart(tmp_path):
    options = ["--device", "cpu", "--points", "2000", "--levels", "2", "--repeats", "1"]
    output_of("hash_grid_gradients.py", *options, "--figures", "figures.json", folder=tmp_path)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert len(figures) == 18 and all(figure["unit"] == "ms" for figure in figures.values())
    assert figures["hash_grid_gradients.cpu.H3.points.numba"]["value"] > 0


def test_a_steps_ratio_to_the_published_methods_is_written_down(tmp_path):
    options = ["--stage", "2", "--tiny", "--beside-grid", "--warm-up", "1", "--steps", "2"]
    options += ["--split-steps", "1", "--compile", "graph", "--figures", "figures.json"]
    said = output_of("step.py", *options, folder=tmp_path)
    figures = json.loads((tmp_path / "figures.json").read_text())
    ours, grid = (
        figures[f"step/{name}stage2-blob-ms-graph/usual clip"]["value"]
        for name in ("deformation-", "")
    )
    ratio = figures["step.stage2.ratio_to_grid"]["value"]
    assert abs(ratio - ours / grid) < 1e-2 * ratio and figures["step.stage2.ms"]["value"] == ours
    assert "field grid" in said and "field deformation" in said


def test_the_sheet_of_the_suite_has_the_characters_two_by_two(tmp_path):
    for n, name in enumerate(("fox", "frog", "duck")):
        (tmp_path / name).mkdir()
        Image.new("RGB", (30, 20), (80 * n, 0, 0)).save(tmp_path / name / "sheet.png")
    output_of("suite_picture.py", ".", "sheet.png", "fox", "frog", "duck", folder=tmp_path)
    with Image.open(tmp_path / "sheet.png") as saved:
        picture = saved.convert("RGB")
        assert [picture.getpixel(at)[0] for at in ((5, 5), (50, 5), (5, 40))] == [0, 80, 160]
        assert picture.getpixel((50, 40)) == (255, 255, 255)


def test_formats_of_a_moving_mesh_are_measured(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import assets

    from test_exporter import make_exporter
    from test_moving_glb import Rider

    def small(args):
        return make_exporter(Rider(), num_frames=args.frames, resolution=12, texture=0)

    figures = tmp_path / "figures.json"
    options = ["assets.py", "TRIAL", "--frames", "3", "--figures", str(figures)]
    monkeypatch.setattr(sys, "argv", options)
    monkeypatch.setattr(assets, "make_exporter", small)
    assets.main()
    rows = re.findall(r"^\| ([\w -]+) \| ([\d.]+) \|", capsys.readouterr().out, re.MULTILINE)
    assert {"animated-glb", "skinned-glb", "tracks", "obj a frame"} <= {kind for kind, _ in rows}
    found = {key: figure["value"] for key, figure in json.loads(figures.read_text()).items()}
    assert found["glb.bytes"] > 1000 and found["skin.bytes"] > 1000
    assert 0 <= found["skin.error"] < 1e-5  # a ball that turns as a whole


def test_what_the_validator_says_is_counted(monkeypatch, tmp_path, capsys):
    khronos_issues(write_tube(tmp_path / "right.glb"))  # skipped where there is no validator
    monkeypatch.syspath_prepend(BENCHMARKS)
    import glb_validated

    broken = (tmp_path / "right.glb").read_bytes().replace(b'"SCALAR"', b'"SKALAR"')
    (tmp_path / "wrong.glb").write_bytes(broken)
    figures = tmp_path / "figures.json"
    files = [str(tmp_path / name) for name in ("right.glb", "wrong.glb")]
    monkeypatch.setattr(sys, "argv", ["glb_validated.py", *files, "--figures", str(figures)])
    glb_validated.main()
    right, wrong, _ = capsys.readouterr().out.splitlines()
    assert "right.glb  0 errors  0 warnings  0 infos" in right
    assert "wrong.glb" in wrong and "VALUE_NOT_IN_LIST" in wrong
    errors = json.loads(figures.read_text())["glb.validator_errors"]["value"]
    assert f"  {errors:g} errors" in wrong and errors > 0


def test_the_tokens_step_is_timed_and_its_operators_are_counted(tmp_path):
    options = ["--tiny", "--no-baseline", "--variants", "bf16", "--kernels", "1"]
    said = output_of("textual_inversion.py", *options, folder=tmp_path)
    counted, row = said.split("operators of ours, bf16")[1].split("in all")
    assert "aten::addmm" in counted or "aten::mm" in counted
    assert float(row.split("|")[4]) > 0
