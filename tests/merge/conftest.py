"""The models that the tests of merging share."""

from __future__ import annotations

import shutil
from pathlib import Path

import models
import pytest
import torch
from merge_zoo import CONFIG, MIXTRAL, WORDS, experts, give_tokenizer

from regraft.adapters.extract.extract import extract_lora


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base; a, b, c (changed by 3% everywhere); long (a low-rank change and a longer context); the
    adapters lora and lora2, which are the changes of `long` and `a`; and variants: name16 in
    bfloat16, name_words with a tokenizer, moe_name with experts."""
    root = tmp_path_factory.mktemp("zoo")
    base = models.weights(CONFIG)
    models.save(root / "base", CONFIG, base)
    for seed, name in enumerate("abc", 1):
        generator = torch.Generator().manual_seed(seed)
        state = models.changed(base, rank=None, size=0.03, seed=seed, names="")
        for key, value in state.items():
            if value.ndim == 1:
                state[key] = value + 0.03 * torch.randn(value.shape, generator=generator)
        models.save(root / name, CONFIG, state)
        models.save(root / f"{name}16", CONFIG, state, dtype=torch.bfloat16)
    models.save(root / "base16", CONFIG, base, dtype=torch.bfloat16)
    long = models.changed(base, rank=4, size=0.03, seed=9)
    models.save(root / "long", {**CONFIG, **models.LONG}, long)
    for name in ("base", "a", "b"):
        shutil.copytree(root / name, root / f"{name}_words")
        give_tokenizer(root / f"{name}_words", {f"w{i}": i for i in range(WORDS)})
    for seed, name in enumerate(("base", "a", "b")):
        models.save(root / f"moe_{name}", MIXTRAL, experts(seed))
    for name, source, rank in (("lora", "long", 4), ("lora2", "a", 6)):
        extract_lora(
            root / "base", root / source, root / name, rank=rank, dtype="float32", verify=False
        )
    return root


@pytest.fixture
def in_zoo(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test in the folder of the models, so that recipes name them briefly."""
    monkeypatch.chdir(zoo)
