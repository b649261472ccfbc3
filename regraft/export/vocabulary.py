"""A byte-level BPE tokenizer in GGUF, as Llama 3, SmolLM and GPT-2 have it.

llama.cpp builds the tokenizer from tokens and merges. The expressions that split text before the
merges are in its own code, by name. The name is that of the pre-tokenizer below that equals the one
in tokenizer.json; any other is refused, since llama.cpp would split a text into other tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from regraft.checkpoint.hf.pre_tokenizer import GPT2, LLAMA3, SMOLLM, steps
from regraft.checkpoint.hf.tokenizer import load_tokenizer
from regraft.checkpoint.read.source import Checkpoint
from regraft.errors import CheckpointError, InputError
from regraft.input_files import JsonObject, read_json_object

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # gguf.TokenType
_MEND = "download the model again"
# The steps of a pre-tokenizer -> llama.cpp's name for it.
_PRE_TOKENIZERS = {LLAMA3: "llama-bpe", SMOLLM: "smollm", GPT2: "gpt-2"}
_SPECIAL = ("bos", "eos", "unk", "pad", "sep", "mask")
_KEYS = {
    "unk": "unknown", "pad": "padding", "sep": "seperator",  # GGUF spells it so
}  # fmt: skip


@dataclass(frozen=True)
class Vocabulary:
    """The metadata of a tokenizer in GGUF. special: 'bos' and the like -> id."""

    pre_tokenizer: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    special: dict[str, int] = field(default_factory=dict)
    adds_bos: bool = False
    chat_template: str | None = None

    def describe(self, writer: Any) -> None:
        """Add the tokenizer to the metadata."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.pre_tokenizer)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges)
        for name, number in self.special.items():
            writer.add_uint32(f"tokenizer.ggml.{_KEYS.get(name, name)}_token_id", number)
        writer.add_add_bos_token(self.adds_bos)
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def read_vocabulary(model: Checkpoint, size: int) -> Vocabulary:
    """The tokenizer of a model whose embedding has `size` rows.

    Raises InputError for a tokenizer that llama.cpp does not have, CheckpointError for none or a
    broken one.
    """
    path = model.file("tokenizer.json")
    if path is None:
        raise CheckpointError(
            f"{model.name} has no tokenizer.json, from which GGUF's tokenizer is made; put it "
            "beside the model, or give --no-tokenizer for a file that takes token ids."
        )
    content = read_json_object(path, CheckpointError, remedy=_MEND)
    core = content.get("model")
    if not isinstance(core, dict) or core.get("type") != "BPE" or core.get("byte_fallback"):
        kind = core.get("type") if isinstance(core, dict) else "unknown"
        exact = "BPE with byte fallback" if kind == "BPE" else kind
        raise _refused(model, f"a {exact} tokenizer")
    parts = steps(content.get("pre_tokenizer"))
    if content.get("normalizer") is not None:
        raise _refused(model, "a tokenizer that normalizes its text")
    if parts not in _PRE_TOKENIZERS:
        raise _refused(model, "a tokenizer that cuts text in another way")
    tokens, types = _tokens(model, core, content.get("added_tokens") or [], size)
    tokenizer = load_tokenizer(model)
    special = {
        name: number
        for name in _SPECIAL
        if (number := getattr(tokenizer, f"{name}_token_id", None)) is not None
    }
    template = tokenizer.chat_template
    return Vocabulary(
        pre_tokenizer=_PRE_TOKENIZERS[parts],
        tokens=tokens,
        types=types,
        merges=[m if isinstance(m, str) else " ".join(m) for m in core.get("merges") or []],
        special=special,
        adds_bos="bos" in special and tokenizer("a")["input_ids"][:1] == [special["bos"]],
        chat_template=template if isinstance(template, str) else None,
    )


def _refused(model: Checkpoint, what: str) -> InputError:
    return InputError(
        f"{model.name} has {what}; regraft writes the byte-level BPE of Llama 3, SmolLM and GPT-2 "
        "to GGUF: convert it with llama.cpp's own convert_hf_to_gguf.py, or give --no-tokenizer "
        "for a file that takes token ids."
    )


def _tokens(
    model: Checkpoint, core: JsonObject, added: list[Any], size: int
) -> tuple[list[str], list[int]]:
    """(text, type) of every token id below `size`. Ids that no token has are marked unused."""
    texts: dict[int, str] = {}
    types: dict[int, int] = {}
    try:
        for text, number in core["vocab"].items():
            texts[number], types[number] = text, _NORMAL
        for token in added:
            texts[token["id"]] = token["content"]
            types[token["id"]] = _CONTROL if token.get("special") else _USER_DEFINED
        last = max(texts)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"tokenizer.json of {model.name} has no vocabulary that can be read ({error!r}); "
            f"{_MEND}."
        ) from None
    if last >= size:
        raise CheckpointError(
            f"The tokenizer of {model.name} has token {last} and the model {size} embeddings; the "
            "tokenizer belongs to another model."
        )
    numbers = range(size)
    return (
        [texts.get(number, f"[PAD{number}]") for number in numbers],
        [types.get(number, _UNUSED) for number in numbers],
    )
