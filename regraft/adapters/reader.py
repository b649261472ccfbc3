"""`Adapter`: a folder with a plain PEFT LoRA, made by regraft or elsewhere.

Factors B and A of every module come in the orientation of the stored weight, with the scale in B.
An adapter with parts that cannot be applied exactly is refused, and the part is named.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

from regraft.adapters.config import contradictions, missing_factors, read_config, read_pattern
from regraft.adapters.folder import CONFIG, DIFFERENCES, LINEAGE, RECORD, WEIGHTS, is_adapter_folder
from regraft.adapters.serving import AdapterFacts
from regraft.adapters.tensor_keys import LoraModule, refuse_integers, sort_keys
from regraft.checkpoint.finite import LARGEST_NORM, is_finite, norm_bound
from regraft.checkpoint.hf.roles import Role
from regraft.checkpoint.read.find import AdapterGivenError, find_files
from regraft.checkpoint.read.links import refuse_links_out
from regraft.checkpoint.read.tensor_file import TensorFile
from regraft.errors import CheckpointError
from regraft.input_files import parse_json
from regraft.records import AdapterRecord, read_record
from regraft.rope import ContextSpec

_RECORD_REMEDY = (
    "copy the adapter again (without that file it is a plain PEFT adapter of unknown context and "
    "base)"
)

_COPY = "copy the adapter again"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


class Adapter:
    """A LoRA adapter folder; tensors are read when they are needed.

    record       regraft.json, None for an adapter from elsewhere
    modules      checkpoint tensor name -> LoraModule
    replaced     checkpoint tensor name -> key of a full copy (PEFT's modules_to_save)
    differences  names of the tensors in regraft-differences.safetensors
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.config = read_config(folder / CONFIG, name)
        self.record = None
        if (folder / RECORD).is_file():
            self.record = read_record(folder / RECORD, AdapterRecord, _RECORD_REMEDY)
        ranks = read_pattern(self.config.rank_pattern, folder / CONFIG, "rank_pattern")
        alphas = read_pattern(self.config.alpha_pattern, folder / CONFIG, "alpha_pattern")
        self._weights = TensorFile(folder / WEIGHTS, _COPY)
        keys = sort_keys(self._weights, self.config, ranks, alphas, name)
        self.modules, self.replaced, self.ignored = keys.modules, keys.replaced, keys.ignored
        self._differences: TensorFile | None = None
        self.differences: list[str] = []
        if (folder / DIFFERENCES).is_file():
            self._differences = TensorFile(folder / DIFFERENCES, _COPY)
            self.differences = sorted(self._differences.tensors)
            for key in self.differences:
                refuse_integers(self._differences, key, name)
        elif self.record is not None and self.record.differences:
            raise CheckpointError(
                f"{name} lacks {DIFFERENCES}, which its {RECORD} lists; copy the whole folder."
            )

    @classmethod
    def open(cls, source: str | Path) -> Adapter:
        """Open a local adapter folder or the Hub id `org/name[@revision]`.

        Raises CheckpointError for what is not a LoRA adapter, InputError for kinds of LoRA that
        change more than W + s B A says.
        """
        folder = Path(source).expanduser()
        if not folder.exists() and _HUB_ID.fullmatch(str(source)):
            folder = _download(str(source))
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "does not exist"
            raise CheckpointError(
                f"{source} {what}; give an adapter folder or a Hub id such as org/name."
            )
        if not (folder / CONFIG).is_file():
            what = "a model" if (folder / "config.json").is_file() else "not an adapter"
            raise CheckpointError(
                f"{source} is {what}: it has no {CONFIG}; give an adapter folder."
            )
        if not (folder / WEIGHTS).is_file():
            pickled = (folder / "adapter_model.bin").is_file()
            raise CheckpointError(
                f"{source} has {'only pickled weights (adapter_model.bin)' if pickled else 'no'} "
                f"{'' if pickled else WEIGHTS}; load it with PEFT and save it again to get "
                f"{WEIGHTS}."
            )
        refuse_links_out(folder, (CONFIG, WEIGHTS, RECORD, LINEAGE, DIFFERENCES))
        return cls(folder, str(source))

    @property
    def warnings(self) -> list[str]:
        """Contradictions between the adapter's config and its factors, as sentences."""
        return [f"{self.name}: {text}." for text in contradictions(self.config, self._stored)]

    def incomplete(self, modules: Iterable[str]) -> list[str]:
        """Sentences on modules of a model that have no factors while others of their kind do."""
        texts = missing_factors(self.config, self._stored, modules)
        return [f"{self.name}: {text}." for text in texts]

    @property
    def _stored(self) -> list[str]:
        """The modules that have factors."""
        return [module.name for module in self.modules.values()]

    @property
    def context(self) -> tuple[ContextSpec, ContextSpec] | None:
        """(base's context, extended's context) if the adapter carries them."""
        if self.record is None:
            return None
        both = self.record.context
        return ContextSpec.from_record(both.base), ContextSpec.from_record(both.extended)

    def shape(self, tensor: str, *, linear: bool = False) -> tuple[int, int]:
        """Shape of the weight that the module changes. linear: see `factors`."""
        module = self.modules[tensor]
        rows = self._weights.shape(module.key_b)[0]
        columns = self._weights.shape(module.key_a)[1]
        return (columns, rows) if self._transposed(module, linear) else (rows, columns)

    def _transposed(self, module: LoraModule, linear: bool) -> bool:
        """Whether the weight is stored (in, out), so that its change is (B A)' = A' B'."""
        return module.embedding or (bool(self.config.fan_in_fan_out) and not linear)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the stored factors, the widest if they differ."""
        keys = [key for module in self.modules.values() for key in (module.key_a, module.key_b)]
        return reduce(torch.promote_types, {self._weights.tensors[key].dtype for key in keys})

    @property
    def nbytes(self) -> int:
        """Bytes of the stored factors."""
        return sum(info.nbytes for info in self._weights.tensors.values())

    def rank(self, tensor: str) -> int:
        """The rank of a module's factors as stored, padding included."""
        return int(self._weights.shape(self.modules[tensor].key_b)[1])

    @property
    def facts(self) -> AdapterFacts:
        """The properties of the adapter's files that decide which programs load it."""
        ranks = {self.rank(name) for name in self.modules}
        scales = {module.scaling for module in self.modules.values()}
        patterns = {**(self.config.rank_pattern or {}), **(self.config.alpha_pattern or {})}
        return AdapterFacts(
            rank=max(ranks, default=0),
            uniform=len(ranks) <= 1 and len(scales) <= 1,
            patterns=len(patterns),
            whole_tensors=len(self.replaced),
            differences=len(self.differences),
        )

    def factors(self, tensor: str, *, linear: bool = False) -> tuple[Tensor, Tensor]:
        """(B, A) float32, (m, r) and (r, n) with the scaling in B, so that the change is B @ A.

        linear: the module is known to be an nn.Linear, where PEFT ignores fan_in_fan_out.
        Raises CheckpointError for NaN, infinity, and a product that float32 may not hold.
        """
        module = self.modules[tensor]
        b = self._weights.tensor(module.key_b).float()
        a = self._weights.tensor(module.key_a).float()
        if not (is_finite(a) and is_finite(b)):
            raise CheckpointError(
                f"{self.name} has NaN or infinite numbers in the factors of '{module.name}'; "
                "make the adapter again."
            )
        b_norm, a_norm = norm_bound(b) * abs(module.scaling), norm_bound(a)
        if not max(b_norm, a_norm, b_norm * a_norm) <= LARGEST_NORM:
            raise CheckpointError(
                f"The factors of '{module.name}' in {self.name} have the norms {b_norm:.1e} and "
                f"{a_norm:.1e}, and regraft computes with numbers up to {LARGEST_NORM:.1e}; make "
                "the adapter again."
            )
        if self._transposed(module, linear):
            b, a = a.T, b.T
        return (b * module.scaling).contiguous(), a.contiguous()

    def replacement(self, tensor: str) -> Tensor:
        """The tensor that replaces one of the model (PEFT's modules_to_save), as stored."""
        return self._finite(tensor, self._weights.tensor(self.replaced[tensor]))

    def difference(self, tensor: str) -> Tensor:
        """The dense difference of a tensor (layout `exact`), as stored."""
        assert self._differences is not None
        return self._finite(tensor, self._differences.tensor(tensor))

    def _finite(self, tensor: str, values: Tensor) -> Tensor:
        if not is_finite(values):
            raise CheckpointError(
                f"{self.name} has NaN or infinite numbers for '{tensor}'; make the adapter again."
            )
        return values

    def difference_shape(self, tensor: str) -> tuple[int, ...]:
        """Shape of `difference`; nothing is read."""
        assert self._differences is not None
        return self._differences.shape(tensor)

    def replacement_shape(self, tensor: str) -> tuple[int, ...]:
        """Shape of `replacement`; nothing is read."""
        return self._weights.shape(self.replaced[tensor])

    def lineage(self) -> dict[str, Tensor] | None:
        """Sampled weights of the base by tensor name, if the adapter carries them."""
        path = self.folder / LINEAGE
        if not path.is_file():
            return None
        with TensorFile(path, _COPY) as file:
            samples = {key: file.tensor(key) for key in file.tensors}
        if any(values.ndim != 1 or not values.is_floating_point() for values in samples.values()):
            raise CheckpointError(f"{path} holds no lists of weights; copy the adapter again.")
        for key, values in samples.items():
            if not (is_finite(values) and norm_bound(values) <= LARGEST_NORM):
                raise CheckpointError(
                    f"{path} has NaN, infinite or huge numbers for '{key}'; copy the adapter again."
                )
        return samples

    def roles(self) -> dict[str, Role] | None:
        """Role of each tensor of the base, None if the adapter has none. Saves building the
        model."""
        path = self.folder / LINEAGE
        if not path.is_file():
            return None
        with TensorFile(path, _COPY) as file:
            text = file.metadata.get("roles")
        if not text:
            return None
        stored = parse_json(text, f"The roles in {path}", CheckpointError, remedy=_COPY)
        try:
            return {name: Role(**role) for name, role in stored.items()}
        except (AttributeError, TypeError):
            raise CheckpointError(f"The roles in {path} are of no model; {_COPY}.") from None


def is_adapter(source: str | Path) -> bool:
    """Whether a folder or Hub id is an adapter and not a model; False where it cannot be read."""
    folder = Path(source).expanduser()
    if folder.exists():
        return is_adapter_folder(folder)
    try:
        find_files(str(source))
    except AdapterGivenError:
        return True
    except CheckpointError:
        return False
    return False


def _download(source: str) -> Path:
    from huggingface_hub import snapshot_download

    repo, _, revision = source.partition("@")
    patterns = [CONFIG, WEIGHTS, RECORD, LINEAGE, DIFFERENCES]
    try:
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=patterns))
    except Exception as error:
        raise CheckpointError(
            f"{source} is neither a local folder nor an adapter that the Hub gives "
            f"({type(error).__name__}); check the spelling, the network and `hf auth login`."
        ) from error
