"""Where a prompt's one subject stands: "a small, fluffy dog" of "a small, fluffy dog is barking".

What each word may be comes from HanTa's model of English, in tags of the British National Corpus:
NN1 singular noun, NN2 plural, NN0 either (sheep), NP0 name, VVZ "dances", VVB and VVI "dance", VVG
"dancing", VVD and VVN "danced", AJ0 adjective, AV0 adverb. Grammar does the rest: after "a" stands
no plural, so the "dances" of "a panda dances" is a verb.

What can be read in two ways has no answer here: a person who is asked loses less than one whose
prompts are about somebody else.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple


def listed(text: str) -> frozenset[str]:
    return frozenset(text.split())


ONE = listed("a an this that each every another one")
MANY = listed("these those both all some")
COUNTS = listed("several many few two three four five six seven eight nine ten")
EITHER = listed("the my your his her its our their")
DETERMINERS = ONE | MANY | COUNTS | EITHER
PRONOUNS = listed(
    "i you he she it we they who what somebody someone something anybody anyone anything nobody"
    " nothing everybody everyone everything"
)
TO_BE = listed("is are was were am isn't aren't wasn't weren't")
AUXILIARIES = TO_BE | listed(
    "has have had will would can could may might must shall should does do did won't can't couldn't"
    " doesn't don't didn't hasn't haven't"
)
RELATIVES = listed("that which who whose where when while as because until if so but")
PREPOSITIONS = listed(
    "about above across after against along among around at before behind below beneath beside"
    " between beyond by down during for from in inside into like near off on onto out outside over"
    " past through to toward towards under underneath up upon via with within without"
)
AND = listed("and or & + plus")
# "a picture of a panda" is about the panda
DEPICTIONS = listed(
    "animation cartoon clip closeup close-up drawing footage gif illustration image painting photo"
    " photograph picture portrait render rendering scene shot sketch video view"
)
PRAISE = listed("artwork detail details masterpiece quality resolution wallpaper")
NOUNS_IN_ING = listed(
    "being building ceiling clothing drawing duckling dumpling earring gosling king lighting"
    " lightning painting rendering ring seedling setting shading sibling spring string thing viking"
    " wing"
)
# "a flag attached to a pole" is called that, while "a bear dressed in red" is a bear
MADE, OF = listed("attached built carved made shaped tied"), listed("of to from")
CREATURES = listed("bats bears cranes ducks hawks seals swallows trains")  # that are verbs, too
KNOWN = -20.0  # log-probability of a word with a tag; what is below it HanTa only guesses
USUAL, CLOSE = -16.0, 4.0  # a word's tags are the usual ones, and those so close to the likeliest

WORD = re.compile(
    r"<[^>]*>|:\s*\d+(?:\.\d+)?(?=\s*[)\]])|'s\b|close[ -]up"
    r"|\w+(?:[-/&]\w+)*(?:'(?!s\b)\w+)?|\S",
    re.IGNORECASE,
)
MARK = re.compile(r":\s*\d+(?:\.\d+)?|<.*>")  # "(panda:1.2)", "<lora:x:1>"
OPENING, CLOSING = "([{", ")]}"
QUOTES = "\"'*\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}"
APOSTROPHE = "\N{RIGHT SINGLE QUOTATION MARK}"


class Unclear(Exception):
    """More than one subject, a pronoun, or words that can be read in two ways."""


@dataclass(frozen=True)
class Word:
    text: str  # in lower case
    start: int  # in the prompt
    end: int
    tag: str = ""  # in this sentence
    tags: dict[str, float] = field(default_factory=dict)  # that it may have, log-probabilities

    def may_be(self, *tags: str) -> bool:
        return any(tag in self.tags for tag in tags)

    @property
    def known(self) -> bool:
        return max(self.tags.values(), default=KNOWN) > KNOWN

    @property
    def likeliest(self) -> str:
        return max(self.tags, key=self.tags.__getitem__, default="")

    @property
    def is_separator(self) -> bool:
        return not re.search(r"\w", self.text) and self.text not in AND

    @property
    def is_determiner(self) -> bool:
        return self.text in DETERMINERS or self.counts

    @property
    def counts(self) -> bool:
        return self.text in COUNTS or self.text.isdecimal()

    @property
    def is_adverb(self) -> bool:
        return self.likeliest in {"AV0", "AVP"} or (
            self.text.endswith("ly") and not self.may_be("NN1", "AJ0")
        )

    @property
    def is_participle(self) -> bool:
        """ "dancing", also as in "a dancing panda"."""
        if not self.text.endswith("ing") or self.text in NOUNS_IN_ING:
            return False
        return self.may_be("VVG") or not self.known

    @property
    def is_past(self) -> bool:
        return self.may_be("VVD", "VVN") and not self.may_be("NN1", "NN2")

    @property
    def is_plural(self) -> bool:
        """Surely; "sheep" are, too."""
        return self.may_be("NN2", "NN0") and not self.may_be("NN1", "NP0")

    @property
    def in_s(self) -> bool:
        """Plural or verb, by its form."""
        if self.known:
            return self.may_be("NN2", "VVZ") and self.text.endswith("s") and not self.may_be("NN1")
        return bool(re.search(r"[^sui]s$", self.text))

    @property
    def ends_phrase(self) -> bool:
        return (
            self.is_separator
            or self.is_determiner
            or self.text in AUXILIARIES | RELATIVES | PREPOSITIONS | PRONOUNS | AND | {"not", "of"}
        )


class Number(NamedTuple):
    """What a phrase's determiners say about its verb."""

    one: bool  # "a", so the verb ends in s
    many: bool  # "two", so it doesn't
    inner: bool = False  # after an "of": "a flock of birds fly", or flies


