"""The command line: parse, call one function, render. Heavy imports happen inside commands."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from regraft import __version__, progress
from regraft.errors import InputError, RegraftError

app = typer.Typer(
    name="regraft",
    help="Lift long context off one Llama-3 model and graft it onto its relatives.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    add_completion=False,
)

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no notes.")]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Check everything, print bytes, memory and time; write nothing."
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue what a killed run left.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUT, or start again.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads torch may use.")]
Seed = Annotated[int, typer.Option(help="Seed of the randomised parts; the same seed, same bytes.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
Force = Annotated[bool, typer.Option("--force", help="Go on where the lineage check refuses.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write.", show_default=False)]


class Layout(StrEnum):
    portable = "portable"
    compact = "compact"
    exact = "exact"


@app.command("extract-lora", rich_help_panel="Verbs")
def extract_lora(
    base: Annotated[
        str, typer.Argument(help="The model before: a folder or org/name\\[@revision].")
    ],
    extended: Annotated[
        str, typer.Argument(help="The model made from it, with the longer context.")
    ],
    out: Out,
    rank: Annotated[
        str | None,
        typer.Option(help="A number, or auto: all above bfloat16 rounding noise. \\[default: 64]"),
    ] = None,
    energy: Annotated[
        float | None, typer.Option(help="Share of the energy above the noise to keep, such as 0.9.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Size of the adapter, such as 300MB, shared by merit.")
    ] = None,
    layout: Annotated[
        Layout,
        typer.Option(
            help="portable: PEFT, vLLM, SGLang and llama.cpp read it; compact: a rank per module, "
            "PEFT only; exact: compact plus differences of norms, embeddings and head."
        ),
    ] = Layout.portable,
    modules: Annotated[
        str,
        typer.Option(help="all-linear, attention, mlp, leaf names or regexes, by commas."),
    ] = "all-linear",
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    exact: Annotated[bool, typer.Option("--exact", help="LAPACK's full SVD (slow).")] = False,
    verify: Annotated[bool, typer.Option(help="Read the adapter back with PEFT.")] = True,
    full_fingerprint: Annotated[
        bool, typer.Option("--full-fingerprint", help="Hash every byte of both models.")
    ] = False,
    force: Force = False,
    device: Device = "auto",
    threads: Threads = None,
    seed: Seed = 0,
    dry_run: DryRun = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write what EXTENDED learned beyond BASE as a LoRA adapter.

    Example: regraft extract-lora meta-llama/Meta-Llama-3-8B gradientai/Llama-3-8B-262k -o ctx-lora
    """

    def work() -> dict[str, Any]:
        from regraft.adapters.extract.extract import extract_lora
        from regraft.device import use_threads

        use_threads(threads)
        return extract_lora(
            base, extended, out, rank=rank, energy=energy, budget=budget, layout=layout.value,
            modules=modules, dtype=dtype, exact=exact, verify=verify,
            full_fingerprint=full_fingerprint, device=device, seed=seed, force=force,
            overwrite=overwrite, resume=resume, dry_run=dry_run,
        )  # fmt: skip

    def render(record: dict[str, Any]) -> None:
        from regraft.adapters.extract.evidence import summary

        _lines(f"Adapter in {out}", summary(record))

    _run(work, render, as_json=as_json, quiet=quiet, debug=debug)


