"""One process: what transformers hands over, and what is refused instead of ignored."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from parallel_attention import documents
from parallel_models import MODELS, batch_of, model_errors, tiny_llama
from train_steps import cut, tiny_model

from regraft.errors import InputError, RegraftError
from regraft.parallel import Mesh, attach
from regraft.parallel.shards import Shard


@pytest.mark.parametrize("case", [name for name in MODELS if name != "FSDP2"])
def test_one_process_is_transformers_with_explicit_masks(case: str) -> None:
    errors = model_errors(Mesh.create(), torch.float64, **MODELS[case])
    assert max(errors.values()) < 1e-10


def _logits(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return model(**Mesh.create().cut(batch)).logits


def test_pose_positions_are_not_documents_and_documents_are() -> None:
    """transformers' own mask hides the first chunk from what comes after a jump."""
    model = tiny_llama(torch.float64).eval()
    batch = batch_of(0, pose=True)
    del batch["labels"]
    other = {**batch, "input_ids": batch["input_ids"].clone()}
    other["input_ids"][:, 3] += 1
    plain = {**batch, "use_cache": False}
    moved = model(**plain).logits - model(**{**plain, "input_ids": other["input_ids"]}).logits
    assert float(moved[:, 20:].detach().abs().max()) == 0  # the trap; if it goes, simplify
    attach(model)
    moved = _logits(model, batch) - _logits(model, other)
    assert float(moved[:, 20:].abs().max()) > 1e-3
    cut = {"documents": documents([[0, 16]], 48)}
    moved = _logits(model, batch | cut) - _logits(model, other | cut)
    assert float(moved[:, 16:].abs().max()) == 0
    assert float(moved[:, :16].abs().max()) > 1e-3


def test_masks_are_refused_and_full_ones_are_not() -> None:
    model = tiny_llama(torch.float32)
    attach(model)
    batch = batch_of(0)
    part = Mesh.create().cut(batch)
    del part["labels"]
    mask = torch.ones(2, 48).long()
    model(**part, attention_mask=mask)
    mask[1, 40:] = 0
    with pytest.raises(InputError, match="takes no padding mask"):
        model(**part, attention_mask=mask)
    with pytest.raises(InputError, match="takes no padding mask"):
        model(**part, attention_mask=torch.ones(2, 1, 48, 48).bool())


def test_calls_that_lack_the_batch_are_refused() -> None:
    model = tiny_llama(torch.float32)
    attach(model)
    mesh, batch = Mesh.create(), batch_of(0)
    with pytest.raises(InputError, match="without `context_parallel`"):
        model(input_ids=batch["input_ids"])
    part = mesh.cut(batch)
    shard: Shard = part["context_parallel"]
    with pytest.raises(
        InputError, match="cut to 48 tokens for each rank but the model was given 9"
    ):
        model(input_ids=batch["input_ids"][:, :9], context_parallel=shard)
    del part["labels"]
    cache = model(**part).past_key_values
    again = {"input_ids": batch["input_ids"][:, :1], "context_parallel": shard}
    with pytest.raises(InputError, match="key-value cache"):
        model(**again, past_key_values=cache)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"attention_dropout": 0.1}, "no dropout"),
        ({"sliding_window": 64}, "a sliding window"),
        ({"attn_logit_softcapping": 50.0}, "a soft cap"),
    ],
)
def test_models_it_cannot_serve_are_refused(change: dict[str, float], what: str) -> None:
    model = tiny_llama(torch.float32)
    for name, value in change.items():
        setattr(model.config, name, value)
    with pytest.raises(InputError, match=what):
        attach(model)
    with pytest.raises(InputError, match="does not choose its attention by name"):
        attach(torch.nn.Linear(2, 2))
    with pytest.raises(InputError, match="ulysses 4 does not divide the model's 2 key-value heads"):
        attach(tiny_llama(torch.float32), Mesh(ulysses=4))


def test_attaching_leaves_no_trace_in_the_config(tmp_path: Any) -> None:
    model = tiny_llama(torch.float32)
    attach(model)
    model.save_pretrained(tmp_path)
    assert "regraft" not in (tmp_path / "config.json").read_text()