class Phrase(NamedTuple):
    """Determiners words[start:noun], nouns and what describes them words[noun:end]."""

    start: int
    noun: int
    end: int
    acts: bool  # a verb follows

    @property
    def determined(self) -> bool:
        return self.noun > self.start


def find_subject(prompt: str) -> tuple[str, str] | None:
    """A prompt's subject: its article and the like, such as "a" or "", and the words after it as
    they stand in the prompt. None where there is none or it can't be told."""
    words = tagged(prompt, read(prompt))
    phrases, doubtful = [], False
    for start, end in parts(words):
        try:
            phrase = clause(words, start, end)
        except Unclear:
            if words[start].is_determiner or words[start].text in PRONOUNS:
                return None
            doubtful = True  # "studio lights, a panda is dancing" has a subject all the same
            continue
        if phrase is not None:
            phrases.append(phrase)
    found = choose(phrases)
    if found is None or (doubtful and not found.determined):
        return None
    noun = found.noun
    while noun > found.start and words[noun - 1].counts:  # "two pandas"
        noun -= 1
    for n in range(found.end - 1, noun, -1):
        if prompt[words[n - 1].end : words[n].start].strip():  # a bracket between
            noun = n
            break
    article = " ".join(prompt[w.start : w.end] for w in words[found.start : min(noun, found.noun)])
    return article, prompt[words[noun].start : words[found.end - 1].end]


# ----------------------------------------------------------------------------------- words


@functools.cache
def tagger() -> Any:
    """HanTa's, loaded once (0.1 s)."""
    try:
        from HanTa.HanoverTagger import HanoverTagger
    except ImportError as error:
        raise ValueError(
            "HanTa tells who moves in a prompt, and isn't installed: `pip install -e .` in this "
            "folder, or pass --subject."
        ) from error
    return HanoverTagger("morphmodel_en.pgz")


def read(prompt: str) -> list[Word]:
    """Words and separators. A bracket after a noun holds an aside, which is left out; of others
    the brackets alone are, with their weights, and quotation marks."""
    words: list[Word] = []
    depth = 0  # of the aside
    for match in WORD.finditer(prompt.replace(APOSTROPHE, "'")):
        word = Word(match[0].lower().replace("close up", "close-up"), *match.span())
        opens, closes = word.text in OPENING, word.text in CLOSING
        beginning = not words or words[-1].is_separator or words[-1].ends_phrase
        if depth or (opens and not beginning):
            depth += opens - closes
        elif not (opens or closes or word.text in QUOTES or MARK.fullmatch(word.text)):
            words.append(word)
    return words


def tagged(prompt: str, words: Sequence[Word]) -> list[Word]:
    """With what they may be. Capitals tell names, unless all words have them."""
    texts = [prompt[word.start : word.end] for word in words]
    if sum(text[:1].isupper() for text in texts) > len(texts) / 2:
        texts = [text.lower() for text in texts]
    if not texts:
        return []
    out = []
    for word, text, (*_, tag) in zip(words, texts, tagger().tag_sent(texts), strict=True):
        out.append(Word(word.text, word.start, word.end, tag, tags_of(text)))
    return out


@functools.cache
def tags_of(text: str) -> dict[str, float]:
    """What a word may be by itself, with log-probabilities."""
    scores = {tag: float(score) for tag, score in tagger().tag_word(text, cutoff=20)}
    least = min(USUAL, max(scores.values(), default=0) - CLOSE)
    return {tag: score for tag, score in scores.items() if score > least}