@app.command("apply", rich_help_panel="Verbs")
def apply(
    adapter: Annotated[str, typer.Argument(help="An adapter folder or org/name\\[@revision].")],
    checkpoint: Annotated[str, typer.Argument(help="The model that shall get the change.")],
    out: Out,
    scale: Annotated[float, typer.Option(help="How much of the change.")] = 1.0,
    context: Annotated[
        str | None,
        typer.Option(
            help="Whose RoPE and length: adapter, checkpoint, or values such as "
            "theta=283461213,length=256k. \\[default: adapter, if CHECKPOINT has its base's]"
        ),
    ] = None,
    max_shard_size: Annotated[
        str | None, typer.Option(help="Such as 5GB. \\[default: shards like CHECKPOINT's]")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read everything back.")] = False,
    force: Force = False,
    device: Device = "auto",
    threads: Threads = None,
    dry_run: DryRun = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Graft ADAPTER on CHECKPOINT, the context with it. Takes any PEFT LoRA.

    Example: regraft apply ctx-lora NousResearch/Hermes-2-Pro-Llama-3-8B -o hermes-262k
    """

    def work() -> dict[str, Any]:
        from regraft.adapters.apply.apply import apply
        from regraft.device import use_threads

        use_threads(threads)
        return apply(
            adapter, checkpoint, out, scale=scale, context=context, max_shard_size=max_shard_size,
            verify=verify, device=device, force=force, overwrite=overwrite, resume=resume,
            dry_run=dry_run,
        )  # fmt: skip

    def render(record: dict[str, Any]) -> None:
        from regraft.adapters.apply.apply import summary

        _lines(f"Graft in {out}", summary(record))

    _run(work, render, as_json=as_json, quiet=quiet, debug=debug)


@app.command("merge", rich_help_panel="Verbs")
def merge(
    recipe: Annotated[Path | None, typer.Argument(help="A mergekit YAML, or one of ours.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write.")] = None,
    engine: Annotated[
        str, typer.Option(help="auto, native (float32 streams) or mergekit (its own process).")
    ] = "auto",
    as_adapter: Annotated[
        bool, typer.Option("--as-adapter", help="Write a LoRA on base_model instead of a model.")
    ] = False,
    max_shard_size: Annotated[
        str | None, typer.Option(help="Such as 5GB. [default: like the donor's]")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read everything back.")] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the recipe's JSON schema and stop.")
    ] = False,
    device: Device = "auto",
    threads: Threads = None,
    seed: Seed = 0,
    dry_run: DryRun = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Merge models and adapters by a YAML recipe, the context with them.

    Example: regraft merge examples/merge-ties-long-context.yaml -o merged
    """

    def work() -> dict[str, Any]:
        if schema:
            from regraft.merge.schema import schema as recipe_schema

            return recipe_schema()
        if recipe is None or out is None:
            raise InputError("merge needs a recipe and an output: regraft merge recipe.yaml -o OUT")
        from regraft.device import use_threads
        from regraft.merge.job import merge

        _check_recovery(recipe)
        use_threads(threads)
        return merge(
            recipe, out, engine=engine, as_adapter=as_adapter, max_shard_size=max_shard_size,
            verify=verify, device=device, seed=seed, overwrite=overwrite, resume=resume,
            dry_run=dry_run,
        )  # fmt: skip

    def render(record: dict[str, Any]) -> None:
        if schema:
            print(json.dumps(record, indent=1))
            return
        from regraft.merge.job import summary

        _lines(f"Merge in {out}", summary(record))

    _run(work, render, as_json=as_json, quiet=quiet, debug=debug)


@app.command("train", rich_help_panel="Verbs")
def train(
    recipe: Annotated[Path | None, typer.Argument(help="A training recipe, YAML.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write.")] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the recipe's JSON schema and stop.")
    ] = False,
    device: Device = "auto",
    threads: Threads = None,
    dry_run: DryRun = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Extend a model's context by a YAML recipe: full fine-tune or LoRA; alike under torchrun.

    Example: regraft train examples/extend-toy.yaml -o toy-1k
    """
    if os.environ.get("RANK", "0") != "0":  # one process speaks for all
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115

    def work() -> dict[str, Any]:
        if schema:
            from regraft.train.recipe.recipe import schema as recipe_schema

            return recipe_schema()
        if recipe is None or (out is None and not dry_run):
            raise InputError("train needs a recipe and an output: regraft train recipe.yaml -o OUT")
        from regraft.device import use_threads
        from regraft.train.job import train

        use_threads(threads)
        return train(
            recipe, out or Path("out"), device=device, overwrite=overwrite, resume=resume,
            dry_run=dry_run,
        )  # fmt: skip

    def render(record: dict[str, Any]) -> None:
        if schema:
            print(json.dumps(record, indent=1))
            return
        from regraft.train.job import summary

        _lines(f"Trained {record['export']} in {out}", summary(record))

    _run(work, render, as_json=as_json, quiet=quiet, debug=debug)


@app.command("evaluate", rich_help_panel="Verbs")
def evaluate(
    models: Annotated[
        list[str], typer.Argument(help="Folders or org/name\\[@revision], or name=place.")
    ],
    out: Out,
    matrix: Annotated[
        bool,
        typer.Option(
            "--matrix",
            help="What a graft carried over: recipient=.. donor=.. graft=.. \\[recovered=..]",
        ),
    ] = False,
    adapter: Annotated[
        list[Path] | None,
        typer.Option(
            help="An adapter taken from donor=.., to be measured on its base (base=.. where its "
            "record names none that is here). Repeat it for other ranks."
        ),
    ] = None,
    suite: Annotated[
        str,
        typer.Option(
            help="needle, ruler, beyond, toy, perplexity, drift, task names, lm-eval:TASK, or of "
            "your own files zeroscrolls:PATH, loogle:PATH, bamboo:PATH."
        ),
    ] = "needle,perplexity,drift",
    lengths: Annotated[
        str | None, typer.Option(help="Such as 4k,8k. \\[default: the context, 1/2, 1/4, 1/8]")
    ] = None,
    items: Annotated[int, typer.Option(help="Questions for each task and length.")] = 50,
    haystack: Annotated[
        str, typer.Option(help="grammar, code, world, or a text file or folder.")
    ] = "grammar",
    qa: Annotated[
        list[Path] | None,
        typer.Option(help="A SQuAD or HotpotQA file, for qa_1 and qa_hard_1; a second for qa_2 .."),
    ] = None,
    needles: Annotated[int, typer.Option(help="Of the needle task, all asked for.")] = 1,
    decoys: Annotated[int, typer.Option(help="Needles with a similar key.")] = 0,
    depths: Annotated[int, typer.Option(help="Of the needle task.")] = 5,
    sigmoid: Annotated[bool, typer.Option("--sigmoid", help="More depths at both ends.")] = False,
    scoring: Annotated[str, typer.Option(help="auto, teacher or generate.")] = "auto",
    twins: Annotated[bool, typer.Option(help="Ask without the evidence, too.")] = True,
    chat: Annotated[bool, typer.Option("--chat", help="Use the chat template.")] = False,
    texts: Annotated[int, typer.Option(help="For perplexity and drift.")] = 8,
    limit: Annotated[int | None, typer.Option(help="Items of each lm-eval task.")] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            help="URL with OpenAI's /chat/completions, such as http://localhost:8000/v1: a model "
            "to judge free answers, too. Its key: REGRAFT_JUDGE_KEY or OPENAI_API_KEY."
        ),
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="Its name there.")] = None,
    batch: Annotated[
        int | None,
        typer.Option(help="Tokens in a batch. \\[default: 2048 on a CPU, 32768 on a GPU]"),
    ] = None,
    context_parallel: Annotated[
        int, typer.Option(help="Processes of torchrun that share the tokens of one prompt.")
    ] = 1,
    device: Device = "auto",
    threads: Threads = None,
    seed: Seed = 0,
    dry_run: DryRun = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure how models use their context; with --matrix, what a graft carried over and its cost.

    Example: regraft evaluate --matrix recipient=hermes donor=llama-262k graft=hermes-262k -o report

    Judged: regraft evaluate hermes-262k -o report --suite qa_hard_1 --qa dev-v2.0.json \\
        --judge http://localhost:8000/v1 --judge-model qwen

    On 8 GPUs: torchrun --nproc-per-node 8 -m regraft evaluate hermes-262k -o report
    """

    def work() -> dict[str, Any]:
        from regraft.device import use_threads
        from regraft.evaluate.job import evaluate

        use_threads(threads)
        return evaluate(
            models, out, matrix=matrix, suite=suite, lengths=lengths, items=items,
            haystack=haystack, qa=tuple(map(str, qa or ())), needles=needles, decoys=decoys,
            depths=depths, sigmoid=sigmoid, scoring=scoring, twins=twins, chat=chat, texts=texts,
            limit=limit, batch=batch, adapters=tuple(map(str, adapter or ())), judge=judge,
            judge_model=judge_model, device=device, context_parallel=context_parallel, seed=seed,
            overwrite=overwrite, resume=resume, dry_run=dry_run,
        )  # fmt: skip

    def render(result: dict[str, Any]) -> None:
        from rich.console import Console

        from regraft.evaluate.report.tables import render as tables

        console = Console()
        for table in tables(result):
            console.print(table)

    _run(work, render, as_json=as_json, quiet=quiet, debug=debug)


@app.command("plan", rich_help_panel="Look")
def plan(
    recipe: Annotated[Path, typer.Argument(help="A training recipe, YAML.")],
    gpus: Annotated[
        str | None, typer.Option(help="Such as 8xH100-80. \\[default: the GPUs here]")
    ] = None,
    host_memory: Annotated[
        str | None, typer.Option(help="Of all nodes together, such as 1TB.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Say whether a training fits, how long it takes and what would help; nothing is run.

    Example: regraft plan examples/train-pose-lora.yaml --gpus H200 --host-memory 128GiB
    """

    def work() -> dict[str, Any]:
        from regraft.train.estimate.plan import plan

        return plan(recipe, gpus=gpus, host_memory=host_memory)

    def render(result: dict[str, Any]) -> None:
        from regraft.train.estimate.plan import lines

        _lines(f"Plan of {recipe}", lines(result))

    _run(work, render, as_json=as_json, quiet=quiet, debug=debug)


@app.command("inspect", rich_help_panel="Look")
def inspect(
    path: Annotated[str, typer.Argument(help="A model or adapter: a folder or org/name.")],
    other: Annotated[str | None, typer.Argument(help="A second one, to relate to it.")] = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Say what a folder is; with OTHER, how the two are related.

    Example: regraft inspect base extended
    """

    def work() -> dict[str, Any]:
        from regraft.adapters.inspect.inspect import inspect
        from regraft.device import use_threads

        use_threads(threads)
        return inspect(path, other, device=device)

    def render(result: dict[str, Any]) -> None:
        from rich.console import Console

        from regraft.adapters.inspect.inspect import tables

        console = Console()
        for table in tables(result):
            console.print(table)

    _run(work, render, as_json=as_json, quiet=quiet, debug=debug)


@app.command("theta", rich_help_panel="Look")
def theta(
    trained: Annotated[str, typer.Argument(help="Length the model was trained for, such as 8k.")],
    target: Annotated[str, typer.Argument(help="Length it shall reach, such as 1M.")],
    base: Annotated[float, typer.Option(help="The model's RoPE theta.")] = 500000.0,
    law: Annotated[str, typer.Option(help="The one to print: scaling, ntk or bound.")] = "scaling",
    head_dim: Annotated[int, typer.Option(help="Size of a head, for the NTK law.")] = 128,
    probe: Annotated[
        Path | None, typer.Option(help="A training recipe: try a grid of thetas with it.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Of training at each theta, with --probe.")] = 20,
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Print the RoPE theta for a longer context (all laws on stderr), or try thetas out.

    Example: regraft theta 8k 262144 --base 500000    prints 283461213
    """

    def work() -> dict[str, Any]:
        from regraft.rope import theta_report
        from regraft.units import parse_tokens

        if probe is not None:
            from regraft.device import use_threads
            from regraft.train.theta_probe import probe as try_out

            use_threads(threads)
            lengths = parse_tokens(trained), parse_tokens(target)
            return try_out(probe, *lengths, base, steps=steps, device=device)
        report = theta_report(parse_tokens(trained), parse_tokens(target), base, head_dim)
        if law not in report["laws"]:
            raise InputError(f"--law '{law}' is not one of {', '.join(report['laws'])}.")
        return {**report, "law": law, "theta": report["laws"][law]["theta"]}

    def render(report: dict[str, Any]) -> None:
        if probe is not None:
            from regraft.train.theta_probe import table

            _lines(f"Theta for {target}", table(report))
            return
        print(report["theta"])
        for name, found in report["laws"].items():
            progress.note(
                f"{name:8} theta {found['theta']:>14,}   longest wavelength "
                f"{found['longest_wavelength']:,} tokens"
            )
        for warning in report["warnings"]:
            progress.note(warning)

    _run(work, render, as_json=as_json, quiet=quiet, debug=debug)


@app.command("demo", rich_help_panel="Look")
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")] = Path("demo-out"),
    seed: Seed = 2,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train, extract, graft and measure on a model small enough for two cores (three minutes).

    Example: regraft demo -o demo-out
    """

    def work() -> dict[str, Any]:
        from regraft.demo import run

        return run(out, seed=seed, overwrite=overwrite)

    def render(result: dict[str, Any]) -> None:
        from rich.console import Console

        from regraft.demo import render as table

        Console().print(table(result))

    _run(work, render, as_json=as_json, quiet=quiet, debug=debug)


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    pass


def _run(
    work: Callable[[], dict[str, Any]],
    render: Callable[[dict[str, Any]], None],
    *,
    as_json: bool,
    quiet: bool,
    debug: bool,
) -> None:
    """Do the work, show its result, and turn errors into one line and an exit code."""
    progress.configure(quiet=quiet or as_json)
    warnings.formatwarning = lambda message, *_args, **_: f"regraft: warning: {message}\n"
    try:
        result = work()
    except RegraftError as error:
        if debug:
            raise
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted; --resume continues where it can", 130)
    except MemoryError as error:
        if debug:
            raise
        _fail(f"not enough memory ({error}); close other programs or use a smaller --rank", 1)
    except OSError as error:
        if debug:
            raise
        where = f" {error.filename}" if error.filename else ""
        _fail(f"the system refused{where}: {error.strerror or error}", 1)
    except Exception as error:
        if debug:
            raise
        if type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
            _fail("not enough GPU memory; use --device cpu or a smaller --rank", 1)
        said = (str(error).strip() or "no message").splitlines()[0]
        _fail(
            f"an error that regraft does not know ({type(error).__name__}: {said}); please report "
            "it with what --debug shows",
            1,
        )
    if int(os.environ.get("RANK", "0")):
        return  # of torchrun's processes the first speaks
    if as_json:
        print(json.dumps(result, ensure_ascii=False, allow_nan=False))
    elif "plan" in result:
        _lines(
            "Nothing is written (--dry-run)", [_planned(*item) for item in result["plan"].items()]
        )
    else:
        render(result)


def _check_recovery(recipe: Path) -> None:
    """The `recover:` of a merge recipe is a training recipe, in place or in a file of its own."""
    from regraft.document import Document

    document = Document.read(recipe)
    keys = document.value if isinstance(document.value, dict) else {}
    wanted = keys.get("recover")
    for key in {"recover", "evaluate"} & keys.keys():
        progress.warn(f"`{key}:` is checked and not run by `regraft merge`.")
    if wanted is None:
        return
    from regraft.train.recipe.recipe import Recipe

    if isinstance(wanted, dict):
        Recipe(document.part("recover", model=str(recipe), method="recover"))
    elif isinstance(wanted, str):
        Recipe.read(recipe.parent / wanted)


def _planned(name: str, value: Any) -> tuple[str, str]:
    """A line of a plan: ('read', '32.1 GB') of ('read_bytes', 32121044992)."""
    if name.endswith("_bytes"):
        from regraft.units import format_bytes

        name, value = name.removesuffix("_bytes"), format_bytes(value)
    return name.replace("_", " "), str(value)


def _lines(title: str, lines: list[tuple[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(title), title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0)
    )
    for label, text in lines:
        table.add_row(Text(label, "dim"), Text(text))
    Console().print(table)


def _fail(message: str, code: int) -> None:
    print(f"regraft: {message}", file=sys.stderr)
    raise SystemExit(code)


def main() -> None:
    """The `regraft` command."""
    app()


if __name__ == "__main__":
    main()
