"""The command line: the options of every command, one call to the Python API, what is printed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

import regraft
from regraft import shell
from regraft.shell import Options
from regraft.stdout import write_stdout

if TYPE_CHECKING:
    from rich.console import RenderableType

    from regraft.evaluate.result import EvaluationPlan, EvaluationRecord
    from regraft.records import AdapterRecord, GraftRecord, MergeRecord
    from regraft.train.estimate.plan import TrainingPlan
    from regraft.train.record import TrainingRecord
    from regraft.train.theta_probe import ThetaProbe

app = typer.Typer(
    name="regraft",
    help="Extract long context from a Llama-3 model as a LoRA, and put it into its relatives.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    add_completion=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, no more.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes on stderr.")]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Check everything, print bytes, memory and time; write nothing."
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace an earlier output, or discard an interrupted run and start again.",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Threads = Annotated[
    int | None, typer.Option(help="CPU threads of torch. \\[default: torch's choice]")
]
Seed = Annotated[
    int, typer.Option(help="Seed of the random parts: the same seed gives the same bytes.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show Python's traceback after an error.")]
Force = Annotated[
    bool, typer.Option("--force", help="Continue where the check of lineage refuses.")
]
Out = Annotated[str, typer.Option("--out", "-o", help="Folder to write.", show_default=False)]
Verify = Annotated[
    bool, typer.Option("--verify", help="Read every byte back from disk and compare hashes.")
]
ShardSize = Annotated[
    str | None,
    typer.Option(help="Largest shard, such as 5GB. \\[default: shards as in the model copied]"),
]


def _print_merge_schema(requested: bool) -> None:
    if requested:
        from regraft.merge.schema import schema

        write_stdout(json.dumps(schema(), indent=1) + "\n")
        raise typer.Exit


def _print_training_schema(requested: bool) -> None:
    if requested:
        from regraft.train.recipe.recipe import schema

        write_stdout(json.dumps(schema(), indent=1) + "\n")
        raise typer.Exit


_SCHEMA_HELP = "Print the JSON schema of a recipe and exit."
MergeSchema = Annotated[
    bool,
    typer.Option("--schema", callback=_print_merge_schema, is_eager=True, help=_SCHEMA_HELP),
]
TrainingSchema = Annotated[
    bool,
    typer.Option("--schema", callback=_print_training_schema, is_eager=True, help=_SCHEMA_HELP),
]


class Layout(StrEnum):
    portable = "portable"
    compact = "compact"
    exact = "exact"


@app.command("extract-lora", rich_help_panel="Commands that write a folder")
def extract_lora(
    base: Annotated[
        str, typer.Argument(help="The original model: a folder or org/name\\[@revision].")
    ],
    extended: Annotated[
        str, typer.Argument(help="The model trained from BASE for a longer context.")
    ],
    out: Out,
    rank: Annotated[
        str | None,
        typer.Option(
            help="A number, or auto: the singular values above the rounding of the stored weights. "
            "\\[default: 64]"
        ),
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option(
            help="Choose ranks that capture this share of the energy above rounding: 0.9."
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Choose ranks so that the adapter has this size, such as 300MB."),
    ] = None,
    layout: Annotated[
        Layout,
        typer.Option(
            help="portable: one rank, read by PEFT, vLLM, SGLang and llama.cpp; compact: a rank "
            "per module, PEFT only; exact: compact plus the differences of norms, embeddings and "
            "head."
        ),
    ] = Layout.portable,
    modules: Annotated[
        str,
        typer.Option(
            help="all-linear, attention, mlp, last parts of module names, or regular expressions; "
            "separated by commas."
        ),
    ] = "all-linear",
    dtype: Annotated[
        str, typer.Option(help="Type of the stored factors: bfloat16, float16 or float32.")
    ] = "bfloat16",
    exact: Annotated[
        bool, typer.Option("--exact", help="Compute LAPACK's full SVD (slow) instead.")
    ] = False,
    verify: Annotated[
        bool, typer.Option(help="Load the adapter with PEFT and compare every module.")
    ] = True,
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
    """Extract the difference between EXTENDED and BASE as a LoRA adapter.

    Example: regraft extract-lora meta-llama/Meta-Llama-3-8B gradientai/Llama-3-8B-262k -o ctx-lora
    """

    def show(record: AdapterRecord) -> Iterable[RenderableType]:
        from regraft.adapters.extract.evidence import summary

        yield shell.lines(f"Adapter in {out}", summary(record))

    shell.run(
        lambda: regraft.extract_lora(
            base, extended, out, rank=rank, energy=energy, budget=budget, layout=layout.value,
            modules=modules, dtype=dtype, exact=exact, verify=verify,
            full_fingerprint=full_fingerprint, device=device, seed=seed, force=force,
            overwrite=overwrite, resume=resume, dry_run=dry_run,
        ),
        show,
        Options(as_json, quiet, debug, threads, resumable=True),
    )  # fmt: skip


@app.command("apply", rich_help_panel="Commands that write a folder")
def apply(
    adapter: Annotated[str, typer.Argument(help="An adapter: a folder or org/name\\[@revision].")],
    checkpoint: Annotated[str, typer.Argument(help="The model to add the adapter to.")],
    out: Out,
    scale: Annotated[float, typer.Option(help="Factor of the adapter's change.")] = 1.0,
    context: Annotated[
        str | None,
        typer.Option(
            help="RoPE and context length of the output: adapter, checkpoint, or values such as "
            "theta=283461213,length=256k. \\[default: adapter, if CHECKPOINT has its base's]"
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="bfloat16, float16 or float32. \\[default: as CHECKPOINT stores it]"),
    ] = None,
    max_shard_size: ShardSize = None,
    verify: Verify = False,
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
    """Write CHECKPOINT with ADAPTER merged into it, its context length included.

    ADAPTER can be any LoRA in PEFT's format.

    Example: regraft apply ctx-lora NousResearch/Hermes-2-Pro-Llama-3-8B -o hermes-262k
    """

    def show(record: GraftRecord) -> Iterable[RenderableType]:
        from regraft.adapters.apply.apply import summary

        yield shell.lines(f"Graft in {out}", summary(record))

    shell.run(
        lambda: regraft.apply_lora(
            adapter, checkpoint, out, scale=scale, context=context, max_shard_size=max_shard_size,
            dtype=dtype, verify=verify, device=device, force=force, overwrite=overwrite,
            resume=resume, dry_run=dry_run,
        ),
        show,
        Options(as_json, quiet, debug, threads, resumable=True),
    )  # fmt: skip


@app.command("merge", rich_help_panel="Commands that write a folder")
def merge(
    recipe: Annotated[str, typer.Argument(help="A recipe in YAML: mergekit's format, or ours.")],
    out: Out,
    engine: Annotated[
        str, typer.Option(help="auto, native (streams in float32) or mergekit (its own process).")
    ] = "auto",
    as_adapter: Annotated[
        bool, typer.Option("--as-adapter", help="Write a LoRA on base_model instead of a model.")
    ] = False,
    max_shard_size: ShardSize = None,
    verify: Verify = False,
    schema: MergeSchema = False,
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
    """Merge models and adapters by a recipe, their context length included.

    Example recipe.yaml:

        merge_method: ties
        base_model: meta-llama/Meta-Llama-3-8B
        models:
          - {model: gradientai/Llama-3-8B-262k, parameters: {weight: 1.0, density: 0.5}}
          - {model: NousResearch/Hermes-2-Pro-Llama-3-8B, parameters: {weight: 1.0, density: 0.5}}
        context: {from: gradientai/Llama-3-8B-262k}

    Example: regraft merge recipe.yaml -o merged
    """

    def work() -> MergeRecord | AdapterRecord:
        from regraft.recover_block import check_later_blocks

        check_later_blocks(recipe)
        return regraft.merge_models(
            recipe, out, engine=engine, as_adapter=as_adapter, max_shard_size=max_shard_size,
            verify=verify, device=device, seed=seed, overwrite=overwrite, resume=resume,
            dry_run=dry_run,
        )  # fmt: skip

    def show(record: MergeRecord | AdapterRecord) -> Iterable[RenderableType]:
        from regraft.merge.job import summary

        yield shell.lines(f"Merge in {out}", summary(record))

    shell.run(work, show, Options(as_json, quiet, debug, threads, resumable=True))


@app.command("train", rich_help_panel="Commands that write a folder")
def train(
    recipe: Annotated[str, typer.Argument(help="A training recipe in YAML.")],
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="Folder to write; not needed by --dry-run.")
    ] = None,
    schema: TrainingSchema = False,
    device: Device = "auto",
    threads: Threads = None,
    dry_run: DryRun = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Extend a model's context or recover a graft, by full fine-tuning or LoRA.

    Example: regraft train examples/extend-toy.yaml -o toy-1k

    On 8 GPUs: torchrun --nproc-per-node 8 -m regraft train recipe.yaml -o out
    """

    def show(record: TrainingRecord) -> Iterable[RenderableType]:
        from regraft.train.output.summary import summary

        yield shell.lines(f"Trained {record.export} in {out}", summary(record))

    shell.run(
        lambda: regraft.train_model(
            recipe, out, device=device, overwrite=overwrite, resume=resume, dry_run=dry_run
        ),
        show,
        Options(as_json, quiet, debug, threads, resumable=True),
    )


