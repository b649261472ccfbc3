"""Running text passes; noise, boilerplate, repetition and other languages do not."""

from __future__ import annotations

import random
import string

import pytest
from built import documents, run_step

from regraft.data.build.steps.language import language_of
from regraft.data.build.steps.quality import Quality, compression_ratio
from regraft.data.build.steps.repetition import repetition_shares

PROSE = (
    "It was the custom of the old harbour to light its lamps before the tide had turned. The "
    "keeper climbed the stair with a can of oil in one hand and a ledger under his arm, in which "
    "he wrote the hour, the wind and the names of the ships that he could see. On some evenings "
    "there were none, and then he wrote of the birds instead, or of what the baker's daughter had "
    "told him about the road to the north. Nobody read the ledgers. They stood in a row on the "
    "shelf by the window, and when the sea was high the lowest of them grew damp at the edges.\n\n"
    "In the spring of that year a stranger asked to read them all. She sat at the table for nine "
    "days, eating little, and copied whole pages into a book of her own."
)
RNG = random.Random(0)
NOISE = "".join(RNG.choice(string.ascii_letters + string.digits) for _ in range(800))


def _reasons(text, **keys):
    passed, statistics = run_step(Quality(**keys), documents(text))
    assert len(passed) + sum(statistics.dropped.values()) == 1
    return set(statistics.dropped)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (PROSE, None),
        ("too little", "too few characters"),
        ("Buy now and save. " * 60, "too compressible"),
        (NOISE, "too little compressible"),
        ("12 345 6,789 " + " ".join(str(RNG.random()) for _ in range(60)), "too few letters"),
        (" ".join(w + "/|" for w in PROSE.split()), "too many symbols"),
        (PROSE + "\x00\x01" * 4, "control characters"),
        (PROSE + "\n" + "\n".join(["Click here to accept all the cookies."] * 40),
         "repetition: 10-grams"),
    ],
)  # fmt: skip
def test_reasons(text, reason):
    keys = {"compression": [0.05, 0.75]}
    if reason is not None and reason.startswith("repetition"):
        keys["compression"] = [0, 1]
    assert _reasons(text, **keys) == ({reason} if reason else set())


def test_scores_are_kept_and_counted():
    passed, statistics = run_step(Quality(), documents(PROSE, PROSE + " Again."))
    assert passed[0].scores["quality.compression"] == compression_ratio(PROSE)
    assert 0 < passed[0].scores["quality.repetition"] <= 1
    assert statistics.scores["letters"].number == 2


def test_a_band_of_shares_drops_the_most_and_least_compressible():
    texts = [f"{PROSE} {i} " + "again " * i for i in range(100)]
    step = Quality(compression_shares=[0.2, 0.8], repetition=False)
    passed, statistics = run_step(step, documents(*texts))
    assert 58 <= len(passed) <= 60  # 60 but for equal ratios
    assert sum(statistics.dropped.values()) == 100 - len(passed)
    ratios = sorted(map(compression_ratio, texts))
    kept = [one.scores["quality.compression"] for one in passed]
    assert min(kept) == ratios[20]
    assert max(kept) == ratios[79]
    assert not step.independent
    assert Quality().independent


def test_repeated_sequences_are_counted_once():
    """By a direct count of the characters of words that stand in an earlier 5-gram."""
    rng = random.Random(3)
    words = [rng.choice("abcd") * rng.randint(1, 3) for _ in range(300)]
    seen, inside = set(), set()
    for i in range(len(words) - 4):
        gram = tuple(words[i : i + 5])
        inside.update(range(i, i + 5) if gram in seen else ())
        seen.add(gram)
    expected = sum(len(words[i]) for i in inside) / sum(map(len, words))
    assert expected > 0
    assert repetition_shares(" ".join(words))["5-grams"] == expected


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (PROSE, "en"),
        (
            "Das ist ein Satz, der auf den Tisch gelegt wurde, und die sind nicht hier.",
            "de",
        ),
        ("Le chat est dans la maison et les enfants ne sont pas avec lui pour une heure.", "fr"),
        ("El perro está en la casa y los niños se fueron con su madre por una hora más.", "es"),
        ("\u041a\u043e\u0448\u043a\u0430 \u0441\u043f\u0438\u0442 \u043d\u0430", "ru"),
        ("\u306d\u3053\u304c\u5bdd\u3066\u3044\u308b\u3002", "ja"),
        ("\u732b\u5728\u7761\u89c9\u3002", "zh"),
        ("x[i] += f(i) * 2", None),
        ("", None),
    ],
)
def test_languages(text, language):
    assert language_of(text) == language


def test_other_languages_are_dropped():
    german = "Das ist ein Satz, der auf den Tisch gelegt wurde, und die anderen nicht. " * 4
    assert _reasons(german, languages=["en"], compression=[0, 1]) == {"language de"}
