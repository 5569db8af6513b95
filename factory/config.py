"""Settings: what ``config.yaml``, ``FACTORY_*`` variables and flags say, and where each came from.

Settings belong to a machine and its user. What a run must have the same everywhere (model,
layers, recipe, questions) is frozen from them into a :class:`factory.run.spec.RunSpec`. Secrets are
never settings: they stay in the environment.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from factory.errors import ConfigError
from factory.files import read_written
from factory.frozen import Frozen
from factory.learning.spec import Learning
from factory.pairs.pair import BATCH_SIZE, N_SHOTS
from factory.teacher.endpoint import check_address, tidy_address

DEFAULT_FILE = "config.yaml"
PREFIX = "FACTORY_"
# Variables of the same prefix that are no settings.
OTHER_VARIABLES = {"FACTORY_CONFIG", "FACTORY_CACHE_DIR", "FACTORY_LOG"}

BROKERS = ("redis", "rediss", "unix", "redis+socket", "socket", "sentinel")  # schemes of broker_url

Seconds = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class ExtractionSettings(Frozen):
    """What the target model reads and which of its states are taken."""

    target_layers: str | int | list[int] = Field(list(range(8, 16)), description='layers: a list, "8-15,20" or "all"')
    max_sequence_length: int = Field(
        2048, ge=8, description="longest text of a pair, in tokens; longer pairs are rejected, never cut"
    )
    batch_size: int = Field(BATCH_SIZE, ge=1, description="pairs per task")
    batch_tokens: int | None = Field(None, ge=1, description="tokens per forward pass; null: by device")
    recipe: Literal["fewshot", "response_mean", "response_last", "system_prompt"] = Field(
        "fewshot", description="fewshot, response_mean, response_last or system_prompt"
    )
    n_shots: int = Field(N_SHOTS, ge=1, description="examples in a fewshot text, at most")
    n_tokens: int | None = Field(None, ge=1, description="first tokens that response_mean averages; null: all")


class OutputSettings(Frozen):
    """What is written beside the vectors."""

    save_intermediate_files: bool = Field(False, description="copy each pair's differences to intermediate/")
    generate_analysis_reports: bool = Field(True, description="evaluate at the end of a run and write its report")
    copy_to_sam_assets: bool = Field(True, description="copy vectors and templates to sam_assets_dir")
    sam_assets_dir: str = Field(
        "sam/assets/steering_vectors", description="where SAM assets are written, under the output folder"
    )


class EvaluationSettings(Frozen):
    """How it is measured that a vector steers."""

    questions_file: str | None = Field(
        None, description="file of held-out questions; null: the one that comes with svf"
    )
    limit: int = Field(30, ge=2, description="number of held-out questions on which the chosen setting is measured")
    choice_limit: int = Field(
        16, ge=1, description="number of other held-out questions, on which the setting is chosen"
    )
    probe_limit: int = Field(
        8, ge=1, description="number of choice_limit's questions on which the probe ranks settings"
    )
    cells: int = Field(6, ge=1, description="number of settings that answer choice_limit's questions: the probe's best")
    max_loops: Fraction = Field(0.1, description="largest share of looping answers that a chosen setting may have")
    strengths: list[float] = Field(
        [2.0, 4.0, 6.0, 8.0], min_length=1, description="strengths of the value vector in the sweep"
    )
    key_strengths: list[float] = Field(
        [0.0], min_length=1, description="strengths of the key vector in the sweep; 0: values alone"
    )
    positions: list[Count] = Field([1, 4], min_length=1, description="numbers of steered positions in the sweep")
    layer_sets: list[str] = Field(
        ["all"], min_length=1, description="layer sets in the sweep, out of the layers extracted"
    )
    max_new_tokens: int = Field(96, ge=8, description="longest answer to a held-out question, in tokens")
    thinking_tokens: int = Field(
        1024, ge=0, description="longest thought before an answer, of a model whose template opens one, in tokens"
    )
    tasks: list[str] = Field([], description="tasks with checkable answers, as of svf benchmark; []: none")
    task_limit: int = Field(50, ge=2, description="number of items per task")
    judge_model: str | None = Field(None, description="model that scores answers for style and coherence; null: none")


class LearningSettings(Learning):
    """How a run learns its vectors from the means."""

    strengths: list[float] = Field(
        [0.7, 1.0, 1.3], min_length=1, description="strengths of a learned vector in the sweep, instead of evaluation's"
    )


class Pricing(Frozen):
    """What a model costs, in USD per million tokens."""

    input: float = Field(ge=0, description="price of what the model reads, in USD per million tokens")
    output: float = Field(ge=0, description="price of what the model writes, in USD per million tokens")


class Settings(Frozen):
    """Every key of ``config.yaml`` with its default."""

    teacher_model: str = Field("gpt-4", description="the model that writes pairs")
    base_url: str | None = Field(None, description="address of the teacher's OpenAI-compatible server; null: OpenAI")
    api_key_env: str | None = Field(
        None, description="variable that holds the teacher's key; null: OPENAI_API_KEY at OpenAI, none elsewhere"
    )
    strict_model: bool = Field(False, description="true: a retired teacher_model is an error, not replaced")
    retired_models: dict[str, str] = Field(
        {"gpt-4": "gpt-6-luna", "gpt-4-turbo": "gpt-6-luna", "gpt-3.5-turbo": "gpt-6-luna"},
        description="OpenAI models that no longer answer, and what takes their place",
    )
    temperature: float | None = Field(
        0.7, ge=0, description="temperature of the teacher's answers; null: the server's own"
    )
    max_response_tokens: int = Field(800, ge=16, description="longest teacher answer, in tokens")
    reasoning_effort: str | None = Field(
        None, description="effort of OpenAI reasoning models: none, low, medium, high; null: theirs"
    )
    api_delay: Seconds | None = Field(
        1.0, description="seconds between teacher calls, for the whole cluster; null: no limit"
    )
    requests_per_minute: float | None = Field(
        None, gt=0, description="teacher calls per minute, for the whole cluster; instead of api_delay"
    )
    tokens_per_minute: float | None = Field(
        None, gt=0, description="teacher tokens per minute, for the whole cluster; null: no limit"
    )
    max_concurrent_calls: int = Field(16, ge=1, description="teacher calls in flight per worker")
    answer_timeout: float = Field(
        120.0, gt=0, description="seconds that one teacher answer may take; at most visibility_timeout / 5"
    )
    seed: int = Field(0, ge=0, description="seed of the teacher's answers: another seed asks for other answers")
    max_cost_usd: float | None = Field(
        None, gt=0, description="most that a run's teacher calls may cost, in USD; null: no limit"
    )
    pricing: Pricing | None = Field(
        None, description="teacher prices, USD per million tokens: {input: 1.0, output: 4.0}; null: the known ones"
    )
    judge_model: str | None = Field(None, description="model at the teacher's server that scores pairs; null: none")
    max_failed_fraction: Fraction = Field(
        0.2, description="largest share of failed pairs that a style may have; above it the style fails"
    )
    min_pairs: int = Field(2, ge=1, description="fewest usable pairs that a style needs; below it the style fails")
    regenerate_datasets: bool = Field(False, description="true: write pairs anew where a dataset exists")
    extend: bool = Field(False, description="true: add pairs for questions that a dataset lacks")
    styles: list[str] = Field(
        ["researcher_style", "step_by_step_reasoning", "creative_explorer"], min_length=1, description="styles to make"
    )
    styles_dir: str | None = Field(
        None, description="folder with YAML files of further styles; null: the built-in ones alone"
    )
    custom_questions_file: str | None = Field(
        None,
        description="file of questions, whose pairs are added to those that exist; null: the questions of svf",
    )
    additional_questions: list[str] = Field(
        [], description="further questions; their pairs are added to those that exist"
    )
    target_model: str = Field(
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
        description="model to steer: hub id, folder, .gguf file or smollm2-135m-instruct",
    )
    device: str = Field(
        "auto", description="device of the target model: cuda, mps, cpu, or auto: the first of them that is there"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="dtype of the target model: float32, bfloat16, or auto: bfloat16 on cuda, else float32"
    )
    load_in_8bit: bool = Field(
        True, description="load the target model in 8 bits (bitsandbytes, CUDA alone; elsewhere ignored)"
    )
    load_in_4bit: bool = Field(False, description="load the target model in 4 bits; wins over load_in_8bit")
    trust_remote_code: bool = Field(
        False, description="run code that comes with a model; each worker decides for itself"
    )
    allowed_models: list[str] | None = Field(
        None, description="models that a worker may load; null: its own target_model alone"
    )
    threads: int | None = Field(
        None, ge=1, description="CPU threads of the target model; null: all cores, shared by gpu_workers"
    )
    gpu_workers: int = Field(
        1, ge=1, description="workers of svf generate that run the target model; each loads it for itself"
    )
    extraction_config: ExtractionSettings = Field(ExtractionSettings(), description="see below")
    output_config: OutputSettings = Field(OutputSettings(), description="see below")
    learning: LearningSettings = Field(LearningSettings(), description="see below")
    evaluation: EvaluationSettings = Field(EvaluationSettings(), description="see below")
    broker_url: str | None = Field(None, description="address of the Redis or Valkey broker, redis:// or rediss://")
    store: str | None = Field(
        None, description="folder or fsspec URL of the store; null: the folder runs under --output"
    )
    visibility_timeout: int = Field(
        600, ge=1, description="seconds until a dead worker's task goes to another; 3 x the longest task"
    )
    guard_seconds: float = Field(15, gt=0, description="seconds that a message may be missing before it is sent again")
    gpu_queue: Literal["gpu", "model"] = Field(
        "gpu", description="gpu: one queue for all target models; model: one queue per target model"
    )

    @field_validator("broker_url")
    @classmethod
    def _readable_broker(cls, url: str | None) -> str | None:
        """Refuse an address that would be cut in the middle of its password, without showing any of it."""
        if url is None:
            return None
        try:
            parts = urlsplit(url)
            readable = not parts.fragment and "#" not in url and (parts.port is None or parts.port > 0)
        except ValueError:  # what stands where the port should be is no number
            readable = False
        if not readable:
            raise ValueError(
                "the address cannot be read; expected redis://:password@host:6379/0, with # / ? in a password "
                "written as %23 %2F %3F"
            )
        if parts.scheme not in BROKERS:
            raise ValueError(f"expected an address that begins with {' or '.join(BROKERS[:2])}, found {parts.scheme!r}")
        return url

    @model_validator(mode="before")
    @classmethod
    def _one_rate(cls, given: Any) -> Any:
        """``api_delay`` and ``requests_per_minute`` are one limit by two names."""
        if isinstance(given, dict) and given.get("requests_per_minute") is not None:
            if given.get("api_delay") is not None:
                raise ValueError(
                    "api_delay and requests_per_minute are the same limit: set one of them, and the other to null"
                )
            return given | {"api_delay": None}
        return given

    @field_validator("base_url")
    @classmethod
    def _an_address(cls, given: str | None) -> str | None:
        if not given:
            return None
        try:
            check_address(tidy_address(given))
        except ConfigError as error:
            raise ValueError(str(error).removeprefix("base_url ")) from None
        return tidy_address(given)

    @property
    def calls_per_minute(self) -> float | None:
        """Teacher calls per minute for the whole cluster; None: no limit.

        ``api_delay``'s default is meant for OpenAI: a server of one's own has it only if it is set.
        """
        if self.requests_per_minute is not None:
            return self.requests_per_minute
        if self.base_url is not None and "api_delay" not in self.model_fields_set:
            return None
        return 60 / self.api_delay if self.api_delay else None

    @property
    def own_calls_per_minute(self) -> float | None:
        """The same as far as somebody wrote it down here: a worker obeys it beside the limit of a run."""
        written = self.requests_per_minute is not None or "api_delay" in self.model_fields_set
        return self.calls_per_minute if written else None

    @property
    def quantize(self) -> str | None:
        """``4bit``, ``8bit`` or None, as :func:`factory.load_target` takes it."""
        return "4bit" if self.load_in_4bit else "8bit" if self.load_in_8bit else None

    @property
    def models_allowed(self) -> list[str]:
        """Models that a worker with these settings may load."""
        return [self.target_model] if self.allowed_models is None else self.allowed_models

    def require_allowed(self, model: str, *, for_others: bool = False) -> None:
        """Refuse to load a model that ``allowed_models`` does not name.

        Where it names none, a worker loads the configured model alone (``for_others``: another's message says
        which), and a command whatever the vector is for that its user gave.

        Raises:
            ConfigError: says which are allowed.
        """
        allowed = self.models_allowed
        if model not in allowed and (for_others or self.allowed_models is not None):
            raise ConfigError(
                f"target model {model!r} is not allowed here: add it to allowed_models (now {', '.join(allowed)})"
            )


SECTIONS = tuple(name for name, field in Settings.model_fields.items() if isinstance(field.default, Frozen))


@dataclass(frozen=True)
class Configuration:
    """Settings, and for every key that is not a default, where it came from."""

    settings: Settings
    origins: dict[str, str]
    file: Path | None = None

    def origin(self, key: str) -> str:
        """Where a key's value came from: a file, a variable, a flag, or ``default``."""
        return self.origins.get(key, "default")


