"""The merge methods by themselves: direct formulas, properties, exact thresholds, seeds, edges."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import permutations
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils.merge_utils import ties as peft_ties
from torch import Tensor

from regraft.errors import InputError
from regraft.merge.methods import REQUIRED, StoredBlocks, get, merge_tensors, names
from regraft.merge.methods.blockwise import top_k as select
from regraft.merge.methods.blockwise.noise import uniform
from regraft.merge.methods.blockwise.reduce import row_sums
from regraft.merge.methods.blockwise.top_k import Cut, largest

# A setting of every method at which it does something; two inputs unless it takes one.
SETTINGS: dict[str, dict[str, Any]] = {
    "breadcrumbs": {"weight": [0.7, 0.4], "density": 0.5, "gamma": 0.1, "rescale": True},
    "breadcrumbs_ties": {"weight": [0.7, 0.4], "density": [0.5, 0.8], "gamma": 0.1},
    "consensus_ta": {"weight": [0.7, 0.4], "tall_lambda": 0.8},
    "dare_linear": {"weight": [0.7, 0.4], "density": 0.5},
    "dare_ties": {"weight": [0.7, 0.4], "density": [0.5, 0.9]},
    "della": {"weight": [0.7, 0.4], "density": 0.5},
    "della_linear": {"weight": [0.7, 0.4], "density": [0.5, 0.6]},
    "iso_c": {"weight": [0.7, 0.4]},
    "karcher": {},
    "knots_ties": {"weight": [0.7, 0.4], "density": 0.5},
    "linear": {"weight": [0.7, 0.4]},
    "model_stock": {},
    "multislerp": {"weight": [0.7, 0.4]},
    "nearswap": {"t": 0.05},
    "nuslerp": {"weight": [0.7, 0.4]},
    "passthrough": {"scale": 0.5},
    "sce": {"select_topk": 0.4},
    "slerp": {"t": 0.3},
    "task_arithmetic": {"weight": [0.7, 0.4]},
    "ties": {"weight": [0.7, 0.4], "density": [0.5, 0.2], "rescale": True},
    "tsv_merge": {"weight": [0.7, 0.4]},
}
VARIANTS = [  # other branches of the same methods
    ("model_stock", {"filter_wise": True}),
    ("nuslerp", {"weight": [0.7, 0.4], "nuslerp_flatten": False}),
    ("nuslerp", {"weight": [0.7, 0.4], "nuslerp_flatten": False, "nuslerp_row_wise": True}),
    ("ties", {"weight": [0.7, 0.4], "density": 0.3, "variant": "peft"}),
    ("ties", {"weight": [1, 1], "density": 0.3, "variant": "paper", "normalize": False}),
]
ALL = [*SETTINGS.items(), *VARIANTS]
TASK = ("task_arithmetic", "ties", "dare_linear", "dare_ties", "breadcrumbs", "breadcrumbs_ties",
        "della", "della_linear")  # fmt: skip
SHAPES = ((12, 10), (31,), (3, 4, 5), (1, 6), (7, 1), ())


def relatives(shape: tuple[int, ...], count: int = 2, seed: int = 0) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(shape, generator=generator) for _ in range(count + 1)]
    return draws[0], [draws[0] + 0.1 * draw for draw in draws[1:]]


def lattice(shape: tuple[int, ...], count: int, seed: int) -> tuple[Tensor, list[Tensor]]:
    """Deltas with many equal and zero entries, exact in float32, as bfloat16 weights have."""
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randint(-3, 4, shape, generator=generator) / 64 for _ in range(count)]
    base = torch.randint(-64, 64, shape, generator=generator) / 16
    return base, [base + draw for draw in draws]


def merged(
    name: str, inputs: list[Tensor], base: Tensor, params: dict[str, Any], **how: Any
) -> Any:
    """With as many of the inputs as the method takes."""
    most = get(name).inputs[1]
    return merge_tensors(name, inputs[:most] if most else inputs, base, params, **how)


def test_the_settings_above_cover_every_method() -> None:
    assert set(SETTINGS) == set(names())


# The registry


def test_a_method_reads_its_parameters_from_its_signature() -> None:
    parameters = get("breadcrumbs").parameters
    assert list(parameters) == [
        "weight", "density", "gamma", "lambda", "normalize", "rescale", "int8_mask",
    ]  # fmt: skip
    assert parameters["weight"].required
    assert parameters["weight"].default is REQUIRED
    assert parameters["gamma"].per_input
    assert parameters["gamma"].default == 0.01
    assert parameters["gamma"].bounds == (0.0, 1.0)
    assert not parameters["lambda"].per_input
    assert parameters["normalize"].kind is bool
    assert get("passthrough").parameters["scale"].optional
    assert get("ties").parameters["variant"].choices == ("mergekit", "paper", "peft")


@pytest.mark.parametrize("name", SETTINGS)
def test_every_method_is_documented(name: str) -> None:
    assert len(get(name).doc) > 30
    assert get(name).paper
    assert get(name).stochastic == name.startswith(("dare", "della"))


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("ties", {"wieght": 1.0}, "did you mean weight"),
        ("ties", {}, "needs the parameter weight"),
        ("ties", {"weight": [1, 2, 3]}, "3 values for 2 inputs"),
        ("ties", {"weight": "much"}, "must be a number"),
        ("ties", {"weight": True}, "must be a number"),
        ("ties", {"weight": float("nan")}, "must be a number"),
        ("ties", {"weight": 1, "density": 1.5}, "between 0 and 1"),
        ("ties", {"weight": 1, "normalize": 1}, "true or false"),
        ("ties", {"weight": 1, "variant": "yadav"}, "one of mergekit, paper, peft"),
        ("ties", {"weight": 0.5, "variant": "paper"}, "has no weights"),
        ("linear", {"weight": [1, -1]}, "sum to zero"),
        ("multislerp", {"weight": [0.3, -0.3]}, "sum to zero"),
        ("della", {"weight": 1, "density": 0.9}, "inside"),
        ("consensus_ta", {"min_tasks": 1.5}, "whole number"),
        ("karcher", {"max_iter": 0}, "at least 1"),
    ],
)
def test_impossible_parameters_are_refused(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        get(name).bind(params, 2)


def test_wrong_numbers_of_inputs_and_unknown_names_are_refused() -> None:
    base, (a, b) = relatives((3, 3))
    for name, inputs, start in (("slerp", [a, b], base), ("model_stock", [a], base)):
        with pytest.raises(InputError, match="besides the base, not"):
            merge_tensors(name, inputs, start, SETTINGS[name])
    with pytest.raises(InputError, match="needs a base model"):
        merge_tensors("ties", [a, b], None, SETTINGS["ties"])
    with pytest.raises(InputError, match="did you mean ties"):
        get("tise")


@pytest.mark.parametrize("step", [1, 3, 50])
def test_stored_blocks_give_whole_rows_or_every_so_many(step: int) -> None:
    base, inputs = relatives((23, 2, 5))
    half = [t.bfloat16() for t in inputs]
    blocks = list(StoredBlocks(half, base, 40)(step))
    assert all(len(block[0][0]) <= 4 for block in blocks)
    for i, tensor in enumerate(half):
        assert torch.equal(torch.cat([block[0][i] for block in blocks]), tensor[::step].float())
    assert torch.equal(torch.cat([b for _, b in blocks if b is not None]), base[::step])


# What holds for every method


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("name", "params"), ALL, ids=lambda x: x if isinstance(x, str) else "")
def test_shape_is_kept_and_inputs_are_untouched(
    name: str, params: dict[str, Any], shape: tuple[int, ...]
) -> None:
    base, inputs = relatives(shape)
    before = [t.clone() for t in (base, *inputs)]
    for elements in (None, 10):
        result = merged(name, inputs, base, params, elements=elements)
        assert result.shape == base.shape
        assert bool(result.isfinite().all())
        assert all(torch.equal(x, y) for x, y in zip(before, (base, *inputs), strict=True))


@settings(max_examples=120, deadline=None)
@given(
    case=st.sampled_from(ALL),
    shape=st.sampled_from([(40, 17), (40, 3, 5), (129, 64), (2, 700), (3, 1)]),
    elements=st.integers(1, 2500),
    make=st.sampled_from([relatives, lattice]),
    seed=st.integers(0, 99),
)
def test_block_size_does_not_change_a_bit(
    case: tuple[str, dict[str, Any]],
    shape: tuple[int, ...],
    elements: int,
    make: Callable[..., tuple[Tensor, list[Tensor]]],
    seed: int,
) -> None:
    name, params = case
    base, inputs = make(shape, 2, seed)
    whole = merged(name, inputs, base, params, elements=None, seed=seed)
    assert torch.equal(merged(name, inputs, base, params, elements=elements, seed=seed), whole)


@pytest.mark.parametrize(("name", "params"), ALL, ids=lambda x: x if isinstance(x, str) else "")
def test_equal_inputs_of_weight_zero_delta_give_the_base(name: str, params: dict[str, Any]) -> None:
    if name == "passthrough":
        return
    for shape in SHAPES:
        base, _ = relatives(shape)
        result = merged(name, [base.clone(), base.clone()], base, params)
        assert float((result - base).abs().max()) <= 3e-7 * float(base.abs().max())


def test_threads_do_not_change_a_bit() -> None:
    base, inputs = relatives((3, 90_000))
    cases = [case for case in ALL if get(case[0]).blockwise]
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append([merged(name, inputs, base, params) for name, params in cases])
    torch.set_num_threads(before)
    assert all(map(torch.equal, *results))


def test_sums_do_not_depend_on_blocks_or_threads() -> None:
    torch.manual_seed(0)
    values = torch.randn(30, 70_000, dtype=torch.float64)
    before = torch.get_num_threads()
    sums = []
    for threads, height in ((1, 30), (1, 1), (2, 1), (2, 7)):
        torch.set_num_threads(threads)
        sums.append([each for block in values.split(height) for each in row_sums(block)])
    torch.set_num_threads(before)
    assert all(each == sums[0] for each in sums)
    assert row_sums(torch.tensor([[1e8, 1.0, -1e8]])) == [1.0]  # float32 would say 0


# Properties


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from([*TASK, "knots_ties", "tsv_merge", "iso_c", "consensus_ta"]),
    shape=st.sampled_from(SHAPES),
    share=st.sampled_from([0.3, 0.6, 1.0]),
)
def test_zero_weights_give_the_base(name: str, shape: tuple[int, ...], share: float) -> None:
    base, inputs = relatives(shape)
    params: dict[str, Any] = {"weight": 0.0}
    if "density" in get(name).parameters:
        params["density"] = share
    assert torch.equal(merge_tensors(name, inputs, base, params), base)
    params |= {"weight": 1.0, "lambda": 0.0}
    assert torch.equal(merge_tensors(name, inputs, base, params), base)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(
        [*TASK, "knots_ties", "tsv_merge", "consensus_ta", "sce", "linear", "multislerp", "karcher"]
    ),
    shape=st.sampled_from(SHAPES),
    seed=st.integers(0, 9),
)
def test_one_model_with_weight_one_gives_that_model(
    name: str, shape: tuple[int, ...], seed: int
) -> None:
    base, (model,) = relatives(shape, 1, seed)
    params = {"weight": 1.0} if "weight" in get(name).parameters else {}
    result = merge_tensors(name, [model], base, params)
    assert float((result - model).abs().max()) <= 2e-6 * float(model.abs().max())


@settings(max_examples=80, deadline=None)
@given(
    case=st.sampled_from([case for case in ALL if get(case[0]).symmetric]),
    shape=st.sampled_from(SHAPES),
    seed=st.integers(0, 9),
)
def test_order_of_inputs_does_not_matter_where_the_method_says_so(
    case: tuple[str, dict[str, Any]], shape: tuple[int, ...], seed: int
) -> None:
    name, params = case
    count = get(name).inputs[1] or 3
    base, inputs = relatives(shape, count, seed)
    values = {k: [*v, 0.9][:count] for k, v in params.items() if isinstance(v, list)}
    if params.get("variant") == "paper":
        values["weight"] = [1.0] * count
    first = merge_tensors(name, inputs, base, params | values)
    for order in permutations(range(count)):
        turned = {k: [v[i] for i in order] for k, v in values.items()}
        result = merge_tensors(name, [inputs[i] for i in order], base, params | turned)
        assert float((result - first).abs().max()) < 1e-5


@settings(max_examples=60, deadline=None)
@given(
    pair=st.sampled_from(
        [
            ("dare_linear", "task_arithmetic"),
            ("della_linear", "task_arithmetic"),
            ("breadcrumbs", "task_arithmetic"),
            ("dare_ties", "ties"),
            ("della", "ties"),
            ("breadcrumbs_ties", "ties"),
        ]
    ),
    weight=st.lists(st.sampled_from([1.0, 0.5, -0.2]), min_size=2, max_size=2),
    normalize=st.booleans(),
)
def test_density_one_is_the_dense_method(
    pair: tuple[str, str], weight: list[float], normalize: bool
) -> None:
    base, inputs = relatives((12, 10))
    params = {"weight": weight, "normalize": normalize, "density": 1.0}
    sparse, dense = (merge_tensors(name, inputs, base, params) for name in pair)
    assert torch.equal(sparse, dense)


@settings(max_examples=60, deadline=None)
@given(density=st.floats(0, 1), make=st.sampled_from([relatives, lattice]), seed=st.integers(0, 99))
def test_trimming_keeps_exactly_the_largest_and_of_equals_the_first(
    density: float, make: Callable[..., tuple[Tensor, list[Tensor]]], seed: int
) -> None:
    base, (model,) = make((9, 14), 1, seed)
    delta = (model - base).flatten()
    result = merge_tensors("ties", [model], base, {"weight": 1.0, "density": density}, elements=30)
    kept = max(1, int(density * delta.numel())) if density else 0
    order = delta.abs().sort(descending=True, stable=True).indices[:kept]
    expected = torch.zeros_like(delta)
    expected[order] = delta[order]
    assert torch.equal(result, base + expected.view(base.shape))


@settings(max_examples=30, deadline=None)
@given(name=st.sampled_from([n for n in TASK if n != "task_arithmetic"]), seed=st.integers(0, 9))
def test_rescaling_gives_a_delta_its_l1_norm_back(name: str, seed: int) -> None:
    base, (model,) = relatives((20, 30), 1, seed)
    params = {"weight": 1.0, "density": 0.4, "rescale": True, "normalize": False}
    result = merge_tensors(name, [model], base, params, elements=70, seed=seed, dtype=torch.float64)
    delta = model.double() - base.double()
    assert float((result - base).abs().sum()) == pytest.approx(float(delta.abs().sum()), rel=1e-12)


# TIES against its three sources


def paper_ties(deltas: list[Tensor], density: float) -> Tensor:
    """Algorithm 1 of arXiv 2306.01708, element by element."""
    kept = []
    for delta in deltas:
        threshold = delta.abs().flatten().sort(descending=True).values
        threshold = threshold[int(density * delta.numel()) - 1]
        kept.append(torch.where(delta.abs() >= threshold, delta, 0))
    stacked = torch.stack(kept)
    elected = stacked.sum(0).sign()
    agree = (stacked.sign() == elected) & (stacked != 0)
    return (stacked * agree).sum(0) / agree.sum(0).clamp_min(1)


@pytest.mark.parametrize("density", [0.05, 0.3, 0.8, 1.0])
def test_ties_of_the_paper(density: float) -> None:
    base, inputs = relatives((30, 20), 3)
    base, inputs = base.double(), [t.double() for t in inputs]
    params = {"weight": 1.0, "density": density, "variant": "paper", "lambda": 0.8}
    result = merge_tensors("ties", inputs, base, params, dtype=torch.float64)
    expected = base + 0.8 * paper_ties([t - base for t in inputs], density)
    assert float((result - expected).norm() / (expected - base).norm()) < 1e-14
    mergekit = merge_tensors("ties", inputs, base, params | {"variant": "mergekit"})
    assert float((result - mergekit).norm() / (expected - base).norm()) < 1e-6


@pytest.mark.filterwarnings("ignore:The density 1.0")
@pytest.mark.parametrize("weight", [[1, 1, 1], [0.5, 0.3, 0.2], [1, 0.5, -0.2]])
@pytest.mark.parametrize("density", [0.05, 0.3, 1.0])
def test_ties_of_peft(weight: list[float], density: float) -> None:
    base, inputs = relatives((30, 20), 3)
    deltas = [t - base for t in inputs]
    params = {"weight": weight, "density": density, "variant": "peft"}
    result = merge_tensors("ties", inputs, base, params)
    expected = peft_ties(deltas, torch.tensor(weight), density)
    assert float((result - base - expected).norm() / expected.norm()) < 1e-5
    if weight != [1, 1, 1]:
        mergekit = merge_tensors("ties", inputs, base, params | {"variant": "mergekit"})
        assert float((mergekit - result).norm() / expected.norm()) > 0.3


def test_a_zero_vote_elects_plus_and_weights_that_cancel_divide_by_one() -> None:
    base = torch.zeros(1, 2)
    up, down = torch.tensor([[1.0, -1.0]]), torch.tensor([[-1.0, 1.0]])
    for variant in ("mergekit", "peft", "paper"):
        params = {"weight": 1.0, "variant": variant}
        for inputs in ([up, down], [down, up]):
            assert merge_tensors("ties", inputs, base, params).tolist() == [[1.0, 1.0]]
            assert merge_tensors("sce", inputs, base).tolist() == [[1.0, 1.0]]
    # 0.3 + 0.4 - 0.7 is 6e-8 in float32; all three take part in the second entry
    inputs = [up, up, -up]
    cancelling = {"weight": [0.3, 0.4, -0.7], "normalize": True}
    for name in ("ties", "task_arithmetic"):
        result = merge_tensors(name, inputs, base, cancelling)
        torch.testing.assert_close(result, torch.tensor([[1.4, -1.4]]))


def test_a_delta_that_stands_alone_keeps_its_size_when_normalized() -> None:
    base, (model,) = relatives((5, 5), 1)
    result = merge_tensors("ties", [model], base, {"weight": 0.25})
    torch.testing.assert_close(result, model)
    half = merge_tensors("ties", [model], base, {"weight": 0.25, "lambda": 0.5})
    torch.testing.assert_close(half, (model + base) / 2)


# Exact selection


def truth(magnitudes: Tensor, k: int) -> Tensor:
    order = magnitudes.flatten().sort(descending=True, stable=True).indices[:k]
    return torch.zeros(magnitudes.numel()).scatter_(0, order, 1.0).bool().view(magnitudes.shape)


def stream_of(magnitudes: Tensor, height: int, passes: list[int]) -> select.Stream:
    def stream(step: int) -> Iterator[list[Tensor]]:
        passes.append(step)
        for row in range(0, magnitudes.shape[0], height * step):
            yield [magnitudes[row : row + height * step : step]]

    return stream


ROWS, COLUMNS = 150, 41
HOSTILE: dict[str, Callable[[], Tensor]] = {
    "plain": lambda: torch.randn(ROWS, COLUMNS),
    "rows of all sizes": lambda: torch.randn(ROWS, COLUMNS) * torch.rand(ROWS, 1) ** 9,
    "lattice": lambda: (torch.randn(ROWS, COLUMNS) * 2).round(),
    "mostly zero": lambda: (torch.randn(ROWS, COLUMNS) * 0.4).round(),
    "sorted": lambda: torch.arange(ROWS * COLUMNS).view(ROWS, COLUMNS).float(),
    "all equal": lambda: torch.ones(ROWS, COLUMNS),
    "subnormal": lambda: torch.rand(ROWS, COLUMNS) * 1e-42,
    "infinite": lambda: torch.randn(ROWS, COLUMNS).reciprocal_().mul_(1e38).mul_(10),
    # the sampled rows are the odd ones out
    "misled": lambda: torch.randn(ROWS, COLUMNS) * torch.arange(ROWS).remainder(5)[:, None],
    "double": lambda: torch.randn(ROWS, COLUMNS, dtype=torch.float64) * torch.rand(ROWS, 1) ** 9,
}  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(list(HOSTILE)),
    k=st.integers(0, ROWS * COLUMNS),
    height=st.sampled_from([1, 7, ROWS]),
    seed=st.integers(0, 99),
)
def test_selection_is_exact_whatever_the_data(kind: str, k: int, height: int, seed: int) -> None:
    torch.manual_seed(seed)
    magnitudes = HOSTILE[kind]().abs()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(select, "_SAMPLE", 1500)  # every fifth row
        passes: list[int] = []
        (cut,) = largest(stream_of(magnitudes, height, passes), [(0, k)], ROWS, COLUMNS)
    assert len(passes) <= (7 if magnitudes.dtype == torch.float64 else 5)
    kept = [cut.mask(magnitudes[row : row + height], row) for row in range(0, ROWS, height)]
    assert torch.equal(torch.cat(kept), truth(magnitudes, k))
    values = -magnitudes
    kept = [cut.trim(values[row : row + height], row) for row in range(0, ROWS, height)]
    assert torch.equal(torch.cat(kept), torch.where(truth(magnitudes, k), values, 0))


def test_selection_reads_ordinary_data_once_after_the_sample() -> None:
    torch.manual_seed(0)
    rows, columns = 1200, 2048  # more than two samples
    for magnitudes in (
        torch.randn(rows, columns).abs(),
        torch.randn(rows, columns).bfloat16().abs(),
    ):
        passes: list[int] = []
        stream = stream_of(magnitudes.float(), 64, passes)
        wanted = [(0, int(share * rows * columns)) for share in (0.1, 0.5, 0.9)]
        cuts = largest(stream, wanted, rows, columns)
        assert passes == [3, 1]
        for cut, (_, k) in zip(cuts, wanted, strict=True):
            assert int(cut.mask(magnitudes.float(), 0).sum()) == k


def test_selection_of_all_or_nothing_reads_nothing() -> None:
    passes: list[int] = []
    stream = stream_of(torch.randn(4, 4), 4, passes)
    all_of_it, none_of_it = largest(stream, [(0, 16), (0, 0)], 4, 4)
    assert passes == []
    assert bool(all_of_it.mask(torch.zeros(4, 4), 0).all())
    assert not bool(none_of_it.mask(torch.full((4, 4), torch.inf), 0).any())


def test_selection_among_values_that_are_no_numbers_is_refused() -> None:
    stream = stream_of(torch.full((4, 4), torch.nan), 4, [])
    with pytest.raises(InputError, match="not numbers"):
        largest(stream, [(0, 3)], 4, 4)


def test_a_bracket_answers_only_for_what_lies_in_it() -> None:
    bracket = select._Range(2.0, 3.0)
    bracket.add(torch.tensor([[4.0, 3.0, 2.5, 2.0, 1.0]]), 0)
    assert [bracket.cut(k) for k in (1, 5)] == [None, None]
    assert [bracket.cut(k) for k in (2, 4)] == [Cut(3.0, 0, 1), Cut(2.0, 0, 1)]


def test_a_cut_keeps_equals_up_to_its_place() -> None:
    equal = torch.ones(3, 4)
    mask = Cut(1.0, row=1, within=2).mask(equal, 0)
    assert mask.flatten().nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5]


# Random methods


def test_uniform_numbers_are_uniform_and_belong_to_their_element() -> None:
    cpu = torch.device("cpu")
    numbers = uniform(3, 0, 0, (400, 1000), cpu)
    assert float(numbers.min()) >= 0
    assert float(numbers.max()) < 1
    counts = torch.histc(numbers, 64, 0, 1)
    chi = float(((counts - 6250) ** 2 / 6250).sum())
    assert 30 < chi < 110  # 63 degrees of freedom
    for lag in (
        (numbers[1:].flatten(), numbers[:-1].flatten()),
        (
            numbers[:, 1:].flatten(),
            numbers[:, :-1].flatten(),
        ),
    ):
        assert abs(float(torch.corrcoef(torch.stack(lag))[0, 1])) < 0.007
    assert torch.equal(uniform(3, 0, 57, (5, 1000), cpu), numbers[57:62])
    many = uniform(0, 0, 0, (20_000, 1024), cpu).double().sum(1)  # exact: multiples of 2^-24
    assert many.unique().numel() > 20_000 - 8  # no row is another one shuffled
    for other in (uniform(4, 0, 0, (400, 1000), cpu), uniform(3, 1, 0, (400, 1000), cpu)):
        pair = torch.stack([numbers.flatten(), other.flatten()])
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.007


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_random_methods_follow_their_seed(name: str) -> None:
    base, inputs = relatives((40, 50))
    params = SETTINGS[name]
    results = [merge_tensors(name, inputs, base, params, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("density", [0.2, 0.5, 0.8])
def test_dare_keeps_its_density_and_its_inputs_apart(density: float) -> None:
    base = torch.zeros(200, 300)
    model = torch.ones(200, 300)
    params = {"weight": 1.0, "density": density, "rescale": False}
    kept = merge_tensors("dare_linear", [model], base, params)
    assert float(kept.mean()) == pytest.approx(density, abs=0.01)
    both = merge_tensors("dare_linear", [model, model], base, params)
    assert float((both == 2).float().mean()) == pytest.approx(density**2, abs=0.01)


def test_della_keeps_the_large_more_often() -> None:
    base = torch.zeros(2000, 50)
    model = torch.arange(1.0, 51).expand(2000, 50).contiguous()
    params = {"weight": 1.0, "density": 0.5, "epsilon": 0.3, "rescale": False}
    kept = (merge_tensors("della_linear", [model], base, params) != 0).double().mean(0)
    expected = torch.linspace(0.2, 0.8, 50, dtype=torch.float64)
    assert float((kept - expected).abs().max()) < 0.05


@pytest.mark.parametrize("shape", [(20, 30), (4, 30, 3), (50,)], ids=str)
def test_della_ranks_floats_as_it_ranks_doubles(shape: tuple[int, ...]) -> None:
    for make in (relatives, lattice):
        base, inputs = make(shape, 2, 0)
        params = SETTINGS["della"] | {"rescale": False}
        single, double = (
            merge_tensors("della", inputs, base, params, dtype=dtype) - base
            for dtype in (torch.float32, torch.float64)
        )
        assert torch.equal(single != 0, double.float() != 0)


# The others, where mergekit says nothing


def test_three_equal_models_pass_through_multislerp() -> None:
    base, _ = relatives((4, 4))
    assert torch.equal(merge_tensors("multislerp", [base] * 3, base, {"weight": 1.0}), base)


def test_sce_without_a_floor_weighs_small_deltas_by_their_energy() -> None:
    base, inputs = torch.zeros(8, 8), [torch.full((8, 8), 1e-4), torch.full((8, 8), 3e-4)]
    alike = merge_tensors("sce", inputs, base)
    torch.testing.assert_close(alike, torch.full((8, 8), 2e-4))
    weighed = merge_tensors("sce", inputs, base, {"energy_floor": 0})
    torch.testing.assert_close(weighed, torch.full((8, 8), 1e-4 * (0.1 * 1 + 0.9 * 3)))


@pytest.mark.parametrize("name", ["linear", "slerp", "nuslerp", "multislerp", "karcher"])
def test_means_of_relatives_are_a_rounding_away_from_exact(name: str) -> None:
    base, _ = relatives((200, 200))
    inputs = [base + 1e-3 * torch.randn(200, 200) for _ in range(3)][: get(name).inputs[1]]
    params = {k: v for k, v in SETTINGS[name].items() if k != "weight"}
    if "weight" in get(name).parameters:
        params["weight"] = [0.5, 0.3, 0.2][: len(inputs)]
    start = base if name == "slerp" else None
    exact = merge_tensors(name, inputs, start, params, dtype=torch.float64)
    result = merge_tensors(name, inputs, start, params)
    rounding = float((exact.float() - exact).norm())
    assert float((result - exact).norm()) < 1.2 * rounding
    equal = merge_tensors(name, [base] * len(inputs), start, params)
    assert float((equal - base).abs().max()) < 1e-6


def test_karcher_finds_the_point_whose_tangents_cancel() -> None:
    inputs = [torch.randn(6, 7, dtype=torch.float64) for _ in range(4)]
    mean = merge_tensors("karcher", inputs, None, {"max_iter": 100}, dtype=torch.float64)
    mean = (mean / mean.norm()).flatten()
    tangent = torch.zeros_like(mean)
    for vector in inputs:
        unit = (vector / vector.norm()).flatten()
        cosine = unit @ mean
        theta = torch.arccos(cosine)
        tangent += theta / torch.sin(theta) * (unit - cosine * mean)
    assert float(tangent.norm()) < 1e-4


# Subspace methods


def delta_matrices(rows: int, columns: int, count: int = 3) -> tuple[Tensor, list[Tensor]]:
    base, inputs = relatives((rows, columns), count)
    return base.double(), [t.double() for t in inputs]


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_tsv_merge_is_the_papers_formula(shape: tuple[int, int]) -> None:
    base, inputs = delta_matrices(*shape)
    us, ss, vs = [], [], []
    for t in inputs:
        u, s, vt = torch.linalg.svd(t - base, full_matrices=False)
        us, ss, vs = [*us, u[:, :4]], [*ss, s[:4]], [*vs, vt[:4].T]
    polar = []
    for parts in (us, vs):
        p, _, qt = torch.linalg.svd(torch.cat(parts, 1), full_matrices=False)
        polar.append(p @ qt)
    expected = base + polar[0] @ torch.diag(torch.cat(ss)) @ polar[1].T
    result = merge_tensors("tsv_merge", inputs, base, dtype=torch.float64)
    torch.testing.assert_close(result, expected)


def test_tsv_merge_of_equal_low_rank_models_is_that_model() -> None:
    base = torch.randn(12, 20, dtype=torch.float64)
    model = base + torch.randn(12, 3, dtype=torch.float64) @ torch.randn(3, 20, dtype=torch.float64)
    result = merge_tensors("tsv_merge", [model] * 4, base, dtype=torch.float64)
    torch.testing.assert_close(result, model)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_iso_c_levels_the_spectrum_of_the_sum(shape: tuple[int, int]) -> None:
    base, inputs = delta_matrices(*shape)
    u, s, vt = torch.linalg.svd(sum(inputs) - 3 * base, full_matrices=False)
    expected = base + 0.5 * s.mean() * u @ vt
    result = merge_tensors("iso_c", inputs, base, {"lambda": 0.5}, dtype=torch.float64)
    torch.testing.assert_close(result, expected)


def test_iso_c_leaves_the_null_space_of_a_low_rank_sum_alone() -> None:
    base = torch.zeros(12, 20)
    model = torch.randn(12, 2) @ torch.randn(2, 20)
    result = merge_tensors("iso_c", [model], base)
    spectrum = torch.linalg.svdvals(result)
    mean = torch.linalg.svdvals(model)[:2].mean()
    torch.testing.assert_close(spectrum[:2], mean.expand(2))
    assert float(spectrum[2]) < 1e-5


@pytest.mark.parametrize("density", [0.3, 1.0])
def test_knots_ties_is_ties_in_the_joint_singular_basis(density: float) -> None:
    base, inputs = delta_matrices(8, 20)
    deltas = [t - base for t in inputs]
    u, s, vt = torch.linalg.svd(torch.cat(deltas, 1), full_matrices=False)
    parts = list((s[:, None] * vt).split(20, 1))
    params = {"density": density, "lambda": 0.7}
    result = merge_tensors("knots_ties", inputs, base, params, dtype=torch.float64)
    torch.testing.assert_close(result, base + 0.7 * u @ paper_ties(parts, density))
    turned = merge_tensors("knots_ties", [t.T for t in inputs], base.T, params, dtype=torch.float64)
    torch.testing.assert_close(turned, result.T)


def test_consensus_keeps_what_enough_tasks_want() -> None:
    base, inputs = relatives((15, 11), 4)
    deltas = torch.stack([t - base for t in inputs])
    whole = deltas.sum(0)
    wanted = (deltas.abs() >= 0.3 * (whole - deltas).abs()).sum(0)
    for least in (1, 2, 4, 9):
        params = {"tall_lambda": 0.3, "min_tasks": least, "lambda": 0.5}
        expected = base + 0.5 * whole * (wanted >= min(least, 4))
        torch.testing.assert_close(merge_tensors("consensus_ta", inputs, base, params), expected)
