"""Film reviews made by a small grammar, and the known reward that scores them.

Each review has a latent sentiment, drawn uniformly from [-1, 1], that makes opinion words of a similar
score likelier; everything else is drawn without regard to it. A language model of these reviews therefore
has both an open next-token distribution and something to be steered: its sentiment.
"""

import math
import random
import re
from collections.abc import Mapping

from . import lexicon

__all__ = ["reviews", "sentiment"]

# The grammar. <name> expands to one of the alternatives of that name; <adj>, <verb>, <noun> and <adv> are
# opinion words near the review's sentiment, and with a leading "!" near its opposite. "a(n)" becomes "a"
# or "an". Alternatives are equally likely, so a repeated one is likelier.
_RULES: dict[str, list[str]] = {
    "review": [
        "<opening> <body> <closing>",
        "<opening> <body> <closing>",
        "<opening> <body> <body> <closing>",
        "<opening> <closing>",
        "<body> <closing>",
        "<opening> <body>",
    ],
    "opening": [
        "I watched this <neutral> <kind> <occasion> and <feeling>.",
        "I saw <name>'s <neutral> <kind> <occasion>.",
        "This is a(n) <op> <kind> about a <hero> who <deed>.",
        "This is the story of a <hero> who <deed> in <place>.",
        "<name> plays a <hero> who <deed>, and the result is <op>.",
        "Set in <place> during <era>, this <kind> is <op>.",
        "The new <kind> by <name> is <op> and <op>.",
        "<name> has made a(n) <op> <neutral> <kind> about a <hero>.",
        "What a(n) <op> <kind>!",
        "A(n) <op> <kind> set in <place>, with <name> as a <hero>.",
    ],
    "body": [
        "The <aspect> is <op>, and the <aspects> are <op>.",
        "The <aspects> are <op>, but the <aspect> is <!op>.",
        "The <aspect> feels <op> from beginning to end.",
        "<name> acts <adv>, and the <aspect> never feels <!adj>.",
        "I <verb> the <aspects>, and <audience> <verb> the <aspect>.",
        "The <aspect> by <name> is <op>.",
        "When the <hero> <deed>, the <kind> turns <op>.",
        "There is a(n) <op> scene in <place> about the <thing>.",
        "Although the <aspect> is <!op>, I <verb> the <aspects>.",
        "Every minute about the <thing> is <op>.",
        "The <aspects> unfold <adv> for <duration>.",
        "<name> plays the <hero> <adv>.",
        "The <thing> and the <thing> are shown <adv>.",
        "After <duration> the <aspect> became <op>.",
    ],
    "closing": [
        "In the end it is a <noun>.",
        "I <verb> it, and so did <audience>.",
        "For <audience> it was a(n) <adj> <noun>.",
        "It is a(n) <op> way to spend <duration>.",
        "All in all, a(n) <op> <kind>.",
        "A <noun> from <name>.",
        "I left the theatre thinking of the <thing> and the <op> <aspect>.",
        "<audience> <verb> every minute of it.",
        "Seldom has a <kind> about a <hero> been so <adj>.",
    ],
    "feeling": ["I <verb> it", "<audience> <verb> it", "found it <op>", "it was <op>"],
    "op": ["<adj>"] * 6 + ["<scale> <adj>"] * 3 + ["<adj> and <adj>", "not <!adj>"],
    "scale": sorted(word for word, scale in lexicon.SCALES.items() if scale > 0),
    "neutral": ["<origin>", "<trait>", "<trait> <origin>"],
    **{name: words.split("|") for name, words in lexicon.NEUTRAL.items()},
}

_SPREAD = 0.35  # how far (standard deviation) an opinion word strays from the sentiment of its review


def _by_score(grades: Mapping[float, str]) -> list[tuple[str, float]]:
    return [(word, score) for score, words in grades.items() for word in words.split()]


_OPINIONS = {
    "adj": _by_score(lexicon.ADJECTIVES),
    "verb": _by_score(lexicon.VERBS),
    "noun": _by_score(lexicon.NOUNS),
    "adv": _by_score(lexicon.ADVERBS),
}
_SCORES = {word: score for words in _OPINIONS.values() for word, score in words}

_SLOT = re.compile(r"<(!?)(\w+)>")
_ARTICLE = re.compile(r"\b([Aa])\(n\) (\w)")
_SENTENCE = re.compile(r"(^|[.!] )([a-z])")
_WORD = re.compile(r"[a-z]+|[.,;:!?]")


def _opinion(kind: str, mood: float, rng: random.Random) -> str:
    words = _OPINIONS[kind]
    weights = [math.exp(-0.5 * ((score - mood) / _SPREAD) ** 2) for _, score in words]
    return rng.choices(words, weights)[0][0]


def _expand(text: str, mood: float, rng: random.Random) -> str:
    def fill(slot: re.Match[str]) -> str:
        flipped, name = slot.groups()
        here = -mood if flipped else mood
        if name in _OPINIONS:
            return _opinion(name, here, rng)
        return _expand(rng.choice(_RULES[name]), here, rng)

    return _SLOT.sub(fill, text)


def _article(match: re.Match[str]) -> str:
    article, letter = match.groups()
    return f"{article}n {letter}" if letter.lower() in "aeiou" else f"{article} {letter}"


def reviews(n: int, seed: int) -> list[str]:
    """Return ``n`` reviews of one to four sentences; the same ``seed`` gives the same reviews.

    Uses a generator of its own: the global one is neither read nor moved.
    """
    rng = random.Random(seed)
    texts = []
    for _ in range(n):
        text = _expand("<review>", rng.uniform(-1.0, 1.0), rng)
        text = _ARTICLE.sub(_article, text)
        texts.append(_SENTENCE.sub(lambda start: start[1] + start[2].upper(), text))
    return texts


def sentiment(text: str) -> float:
    """Return the known reward of a review: the mean sentiment of its opinion words.

    An opinion word counts its score in [-1, 1] from the lexicon, times the scale of each modifier right
    before it ("very" 1.2, "somewhat" 0.6, "not" -0.5, ...). A mean, not a sum, so that neither length nor
    brevity is rewarded. 0.0 is neutral, also where no opinion word occurs; the range is about [-1.3, 1.3].

    >>> sentiment("A superb film."), sentiment("The plot is not superb, the music very dull.")
    (1.0, -0.49)
    """
    total, count, scale = 0.0, 0, 1.0
    for word in _WORD.findall(text.lower()):
        if word in _SCORES:
            total += scale * _SCORES[word]
            count += 1
            scale = 1.0
        elif word in lexicon.SCALES:
            scale *= lexicon.SCALES[word]
        elif word not in {"a", "an"}:
            scale = 1.0
    return round(total / count, 12) if count else 0.0
