"""A judge reads free answers: a model behind a URL is asked whether they agree with the references.

Any endpoint with OpenAI's /chat/completions will do; the key, if it needs one, comes from
REGRAFT_JUDGE_KEY or else OPENAI_API_KEY. The verdict, yes or no, stands beside the string score and
never replaces it. Every prompt and reply goes to a file as soon as it is there, so a resumed run
asks no question twice.

The key goes to the given host only: redirects are not followed. The key and whatever secret the URL
carries (user name and password, query, path segments that look random) appear in no message and no
file. A reply is read up to a megabyte and for `timeout` seconds in all.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regraft.errors import InputError, RegraftError
from regraft.evaluate.answers.endpoint import KEYS, Endpoint, EndpointError
from regraft.write import write_text

_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)
_VERDICT = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)
_PROMPT = """\
A question about a long text was answered. Judge the answer by the references alone.

Question: {question}

References, each of them right:
{references}

Answer:
<answer>
{said}
</answer>

Does the answer say the same as at least one reference, as far as the question asks for it? \
Reply with yes or no."""


class Judge:
    """url: with or without /chat/completions. A reply is waited for `timeout` seconds, and asked
    for `tries` times where the endpoint is busy or away, after pauses of 1, 2, 4 .. `pause` s.

    Raises InputError where `url` is no http(s) URL.
    """

    def __init__(
        self, url: str, model: str, *, timeout: float = 60.0, tries: int = 5, pause: float = 1.0
    ) -> None:
        self.endpoint = Endpoint(url, timeout)
        self.model = model
        self.tries, self.pause = tries, pause

    @property
    def url(self) -> str:
        """The URL without its secrets."""
        return self.endpoint.masked_url

    def check(self) -> None:
        """Raises InputError where the endpoint does not answer as a judge must."""
        try:
            verdict, reply = self.verdict("How many legs has a cat?", ["four"], "It has four.", 1)
        except RegraftError as error:
            raise InputError(f"{error}; check --judge, --judge-model and {KEYS[0]}.") from None
        if verdict is None:
            raise InputError(
                f"The judge {self.model} at {self.url} answers neither yes nor no but "
                f"'{' '.join(reply.split())[:60]}'; give another --judge-model."
            )

    def verdict(
        self, question: str, references: Sequence[str], said: str, tries: int | None = None
    ) -> tuple[bool | None, str]:
        """(whether they agree, or None where it said neither, even when asked again; its reply).

        Raises RegraftError where no reply comes."""
        prompt = ask(question, references, said)
        for _ in range(2):
            reply = self._reply(prompt, tries or self.tries)
            if found := _VERDICT.match(_THOUGHT.sub("", reply)):
                return found[1].lower() == "yes", reply
        return None, reply

    def _reply(self, prompt: str, tries: int) -> str:
        message = {"role": "user", "content": prompt}
        body = json.dumps({"model": self.model, "messages": [message], "temperature": 0}).encode()
        reason = ""
        for attempt in range(tries):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            try:
                answer = json.loads(self.endpoint.post(body))
                return self.endpoint.mask(str(answer["choices"][0]["message"]["content"]))
            except EndpointError as error:
                reason = str(error)
                if error.final:
                    break
            except (ValueError, KeyError, IndexError, TypeError, RecursionError):
                reason = "the reply is no chat completion"
        raise RegraftError(f"The judge at {self.url} does not answer ({reason})")


def ask(question: str, references: Sequence[str], said: str) -> str:
    """The prompt."""
    listed = "\n".join(f"- {reference}" for reference in references)
    return _PROMPT.format(question=question, references=listed, said=said.strip())


def examine(
    judge: Judge, items: Sequence[dict[str, Any]], lines: Sequence[dict[str, Any]], path: Path
) -> list[dict[str, Any]]:
    """The lines of a cell with "judge": true, false or None. What was asked and replied is added to
    `path`, JSON line by line; what stands there is not asked again.

    Raises RegraftError where the judge is gone."""
    known = _known(path)
    judged = []
    with path.open("a", encoding="utf-8") as file:
        for item, line in zip(items, lines, strict=True):
            given = item["facts"]["question"], item["references"], line["said"]
            prompt = ask(*given)
            if prompt not in known:
                try:
                    verdict, reply = judge.verdict(*given)
                except RegraftError as error:
                    raise RegraftError(f"{error}; go on with --resume when it does.") from None
                known[prompt] = verdict
                entry = {"number": line["number"], "verdict": verdict, "reply": reply}
                file.write(json.dumps({**entry, "prompt": prompt}, ensure_ascii=False) + "\n")
                file.flush()
            judged.append({**line, "judge": known[prompt]})
    return judged


def _known(path: Path) -> dict[str, bool | None]:
    """prompt -> verdict of what is in the file; a last line that was cut off is dropped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = []
    for line in path.open(encoding="utf-8") if path.exists() else ():
        if not line.endswith("\n"):
            break
        kept.append(line)
    write_text(path, "".join(kept))
    return {entry["prompt"]: entry["verdict"] for entry in map(json.loads, kept)}
