"""`regraft evaluate`: how well models use their context."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, cast

import typer

import regraft
from regraft.commands import options
from regraft.shell.command import Command

if TYPE_CHECKING:
    from rich.console import RenderableType

    from regraft.evaluate.result import EvaluationPlan, EvaluationRecord


@options.shell_command()
def evaluate(
    out: options.Out,
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Models: a folder or org/name\\[@revision], or name=MODEL to name it."),
    ] = None,
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
    questions_per_text: Annotated[
        int,
        typer.Option(
            help="How many of them are asked about the same text, which is then read once: needle, "
            "latent, icl, notes, shout."
        ),
    ] = 1,
    haystack: Annotated[
        str,
        typer.Option(
            help="Text that prompts are filled with: grammar (generated prose), code (Python's "
            "standard library), world (the prose of toys), or a text file or folder."
        ),
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
    depths: Annotated[int, typer.Option(help="Positions of the needle, from start to end.")] = 5,
    sigmoid: Annotated[
        bool, typer.Option("--sigmoid", help="Place more of these positions near both ends.")
    ] = False,
    scoring: Annotated[
        str, typer.Option(help="auto, teacher (teacher forcing) or generate.")
    ] = "auto",
    twins: Annotated[
        bool, typer.Option(help="Ask every question without its evidence, too.")
    ] = True,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put prompts into the chat template.")
    ] = False,
    texts: Annotated[int, typer.Option(help="Texts for perplexity and drift.")] = 8,
    limit: Annotated[
        int | None, typer.Option(help="Items of each lm-eval task. \\[default: all]")
    ] = None,
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
    endpoint: Annotated[
        str | None,
        typer.Option(
            help="URL of an API with OpenAI's /completions, such as http://localhost:8000/v1 of "
            "vLLM, SGLang or llama.cpp, whose model is evaluated, too; with --chat it may end with "
            "/chat/completions. Its key: REGRAFT_ENDPOINT_KEY or OPENAI_API_KEY."
        ),
    ] = None,
    endpoint_model: Annotated[
        str | None,
        typer.Option(help="Name of the model there, or ONE=NAME to call it ONE in the report."),
    ] = None,
    endpoint_requests: Annotated[int, typer.Option(help="Requests to the endpoint at once.")] = 8,
    endpoint_timeout: Annotated[
        float, typer.Option(help="Seconds to wait for a reply of the endpoint.")
    ] = 600.0,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Folder or org/name with the tokenizer of the endpoint's model, which counts "
            "tokens. \\[default: that of the first local model]"
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(help="Tokens in a batch. \\[default: 2048 on a CPU, 32768 on a GPU]"),
    ] = None,
    context_parallel: Annotated[
        int, typer.Option(help="Processes of torchrun that share the tokens of one prompt.")
    ] = 1,
    device: options.Device = "auto",
    seed: options.Seed = 0,
    dry_run: options.DryRun = False,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
) -> Command:
    """Measure how well models use their context; with --matrix, what a graft gained and lost.

    Example: regraft evaluate --matrix recipient=hermes donor=llama-262k graft=hermes-262k -o report

    Judged: regraft evaluate hermes-262k -o report --suite qa_hard_1 --qa dev-v2.0.json \\
        --judge http://localhost:8000/v1 --judge-model qwen

    Served: regraft evaluate -o report --endpoint http://localhost:8000/v1 \\
        --endpoint-model hermes-262k --tokenizer hermes-262k --lengths 32k,128k

    On 8 GPUs: torchrun --nproc-per-node 8 -m regraft evaluate hermes-262k -o report
    """

    def show(
        result: EvaluationRecord | EvaluationPlan | None,
    ) -> Iterable[RenderableType]:
        from regraft.evaluate.report.screen import render

        return render(cast("EvaluationRecord", result))  # a plan is printed by the shell

    return Command(
        lambda: regraft.evaluate_models(
            models or [], out, matrix=matrix, suite=suite, lengths=lengths, items=items,
            questions_per_text=questions_per_text, haystack=haystack, qa=tuple(qa or ()),
            needles=needles, decoys=decoys, depths=depths, sigmoid=sigmoid, scoring=scoring,
            twins=twins, chat=chat, texts=texts, limit=limit, batch=batch,
            adapters=tuple(adapter or ()), judge=judge, judge_model=judge_model, endpoint=endpoint,
            endpoint_model=endpoint_model, endpoint_requests=endpoint_requests,
            endpoint_timeout=endpoint_timeout, tokenizer=tokenizer,
            device=device, context_parallel=context_parallel, seed=seed, overwrite=overwrite,
            resume=resume, dry_run=dry_run,
        ),
        show,
    )  # fmt: skip
