"""The language of a text by its script or its most frequent function words; no model."""

from __future__ import annotations

import re
from collections import Counter

# Words that are frequent in one language and rare in the others.
_WORDS = {
    "en": "the of and to in is that for it with as was on are by this be from at not have which",
    "de": "der die und das den von zu mit sich des auf ist im dem nicht ein eine als auch es an",
    "fr": "le les des est dans que une pour qui par sur pas plus au avec ce ne sont il du et",
    "es": "el los las del que una por con para como se su al es lo más pero sus y este",
    "it": "il di che della per una sono del nel gli con non da alla più dei delle come è anche",
    "pt": "o os as um uma que para com não do da dos das em por mais ao foi como é",
    "nl": "de het een van en in is dat op te zijn met voor niet aan er om ook als bij",
}
_SCRIPTS = {
    "ru": re.compile("[\u0400-\u04ff]"),
    "ja": re.compile("[\u3040-\u30ff]"),
    "zh": re.compile("[\u4e00-\u9fff]"),
    "ko": re.compile("[\uac00-\ud7af]"),
    "ar": re.compile("[\u0600-\u06ff]"),
    "el": re.compile("[\u0370-\u03ff]"),
}
LANGUAGES = (*_WORDS, *_SCRIPTS)
_LEAST_WORDS = 0.08  # share of function words; of running text it is a fifth to a half
_LEAST_SCRIPT = 0.2  # share of letters
_CHARACTERS = 20_000
_WORD = re.compile(r"[^\W\d_]+")
_FUNCTION_WORDS = {name: frozenset(words.split()) for name, words in _WORDS.items()}


def language_of(text: str) -> str | None:
    """The language of a text, by its beginning; None where no rule applies, as for code."""
    text = text[:_CHARACTERS]
    letters = max(1, sum(map(str.isalpha, text)))
    for name, script in _SCRIPTS.items():
        # Japanese is written with Chinese characters, too, so a few kana decide
        least = 0.05 if name == "ja" else _LEAST_SCRIPT
        if len(script.findall(text)) > least * letters:
            return name
    words = Counter(word.lower() for word in _WORD.findall(text))
    whole = max(1, words.total())
    shares = {
        name: sum(words[word] for word in known) / whole for name, known in _FUNCTION_WORDS.items()
    }
    best = max(shares, key=lambda name: shares[name])
    return best if shares[best] >= _LEAST_WORDS else None