def parts(words: Sequence[Word]) -> list[tuple[int, int]]:
    """Start and end of what stands between separators. Commas of "a small, fluffy dog" are none."""
    found, start = [], 0
    for n, word in enumerate(words):
        if word.is_separator and not (word.text == "," and joins_adjectives(words, start, n)):
            found.append((start, n))
            start = n + 1
    return [(a, b) for a, b in [*found, (start, len(words))] if a < b]


def joins_adjectives(words: Sequence[Word], start: int, comma: int) -> bool:
    """Whether an article and adjectives stand before a comma, and one with its noun after it."""
    article, *before = words[start:comma] or [Word("", 0, 0)]
    following = words[comma + 1 : comma + 3]
    return (
        article.is_determiner
        and len(before) > 0
        and all(word.may_be("AJ0") or word.text == "," for word in before)
        and len(following) == 2
        and following[0].may_be("AJ0")
        and not following[0].ends_phrase
        and (following[1].text == "," or not following[1].ends_phrase)
    )


# --------------------------------------------------------------------------------- phrases


def choose(phrases: Sequence[Phrase]) -> Phrase | None:
    """The subject among those of a prompt's parts: "best quality, a panda is dancing"."""
    acting = next((p for p in phrases if p.acts), None)
    if acting is not None:
        return acting if acting is phrases[0] else None
    return phrases[0] if len(phrases) == 1 else None


def clause(words: Sequence[Word], start: int, end: int) -> Phrase | None:
    """The subject of words[start:end]; None if they have none of their own ("in a forest").

    Raises:
        Unclear: it can't be told.
    """
    n = start
    while n < end - 1 and words[n].is_adverb and not words[n].is_determiner:
        n += 1
    there = words[n].text in {"there", "here", "it", "this", "that"} and n + 2 < end
    if there and words[n + 1].text in TO_BE | {"'s"} and words[n + 2].is_determiner:
        n += 2  # "there is a panda dancing"
    text = words[n].text
    if text in PRONOUNS:
        raise Unclear
    if text in AUXILIARIES | RELATIVES | PREPOSITIONS and not words[n].is_determiner:
        return None
    found = noun_phrase(words, n, end)
    for later in range(found.end if found else end, end - 1):
        if words[later].text in AND and words[later + 1].is_determiner:
            other = noun_phrase(words, later + 1, end)
            if other is not None and other.acts:  # "... and a cat is sleeping"
                raise Unclear
    return found


def noun_phrase(
    words: Sequence[Word], start: int, end: int, depicted: bool = False
) -> Phrase | None:
    """The one that begins at `start`. Without a determiner it needs a verb, or to be `depicted`.

    Raises:
        Unclear: it can't be told where it ends, or "and" joins it to another.
    """
    first = after_determiners(words, start, end)
    many = any(w.text in MANY or w.counts for w in words[start:first])
    number = Number(not many and any(w.text in ONE for w in words[start:first]), many)
    n, noun = first, None  # noun: the last one so far
    while n < end:
        word, following = words[n], words[n + 1].text if n + 1 < end else ""
        if noun is not None and word.text == "of" and words[noun].text in DEPICTIONS:
            return noun_phrase(words, n + 1, end, depicted=True)
        if noun is not None and (word.text == "of" or (word.text in MADE and following in OF)):
            n = after_determiners(words, n + (1 if word.text == "of" else 2), end)
            noun, number = None, number._replace(inner=True)
        elif word.text == "'s":
            if n + 1 < end and words[n + 1].is_participle and not begins_noun(words, n + 2, end):
                break  # "a panda's dancing"
            n, noun = n + 1, None
        elif noun is None:
            if word.ends_phrase and not (word.text in AND | PREPOSITIONS | {","} and n > first):
                break
            if not (word.is_participle or word.is_adverb) and (is_noun(words, n, end)):
                noun = n
            n += 1
        elif word.is_adverb or ends_here(words, n, end):
            break
        elif word.is_participle or word.is_past:
            if compound_acts(words, n + 1, end, number):
                raise Unclear  # "a toy racing car is driving"
            break
        elif is_verb(words, n, noun, end, number):
            break
        else:
            noun = n
            n += 1
    if noun is None:
        return None
    if n < end and words[n].text in AND and n + 1 < end and not verb_form(words[n + 1]):
        raise Unclear  # "a cat and a dog"
    acts = acts_at(words, n, noun, end, number)
    if not acts and words[noun].text in PRAISE | DEPICTIONS:
        return None
    if first == start and not depicted:
        orders = n - first > 1 and words[first].may_be("VVB", "VVI")  # "make pandas dance"
        if not acts or orders or not any(word.known for word in words[n:end]):
            return None
    return Phrase(start, first, n, acts)


def after_determiners(words: Sequence[Word], n: int, end: int) -> int:
    while n < end and words[n].is_determiner:
        n += 1
    return n


