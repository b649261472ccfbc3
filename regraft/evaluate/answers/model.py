"""A model under evaluation: hidden states of whole texts, logits only at requested positions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, ClassVar

import torch
from torch import Tensor

from regraft.checkpoint.hf.pretrained import for_inference, load_model
from regraft.checkpoint.hf.tokenizer import load_tokenizer
from regraft.checkpoint.read.context import checkpoint_context
from regraft.checkpoint.read.source import Checkpoint
from regraft.errors import InputError
from regraft.evaluate.answers.cache import cache_bytes, common_tokens, too_large
from regraft.input_files import JsonObject
from regraft.parallel import Mesh, attach
from regraft.rope import ContextSpec


def folder_name(name: str) -> str:
    """The name of the folder with the answers of the model `name`."""
    return re.sub("[ ,]+", "-", name)


@dataclass(frozen=True)
class Source:
    """Where a model comes from.

    location: a folder or Hub id. context: another model's RoPE and length, set in memory when the
    model is loaded. adapter, scale: an adapter that `fidelity.merged` applies before it is loaded.
    """

    name: str
    location: str
    context: ContextSpec | None = None
    adapter: str | None = None
    scale: float = 1.0
    unsupported: ClassVar[tuple[str, ...]] = ()  # a loaded model takes every task and measure

    @property
    def folder(self) -> str:
        """The name of the folder with its answers."""
        return folder_name(self.name)

    def config(self) -> JsonObject:
        """config.json with the context applied. Raises CheckpointError for no checkpoint."""
        with Checkpoint.open(self.location) as checkpoint:
            config = dict(checkpoint.config)
        return config if self.context is None else self.context.write_into(config)

    def spec(self) -> ContextSpec:
        """Its RoPE and context length. Raises CheckpointError naming the model's location."""
        if self.context is not None:
            return self.context
        with Checkpoint.open(self.location) as checkpoint:
            return checkpoint_context(checkpoint)

    def fingerprint(self) -> str:
        """The fingerprint of its weights."""
        with Checkpoint.open(self.location) as checkpoint:
            return checkpoint.fingerprint()

    def identity(self) -> list[Any]:
        """What changes its answers, as JSON."""
        return [self.fingerprint(), self.spec().to_json()]

    def tokenizer(self) -> Any:
        """Its tokenizer. Raises CheckpointError if it has none."""
        with Checkpoint.open(self.location) as checkpoint:
            return load_tokenizer(checkpoint)

    def load(self, device: torch.device, mesh: Mesh | None = None) -> LanguageModel:
        """The model on a device, in the dtype of its config (float32 on a CPU for float16).
        mesh: the processes that evaluate it, by default this one."""
        assert self.adapter is None, "merge the adapter first"
        with Checkpoint.open(self.location) as checkpoint:
            model = load_model(checkpoint, config=self.config())
        return LanguageModel(self.name, for_inference(model, device), mesh or Mesh())


