"""``svf init``: the files from which a style of one's own is made."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from factory.commands.options import Job, config_option, open_job
from factory.config import Settings
from factory.errors import ConfigError, PairRejected, StyleFailed, TeacherError
from factory.planning.scaffold import Scaffold
from factory.planning.specify import plan_teacher
from factory.planning.supply import has_teacher
from factory.run.spec import new_run_id
from factory.target.download import BUILT_IN
from factory.teacher.client import Teacher
from factory.teacher.connection import open_client
from factory.teacher.draft import ANSWER_TOKENS, ATTEMPTS, Draft, ask_for_draft, draft_prompt
from factory.teacher.endpoint import endpoint_name
from factory.teacher.replies import Payer
from factory.teacher.spending import require_price, worst_case

EXAMPLE = "Answers like a friendly teacher: one everyday example first, then the idea, then a check question"
OF_THE_TEACHER = ("teacher_model", "base_url", "api_key_env", "pricing", "reasoning_effort")  # settings that go along
TEMPLATE = "'svf init ... --template' writes a style to be filled in, and asks nobody"


@click.command()
@click.argument("folder", required=False, default=Path(), type=click.Path(path_type=Path, file_okay=False))
@click.option("--style", default="my_style", show_default=True, help="Name of the style.")
@click.option("--description", help="The style in one line: how an answer in it sounds.")
@click.option("--target-model", default=BUILT_IN, show_default=True, help="The model to steer.")
@click.option("--base-url", help="Address of a teacher of your own: vLLM, Ollama, llama.cpp.")
@click.option("--teacher-model", help="The teacher's model.")
@click.option("--template", is_flag=True, help="Write a style to be filled in, and ask no teacher.")
@config_option
def init(
    folder: Path,
    *,
    style: str,
    description: str | None,
    target_model: str,
    base_url: str | None,
    teacher_model: str | None,
    template: bool,
    config_file: Path | None,
) -> int:
    """Write a configuration, a style of your own and questions into FOLDER (here without one), to be edited.

    With a --description the teacher writes the style: its instruction, how it is recognised, and some
    questions. This takes one or two calls. Without a teacher (no key, no address) it is a template.
    Files that exist are never touched.
    """
    job = open_job(config_file, folder, base_url=base_url, teacher_model=teacher_model)
    chosen = _chosen_of_teacher(job.settings)
    scaffold = Scaffold(folder, style, description or EXAMPLE, target_model, chosen)
    scaffold.require_free()
    console = Console(highlight=False, soft_wrap=True)
    if description and not template and has_teacher(job.settings):
        scaffold = replace(scaffold, draft=_draft(job, description, console))
    scaffold.write()
    for path in scaffold.paths:
        console.print(Text(f"wrote {path}"))
    console.print(Text(_next_steps(scaffold, job.settings)))
    return 0


def _chosen_of_teacher(settings: Settings) -> dict[str, Any]:
    """What a configuration here says of the teacher, so that one in another folder says the same."""
    said, usual = settings.model_dump(mode="json"), Settings().model_dump(mode="json")
    return {key: said[key] for key in OF_THE_TEACHER if said[key] != usual[key]}


def _draft(job: Job, description: str, console: Console) -> Draft:
    """The teacher's draft; says what it can cost at most, and what it did cost.

    Raises:
        StyleFailed: the teacher gave none; says why, and how to do without.
    """
    settings = job.settings
    planned = plan_teacher(settings)
    spec = planned.model_copy(update={"max_response_tokens": max(planned.max_response_tokens, ANSWER_TOKENS)})
    require_price(spec, settings.max_cost_usd)
    each = worst_case(spec, spec.model, draft_prompt(description))
    most = None if each is None else each * len(ATTEMPTS)
    if settings.max_cost_usd is not None and most is not None and most > settings.max_cost_usd:
        raise ConfigError(f"the style could cost ${most:.4f}, max_cost_usd is ${settings.max_cost_usd:g}. {TEMPLATE}")
    where = f"{spec.model} at {endpoint_name(spec.base_url)}"
    limit = "" if not most else f" (costs ${most:.4f} at most)"
    console.print(Text(f"asking {where} for the style{limit}"))
    try:
        client = open_client(spec.base_url, settings.api_key_env, settings.answer_timeout)
        teacher = Teacher(spec, client, job.store, Payer(new_run_id(), "", 0))
        with Console(stderr=True).status("the teacher writes"):
            draft, replies = ask_for_draft(teacher, description)
    except (TeacherError, PairRejected) as error:
        raise StyleFailed(f"{error}. No file was written; {TEMPLATE}") from None
    costs = [reply.cost_usd for reply in replies]
    spent = f", ${sum(filter(None, costs)):.4f}" if None not in costs and any(costs) else ""
    tokens = sum(sum(reply.usage.values()) for reply in replies)
    console.print(Text(f"{replies[-1].model} wrote it: {tokens} tokens{spent}"))
    return draft


def _next_steps(scaffold: Scaffold, settings: Settings) -> str:
    where = shlex.quote(str(scaffold.folder))
    go = "" if scaffold.folder == Path() else f"  cd {where}\n"
    read = f"read {scaffold.paths[1]}" if scaffold.draft else "edit the style (its markers say how it is recognised)"
    key = (
        ""
        if has_teacher(settings)
        else ("  export OPENAI_API_KEY=...    or set base_url in config.yaml: a teacher writes the pairs\n")
    )
    return (
        f"\nNext: {read} and the questions, then\n{key}{go}"
        f"  svf estimate    calls, cost and time; asks nobody\n"
        f"  svf generate    pairs, vector and report\n"
    )
