"""Who a prompt is about, and the prompts that follow."""

import pytest
from animate124.pipeline.wording import Subject, refined, subject_of, unknown_to_the_toy

CAPTIONS = {  # the public benchmark's, and a few harder ones
    "a panda is dancing": "panda",
    "a full-bodied cat is waving its paw": "full-bodied cat",
    "an eagle is flying": "eagle",
    "a flag attached to a flagpole, waving": "flag attached to a flagpole",
    "a lighting candle": "lighting candle",
    "a monkey riding a bike": "monkey",
    "a humanoid robot with a shiny silver finish, using a laptop": "humanoid robot",
    "a rose in a flowerpot sways in the wind": "rose",
    "a squirrel eating nut": "squirrel",
    "a tiger elegantly playing a violin": "tiger elegantly",
    "a fox maneuvering a game controller": "fox",
    "two pandas are dancing": "two pandas",
    "A yellow duckling walking home": "yellow duckling",
    "a flying eagle is gliding": "flying eagle",
    "the king is laughing.": "king",
}
NOBODY = [
    "a crab raises its big claws",
    "dancing wildly",
    "is dancing",
    "a",
    "it rains and pours",
]


@pytest.mark.parametrize("prompt", CAPTIONS)
def test_the_subject_of_a_prompt(prompt):
    assert subject_of(prompt).noun == CAPTIONS[prompt]


@pytest.mark.parametrize("prompt", CAPTIONS)
def test_the_token_takes_the_subjects_place_and_nothing_else(prompt):
    subject = subject_of(prompt)
    assert refined(prompt, subject).replace("<token>", subject.noun) == prompt


@pytest.mark.parametrize("prompt", NOBODY)
def test_no_subject_is_made_up(prompt):
    assert subject_of(prompt) is None


def test_a_named_subject_gets_its_article():
    assert Subject.named("owl") == ("owl", "an owl")
    assert Subject.named("the old bear") == ("old bear", "the old bear")
    assert refined("a panda is dancing", Subject.named("bear")) is None
    assert refined("a pandab is dancing", Subject.named("panda")) is None


def test_words_that_the_toy_models_never_saw_are_named():
    assert unknown_to_the_toy("a toy panda", "a <token> is dancing") is None
    line = unknown_to_the_toy("a unicorn is dancing, front view")
    assert "unicorn" in line and "\n" not in line
    for known in ("panda", "fox", "robot", "dancing", "standing still"):
        assert known in line
    assert "dancing, " not in line.split(":")[0]
