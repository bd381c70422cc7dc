"""Text embeddings: views, the cache, learned tokens. The reference is transformers' own tokenizer
and encoder, called by hand.
"""

import shutil
from pathlib import Path

import pytest
import threestudio
import torch
from animate124.pretrained import embedding_cache, text_readers
from animate124.pretrained.embedding_cache import entry_key, read_texts
from animate124.pretrained.learned_tokens import read_learned_tokens, token_pattern
from animate124.prompt_processors import prompts
from animate124.prompt_processors.prompts import VIEWS, view_of
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from threestudio.utils import base
from transformers import CLIPTextModel, CLIPTokenizer

PROMPT = "a panda is dancing"


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """A working directory of its own, hence an empty cache."""
    monkeypatch.chdir(tmp_path)
    # collecting garbage takes a second in a long test session
    monkeypatch.setattr(embedding_cache, "cleanup", lambda: None)
    return tmp_path


@pytest.fixture
def warnings(monkeypatch):
    messages = []
    monkeypatch.setattr(threestudio, "warn", messages.append)
    return messages


@pytest.fixture(scope="module")
def by_hand(random_priors):
    """Prompt -> embedding [77 32], as transformers' documentation does it."""
    folder = random_priors / "sd"
    tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")

    @torch.no_grad()
    def encode(prompt):
        ids = tokenizer(
            prompt, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        return encoder(ids)[0][0]

    return encode


@pytest.fixture
def process(random_priors):
    def process(kind="prompt-processor", model="sd", **config):
        config = {"prompt": PROMPT} | config
        config["pretrained_model_name_or_path"] = str(random_priors / model)
        return threestudio.find(f"animate124-{kind}")(config)()

    return process


@pytest.fixture
def encodings(monkeypatch):
    """The prompts that are really encoded, in order."""
    seen = []
    encode = text_readers.TextReader.read

    def counting(self, prompt):
        seen.append(prompt)
        return encode(self, prompt)

    monkeypatch.setattr(text_readers.TextReader, "read", counting)
    return seen


def entries():
    return sorted(Path(".threestudio_cache/text_embeddings").iterdir())


# ---- views

angle = st.floats(-720, 720)


def view(elevation, azimuth, front=45.0, back=45.0, overhead=60.0):
    return VIEWS[view_of(torch.tensor([elevation]), torch.tensor([azimuth]), front, back, overhead)]


@pytest.mark.parametrize(
    "elevation, azimuth, expected",
    [
        (0, 0, "front"),
        (0, 44.9, "front"),
        (0, -44.9, "front"),
        (0, 45.1, "side"),
        (0, 134.9, "side"),
        (0, 135.1, "back"),
        (0, -135.1, "back"),
        (0, 180, "back"),
        (59.9, 0, "front"),
        (60.1, 0, "overhead"),
        (80, 180, "overhead"),
        (-80, 90, "side"),
    ],
)
def test_views(elevation, azimuth, expected):
    assert view(float(elevation), float(azimuth)) == expected


@given(angle, st.floats(-90, 90))
@settings(max_examples=100, deadline=None)
def test_views_are_periodic_symmetric_and_turn(azimuth, elevation):
    azimuth = round(azimuth) + 0.5  # away from the borders
    this = view(elevation, azimuth)
    assert view(elevation, azimuth + 360) == this == view(elevation, -azimuth)
    turned = {"front": "back", "back": "front"}.get(this, this)
    assert view(elevation, azimuth + 180) == turned


@given(st.floats(1, 89), st.floats(1, 89), st.floats(0, 90))
@settings(max_examples=50, deadline=None)
def test_thresholds_are_read(front, back, overhead):
    limits = {"front": front, "back": back, "overhead": overhead}
    assert view(0.0, front - 0.1, **limits) == "front"
    assert view(0.0, front + 0.1, **limits) != "front"
    assert view(0.0, 180 - back + 0.1, **limits) == "back"
    assert view(0.0, 180 - back - 0.1, **limits) != "back"
    assert view(overhead + 0.1, 0.0, **limits) == "overhead"


# ---- embeddings


def test_embeddings_are_those_of_the_encoder(process, by_hand):
    output = process(negative_prompt="blurry")
    azimuth = torch.tensor([0.0, 90, 180, 90])
    elevation = torch.tensor([0.0, 0, 0, 80])
    got = output.get_text_embeddings(elevation, azimuth, torch.full((4,), 2.5))
    written = [f"{PROMPT}, {v} view" for v in ("front", "side", "back", "overhead")]
    for row, prompt in zip(got, [*written, *["blurry"] * 4], strict=True):
        torch.testing.assert_close(row, by_hand(prompt), atol=1e-5, rtol=0)
    plain = output.get_text_embeddings(elevation, azimuth, azimuth, view_dependent_prompting=False)
    for row, prompt in zip(plain, [*[PROMPT] * 4, *["blurry"] * 4], strict=True):
        torch.testing.assert_close(row, by_hand(prompt), atol=1e-5, rtol=0)


def test_prompts_can_be_read_on_the_cpu(process, monkeypatch):
    """A device of its own stands for a GPU."""
    read, places = prompts.read_texts, []

    def noting(*args, device, **options):
        places.append(str(device))
        return read(*args, device="cpu", **options)

    monkeypatch.setattr(prompts, "read_texts", noting)
    monkeypatch.setattr(base, "get_device", lambda: torch.device("meta"))
    for on_cpu in (False, True):
        assert process(read_on_cpu=on_cpu).text_embeddings.device.type == "meta"
    assert places == ["meta", "cpu"]


def test_view_prompts_can_be_written_and_put_first(process, by_hand):
    output = process(prompt_back="a furry back", view_dependent_prompt_front=True)
    expected = ["side view of " + PROMPT, "front view of " + PROMPT, "a furry back"]
    assert output.prompts_vd == [*expected, "overhead view of " + PROMPT]
    torch.testing.assert_close(
        output.text_embeddings_vd[2], by_hand("a furry back"), atol=1e-5, rtol=0
    )
    assert process(view_dependent_prompt_front=True).prompts_vd[2] == f"backside view of {PROMPT}"


def test_output_serves_threestudios_own_guidances(process):
    """What they ask of a PromptProcessorOutput."""
    output = process()
    assert output.use_perp_neg is False
    assert output.text_embeddings.shape == output.uncond_text_embeddings.shape == (1, 77, 32)
    assert output.text_embeddings_vd.shape == output.uncond_text_embeddings_vd.shape == (4, 77, 32)


def test_video_prompts_use_the_video_models_encoder(process):
    image = process().text_embeddings
    video = process("zeroscope-prompt-processor", "text-to-video").text_embeddings
    assert not torch.allclose(image, video, atol=0.1)


@pytest.mark.parametrize("prompt", ["", "  "])
def test_an_empty_prompt_is_an_error(process, prompt):
    with pytest.raises(ValueError, match=r"no prompt.*system\.prompt_processor\.prompt="):
        process(prompt=prompt)


def test_a_prompt_of_a_thousand_words_is_cut_with_a_warning(process, by_hand, warnings, encodings):
    words = " ".join(f"panda {'dancing' if i % 2 else 'jumping'}" for i in range(500))
    output = process(prompt=words)
    torch.testing.assert_close(output.text_embeddings[0], by_hand(words), atol=1e-5, rtol=0)
    assert any("Not read: 'dancing panda jumping panda dancing" in message for message in warnings)
    said, encoded = len(warnings), len(encodings)
    process(prompt=words)  # from the cache: the warning is still due
    assert len(warnings) == 2 * said and len(encodings) == encoded
    warnings.clear()
    process(prompt="panda " * 71 + "is dancing")  # with ", front view" four more: 77 - 2
    assert len(warnings) == 4 and all("view" in w.split("Not read")[1] for w in warnings)
    assert not any("is dancing'" in w for w in warnings)


# ---- the cache


def test_cached_embeddings_are_not_made_again(process, encodings):
    first = process()
    assert len(encodings) == 6 == len(entries())  # prompt, negative, four views
    second = process()
    assert len(encodings) == 6
    assert torch.equal(first.text_embeddings_vd, second.text_embeddings_vd)
    process(negative_prompt="blurry")
    assert encodings[6:] == ["blurry"]
    third = process(use_cache=False)
    assert len(encodings) == 13 and torch.equal(first.text_embeddings_vd, third.text_embeddings_vd)


def test_models_of_one_name_do_not_share_entries(random_priors, workplace, encodings):
    """The folder's contents count, wherever it lies and whatever it was called before."""
    folder = shutil.copytree(random_priors / "sd", workplace / "model")
    first = read_texts(str(folder), [PROMPT]).embeddings
    weights = folder / "text_encoder" / "model.safetensors"
    content = load_file(weights)
    content["text_model.final_layer_norm.bias"] += 1
    weights.unlink()  # the first encoder may be mapped onto it
    save_file(content, weights, {"format": "pt"})
    second = read_texts(str(folder), [PROMPT]).embeddings
    torch.testing.assert_close(second, first + 1)
    shutil.copytree(random_priors / "sd", workplace / "elsewhere")
    assert torch.equal(read_texts(str(workplace / "elsewhere"), [PROMPT])[0], first)
    assert len(encodings) == 2


def test_keys_differ_where_anything_does():
    token = torch.randn(2, 4)
    cases = [
        ("model", "a b", {}),
        ("model", "a  b", {}),
        ("modela", " b", {}),
        ("other", "a b", {}),
        ("model", "a b", {"<token>": token}),
        ("model", "a b", {"<token>": token[:1]}),
        ("model", "a b", {"<token>": token.reshape(4, 2)}),
        ("model", "a b", {"<other>": token}),
        ("model", "a b", {"<token>": token + 1e-6}),
    ]
    keys = [entry_key(*case) for case in cases]
    assert len(set(keys)) == len(keys) and all(len(key) == 64 for key in keys)
    assert keys[4] == entry_key("model", "a b", {"<token>": token.clone()})


def flipped(whole, place):
    return whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda whole: b"",
        lambda whole: b"rubbish",
        lambda whole: whole[:-50],
        lambda whole: flipped(whole, len(whole) - 77),  # of a number
        lambda whole: flipped(whole, whole.index(b'"sha256":"') + 12),
        lambda whole: whole.replace(b'"sha256"', b'"sha255"'),
        lambda whole: whole.replace(b"[77,32]", b"[32,77]"),
        lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    ],
)
def test_a_damaged_entry_is_made_again(random_priors, warnings, encodings, spoil):
    model = str(random_priors / "sd")
    first = read_texts(model, [PROMPT]).embeddings
    (path,) = entries()
    spoilt = spoil(path.read_bytes())
    path.unlink()
    path.write_bytes(spoilt)
    assert torch.equal(read_texts(model, [PROMPT]).embeddings, first)
    assert len(warnings) == 1 and str(path.name) in warnings[0] and "making it again" in warnings[0]
    assert len(encodings) == 2
    read_texts(model, [PROMPT])
    assert len(warnings) == 1 and len(encodings) == 2


