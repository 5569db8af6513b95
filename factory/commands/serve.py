"""``svf serve``: a steered model behind OpenAI's API."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING, NoReturn

import click
from rich.console import Console

from factory.commands.options import config_option, hide_loading_bar, open_job
from factory.commands.ports import cannot_answer, take_port
from factory.config import Settings
from factory.errors import ConfigError, FactoryError, VectorError
from factory.extras import require_modules, require_target
from factory.log import start_logging

if TYPE_CHECKING:
    from factory.serving.app import RequestLimits, Server
    from factory.serving.library import VectorLibrary
    from factory.target.model import Target

KEY = "SVF_SERVER_KEY"
MAX_CONTEXT = 4096
GRACE_SECONDS = 120


@click.command()
@click.argument("vectors", nargs=-1, required=True)
@click.option("--target", "model", help="Model to serve [default: the one that the vectors are for].")
@click.option("--host", default="127.0.0.1", show_default=True, help=f"Others than loopback need {KEY}.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option("--max-batch", type=click.IntRange(min=1), default=16, show_default=True, help="Answers made at once.")
@click.option("--max-queue", type=click.IntRange(min=1), default=64, show_default=True, help="Requests that wait.")
@click.option(
    "--max-context",
    type=click.IntRange(min=2),
    default=MAX_CONTEXT,
    show_default=True,
    help="Tokens of a prompt with its answer.",
)
@click.option("--max-body", type=click.IntRange(min=1), default=1 << 20, show_default=True, help="Bytes of a request.")
@click.option(
    "--engine",
    type=click.Choice(["own", "vllm"]),
    default="own",
    show_default=True,
    help="What answers: this program, or vLLM, for many GPUs and users.",
)
@click.option(
    "--vllm-python",
    default=sys.executable,
    envvar="SVF_VLLM_PYTHON",
    help="Python of vLLM's environment [default: this].",
)
@click.option("--vllm-args", help="More arguments of vLLM's server, in one text.")
@config_option
def serve(
    vectors: tuple[str, ...],
    *,
    model: str | None,
    host: str,
    port: int,
    max_batch: int,
    max_queue: int,
    max_context: int,
    max_body: int,
    engine: str,
    vllm_python: str,
    vllm_args: str | None,
    config_file: Path | None,
) -> int:
    """Serve the target model with VECTORS: files, folders, hub ids or s3:// URLs.

    OpenAI's API under /v1 and a page to try it at /. MODEL is unsteered, MODEL:STYLE steered; the
    request field 'steering' sets strengths and mixes vectors. Folders are watched. The key that clients
    must send is read from SVF_SERVER_KEY.
    """
    require_target()
    require_modules("fastapi", "uvicorn")
    from factory.serving.app import RequestLimits
    from factory.serving.guard import is_this_machine

    key = os.environ.get(KEY) or None
    if key is None and not is_this_machine(host):
        raise ConfigError(f"--host {host} is reached from other machines: set {KEY} to a key that clients must send")
    settings = open_job(config_file).settings
    start_logging()
    if engine == "vllm":
        take_port(host, port).close()
        _become_vllm(vectors, model, (host, port), python=vllm_python, more=vllm_args, key=key)
    limits = RequestLimits(max_body, max_context)
    with take_port(host, port) as place:  # before the model is loaded, which may take minutes
        server = _server(vectors, model, settings, limits, max_batch=max_batch, max_queue=max_queue)
        _run(server, place, host, key)
    return 0


def _become_vllm(
    sources: Sequence[str],
    model: str | None,
    address: tuple[str, int],
    *,
    python: str,
    more: str | None,
    key: str | None,
) -> NoReturn:
    from factory.commands.serve_vllm import serve_vllm
    from factory.serving.library import VectorLibrary
    from factory.vllm.launch import Place

    given = click.get_current_context()
    asked = {
        name: given.params[name]
        for name in ("max_batch", "max_context")
        if given.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    }
    name = model or _only_model(VectorLibrary(sources))
    serve_vllm(sources, name, Place(*address, **asked), python=python, more=more, key=key)


def _server(
    sources: Sequence[str],
    model: str | None,
    settings: Settings,
    limits: RequestLimits,
    *,
    max_batch: int,
    max_queue: int,
) -> Server:
    from dataclasses import replace

    from factory.serving.app import Server
    from factory.serving.engine import Engine

    target, library = _load(sources, model, settings)
    limits = replace(limits, max_context=min(limits.max_context, target.longest_text))
    engine = Engine(target, max_batch=max_batch, max_queue=max_queue)
    return Server(target, library, engine, limits, lambda style: _markers(style, settings))


def _load(sources: Sequence[str], model: str | None, settings: Settings) -> tuple[Target, VectorLibrary]:
    from factory.configured import load_configured_target
    from factory.serving.library import VectorLibrary
    from factory.vector.fit import check_fits

    name = model or _only_model(VectorLibrary(sources))
    hide_loading_bar()
    with Console(stderr=True, highlight=False).status(f"loading {name}"):
        target = load_configured_target(name, settings)
    library = VectorLibrary(sources, lambda vector: check_fits(vector, target))
    if not library.vectors and library.refused:
        raise VectorError("; ".join(library.refused.values()))
    return target, library


def _only_model(library: VectorLibrary) -> str:
    models = sorted({vector.model_name for vector in library.vectors.values()})
    if len(models) == 1:
        return models[0]
    if models:
        raise VectorError(f"the vectors are for {len(models)} models ({', '.join(models)}): choose one with --target")
    reasons = "; ".join(library.refused.values()) or "no .safetensors or .pt file there"
    raise VectorError(f"no vector found: {reasons}. Name a model with --target to serve it without")


def _markers(style: str, settings: Settings) -> Sequence[str]:
    from factory.pairs.styles import load_style

    try:
        return load_style(style, settings.styles_dir).markers
    except FactoryError:  # made by arithmetic, or of somebody else's style
        return ()


def _run(server: Server, place: socket, host: str, key: str | None) -> None:
    import uvicorn

    from factory.serving.app import make_app

    options = uvicorn.Config(
        make_app(server, key=key),
        log_config=None,
        access_log=False,  # the application writes its own line, without texts
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    port = place.getsockname()[1]
    try:
        place.listen()  # who reads the address below may connect at once
    except OSError as error:  # of two that began together, the other one listens
        raise cannot_answer(host, port, error) from None
    shown = f"[{host}]" if ":" in host else host
    names = ", ".join(server.library.vectors) or "none"
    click.echo(f"http://{shown}:{port}  {server.target.name}, vectors: {names}", err=True)
    for wanted in (signal.SIGINT, signal.SIGTERM):  # uvicorn ends at them in good order, then sends them once more
        signal.signal(wanted, lambda *_: None)
    uvicorn.Server(options).run(sockets=[place])