def load_configuration(
    path: str | Path | None = None,
    *,
    flags: Mapping[str, object] | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Configuration:
    """Read the configuration: defaults, then the file, then ``FACTORY_*``, then flags.

    Without ``path`` the file is ``FACTORY_CONFIG``, else ``config.yaml`` here if there is one. A
    section's key is ``FACTORY_EXTRACTION_CONFIG__RECIPE``; values are read as YAML, but text as it stands.
    Among ``flags`` it is ``extraction_config.recipe``.

    Raises:
        ConfigError: missing file, unknown key (names the nearest), wrong type.
    """
    merged: dict[str, object] = {}
    origins: dict[str, str] = {}
    file = _find_file(path or environment.get("FACTORY_CONFIG"))
    sources = [_file_layer(file) if file else [], _environment_layer(environment)]
    sources.append(_flag_layer(flags or {}))
    for layer in sources:
        for origin, keys, value in layer:
            _set(merged, keys, value)
            origins[".".join(keys)] = origin
    return Configuration(_validate(merged, origins), origins, file)


def describe_limits(configuration: Configuration) -> str:
    """Which limits hold for the teacher's calls, and which line of which file or variable says so."""
    settings = configuration.settings
    found: list[str] = []
    if settings.requests_per_minute is not None:
        found.append(f"{settings.requests_per_minute:g} per minute ({_said(configuration, 'requests_per_minute')})")
    elif settings.calls_per_minute is not None:
        found.append(f"one per {settings.api_delay:g} s ({_said(configuration, 'api_delay')})")
    if settings.tokens_per_minute is not None:
        found.append(f"{settings.tokens_per_minute:g} tokens per minute ({_said(configuration, 'tokens_per_minute')})")
    found.append(f"{settings.max_concurrent_calls} at a time per worker")
    line = f"teacher calls: {', '.join(found)}"
    if settings.base_url is not None and settings.calls_per_minute and settings.requests_per_minute is None:
        line += ". A server of your own may need no api_delay: remove it, or set it to null"
    return line


def _said(configuration: Configuration, key: str) -> str:
    origin = configuration.origin(key)
    return f"{key}, {origin}" if origin == "default" else f"{key} of {origin}"


def load_settings(path: str | Path | None = None) -> Settings:
    """The settings alone (see :func:`load_configuration`)."""
    return load_configuration(path).settings


Layer = list[tuple[str, tuple[str, ...], object]]


def _find_file(path: str | Path | None) -> Path | None:
    if path is not None:
        return Path(path)
    return Path(DEFAULT_FILE) if Path(DEFAULT_FILE).is_file() else None


def _file_layer(file: Path) -> Layer:
    try:
        content = yaml.safe_load(read_written(file, "configuration file"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not YAML: {' '.join(str(error).split())[:200]}") from None
    if content is not None and not isinstance(content, dict):
        raise ConfigError(f"{file} should hold 'key: value' lines, found {type(content).__name__}")
    return [(str(file), keys, value) for keys, value in _flatten(content or {})]


def _flag_layer(flags: Mapping[str, object]) -> Layer:
    keys = {key: tuple(key.split(".")) for key in flags}
    return [("flag --" + keys[key][-1].replace("_", "-"), keys[key], value) for key, value in flags.items()]


def _flatten(content: Mapping[str, object]) -> list[tuple[tuple[str, ...], object]]:
    flat: list[tuple[tuple[str, ...], object]] = []
    for key, value in content.items():
        if key in SECTIONS and isinstance(value, dict):
            flat += [((str(key), str(inner)), setting) for inner, setting in value.items()]
        else:
            flat.append(((str(key),), value))
    return flat


def _environment_layer(environment: Mapping[str, str]) -> Layer:
    layer: Layer = []
    for name, text in sorted(environment.items()):
        if name.startswith(PREFIX) and name not in OTHER_VARIABLES:
            keys = tuple(name.removeprefix(PREFIX).lower().split("__"))
            layer.append((f"variable {name}", keys, _as_text(text) if _is_text(keys) else _parse(text)))
    return layer


def _is_text(keys: tuple[str, ...]) -> bool:
    """Whether a setting takes nothing but text: its value is taken as it stands, and is no YAML."""
    model: type[BaseModel] = Settings
    for key in keys[:-1]:
        section = model.model_fields.get(key)
        if section is None or not isinstance(section.default, BaseModel):
            return False
        model = type(section.default)
    field = model.model_fields.get(keys[-1])
    if field is None:
        return False
    union = get_origin(field.annotation) in (Union, UnionType, Literal)
    kinds = set(get_args(field.annotation) if union else (field.annotation,)) - {type(None)}
    return all(kind is str or isinstance(kind, str) for kind in kinds)  # a Literal's arguments are its words


def _as_text(text: str) -> str | None:
    return None if text in ("", "null") else text


def _parse(text: str) -> object:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _set(merged: dict[str, object], keys: tuple[str, ...], value: object) -> None:
    for key in keys[:-1]:
        section = merged.get(key)
        if not isinstance(section, dict):  # a section wins over a value of its name, which is none
            section = merged[key] = {}
        merged = section
    merged[keys[-1]] = value


def _validate(merged: Mapping[str, object], origins: Mapping[str, str]) -> Settings:
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        problem = error.errors()[0]
    keys = [str(part) for part in problem["loc"]]
    dotted = ".".join(keys)
    where = next((origin for key, origin in origins.items() if dotted.startswith(key)), "configuration")
    if problem["type"] == "extra_forbidden":
        raise ConfigError(f"{where}: unknown key '{dotted}'. {_nearest(keys)}")
    message = problem["msg"].removeprefix("Value error, ")
    found = "" if problem["type"] == "value_error" else f", found {problem['input']!r}"
    raise ConfigError(f"{where}: key '{dotted}': {message}{found}" if keys else f"configuration: {message}")


def _nearest(keys: list[str]) -> str:
    model: type[BaseModel] = Settings
    for key in keys[:-1]:
        model = type(model.model_fields[key].default)
    near = difflib.get_close_matches(keys[-1], model.model_fields, n=1, cutoff=0.5)
    return f"Did you mean '{'.'.join([*keys[:-1], near[0]])}'?" if near else "'svf config' lists every key."
