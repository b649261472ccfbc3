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
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from regraft.endpoint import Endpoint, EndpointError
from regraft.errors import InputError, RegraftError
from regraft.evaluate.result import Answer, Verdict
from regraft.evaluate.tasks import Item
from regraft.line_file import LineFile

KEYS = ("REGRAFT_JUDGE_KEY", "OPENAI_API_KEY")
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
        self.endpoint = Endpoint(url, timeout, option="--judge", keys=KEYS)
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
        try:
            reply = self.endpoint.ask(
                "chat/completions", body, lambda reply: reply["choices"][0]["message"]["content"],
                what="a chat completion", tries=tries, pause=self.pause,
            )  # fmt: skip
        except EndpointError as error:
            raise RegraftError(f"The judge at {self.url} does not answer ({error})") from None
        return self.endpoint.mask(str(reply))


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
    judged = []
    with LineFile(path) as file:
        known: dict[str, bool | None] = {e["prompt"]: e["verdict"] for e in file.entries}
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
                file.append(
                    {
                        "number": answer.number, "verdict": verdict, "reply": reply,
                        "prompt": prompt,
                    }
                )  # fmt: skip
            judged.append(replace(answer, judge=_VERDICTS[known[prompt]]))
    return judged