@app.command("evaluate", rich_help_panel="Commands that write a folder")
def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(help="Models: a folder or org/name\\[@revision], or name=MODEL to name it."),
    ],
    out: Out,
    matrix: Annotated[
        bool,
        typer.Option(
            "--matrix",
            help="Compare recipient=.. donor=.. graft=.. \\[recovered=..]: how much of the donor's "
            "ability the graft has, and what it lost.",
        ),
    ] = False,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            help="An adapter extracted from donor=MODEL, measured on its base (base=MODEL where "
            "its record names none that is available). Repeat it for other ranks."
        ),
    ] = None,
    suite: Annotated[
        str,
        typer.Option(
            help="needle, ruler, beyond, toy, perplexity, drift, names of tasks, lm-eval:TASK, or "
            "with files of yours zeroscrolls:PATH, loogle:PATH, bamboo:PATH; separated by commas."
        ),
    ] = "needle,perplexity,drift",
    lengths: Annotated[
        str | None,
        typer.Option(
            help="Prompt lengths in tokens, such as 4k,8k. \\[default: the context length, its "
            "half, quarter and eighth]"
        ),
    ] = None,
    items: Annotated[int, typer.Option(help="Questions per task and length.")] = 50,
    haystack: Annotated[
        str, typer.Option(help="grammar, code, world, or a text file or folder.")
    ] = "grammar",
    qa: Annotated[
        list[str] | None,
        typer.Option(
            help="A SQuAD or HotpotQA file for the tasks qa_1 and qa_hard_1; repeat it for qa_2."
        ),
    ] = None,
    needles: Annotated[
        int, typer.Option(help="Needles in a prompt of the needle task; all are asked for.")
    ] = 1,
    decoys: Annotated[int, typer.Option(help="Needles with a similar key in each prompt.")] = 0,
    depths: Annotated[int, typer.Option(help="Depths of the needle task.")] = 5,
    sigmoid: Annotated[
        bool, typer.Option("--sigmoid", help="Place more depths near both ends.")
    ] = False,
    scoring: Annotated[
        str, typer.Option(help="auto, teacher (teacher forcing) or generate.")
    ] = "auto",
    twins: Annotated[
        bool, typer.Option(help="Ask every question without its evidence, too.")
    ] = True,
    chat: Annotated[bool, typer.Option("--chat", help="Use the chat template.")] = False,
    texts: Annotated[int, typer.Option(help="Texts for perplexity and drift.")] = 8,
    limit: Annotated[int | None, typer.Option(help="Items of each lm-eval task.")] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            help="URL of an API with OpenAI's /chat/completions, such as http://localhost:8000/v1, "
            "whose model judges free answers as well. Its key: REGRAFT_JUDGE_KEY or OPENAI_API_KEY."
        ),
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option(help="Name of the judge's model there.")
    ] = None,
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
    """Measure how well models use their context; with --matrix, what a graft gained and lost.

    Example: regraft evaluate --matrix recipient=hermes donor=llama-262k graft=hermes-262k -o report

    Judged: regraft evaluate hermes-262k -o report --suite qa_hard_1 --qa dev-v2.0.json \\
        --judge http://localhost:8000/v1 --judge-model qwen

    On 8 GPUs: torchrun --nproc-per-node 8 -m regraft evaluate hermes-262k -o report
    """

    def show(
        result: EvaluationRecord | EvaluationPlan | None,
    ) -> Iterable[RenderableType]:
        from regraft.evaluate.report.screen import render

        return render(cast("EvaluationRecord", result))  # a plan is printed by the shell

    shell.run(
        lambda: regraft.evaluate_models(
            models, out, matrix=matrix, suite=suite, lengths=lengths, items=items,
            haystack=haystack, qa=tuple(qa or ()), needles=needles, decoys=decoys, depths=depths,
            sigmoid=sigmoid, scoring=scoring, twins=twins, chat=chat, texts=texts, limit=limit,
            batch=batch, adapters=tuple(adapter or ()), judge=judge, judge_model=judge_model,
            device=device, context_parallel=context_parallel, seed=seed, overwrite=overwrite,
            resume=resume, dry_run=dry_run,
        ),
        show,
        Options(as_json, quiet, debug, threads, resumable=True),
    )  # fmt: skip


