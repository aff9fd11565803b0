"""The grammar of the demonstration and its known reward."""

import random
import statistics

import pytest

from tdpo.core.demo import lexicon
from tdpo.core.demo.corpus import reviews, sentiment


def test_same_seed_gives_same_reviews_and_another_seed_others():
    assert reviews(50, 3) == reviews(50, 3)
    assert reviews(50, 3) != reviews(50, 4)


def test_first_reviews_do_not_depend_on_how_many_are_asked_for():
    assert reviews(80, 3)[:20] == reviews(20, 3)


def test_global_random_state_is_neither_read_nor_moved():
    random.seed(1)
    state = random.getstate()
    first = reviews(20, 0)
    assert random.getstate() == state
    random.seed(2)
    assert reviews(20, 0) == first


def test_reviews_are_finished_sentences_of_an_open_vocabulary():
    texts = reviews(3000, 0)
    assert len(set(texts)) > 2990
    assert all(text[0].isupper() and text[-1] in ".!" for text in texts)
    assert not any(mark in text for text in texts for mark in "<>|(")
    words = {word.strip(".,!") for text in texts for word in text.split()}
    assert len(words) > 450


def test_reviews_are_balanced_and_spread_over_the_scale():
    scores = [sentiment(text) for text in reviews(3000, 0)]
    assert abs(statistics.fmean(scores)) < 0.05
    assert statistics.pstdev(scores) > 0.4


def test_no_word_has_two_scores():
    tables = (lexicon.ADJECTIVES, lexicon.VERBS, lexicon.NOUNS, lexicon.ADVERBS)
    words = [word for table in tables for text in table.values() for word in text.split()]
    words += lexicon.SCALES
    assert len(words) == len(set(words))
    neutral = {word for text in lexicon.NEUTRAL.values() for word in text.lower().replace("|", " ").split()}
    assert not neutral & set(words)


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("", 0.0),
        ("The film is about a harbour.", 0.0),
        ("A superb film.", 1.0),
        ("A very superb film.", 1.2),
        ("The plot is somewhat superb.", 0.6),
        ("It is not a superb film.", -0.5),
        ("An awful film.", -1.0),
        ("The plot is not awful.", 0.5),
        ("I loved the plot, but the ending is dull.", (0.7 - 0.4) / 2),
        ("Is it not? Superb.", 1.0),
    ],
)
def test_known_rewards(text, reward):
    assert sentiment(text) == pytest.approx(reward)


def test_length_alone_is_not_rewarded():
    assert sentiment("A superb film. " * 5) == sentiment("A superb film.")
