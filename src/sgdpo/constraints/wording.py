"""Kinds of constraint on what is said: words and letters asked for or forbidden, their order, the language."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from sgdpo.constraints import text

# The commonest words of the languages that can be asked for; one that stands in two lists decides nothing.
LANGUAGES = {
    language: frozenset(common.split())
    for language, common in {
        "English": "the and of to is it you with for that are your this can have a in be on not they we he she was"
        " from or but at my what will there when all if how which their some more our so just like do his"
        " her who about has as by",
        "French": "le la les l et des d est une un vous pour dans avec sur pas ce c qu que qui je j nous il elle on"
        " au aux du en mais ou où se sa son ses mon ma mes notre votre leur cette ces plus très quand"
        " aussi être ont a ne n tout comme",
        "German": "der die das und ist nicht ein eine mit sie zu auf für den es ich du er wir ihr mir mich uns im"
        " am von dem des einen einem einer auch wenn weil denn aber oder wie nur sich sind war haben hat"
        " man mein unser sehr nach bei aus um",
        "Spanish": "el la los las y es una un que para con en por se su de del al lo me te nos mi nuestro yo no si"
        " sí pero más muy como cuando porque o también hay ser son está este esta estos todo todos a sus"
        " le les mucho",
        "Italian": "il la gli e è una un che per con di non sono del della lo i le dei delle al alla nel nella da in"
        " mi ti ci si io noi mio mia suo ma anche come quando perché o più molto questo questa tutti tutto"
        " ha a l dell all nell fare sia tra",
    }.items()
}
_LISTS = Counter(word for common in LANGUAGES.values() for word in common)


def contains(answer: str, *, word: str) -> bool:
    return word in text.words(answer)


def without_word(answer: str, *, word: str) -> bool:
    return word not in text.words(answer)


def without_letter(answer: str, *, letter: str) -> bool:
    return letter not in answer.lower()


def letter_at_least(answer: str, *, letter: str, count: int) -> bool:
    return answer.lower().count(letter) >= count


def word_times(answer: str, *, word: str, count: int) -> bool:
    return text.words(answer).count(word) >= count


def in_order(answer: str, *, items: Sequence[str]) -> bool:
    """Each item is named, and first named after the one before it."""
    places = [text.words(answer).index(item) if item in text.words(answer) else -1 for item in items]
    return -1 not in places and all(one < other for one, other in pairwise(places))


def language(answer: str, *, tongue: str) -> bool:
    """More words that are common in it alone are there than of any other language, and one in ten is common in it."""
    found = [part for word in text.words(answer) for part in re.split("['’]", word)]
    own = {
        each: sum(_LISTS[word] == 1 for word in found if word in common) for each, common in LANGUAGES.items()
    }
    others = max(count for each, count in own.items() if each != tongue)
    return own[tongue] > others and 10 * sum(word in LANGUAGES[tongue] for word in found) >= len(found)


def numbers_at_least(answer: str, *, count: int) -> bool:
    return len(re.findall(r"\d+(?:[.,]\d+)*", answer)) >= count


def without_digits(answer: str) -> bool:
    return not re.search(r"\d", answer)