def is_noun(words: Sequence[Word], n: int, end: int) -> bool:
    """Whether the word may be the noun rather than describe one."""
    if words[n].may_be("NN1", "NN2", "NN0", "NP0") or not words[n].known:
        return not (words[n].likeliest == "AJ0" and begins_noun(words, n + 1, end))
    return not begins_noun(words, n + 1, end)


def begins_noun(words: Sequence[Word], n: int, end: int) -> bool:
    if n < end - 1 and words[n].text in AND | {","}:  # "a black and white cat"
        n += 1
    if n >= end or words[n].ends_phrase or words[n].is_adverb or words[n].text == "'s":
        return False
    return words[n].may_be("NN1", "NN2", "NN0", "NP0", "AJ0") or not words[n].known


def is_auxiliary(words: Sequence[Word], n: int, end: int) -> bool:
    if words[n].text in {"can", "will"}:  # a tin can, a last will
        return n + 1 < end and (words[n + 1].may_be("VVI") or words[n + 1].text in {"be", "not"})
    return words[n].text in AUXILIARIES


def ends_here(words: Sequence[Word], n: int, end: int) -> bool:
    if words[n].text in AUXILIARIES:
        return is_auxiliary(words, n, end)
    return words[n].ends_phrase


def run(words: Sequence[Word], n: int, end: int) -> int:
    """Where the words that may all be nouns, from n on, end."""
    while n < end and not (
        words[n].ends_phrase or words[n].is_adverb or words[n].is_participle or words[n].is_past
    ):
        n += 1
    return n


def verb_form(word: Word) -> bool:
    return word.may_be("VVZ", "VVB", "VVI", "VVD") or word.is_participle or word.text in AUXILIARIES


def compound_acts(words: Sequence[Word], n: int, end: int, number: Number) -> bool:
    """Whether "racing" may belong to the noun before and after it, since a verb follows the latter:
    "a toy racing car is driving", but not "a dog wearing glasses is driving"."""
    if not begins_noun(words, n, end):
        return False
    stop = run(words, n, end)
    in_s = (k for k in range(n + 1, stop) if words[k].in_s and words[k].may_be("VVZ"))
    verb = next(in_s, stop)
    if verb == stop and not (stop < end and is_auxiliary(words, stop, end)):
        return False
    return not (number.one and words[verb - 1].is_plural)


def is_verb(words: Sequence[Word], n: int, noun: int, end: int, number: Number) -> bool:
    """Whether words[n], after the noun words[noun], is a verb in the present, by agreement.

    Raises:
        Unclear: it may be one, and it may be a noun.
    """
    word, before, stop = words[n], words[noun], run(words, n + 1, end)
    rest = words[n + 1 : stop]
    if stop < end and is_auxiliary(words, stop, end):
        return False  # all up to "is" is the subject
    more = any(later.in_s and later.may_be("VVZ") for later in rest)  # another such verb
    if not word.in_s:
        if word.text.endswith("s") and word.may_be("VVZ") and not number.many:
            raise Unclear  # "a zombie shambles"
        if not word.may_be("VVB", "VVI") or not (before.is_plural or number.many):
            return False
        if number.one and not number.inner:
            return False
        if more or (before.may_be("NN0") and word.likeliest == word.tag == "NN1"):
            raise Unclear  # "the birds nest falls", "the fish tank"
        return True
    if number.inner and before.is_plural:  # "a flock of birds flies"
        if word.may_be("VVZ") and word.tag != "VVZ":
            raise Unclear
        return word.tag == "VVZ"
    if number.many or (before.is_plural and not (number.one and before.may_be("NN0"))):
        return False
    if number.one and word.likeliest == "VVZ":
        return True
    if word.tag == "VVZ" or not word.may_be("NN2"):
        if not number.one and word.text in CREATURES:
            raise Unclear  # "the teddy bears dance"
        return True
    name = before.likeliest == "NP0" or not before.known
    if (number.one or name) and not rest:
        return True
    if rest and not (word.may_be("VVZ") and (more or number.one)):
        return False  # "the car doors open"
    raise Unclear  # "the flower blooms", "the birthday balloons"


def acts_at(words: Sequence[Word], n: int, noun: int, end: int, number: Number) -> bool:
    """Whether a verb stands at n, perhaps after adverbs or "which"."""
    while n < end and (words[n].is_adverb or words[n].text in {"that", "which", "who"}):
        n += 1
    if n == end:
        return False
    word = words[n]
    return (
        is_auxiliary(words, n, end)
        or word.text == "'s"
        or word.is_participle
        or word.is_past
        or (not word.ends_phrase and is_verb(words, n, noun, end, number))
    )
