"""One command per verb, thin. Heavy imports stay inside the commands, so that `--help` answers at once."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_sft.config import process
from hf_sft.errors import HfSftError
from hf_sft.redaction import for_terminal
from hf_sft.storage.foreign_code import PLUGINS
from hf_sft.storage.package_paths import path_of

app = typer.Typer(
    help="Fine-tune a pretrained checkpoint on a labelled task, by recipe, with an honest report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe: a YAML file.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Fields to set, like seed=1.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that a checkpoint or a metric brings, or a dotted `type` names.")
]


def _use_plugins(folder: Path | None) -> None:
    if folder is not None:
        os.environ[PLUGINS] = str(folder.absolute())


Plugins = Annotated[
    Path | None,
    typer.Option(
        exists=True, file_okay=False, callback=_use_plugins, help="A folder with tasks, methods and aids of your own."
    ),
]


@app.command()
def check(
    recipe: RecipePath,
    overrides: Overrides = None,
    strict: bool = False,
    trust_remote_code: TrustRemoteCode = False,
    plugins: Plugins = None,
):
    """Do everything that training would, on 32 rows, and say what it will be. Writes nothing.

    Example:  hf-sft check recipes/bbc_minilm_head_only.yaml data.rows=200
    """
    from rich.table import Table
    from rich.text import Text

    from hf_sft.runs.check import check as check_recipe

    process.ready()
    found = check_recipe(recipe, overrides or (), trust_remote_code)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, fact in found.facts.items():
        table.add_row(Text(name), Text(for_terminal(fact)))
    _console().print(table)
    for warning in found.warnings:
        _console().print(for_terminal(f"· {warning}"), markup=False)
    raise typer.Exit(1 if strict and found.warnings else 0)


@app.command()
def train(
    recipe: RecipePath,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that was begun in the output folder.")] = False,
    resume_anyway: Annotated[
        bool, typer.Option("--resume-anyway", help="Also where the recipe, the data or the packages have changed since.")
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
    plugins: Plugins = None,
):
    """Run a recipe: train, score, report. Ends with a table; everything is in the output folder.

    Example:  hf-sft train recipes/bbc_minilm_head_only.yaml training.learning_rate=2e-3 output.folder=runs/second
    """
    from hf_sft.errors import HubError
    from hf_sft.runs.train import train as train_recipe
    from hf_sft.trainer.signals import Interrupted

    process.ready()
    try:
        report = train_recipe(recipe, overrides or (), trust_remote_code, resume, resume_anyway)
    except Interrupted as interrupted:
        raise typer.Exit(interrupted.status) from None
    report.show(_console())
    if report.unpublished:
        raise HubError(report.unpublished)


@app.command()
def evaluate(
    run: RunFolder,
    split: Annotated[str | None, typer.Option(help="train, validation or test; of other data, its split's name.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="Other data: a key=value of the data block; may be repeated.")] = None,
    trust_remote_code: TrustRemoteCode = False,
    plugins: Plugins = None,
):
    """Score a finished run on one of its splits, or on other data. Prints one JSON object after its table.

    Example:  hf-sft evaluate runs/bbc --data dataset=csv --data data_files=new.csv
    """
    from hf_sft.reports.report import score_table
    from hf_sft.runs.evaluate import evaluate as evaluate_run
    from hf_sft.storage.strict_json import dump_json, finite

    process.ready()
    evaluation = evaluate_run(run, split, data or (), trust_remote_code)
    scores = finite({evaluation.split: {name: score.as_json() for name, score in evaluation.scores.items()}})
    _console().print(score_table(scores, {}, {}))
    for note in evaluation.notes:
        _console().print(for_terminal(f"· {note}"), markup=False)
    if _is_main_process():
        print(dump_json(scores))


@app.command()
def predict(
    run: RunFolder,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts to answer, or pictures and folders of them.")
    ] = None,
    input: Annotated[str | None, typer.Option(help="A csv, json, jsonl, parquet or txt file; - for standard input.")] = None,
    output: Annotated[Path | None, typer.Option(help="Where to write the answers; standard output otherwise.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse rows without text, instead of answering null.")] = False,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Of a language model: after how many it stops.")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="Of a language model: above 0 tokens are drawn; 0 takes the likeliest.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of a language model: what tokens are drawn by.")] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="How the input is written: encoding=…, delimiter=… or quoting=…; may be repeated.")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    plugins: Plugins = None,
):
    """Answer rows with a finished run: one JSON object per row, in order. A row without text is answered by null.

    Example:  hf-sft predict runs/bbc "The bank raised its rates again."
    """
    from hf_sft.errors import RecipeError
    from hf_sft.recipe.recipe import load_recipe
    from hf_sft.runs.predict import answer, write_lines
    from hf_sft.storage.run_folder import is_finished
    from hf_sft.storage.strict_json import dump_json
    from hf_sft.tasks import GenerationOptions

    process.ready()
    if bool(texts) == bool(input):
        raise RecipeError("give texts to answer, or --input with a file (or -), and not both.")
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    options = {name: value for name, value in options.items() if value is not None}
    writing = GenerationOptions(**options) if options else None
    files = [text for text in texts or () if path_of(text).is_file() and path_of(text).suffix]
    if files and not (is_finished(run) and load_recipe(run / "recipe.yaml", (), trust_remote_code).task.reads_files):
        raise RecipeError(f"`{files[0]}` is a file here, not a text to answer.  For its rows: --input {files[0]}")
    if output and (path_of(output).is_dir() or not path_of(output).resolve().parent.is_dir()):
        what = "is a folder" if path_of(output).is_dir() else "lies in a folder that is not there"
        raise RecipeError(f"`--output {output}` {what}.  Give the name of a file in a folder that is there.")
    if input == "-" and sys.stdin is None:
        raise RecipeError("`--input -`: standard input is closed.  Give a file, or send rows to it.")
    lines = (
        dump_json(each) + "\n" for each in answer(run, texts or input or "-", strict, trust_remote_code, writing, data or ())
    )
    write_lines(lines, output if _is_main_process() else None)


@app.command()
def certify(run: RunFolder, trust_remote_code: TrustRemoteCode = False, plugins: Plugins = None):
    """Load a run's saved model again, and compare its answers with the trained model's, where training could not.

    Example:  hf-sft certify runs/bbc
    """
    from hf_sft.reports.html import say_certificate
    from hf_sft.runs.certify import certify as certify_run

    process.ready()
    print(say_certificate(certify_run(run, trust_remote_code).facts["certificate"]))


@app.command()
def publish(
    run: RunFolder,
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="user/name on the Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    report: Annotated[bool, typer.Option("--report", help="Also report.html and the predictions: they hold texts.")] = False,
    revision: Annotated[str | None, typer.Option(help="A branch, which is made if it is not there; main otherwise.")] = None,
    pull_request: Annotated[bool, typer.Option("--pull-request", help="As a pull request to main.")] = False,
    with_base: Annotated[
        bool, typer.Option("--with-base", help="Also an adapter's base that is a folder here, as REPO_ID-base.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be published, with its size.")] = False,
    trust_remote_code: TrustRemoteCode = False,
    plugins: Plugins = None,
):
    """Push a finished run to the Hub in one commit, without what holds texts of the data; pull it back, and ask it again.

    Example:  hf-sft publish runs/bbc me/bbc-desks --private
    """
    from hf_sft.errors import HubError, RecipeError
    from hf_sft.hub.publish import list_files, list_left_out, say_how
    from hf_sft.hub.publish import publish as publish_run

    process.ready()
    if revision and pull_request:
        raise RecipeError("a pull request goes to main.  Give --revision or --pull-request.")
    if dry_run:
        files = list_files(run, report)
        for name, size in [*files, ("in all", sum(size for _, size in files))]:
            print(f"{size:>15,}  {name}")
    for name in list_left_out(run, report):
        print(for_terminal(f"left out, since the run did not write it: {name}"), file=sys.stderr)
    if dry_run:
        return
    switches = {"private": private, "report": report, "pull_request": pull_request, "with_base": with_base}
    try:
        published = publish_run(run, repo_id, revision=revision, trust_remote_code=trust_remote_code, **switches)
        print(for_terminal(published.summary))
    except HubError as error:
        later = say_how(run, repo_id, revision, **switches)
        raise HubError(f"{error}\nThe run is whole in {run}/.  To publish it later:  {later}") from None


@app.command(name="list")
def list_(kind: Annotated[str, typer.Argument(help="tasks, methods, aids or metrics")]):
    """What a recipe may say: the tasks, methods, aids or metrics, with their fields.

    Example:  hf-sft list methods
    """
    from rich.table import Table
    from rich.text import Text

    from hf_sft.errors import RecipeError

    table = Table(show_lines=True)
    for heading in ("metric", "what it is") if kind == "metrics" else ("type", "what it is", "fields"):
        table.add_column(heading, no_wrap=heading in ("type", "metric"))
    if kind == "metrics":
        from hf_sft.metrics import list_metrics

        for name, metrics in list_metrics().items():
            table.add_row(name, Text("\n".join(metric.description for metric in metrics)))
    elif kind in ("tasks", "methods", "aids"):
        from hf_sft.block import join_lines, list_kinds, load_kind

        blocks = {name: load_kind(kind, name) for name in list_kinds(kind)}
        for name, block in blocks.items():
            fields = (
                f"{field}: {join_lines(info.description)}" for field, info in block.model_fields.items() if field != "type"
            )
            table.add_row(name, Text(join_lines(block.__doc__)), Text("\n".join(fields)))
    else:
        raise RecipeError(f"there is no list of `{kind}`.  Expected tasks, methods, aids or metrics.")
    _console(sys.stdout, width=110).print(table)


@app.command()
def schema():
    """The JSON Schema of a recipe, for editors."""
    from hf_sft.recipe.schema import schema as recipe_schema

    print(json.dumps(recipe_schema(), indent=1))


def _console(file: Any = None, width: int = 1000):
    """The main process's; those of the others print nothing. Where nobody watches there is no edge to cut a table at; `width`
    is for prose."""
    from rich.console import Console

    file = file or sys.stderr
    return Console(file=file, highlight=False, width=None if file.isatty() else width, quiet=not _is_main_process())


def _is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def main() -> None:
    """Exit status: 0 done; 2 the user can mend it; 130 or 143 stopped; anything else is our bug and keeps its traceback."""
    process.set_up()
    try:
        app()
    except HfSftError as error:
        if _is_main_process():
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