def test_entries_appear_in_one_piece(random_priors, monkeypatch):
    """A process that dies while it writes leaves no entry behind."""

    def dies(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(embedding_cache, "save_file", dies)
    with pytest.raises(KeyboardInterrupt):
        read_texts(str(random_priors / "sd"), [PROMPT])
    assert not [p for p in entries() if p.suffix == ".safetensors"]


@pytest.mark.parametrize("fails", ["folder", "file", "rename"])
def test_a_cache_that_cannot_be_written_to_is_one_warning(
    random_priors, workplace, monkeypatch, warnings, fails
):
    model, asked = str(random_priors / "sd"), [PROMPT, "a fox"]
    expected = read_texts(model, asked, use_cache=False).embeddings
    if fails == "folder":  # as root may write anywhere, a file stands where the folder would be
        (workplace / ".threestudio_cache").write_text("")
    elif fails == "file":
        monkeypatch.setattr(embedding_cache, "save_file", full_disk)
    else:
        monkeypatch.setattr("os.replace", full_disk)
    assert torch.equal(read_texts(model, asked).embeddings, expected)
    assert len(warnings) == 1 and "can't be kept in" in warnings[0]


def full_disk(*args, **kwargs):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("rank", [0, 1])
def test_rank_zero_goes_first_and_never_leaves_the_others_waiting(
    random_priors, monkeypatch, encodings, rank
):
    model, events = str(random_priors / "sd"), []
    if rank == 1:
        read_texts(model, [PROMPT])  # what rank zero did
        encodings.clear()
    read, write = embedding_cache.read_entry, embedding_cache.write_entry
    monkeypatch.setattr(embedding_cache, "get_rank", lambda: rank)
    monkeypatch.setattr(embedding_cache, "barrier", lambda: events.append("barrier"))
    monkeypatch.setattr(
        embedding_cache, "read_entry", lambda path: events.append("read") or read(path)
    )
    monkeypatch.setattr(
        embedding_cache, "write_entry", lambda *args: events.append("write") or write(*args)
    )
    read_texts(model, [PROMPT])
    assert events == [["read", "write", "barrier"], ["barrier", "read"]][rank]
    assert encodings == [[PROMPT], []][rank]
    events.clear()
    with pytest.raises(FileNotFoundError):
        read_texts("no/such/folder", [PROMPT])
    assert events == ["barrier"]


# ---- learned tokens


def write_token(path, content):
    save_file(content, path) if path.suffix == ".safetensors" else torch.save(content, path)
    return str(path)


@pytest.fixture(scope="module")
def words(random_priors):
    """Rows of the embedding table by word: what a learned token may as well be."""
    tokenizer = CLIPTokenizer.from_pretrained(random_priors / "sd", subfolder="tokenizer")
    weights = load_file(random_priors / "sd" / "text_encoder" / "model.safetensors")
    table = weights["text_model.embeddings.token_embedding.weight"]
    return lambda text: table[tokenizer(text, add_special_tokens=False).input_ids]


@pytest.mark.parametrize("suffix", ["bin", "pt", "safetensors"])
@pytest.mark.parametrize("name", ["<token>", "_panda_dance_", "*"])
def test_a_token_with_a_words_vector_is_that_word(process, by_hand, words, workplace, suffix, name):
    path = write_token(workplace / f"learned_embeds.{suffix}", {name: words("fox")[0]})
    output = process(
        "textual-inversion-prompt-processor",
        prompt="a <token> is dancing",
        learned_embeds_path=path,
        negative_prompt="no <token>",
    )
    torch.testing.assert_close(
        output.text_embeddings[0], by_hand("a fox is dancing"), atol=1e-5, rtol=0
    )
    for row, name in zip(output.text_embeddings_vd, VIEWS, strict=True):
        torch.testing.assert_close(
            row, by_hand(f"a fox is dancing, {name} view"), atol=1e-5, rtol=0
        )
    torch.testing.assert_close(
        output.uncond_text_embeddings[0], by_hand("no fox"), atol=1e-5, rtol=0
    )


def test_a_token_of_several_vectors_takes_as_many_places(process, by_hand, words, workplace):
    path = write_token(workplace / "e.bin", {"<token>": words("blurry fox dancing")})
    output = process(
        "textual-inversion-prompt-processor", prompt="a<token>.", learned_embeds_path=path
    )
    expected = by_hand("a blurry fox dancing .")
    torch.testing.assert_close(output.text_embeddings[0], expected, atol=1e-5, rtol=0)


def test_the_files_own_name_and_another_placeholder_work(process, by_hand, words, workplace):
    path = write_token(workplace / "e.bin", {"fox": words("panda")[0]})
    config = {"learned_embeds_path": path, "token": "S*"}
    for prompt, expected in (
        ("a S* jump", "a panda jump"),
        ("a fox jump", "a panda jump"),
        ("a S*, foxes", "a panda, foxes"),  # a name of letters stands for whole words only
    ):
        output = process("textual-inversion-prompt-processor", prompt=prompt, **config)
        torch.testing.assert_close(output.text_embeddings[0], by_hand(expected), atol=1e-5, rtol=0)


def test_several_tokens_go_by_their_names(process, by_hand, words, workplace):
    path = write_token(
        workplace / "e.safetensors", {"<one>": words("fox")[0], "<two>": words("robot dog")}
    )
    kind = "textual-inversion-prompt-processor"
    output = process(kind, prompt="<two> and <one>", learned_embeds_path=path)
    torch.testing.assert_close(
        output.text_embeddings[0], by_hand("robot dog and fox"), atol=1e-5, rtol=0
    )
    with pytest.raises(ValueError, match=r"several tokens, \['<one>', '<two>'\].*ambiguous"):
        process(kind, prompt="a <token>", learned_embeds_path=path)
    path = write_token(
        workplace / "f.bin", {"<one>": words("fox")[0], "<token>": words("robot")[0]}
    )
    output = process(kind, prompt="a <token>", learned_embeds_path=path)
    torch.testing.assert_close(output.text_embeddings[0], by_hand("a robot"), atol=1e-5, rtol=0)


@pytest.mark.parametrize("tokens", [["S*", "S*2"], ["S*2", "S*"]])
def test_the_longest_token_that_fits_is_meant(tokens):
    assert token_pattern(tokens).split("a S*2 S*") == ["a ", "S*2", " ", "S*", ""]


def test_another_token_file_is_another_embedding(process, words, workplace, encodings):
    """Also under the same path: the values are in the key."""
    kind, outputs = "textual-inversion-prompt-processor", []
    for word in ("fox", "robot", "fox"):
        path = write_token(workplace / "learned_embeds.bin", {"<token>": words(word)[0]})
        outputs.append(process(kind, prompt="a <token>", learned_embeds_path=path))
    assert not torch.allclose(outputs[0].text_embeddings, outputs[1].text_embeddings, atol=1e-2)
    assert torch.equal(outputs[0].text_embeddings, outputs[2].text_embeddings)
    assert len(encodings) == 12


def test_without_a_file_it_is_a_plain_processor(process):
    plain, output = process(), process("textual-inversion-prompt-processor")
    assert torch.equal(plain.text_embeddings_vd, output.text_embeddings_vd)


def test_the_cut_names_learned_tokens(process, words, workplace, warnings):
    path = write_token(workplace / "e.bin", {"_fox_": words("fox dog")})
    prompt = "panda " * 75 + "<token> dancing"
    process("textual-inversion-prompt-processor", prompt=prompt, learned_embeds_path=path)
    assert any("Not read: '_fox_ dancing'" in w or "'<token> dancing'" in w for w in warnings)


@pytest.mark.parametrize(
    "prompt, content, message",
    [
        ("a <token>", None, r"has <token>, but no learned_embeds_path"),
        ("a panda", {"<token>": torch.zeros(32)}, r"would do nothing.*<token>.*=null"),
        (
            "a <token>",
            {"x": torch.zeros(768)},
            r"'<token>' has 768 dimensions.*takes 32.*768: Stable",
        ),
        ("a <token>", {"x": torch.zeros(2, 16)}, r"has 16 dimensions"),
        ("a <token>", {"x": torch.zeros(1, 2, 32)}, r"holds \['x'\]; \{token: tensor"),
        ("a <token>", {"x": "y"}, r"holds \['x'\]"),
        ("a <token>", {}, r"holds \[\]"),
        ("a <token>", [torch.zeros(32)], r"holds list"),
        ("a <token>", Path, r"learned_embeds\.bin' cannot be read.*holds Python objects"),
        ("a <token>", {"x": torch.full([32], torch.nan)}, r"vectors of x hold nan.*smaller --l"),
        ("a <token>", {"x": torch.tensor([1.0, torch.inf])}, r"vectors of x hold nan"),
        ("a <token>", {"x": torch.zeros(0, 32)}, r"holds \['x'\]"),
        ("a <token>", {"x": torch.arange(32)}, r"holds \['x'\]"),
        ("a <token>", {"string_to_param": {}}, r"holds \['string_to_param'\]"),
    ],
)
def test_bad_tokens_are_named(process, workplace, prompt, content, message):
    path = None if content is None else write_token(workplace / "learned_embeds.bin", content)
    with pytest.raises(ValueError, match=message):
        process("textual-inversion-prompt-processor", prompt=prompt, learned_embeds_path=path)


def test_missing_files_are_named(process, workplace):
    with pytest.raises(FileNotFoundError, match=r"nope\.bin' does not exist"):
        read_learned_tokens("nope.bin")
    write_token(workplace / "learned_embeds.bin", {"x": torch.zeros(4)})
    with pytest.raises(FileNotFoundError, match=r"is a folder.*learned_embeds\.bin"):
        read_learned_tokens(workplace)
    (workplace / "broken.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"broken\.safetensors' cannot be read"):
        read_learned_tokens(workplace / "broken.safetensors")


CASES = {
    "nan_embeds.bin": r"nan_embeds\.bin: the vectors of <panda> hold nan",
    "lfs_pointer.bin": r"lfs_pointer\.bin' is a Git LFS pointer.*git lfs pull",
}


def test_embeddings_that_mean_nothing_are_refused(process, workplace):
    write_token(workplace / "nan_embeds.bin", {"<panda>": torch.full([32], torch.nan)})
    (workplace / "lfs_pointer.bin").write_text("version https://git-lfs.github.com/spec/v1\noid\n")
    for name, message in CASES.items():
        with pytest.raises(ValueError, match=message):
            process(
                "textual-inversion-prompt-processor", prompt="a <token>", learned_embeds_path=name
            )


def test_automatic1111s_files_are_read_alike(process, by_hand, words, workplace):
    """Its .pt has the vectors below string_to_param, its .safetensors as emb_params."""
    vectors = words("fox dog")
    content = {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": "foxy"}
    pickled = write_token(workplace / "a1111.pt", {**content, "step": 1})
    safe = write_token(workplace / "a1111.safetensors", {"emb_params": vectors})
    for path, name in ((pickled, "foxy"), (safe, "emb_params")):
        assert list(read_learned_tokens(path)) == [name]
        for prompt in ("a <token>", f"a {name}"):
            output = process(
                "textual-inversion-prompt-processor", prompt=prompt, learned_embeds_path=path
            )
            expected = by_hand("a fox dog")
            torch.testing.assert_close(output.text_embeddings[0], expected, atol=1e-5, rtol=0)
    del content["name"]
    assert list(read_learned_tokens(write_token(workplace / "b.pt", content))) == ["*"]


def test_of_sdxls_two_halves_the_one_for_clip_counts(process, by_hand, words, workplace):
    path = write_token(
        workplace / "sdxl.safetensors", {"clip_l": words("fox"), "clip_g": torch.randn(1, 1280)}
    )
    output = process(
        "textual-inversion-prompt-processor", prompt="a <token>", learned_embeds_path=path
    )
    torch.testing.assert_close(output.text_embeddings[0], by_hand("a fox"), atol=1e-5, rtol=0)


def test_a_token_that_no_prompt_uses_need_not_fit(process, by_hand, words, workplace, encodings):
    kind = "textual-inversion-prompt-processor"
    content = {"<one>": words("fox")[0], "<two>": torch.zeros(768)}
    path = write_token(workplace / "e.bin", content)
    output = process(kind, prompt="a <one>", learned_embeds_path=path)
    torch.testing.assert_close(output.text_embeddings[0], by_hand("a fox"), atol=1e-5, rtol=0)
    done = len(encodings)
    write_token(workplace / "e.bin", {**content, "<two>": torch.ones(9)})
    process(kind, prompt="a <one>", learned_embeds_path=path)
    assert len(encodings) == done  # from the cache: nothing that counts is another
    for other in ({"prompt": "a <two>"}, {"prompt": "a <one>", "negative_prompt": "a <two>"}):
        with pytest.raises(ValueError, match="'<two>' has 9 dimensions"):
            process(kind, learned_embeds_path=path, **other)


def test_a_token_of_full_size_models_names_its_dimensions(process, tmp_path):
    path = tmp_path / "learned_embeds.bin"  # as the original's script writes it
    torch.save({"_panda_dance_": torch.randn(768)}, path)
    tokens = read_learned_tokens(path)
    assert list(tokens) == ["_panda_dance_"] and tokens["_panda_dance_"].shape == (1, 768)
    with pytest.raises(ValueError, match="'<token>' has 768 dimensions"):
        process(
            "textual-inversion-prompt-processor",
            prompt="a <token> is dancing",
            learned_embeds_path=str(path),
        )


def test_the_processors_hold_no_text_encoder(process, random_priors):
    processor = threestudio.find("animate124-prompt-processor")(
        {"prompt": PROMPT, "pretrained_model_name_or_path": str(random_priors / "sd")}
    )
    modules = [v for v in vars(processor).values() if isinstance(v, torch.nn.Module)]
    assert not modules and isinstance(processor(), prompts.PromptEmbeddings)
