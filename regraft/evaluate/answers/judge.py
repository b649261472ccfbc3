"""A judge for free answers: a model behind a URL says whether they agree with the references.

Any endpoint with OpenAI's /chat/completions can be used; its key, if it needs one, is read from
REGRAFT_JUDGE_KEY or else OPENAI_API_KEY. The verdict, yes or no, is reported beside the string
score and never replaces it. Every prompt and reply is written to a file at once, so a resumed run
sends no prompt twice.

The key is sent to the given host only: redirects are not followed. The key and every secret in the
URL (user name and password, query, path segments that look random) appear in no message and no
file. A reply may have at most a megabyte and take `timeout` seconds in all.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from regraft.errors import InputError, RegraftError
from regraft.evaluate.answers.endpoint import KEYS, Endpoint, EndpointError
from regraft.evaluate.result import Answer, Verdict
from regraft.evaluate.tasks import Item
from regraft.write import write_text

_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)
_VERDICT = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)
_VERDICTS: dict[bool | None, Verdict] = {
    True: "agrees", False: "disagrees", None: "no verdict",
}  # fmt: skip
_PROMPT = """\
A question about a long text was answered. Judge the answer by the references alone.

Question: {question}

References, each of them right:
{references}

Answer:
<answer>
{answer}
</answer>

Does the answer say the same as at least one reference, as far as the question asks for it? \
Reply with yes or no."""


class Judge:
    """url: with or without /chat/completions. timeout: seconds for a reply. tries: how often to ask
    a busy or unreachable endpoint, with pauses of 1, 2, 4 ... times `pause` seconds.

    Raises InputError if `url` is not an http(s) URL.
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
        """Ask a test question. Raises InputError if the endpoint does not answer yes or no."""
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
        self, question: str, references: Sequence[str], answer: str, tries: int | None = None
    ) -> tuple[bool | None, str]:
        """(whether the answer agrees with a reference, the judge's reply); None if the reply is
        neither yes nor no, even when asked again.

        Raises RegraftError if there is no reply."""
        prompt = judge_prompt(question, references, answer)
        for _ in range(2):
            reply = self._reply(prompt, tries or self.tries)
            if match := _VERDICT.match(_THOUGHT.sub("", reply)):
                return match[1].lower() == "yes", reply
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
                reason = "the reply is not a chat completion"
        raise RegraftError(f"The judge at {self.url} does not answer ({reason})")


def judge_prompt(question: str, references: Sequence[str], answer: str) -> str:
    """The prompt that asks for a verdict."""
    listed = "\n".join(f"- {reference}" for reference in references)
    return _PROMPT.format(question=question, references=listed, answer=answer.strip())


def add_verdicts(
    judge: Judge, items: Sequence[Item], answers: Sequence[Answer], path: Path
) -> list[Answer]:
    """The answers of a cell with the judge's verdicts. Every prompt and reply is appended to `path`
    as a JSON line; a prompt that is already in it is not sent again.

    Raises RegraftError if the judge stops answering."""
    known = _read_verdicts(path)
    judged = []
    with path.open("a", encoding="utf-8") as file:
        for item, answer in zip(items, answers, strict=True):
            question = item.details.question
            assert question is not None, "a judged task gives its question"
            text = answer.said or ""
            prompt = judge_prompt(question, item.references, text)
            if prompt not in known:
                try:
                    verdict, reply = judge.verdict(question, item.references, text)
                except RegraftError as error:
                    raise RegraftError(
                        f"{error}; when the judge answers again, continue with --resume."
                    ) from None
                known[prompt] = verdict
                entry = {"number": answer.number, "verdict": verdict, "reply": reply}
                file.write(json.dumps({**entry, "prompt": prompt}, ensure_ascii=False) + "\n")
                file.flush()
            judged.append(replace(answer, judge=_VERDICTS[known[prompt]]))
    return judged


def _read_verdicts(path: Path) -> dict[str, bool | None]:
    """prompt -> verdict for all complete lines of the file; an incomplete last one is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    complete = []
    for line in path.open(encoding="utf-8") if path.exists() else ():
        if not line.endswith("\n"):
            break
        complete.append(line)
    write_text(path, "".join(complete))
    return {entry["prompt"]: entry["verdict"] for entry in map(json.loads, complete)}