@app.command("plan", rich_help_panel="Commands that only look")
def plan(
    recipe: Annotated[str, typer.Argument(help="A training recipe in YAML.")],
    gpus: Annotated[
        str | None,
        typer.Option(help="Such as 8xH100-80. \\[default: this machine's GPUs, else its CPU]"),
    ] = None,
    host_memory: Annotated[
        str | None, typer.Option(help="Memory of all nodes together, such as 1TB.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Estimate memory and time of a training and what would reduce them; nothing is run.

    Example: regraft plan examples/train-pose-lora.yaml --gpus H200 --host-memory 128GiB
    """

    def show(result: TrainingPlan) -> Iterable[RenderableType]:
        from regraft.train.estimate.plan import lines

        yield shell.lines(f"Plan of {recipe}", lines(result))

    shell.run(
        lambda: regraft.plan_training(recipe, gpus=gpus, host_memory=host_memory),
        show,
        Options(as_json, quiet, debug),
    )


@app.command("inspect", rich_help_panel="Commands that only look")
def inspect(
    path: Annotated[str, typer.Argument(help="A model or adapter: a folder or org/name.")],
    other: Annotated[str | None, typer.Argument(help="A second one, to compare with.")] = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Describe a model or adapter; with OTHER, how the two are related.

    Example: regraft inspect base extended
    """

    def show(result: dict[str, Any]) -> Iterable[RenderableType]:
        from regraft.adapters.inspect.inspect import tables

        return tables(result)

    shell.run(
        lambda: regraft.inspect_model(path, other, device=device),
        show,
        Options(as_json, quiet, debug, threads),
    )


@app.command("theta", rich_help_panel="Commands that only look")
def theta(
    trained: Annotated[
        str,
        typer.Argument(
            help="Context length of the model, such as 8k, or the model itself: a folder or "
            "org/name\\[@revision]. Only its config.json is read."
        ),
    ],
    target: Annotated[str, typer.Argument(help="Context length to reach, such as 1M.")],
    base: Annotated[
        str | None,
        typer.Option(help="RoPE theta of the model, or the model. \\[default: MODEL's, or 500000]"),
    ] = None,
    law: Annotated[str, typer.Option(help="The law to print: scaling, ntk or bound.")] = "scaling",
    head_dim: Annotated[
        int | None,
        typer.Option(
            help="Size of an attention head, for the NTK law. \\[default: MODEL's, or 128]"
        ),
    ] = None,
    probe: Annotated[
        str | None,
        typer.Option(help="A training recipe in YAML: train shortly with several thetas instead."),
    ] = None,
    steps: Annotated[int, typer.Option(help="Training steps per theta, with --probe.")] = 20,
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Print the RoPE theta for a longer context; all laws are listed on stderr.

    Example: regraft theta 8k 262144 --base 500000    prints 283461213

    Of a model: regraft theta NousResearch/Hermes-2-Pro-Llama-3-8B 64k
    """

    def show_laws(report: dict[str, Any]) -> Iterable[RenderableType]:
        from regraft import progress
        from regraft.rope.laws import describe_laws

        for line in describe_laws(report):
            progress.note(line)
        yield str(report["theta"])

    def show_probe(report: ThetaProbe) -> Iterable[RenderableType]:
        from regraft.train.theta_probe import table

        yield shell.lines(f"Theta for {target}", table(report))

    options = Options(as_json, quiet, debug, threads)
    if probe is not None:
        shell.run(
            lambda: regraft.probe_theta(probe, trained, target, base, steps=steps, device=device),
            show_probe,
            options,
        )
        return
    shell.run(
        lambda: regraft.theta_for(trained, target, base=base, law=law, head_dim=head_dim),
        show_laws,
        options,
    )


@app.command("demo", rich_help_panel="Commands that write a folder")
def demo(
    out: Out = "demo-out",
    seed: Seed = 2,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train, extract, apply and evaluate with a model small enough for two CPU cores.

    Example: regraft demo -o demo-out
    """

    def show(result: dict[str, Any]) -> Iterable[RenderableType]:
        from regraft.demo import render

        yield render(result)

    shell.run(
        lambda: regraft.run_demo(out, seed=seed, overwrite=overwrite),
        show,
        Options(as_json, quiet, debug),
    )


def _print_version(requested: bool) -> None:
    if requested:
        write_stdout(f"{regraft.__version__}\n")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print it."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the `regraft` command."""
    shell.run_app(app)


if __name__ == "__main__":
    main()
