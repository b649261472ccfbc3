"""A model to be examined: hidden states of whole rows, logits only where they are wanted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from regraft.checkpoint.pretrained import load_model
from regraft.checkpoint.source import Checkpoint
from regraft.checkpoint.tokenizer import load_tokenizer
from regraft.errors import InputError
from regraft.parallel import Mesh, attach
from regraft.rope import ContextSpec


@dataclass(frozen=True)
class Source:
    """Where a model comes from. context: another model's RoPE and length to give it, in memory.
    adapter: what `fidelity.merged` has to apply to it before it is loaded."""

    name: str
    place: str
    context: ContextSpec | None = None
    adapter: str | None = None

    @property
    def folder(self) -> str:
        """Of its answers."""
        return re.sub("[ ,]+", "-", self.name)

    def config(self) -> dict[str, Any]:
        """config.json, with the other context in it. Raises CheckpointError for no checkpoint."""
        with Checkpoint.open(self.place) as checkpoint:
            config = dict(checkpoint.config)
        return config if self.context is None else self.context.write_into(config)

    def spec(self) -> ContextSpec:
        """Its RoPE and context length."""
        return self.context or ContextSpec.from_config(self.config())

    def fingerprint(self) -> str:
        """Of its weights."""
        with Checkpoint.open(self.place) as checkpoint:
            return checkpoint.fingerprint()

    def tokenizer(self) -> Any:
        """Its tokenizer. Raises CheckpointError where it has none."""
        with Checkpoint.open(self.place) as checkpoint:
            return load_tokenizer(checkpoint)

    def load(self, device: torch.device, mesh: Mesh | None = None) -> LanguageModel:
        """The model on a device, in the dtype of its config (float32 on a CPU for float16).
        mesh: the processes that evaluate it, by default this one."""
        assert self.adapter is None, "merge the adapter first"
        with Checkpoint.open(self.place) as checkpoint:
            model = load_model(checkpoint, config=self.config())
        if device.type == "cpu" and model.dtype == torch.float16:
            model = model.float()
        return LanguageModel(self.name, model.to(device).eval(), mesh or Mesh())


class LanguageModel:
    """hidden: ids [B, S] -> last hidden states [B, S, d]; head: [n, d] -> float32 logits [n, V].

    mesh: over whose `context` processes the tokens of a text are cut. `branches` is for a model
    that `can_branch`: its cache can be cut back, and its texts are not.
    Raises InputError where head(hidden) is not what the model itself says, for an architecture
    that does something else in between, and where the model's attention cannot be cut.
    """

    def __init__(self, name: str, model: Any, mesh: Mesh) -> None:
        self.name, self.model, self.mesh = name, model, mesh
        self.device = next(model.parameters()).device
        self._inner, self._head = model.base_model, model.get_output_embeddings()
        self._rows = model.get_input_embeddings().num_embeddings
        config = model.config.get_text_config()
        self._cap = getattr(config, "final_logit_softcapping", None)
        self._scale = getattr(config, "logit_scale", None) or 1 / getattr(
            config, "logits_scaling", 1.0
        )
        self.start = config.bos_token_id
        probe = torch.arange(1, 5, device=self.device)[None]
        with torch.no_grad():
            ours = self.head(self.hidden(probe)[0])
            theirs = model(input_ids=probe, use_cache=False).logits[0].float()
        if not theirs.isfinite().all():
            raise InputError(
                f"{name} computes no numbers (NaN or infinity): its weights are broken."
            )
        if not torch.allclose(ours, theirs, rtol=2e-2, atol=2e-2):
            raise InputError(f"{name}: regraft cannot score a {type(model).__name__} yet.")
        self._cut = mesh.context * mesh.ulysses > 1
        layers = set(getattr(config, "layer_types", None) or ["full_attention"])
        windowed = getattr(config, "sliding_window", None) is not None
        self.can_branch = layers == {"full_attention"} and not windowed and not self._cut
        if self._cut:
            attach(model, mesh)

    def hidden(self, ids: Tensor) -> Tensor:
        return self._inner(input_ids=ids, use_cache=False).last_hidden_state

    def head(self, hidden: Tensor) -> Tensor:
        logits = self._head(hidden).float() * self._scale
        return logits if self._cap is None else torch.tanh(logits / self._cap) * self._cap

    @torch.no_grad()
    def rows(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Hidden states [B, longest, d] of texts of any length, which are filled up on the right:
        what follows does not change what was before."""
        ids = self._filled(texts)
        if not self._cut:
            return self.hidden(ids.to(self.device))
        part = self.mesh.cut({"input_ids": ids})
        return self.mesh.join(self._inner(**part, use_cache=False).last_hidden_state, part)

    @torch.no_grad()
    def score(
        self, texts: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]
    ) -> list[tuple[Tensor, Tensor]]:
        """For each text (NLL in nats float32, whether it is the likeliest) of its tokens at the
        positions `wanted` of it, 1 or more. Collective over the processes that share a text."""
        counts = [len(positions) for positions in wanted]
        rows = torch.arange(len(texts)).repeat_interleave(torch.tensor(counts))
        before = torch.tensor([at - 1 for positions in wanted for at in positions])
        ids = self._filled(texts)
        labels = ids[rows, before + 1]
        if self._cut:
            nll, hits = self._score_cut(ids, rows, before, labels)
        else:
            hidden = self.hidden(ids.to(self.device))
            nll, hits = self.nll(hidden[rows.to(self.device), before.to(self.device)], labels)
        return list(zip(nll.split(counts), hits.split(counts), strict=True))

    def _score_cut(
        self, ids: Tensor, rows: Tensor, before: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Each process scores the tokens that it holds; only the scores travel."""
        sparse = torch.full_like(ids, -100)
        sparse[rows, before] = labels
        part = self.mesh.cut({"input_ids": ids, "labels": sparse})
        local = part.pop("labels")
        hidden = self._inner(**part, use_cache=False).last_hidden_state
        here = local != -100
        scores = torch.zeros(*local.shape, 2, device=local.device)
        if here.any():
            nll, hits = self.nll(hidden[here], local[here])
            scores[here] = torch.stack((nll, hits.float()), -1).to(scores.device)
        whole = self.mesh.join(scores, part).cpu()[rows, before]
        return whole[:, 0], whole[:, 1] > 0

    @torch.no_grad()
    def branches(
        self, texts: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]
    ) -> list[tuple[Tensor, Tensor]]:
        """`score` of texts that begin alike: the beginning is read once and kept as a cache."""
        alike = takewhile(lambda column: len(set(column)) == 1, zip(*texts, strict=False))
        shared = min(sum(1 for _ in alike), min(map(min, wanted)) - 1)
        if shared < 1:
            return self.score(texts, wanted)
        self._check(texts)
        start = torch.tensor([list(texts[0][:shared])], device=self.device)
        cache = self._inner(input_ids=start, use_cache=True).past_key_values
        found = []
        for text, positions in zip(texts, wanted, strict=True):
            rest = torch.tensor([list(text[shared:])], device=self.device)
            hidden = self._inner(
                input_ids=rest, past_key_values=cache, use_cache=True
            ).last_hidden_state[0]
            at = torch.tensor(positions, device=self.device) - 1 - shared
            found.append(self.nll(hidden[at], torch.tensor([text[p] for p in positions])))
            cache.crop(-rest.shape[1])
        return found

    @torch.no_grad()
    def nll(self, hidden: Tensor, wanted: Tensor, chunk: int = 2048) -> tuple[Tensor, Tensor]:
        """(NLL in nats float32 [n], whether it is the likeliest token [n]) of tokens wanted [n]
        after hidden [n, d]; never more than `chunk` tokens' logits exist."""
        nll, hits = [], []
        for part, label in zip(
            hidden.split(chunk), wanted.to(self.device).split(chunk), strict=True
        ):
            logits = self.head(part)
            nll.append(torch.nn.functional.cross_entropy(logits, label, reduction="none"))
            hits.append(logits.argmax(-1) == label)
        losses = torch.cat(nll).cpu()
        if not losses.isfinite().all():
            raise InputError(
                f"{self.name} computes NaN or infinity on a prompt: its numbers overflow at this "
                "length, or its weights are broken. Load it in float32 or lower --lengths."
            )
        return losses, torch.cat(hits).cpu()

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], most: int) -> list[list[int]]:
        """Greedily, with transformers' generate, of prompts of one length: at most so many new
        token ids after each."""
        from transformers.utils import logging

        self._check(prompts)
        ids = torch.tensor([list(prompt) for prompt in prompts], device=self.device)
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # that a length is beyond the context was said before
        try:
            out = self.model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False,
                pad_token_id=0, logits_processor=[self._refuse_nan],
            )  # fmt: skip
        finally:
            logging.set_verbosity(verbosity)
        stops = self.model.generation_config.eos_token_id
        stops = set(stops if isinstance(stops, list) else [stops])
        # behind it stands what fills the row up to the batch's longest answer
        return [_until(stops, [int(i) for i in row[ids.shape[1] :]]) for row in out]

    def _filled(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Token ids [B, longest], zeros on the right. Raises InputError as `_check` does."""
        self._check(texts)
        ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text)
        return ids

    def _check(self, texts: Sequence[Sequence[int]]) -> None:
        """Raise InputError for a token without a row in the embedding."""
        highest = max((max(text) for text in texts if text), default=0)
        if highest >= self._rows:
            raise InputError(
                f"{self.name} has {self._rows:,} rows in its embedding, and its tokenizer gives "
                f"token {highest}; give the model its own tokenizer."
            )

    def _refuse_nan(self, ids: Tensor, logits: Tensor) -> Tensor:
        """A logits processor: argmax of NaN is a token like any other."""
        if logits.isnan().any():
            raise InputError(
                f"{self.name} computes NaN while it generates: its numbers overflow at this "
                "length, or its weights are broken. Load it in float32 or lower --lengths."
            )
        return logits


def _until(stops: set[int], ids: list[int]) -> list[int]:
    """Up to the first of `stops`, without it."""
    return list(takewhile(lambda token: token not in stops, ids))