class LanguageModel:
    """A loaded model that scores and continues texts given as token ids.

    mesh: the `context` processes of it share the tokens of each text. can_branch: whether
    `branches` and `generate_branches` work, which truncate the cache and need whole texts.

    Raises InputError if head(hidden) differs from the model's own logits, as for an architecture
    with another step in between, and if the model's attention cannot be split.
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
            raise InputError(f"{name} computes NaN or infinity: its weights are broken.")
        if not torch.allclose(ours, theirs, rtol=2e-2, atol=2e-2):
            raise InputError(f"{name}: regraft cannot score a {type(model).__name__} yet.")
        self._split = mesh.context * mesh.ulysses > 1
        layers = set(getattr(config, "layer_types", None) or ["full_attention"])
        windowed = getattr(config, "sliding_window", None) is not None
        self.can_branch = layers == {"full_attention"} and not windowed and not self._split
        self._text_config = config.to_dict()
        if self._split:
            attach(model, mesh)

    def why_not_shared(self, length: int) -> str | None:
        """Why a text of `length` tokens is not read once for all questions; None if it is."""
        if self._split:
            return "each prompt is cut between processes"
        if not self.can_branch:
            return "its attention has windows or chunks, whose cache cannot be truncated"
        size = cache_bytes(self._text_config, length, self.model.dtype.itemsize)
        return too_large(size, self.device, self.mesh.size)

    def hidden(self, ids: Tensor) -> Tensor:
        """Token ids [B, S] -> last hidden states [B, S, d]."""
        return self._inner(input_ids=ids, use_cache=False).last_hidden_state

    def head(self, hidden: Tensor) -> Tensor:
        """Hidden states [n, d] -> float32 logits [n, V]."""
        logits = self._head(hidden).float() * self._scale
        return logits if self._cap is None else torch.tanh(logits / self._cap) * self._cap

    @torch.no_grad()
    def rows(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Hidden states [B, longest, d] of texts of any length, padded on the right: attention is
        causal, so padding does not change them."""
        ids = self._pad(texts)
        if not self._split:
            return self.hidden(ids.to(self.device))
        part = self.mesh.cut({"input_ids": ids})
        return self.mesh.join(self._inner(**part, use_cache=False).last_hidden_state, part)

    @torch.no_grad()
    def score(
        self, texts: Sequence[Sequence[int]], positions: Sequence[Sequence[int]]
    ) -> list[tuple[Tensor, Tensor]]:
        """For each text (float32 NLL in nats, whether the token is the likeliest) at each of its
        `positions`, which are 1 or more. Collective over the processes that share a text."""
        counts = [len(of_text) for of_text in positions]
        rows = torch.arange(len(texts)).repeat_interleave(torch.tensor(counts))
        before = torch.tensor([at - 1 for of_text in positions for at in of_text])
        ids = self._pad(texts)
        labels = ids[rows, before + 1]
        if self._split:
            nll, hits = self._score_split(ids, rows, before, labels)
        else:
            hidden = self.hidden(ids.to(self.device))
            nll, hits = self.nll(hidden[rows.to(self.device), before.to(self.device)], labels)
        # in all processes: if one of those that share a text failed alone, the others would wait
        self._refuse(~nll.isfinite(), "NaN or infinity on a prompt")
        return list(zip(nll.split(counts), hits.split(counts), strict=True))

    def _score_split(
        self, ids: Tensor, rows: Tensor, before: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Each process scores the tokens that it holds; only the scores are exchanged."""
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
        self, texts: Sequence[Sequence[int]], positions: Sequence[Sequence[int]]
    ) -> list[tuple[Tensor, Tensor]]:
        """`score` of texts with a common beginning, which is read once, into a cache."""
        shared = min(common_tokens(texts), min(map(min, positions)) - 1)
        if shared < 1:
            return self.score(texts, positions)
        cache = self._read(texts, shared)
        scores = []
        for text, of_text in zip(texts, positions, strict=True):
            rest = torch.tensor([list(text[shared:])], device=self.device)
            hidden = self._inner(
                input_ids=rest, past_key_values=cache, use_cache=True
            ).last_hidden_state[0]
            at = torch.tensor(of_text, device=self.device) - 1 - shared
            scores.append(self.nll(hidden[at], torch.tensor([text[p] for p in of_text])))
            self._refuse(~scores[-1][0].isfinite(), "NaN or infinity on a prompt")
            cache.crop(-rest.shape[1])
        return scores

    @torch.no_grad()
    def nll(self, hidden: Tensor, labels: Tensor, chunk: int = 2048) -> tuple[Tensor, Tensor]:
        """(float32 NLL in nats [n], whether it is the likeliest token [n]) of the tokens `labels`
        [n] after `hidden` [n, d]. Logits exist for at most `chunk` tokens at a time."""
        nll, hits = [], []
        for part, label in zip(
            hidden.split(chunk), labels.to(self.device).split(chunk), strict=True
        ):
            logits = self.head(part)
            nll.append(torch.nn.functional.cross_entropy(logits, label, reduction="none"))
            hits.append(logits.argmax(-1) == label)
        return torch.cat(nll).cpu(), torch.cat(hits).cpu()

    @torch.no_grad()
    def generate_branches(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int
    ) -> list[list[int]]:
        """`generate` for prompts of any length with a common beginning, which is read once."""
        shared = min(common_tokens(prompts), min(map(len, prompts)) - 1)
        if shared < 1:
            return [self.generate([prompt], max_new_tokens)[0] for prompt in prompts]
        cache = self._read(prompts, shared)
        answers = []
        for prompt in prompts:
            answers += self.generate([prompt], max_new_tokens, cache)
            cache.crop(shared - cache.get_seq_length())
        return answers

    def _read(self, texts: Sequence[Sequence[int]], shared: int) -> Any:
        """The cache of the first `shared` tokens, which all texts have in common."""
        self._check(texts)
        start = torch.tensor([list(texts[0][:shared])], device=self.device)
        return self._inner(input_ids=start, use_cache=True).past_key_values

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, cache: Any = None
    ) -> list[list[int]]:
        """Greedy continuations of prompts of one length, by transformers' generate: at most
        `max_new_tokens` token ids for each, without the stop token. cache: of their first tokens,
        to which the others are added."""
        from transformers import GenerationConfig
        from transformers.utils import logging

        self._check(prompts)
        stops = self.model.generation_config.eos_token_id or []
        ids = torch.tensor([list(prompt) for prompt in prompts], device=self.device)
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # the warning about the context length was given before
        try:
            out = self.model.generate(
                ids, GenerationConfig(
                    max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=0
                ),
                attention_mask=torch.ones_like(ids), logits_processor=[self._refuse_nan],
                past_key_values=cache,
            )  # fmt: skip
        finally:
            logging.set_verbosity(verbosity)
        # after the stop token a row is padded to the longest answer of the batch
        end, answers = set(stops), out[:, ids.shape[1] :].tolist()
        return [list(takewhile(lambda token: token not in end, answer)) for answer in answers]

    def _pad(self, texts: Sequence[Sequence[int]]) -> Tensor:
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
        """A logits processor; without it argmax of NaN would be a token like any other."""
        self._refuse(logits.isnan(), "NaN while it generates")
        return logits

    def _refuse(self, broken: Tensor, what: str) -> None:
        if broken.any():
            raise InputError(
                f"{self.name} computes {what}: its numbers overflow at this length, or its weights "
                "are broken. Load it in float32 or lower --lengths."
            )
