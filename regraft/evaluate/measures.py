"""Measures of a model without questions: perplexity, drift, lm-eval's suites.

All models are measured on the same plain texts. The donor, if there is one, chooses the key tokens
for all; drift is from the first model.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from regraft import progress
from regraft.evaluate.answers import drift, lm_eval, perplexity
from regraft.evaluate.answers.model import LanguageModel, Source
from regraft.evaluate.answers.scoring import Answerer
from regraft.evaluate.answers.served.model import ServedModel
from regraft.evaluate.prepare import Evaluated, Work
from regraft.evaluate.prompts.length import Prompter
from regraft.evaluate.result import Measures, parse_measures
from regraft.evaluate.settings import Settings
from regraft.evaluate.shared_output import SharedOutput
from regraft.evaluate.tasks import Kit
from regraft.records import to_json

REFERENCE = "reference"  # of the drift: among what measures cost
_DRIFT_TOKENS = 8192  # at least


def drift_size(work: Work) -> tuple[int, int]:
    """(length, number) of the texts on which drift is measured."""
    length = drift.text_length(work.own_length)
    return length, max(work.settings.texts, _DRIFT_TOKENS // length)


class Measurer:
    """Measures one model after another, and holds the reference that they are compared with.

    The key tokens are chosen when it is made, by the donor, unless an interrupted run chose them.
    """

    def __init__(self, work: Work, output: SharedOutput) -> None:
        self._work, self._output = work, output
        self._drift_reference: drift.Reference | None = None
        self._rows: list[list[int]] | None = None
        self._key_tokens = self._choose_key_tokens()

    def measure_once(
        self,
        source: Evaluated,
        load: Callable[[], Answerer],
        bar: progress.Bar,
        sizes: Mapping[str, float],
    ) -> Measures:
        """The measures of one model, from an interrupted run if it has them. Collective.

        bar: moved by `sizes`, what each measure costs (`cost.Operations.measures`).
        """
        key = f"measures {source.name}"
        chosen = [name for name in self._work.measures if name not in source.unsupported]
        if not chosen or self._output.facts(key) is not None:
            bar.skip(sum(sizes.values()))
        else:
            self._output.note(key, **to_json(self._measure(load(), source, chosen, bar, sizes)))
        return parse_measures(self._output.facts(key) or {}) if chosen else Measures()

    def _measure(
        self,
        model: Answerer,
        source: Evaluated,
        chosen: Sequence[str],
        bar: progress.Bar,
        sizes: Mapping[str, float],
    ) -> Measures:
        work, settings, result = self._work, self._work.settings, Measures()
        if "perplexity" in chosen:
            bar.advance(0, f"{source.name}: perplexity")
            budget = batch_tokens(settings, model)
            with bar.part(sizes["perplexity"]):
                texts = self._long_texts()
                figures = perplexity.measure(model, texts, budget, self._key_tokens)
            result = replace(result, perplexity=figures)
        if not isinstance(model, LanguageModel):
            bar.skip(sum(size for name, size in sizes.items() if name != "perplexity"))
            return result
        suites = [name for name in chosen if name.startswith(lm_eval.PREFIX)]
        if suites:
            bar.advance(0, f"{source.name}: {', '.join(suites)}")
            names = [name.removeprefix(lm_eval.PREFIX) for name in suites]
            tokenizer = work.kit.prompter.tokenizer
            scores = lm_eval.measure(model, tokenizer, names, settings.limit, settings.chat)
            result = replace(result, lm_eval=scores)
        if "drift" in chosen:
            bar.advance(0, f"{source.name}: drift")
            with bar.part(sizes.get(REFERENCE, 0)):
                reference = self._reference(model, source)
            with bar.part(sizes["drift"]):
                result = replace(result, drift=drift.measure(model, reference))
        return result

    def _choose_key_tokens(self) -> perplexity.KeyTokens | None:
        work, output = self._work, self._output
        donors = [one for one in work.sources if isinstance(one, Source) and one.name == "donor"]
        if "perplexity" not in work.measures or not donors:
            return None
        if output.facts("key tokens") is None:
            model = donors[0].load(output.mesh.device, output.mesh)
            batch = batch_tokens(work.settings, model)
            output.note("key tokens", rows=perplexity.key_tokens(model, self._long_texts(), batch))
        rows: perplexity.KeyTokens | None = (output.facts("key tokens") or {})["rows"]
        return rows

    def _long_texts(self) -> list[list[int]]:
        if self._rows is None:
            work, settings = self._work, self._work.settings
            self._rows = plain_texts(work.kit, max(work.lengths), settings.texts, settings.seed)
        return self._rows

    def _reference(self, model: LanguageModel, source: Evaluated) -> drift.Reference:
        if self._drift_reference is None:
            work, first = self._work, self._work.sources[0]
            assert isinstance(first, Source), "a served model comes last"
            base = model if source is first else first.load(model.device, model.mesh)
            length, count = drift_size(work)
            texts = plain_texts(work.kit, length, count, work.settings.seed)
            self._drift_reference = drift.Reference(base, texts)
        return self._drift_reference


def plain_texts(kit: Kit, length: int, count: int, seed: int) -> list[list[int]]:
    """Token ids [count, length] of the haystack, without a chat template: they start as a text."""
    return perplexity.texts(Prompter(kit.prompter.tokenizer), kit.haystack, length, count, seed)


def batch_tokens(settings: Settings, model: Answerer, scoring: str = "teacher") -> int:
    """Tokens in a batch. On a CPU small batches stay in the caches, but a generated token costs as
    much for eight prompts as for one. A served model is given a whole cell at once."""
    if isinstance(model, ServedModel):
        return sys.maxsize
    on_cpu = 16384 if scoring == "generate" else 2048
    return settings.batch or (on_cpu if model.device.type == "cpu" else 32768)
