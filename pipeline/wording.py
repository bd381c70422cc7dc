"""Sentences: who a prompt is about, and the prompts of the stages that follow from that."""

import re
from typing import NamedTuple

from ..toyworld.captions import VERBS, WORDS
from ..toyworld.characters import SPECIES

TOKEN = "<token>"  # stands for the learned token in stage 3's prompt

ARTICLE = re.compile(r"^(an?|the)\s+", re.IGNORECASE)
# where a subject ends: "a robot with a hat, using a laptop" is about a robot
TAIL = re.compile(r"\s*(?:,|\s(?:with|in|on|at|near|under|that|which|who)\s).*$", re.IGNORECASE)
# not verbs
NOUNS_IN_ING = {"building", "ceiling", "duckling", "dumpling", "earring", "gosling", "king", "ring"}
NOUNS_IN_ING |= {"painting", "seedling", "sibling", "spring", "string", "thing", "viking", "wing"}
LONGEST_NAME = 3  # words of a prompt that only names something, such as "a lit candle"


class Subject(NamedTuple):
    """Who or what moves."""

    noun: str  # "panda"
    phrase: str  # "a panda", "two pandas", "the old panda"

    @staticmethod
    def named(text: str) -> "Subject":
        """From what a person calls it, with or without an article."""
        noun = ARTICLE.sub("", text.strip())
        if ARTICLE.match(text.strip()):
            return Subject(noun, text.strip())
        return Subject(noun, f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}")


def subject_of(sentence: str) -> Subject | None:
    """The words before "is" or "are", or before the first verb in -ing; None if there are none."""
    sentence = sentence.strip().rstrip(".")
    words = re.split(r"\s+(?:is|are)\s", sentence, maxsplit=1, flags=re.IGNORECASE)
    phrase = TAIL.sub("", words[0]) if len(words) > 1 else _before_participle(sentence)
    noun = ARTICLE.sub("", phrase)
    if not noun or re.match(r"(?:an?|the|is|are)\b", noun, re.IGNORECASE):
        return None
    return Subject(noun, phrase)


def _before_participle(sentence: str) -> str:
    """ "a monkey riding a bike" -> "a monkey"; "a lit candle" stays whole; else nothing."""
    phrase = TAIL.sub("", sentence)
    words = phrase.split()
    first = 2 if ARTICLE.match(phrase) else 1  # "a flying eagle": a participle before its noun
    for n, word in enumerate(words):
        if n >= first and word.lower().endswith("ing") and word.lower() not in NOUNS_IN_ING:
            return " ".join(words[:n])
    if len(words) < first:
        return ""
    named = first == 2 and len(words) <= 1 + LONGEST_NAME
    return phrase if named or phrase != sentence else ""


def refined(prompt: str, subject: Subject) -> str | None:
    """The prompt with the learned token for the subject; None if the subject isn't in it."""
    pattern = re.compile(rf"\b{re.escape(subject.noun)}\b", re.IGNORECASE)
    text, found = pattern.subn(TOKEN, prompt, count=1)
    return text if found else None


def unknown_to_the_toy(*sentences: str) -> str | None:
    """One line about words that the toy text encoder only spells, None if it knows all of them."""
    words = re.findall(r"[a-z]+", " ".join(sentences).replace(TOKEN, " ").lower())
    unknown = [word for word in dict.fromkeys(words) if word not in WORDS]
    if not unknown:
        return None
    return (
        f"The toy models never saw the word{'s' * (len(unknown) > 1)} {', '.join(unknown)}: they "
        f"know a {', '.join(SPECIES)} that is {', '.join(VERBS.values())}."
    )
