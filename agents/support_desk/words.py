"""What the models see of a ticket's text: stems, their pairs, their order, and plain letters.

A ticket is about ten words long, so every form of a word that is seen as another word costs evidence. Stems
are crude on purpose: they only have to be the same for words that mean the same, not to be words.
"""

import re
from collections.abc import Iterator
from itertools import combinations, pairwise
from typing import Final

LETTERS_MAX: Final = 2_000
"""Longer tickets are read up to here: what they ask for comes early, and pairs grow with the square."""
PAIRED_WORDS_MAX: Final = 60
SKIP_MAX: Final = 5

_WORD: Final = re.compile(r"\w+|\?")
_SHORTENED: Final = {
    "can't": "can not",
    "cannot": "can not",
    "won't": "will not",
    "n't": " not",
    "'ve": " have",
    "'m": " am",
    "'re": " are",
    "'ll": " will",
    "'d": " would",
}
_SAME_WORD: Final = {
    form: word
    for word, forms in {
        "activate": "activation",
        "atm": "atms cashpoint cashpoints",
        "be": "am are been being is was were",
        "break": "broke broken",
        "buy": "bought",
        "cancel": "cancellation cancelled canceled",
        "cheque": "check checks cheques",
        "choose": "choice chose chosen",
        "come": "came",
        "decline": "declined denied deny refuse refused reject rejected",
        "deliver": "delivery",
        "do": "did does doing done",
        "expire": "expiration expiry",
        "fee": "charge cost costs fees",
        "find": "found",
        "forget": "forgot forgotten",
        "get": "gets got gotten",
        "give": "gave given",
        "go": "goes going gone went",
        "have": "had has",
        "identity": "id identification",
        "keep": "kept",
        "know": "knew known",
        "lose": "losing lost",
        "make": "made",
        "pay": "paid payd payment",
        "phone": "cellphone mobile",
        "receive": "recieve recieved",
        "say": "said",
        "see": "saw seen",
        "send": "sent",
        "steal": "stole stolen",
        "take": "taken took",
        "tell": "told",
        "think": "thought",
        "unknown": "odd strange unfamiliar unrecognised unrecognized unusual weird",
        "verify": "verification verified",
        "withdraw": "withdrawal withdrawel withdrawl withdrawn withdraws withdrew",
    }.items()
    for form in forms.split()
}
_ENDINGS: Final = (
    ("ations", "at"),
    ("ation", "at"),
    ("ments", "ment"),
    ("ings", ""),
    ("ing", ""),
    ("edly", ""),
    ("ed", ""),
    ("ies", "y"),
    ("ly", ""),
    ("s", ""),
)
_STEM_LENGTH_MIN: Final = 3


def plain(text: str) -> str:
    """The text in lower case, cut to `LETTERS_MAX`, with `can't` and the like written out."""
    text = text[:LETTERS_MAX].lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    for short, full in _SHORTENED.items():
        text = text.replace(short, full)
    return text


def stems(text: str) -> list[str]:
    """The stems of the text's words in their order; a question mark counts as a word."""
    return [_stem(_SAME_WORD.get(word, word)) for word in _WORD.findall(plain(text))]


def neighbours(text: str) -> list[str]:
    """Stems that stand side by side; the text's start and end count as stems."""
    fenced = ["^", *stems(text), "$"]
    return [f"{one} {other}" for one, other in pairwise(fenced)]


def pairs(text: str) -> list[str]:
    """Every two different stems of the text, wherever they stand: `card` with `arrive` says more than either."""
    different = sorted(dict.fromkeys(stems(text)[:PAIRED_WORDS_MAX]))
    return [f"{one}&{other}" for one, other in combinations(different, 2)]


def ordered(text: str) -> list[str]:
    """Stems that follow one another at a small distance, and three in a row."""
    return [*_skipping(stems(text)), *_threes(["^", *stems(text), "$"])]


def _skipping(found: list[str]) -> Iterator[str]:
    for place, one in enumerate(found):
        for other in found[place + 2 : place + 1 + SKIP_MAX]:
            yield f"{one}>{other}"


def _threes(fenced: list[str]) -> Iterator[str]:
    for three in zip(fenced, fenced[1:], fenced[2:], strict=False):
        yield " ".join(three)


def _stem(word: str) -> str:
    word = _without_ending(word)
    if len(word) > _STEM_LENGTH_MIN and word.endswith("e"):
        word = word[:-1]
    if len(word) > _STEM_LENGTH_MIN and word.endswith("y"):
        word = word[:-1] + "i"
    return word


def _without_ending(word: str) -> str:
    for ending, rest in _ENDINGS:
        if not word.endswith(ending) or len(word) - len(ending) < _STEM_LENGTH_MIN:
            continue
        if ending == "s" and word[-2] in "siu":  # less, this, status
            continue
        stem = word.removesuffix(ending) + rest
        is_doubled = len(stem) > _STEM_LENGTH_MIN and stem[-1] == stem[-2] != "s"
        return stem[:-1] if is_doubled else stem
    return word