def test_cut_pads_on_the_right() -> None:
    """Four ranks' parts without four processes: `cut` exchanges nothing but a check."""
    batch = {"input_ids": torch.arange(1, 11).unsqueeze(0), "labels": torch.arange(2, 12)[None]}
    found: dict[str, set[int]] = {"input_ids": set(), "labels": set(), "position_ids": set()}
    for rank in range(2):
        part = _part_of(rank, batch)
        assert part["context_parallel"].length == 12
        assert part["context_parallel"].documents == ((0, 10),)  # padding apart
        for name, values in found.items():
            assert part[name].shape == (1, 6)
            values.update(part[name].flatten().tolist())
    assert found["input_ids"] == {*range(1, 11), 77}
    assert found["labels"] == {*range(2, 12), -100}
    assert found["position_ids"] == set(range(10))


def _part_of(rank: int, batch: dict[str, Any]) -> dict[str, Any]:
    class Other(Mesh):
        rank = property(lambda _: rank)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("regraft.parallel.shards._agree", lambda *_: None)
        return Other(context=2).cut(batch, pad_token=77)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"input_ids": torch.zeros(1, 4).long(), "attention_mask": torch.ones(1, 4)}, "not attent"),
        ({"labels": torch.zeros(1, 4).long()}, "no input_ids"),
        (
            {"input_ids": torch.zeros(1, 4).long(), "labels": torch.zeros(1, 3).long()},
            r"labels is \(1, 3\) beside input_ids \(1, 4\)",
        ),
        ({"input_ids": torch.zeros(1, 0).long()}, "no tokens"),
        (
            {
                "input_ids": torch.zeros(1, 4).long(),
                "documents": torch.tensor([[0, 1, 0, 0]]),
            },
            "comes back",
        ),
    ],
)
def test_bad_batches_are_one_sentence(batch: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Mesh.create().cut(batch)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"context": 2}, r"needs a multiple of 2 processes \(context 2\) but there is 1"),
        ({"context": 2, "ulysses": 2, "shard": 1}, r"needs 4 processes \(context 2 x ulysses 2\)"),
        ({"context": 0}, "parallel context is 0; give a number of at least 1, or auto"),
        ({"context": "auto"}, "Only one of shard, context can be auto"),
        ({"algorithm": "fast"}, "algorithm 'fast' is not auto, gather or ring"),
    ],
)
def test_impossible_meshes_are_one_sentence(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Mesh.create(**sizes)


def test_a_launcher_that_gave_no_rank_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(RegraftError, match=r"did not find each other .* start them with torchrun"):
        Mesh.create(timeout=1)


def test_one_process_needs_no_launcher() -> None:
    mesh = Mesh.create(context="auto", shard=1)
    assert (mesh.size, mesh.rank, mesh.data_size, mesh.data_rank, mesh.fsdp_mesh) == (
        1,
        0,
        1,
        0,
        None,
    )
    assert mesh.sum_tokens(torch.tensor([[-100, 4, 5]])) == 2
    assert mesh.sum_tokens(torch.tensor([[-100]])) == 1
    assert mesh.describe(tiny_llama(torch.float32), 64) == "one process; attention kernel torch-cpu"


def test_documents_do_not_see_each_other() -> None:
    model = tiny_model()
    attach(model)
    ids = torch.randint(0, 50, (1, 30))
    positions = torch.cat([torch.arange(10), torch.arange(20)])[None]
    with torch.no_grad():
        both = model(**cut(ids, [(0, 10)], positions), use_cache=False).logits
        alone = model(**cut(ids[:, 10:]), use_cache=False).logits
    torch.testing.assert_close(both[:, 10:], alone, rtol=1e-12, atol=1e-12)


def test_the_reference_kernel_is_as_wide_under_autocast() -> None:
    q, k, v = (torch.randn(1, 2, 16, 8).bfloat16() for _ in range(3))
    part = Mesh(kernel="reference").cut({"input_ids": torch.zeros(1, 16).long()})
    expected = part["context_parallel"].attend(q, k, v, 0.3)
    with torch.autocast("cpu", torch.bfloat16):
        result = part["context_parallel"].attend(q, k, v, 0.3)
    assert torch.equal(result, expected)
