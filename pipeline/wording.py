"""Sentences: who a prompt is about, and the prompts of the stages that follow from that."""

import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

from .noun_phrase import (
    AND,
    AUXILIARIES,
    COUNTS,
    DETERMINERS,
    PREPOSITIONS,
    PRONOUNS,
    RELATIVES,
    find_subject,
)

TOKEN = "<token>"  # stands for the learned token in stage 3's prompt

LONGEST_NAME = 3  # words of a caption that only names something, such as "lit candle"


NO_NAMES = DETERMINERS | PRONOUNS | AUXILIARIES | PREPOSITIONS | RELATIVES | AND


class Subject(NamedTuple):
    """Who or what moves."""

    noun: str  # "panda"
    phrase: str  # "a panda", "two pandas", "the old panda"

    @staticmethod
    def named(text: str) -> "Subject":
        """From what a person calls it, with or without an article; a ValueError for nothing."""
        words = text.split()
        if not words:
            raise ValueError('--subject is empty: name who moves, such as --subject "panda".')
        if words[-1].lower() in NO_NAMES:
            raise ValueError(
                f'--subject {text!r} names nobody: say who moves, such as --subject "panda".'
            )
        articles = 0
        while articles < len(words) - 1 and words[articles].lower() in DETERMINERS - COUNTS:
            articles += 1
        noun = " ".join(words[articles:])
        if articles or takes_no_article(noun):
            return Subject(noun, " ".join(words))
        return Subject(noun, f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}")


def takes_no_article(noun: str) -> bool:
    """ "two pandas", "Pikachu"."""
    first = noun.split()[0]
    return first.lower() in COUNTS or first.isdecimal() or (first.istitle() and noun == first)


def subject_of(sentence: str) -> Subject | None:
    """Who or what a prompt is about; None where it names nobody, several, or it can't be told."""
    found = find_subject(sentence)
    if found is None:
        return None
    article, noun = found
    return Subject(noun, f"{article} {noun}".strip())


def subject_of_caption(caption: str) -> Subject | None:
    """The same of a picture's caption, which may be a mere name."""
    found = subject_of(caption)
    if found is None and len(caption.split()) <= LONGEST_NAME and not leading_pronoun(caption):
        return Subject.named(caption)
    return found


def leading_pronoun(sentence: str) -> str:
    """ "it" of "it is dancing"; else nothing."""
    first = re.match(r"\w*", sentence)
    return first[0] if first and first[0].lower() in PRONOUNS else ""


def refined(prompt: str, subject: Subject) -> str | None:
    """The prompt with the learned token for the subject, or for the pronoun that it begins with;
    None if the subject isn't in it."""
    pattern = re.compile(rf"\b{re.escape(subject.noun)}\b", re.IGNORECASE)
    text, found = pattern.subn(TOKEN, prompt, count=1)
    if found:
        return text
    pronoun = leading_pronoun(prompt)
    return pattern.sub(TOKEN, subject.phrase) + prompt[len(pronoun) :] if pronoun else None


def unknown_words(models: str, known: Mapping[str, Collection[str]], *sentences: str) -> str | None:
    """One line about words that a preset's models only spell; None if they know all of them.

    models: whose they are, "toy"; known: the content of the preset's words.json.
    """
    words = re.findall(r"[a-z]+", " ".join(sentences).replace(TOKEN, " ").lower())
    unknown = [word for word in dict.fromkeys(words) if word not in known["words"]]
    if not unknown:
        return None
    return (
        f"The {models} models never saw the word{'s' * (len(unknown) > 1)} {', '.join(unknown)}: "
        f"they know a {', '.join(known['subjects'])} that is {', '.join(known['motions'])}."
    )
