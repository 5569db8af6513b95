"""What a request of vLLM's carries to the connector, in ``kv_transfer_params``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field, ValidationError

from factory.errors import VectorError
from factory.frozen import Frozen, first_fault
from factory.serving.entry import MAX_ENTRIES, RequestError, SteeringEntry, named_settings
from factory.serving.library import VectorLibrary
from factory.vector.setting import Setting
from factory.vllm.model import ServedModel

FIELD = "steering"


class Asked(Frozen):
    """The steering of one request; ``neutral``: the neutral token is put behind the prompt, as chats have it."""

    steering: list[SteeringEntry] = Field(max_length=MAX_ENTRIES)
    neutral: bool = True


def read_asked(parameters: Any) -> Asked | None:
    """What ``kv_transfer_params`` ask for; None where they do not speak of steering.

    Raises:
        RequestError: a field does not exist, or its value is not what it should be.
    """
    if not isinstance(parameters, dict) or FIELD not in parameters:
        return None
    try:
        return Asked.model_validate({name: parameters[name] for name in Asked.model_fields if name in parameters})
    except ValidationError as error:
        raise RequestError(first_fault(error), FIELD) from None


def settings_of(entries: Sequence[SteeringEntry], library: VectorLibrary, model: ServedModel) -> tuple[Setting, ...]:
    """The vectors that entries ask for; the library looks again for one that it does not know.

    Raises:
        RequestError: there is no such vector, or the model cannot be steered in this way.
    """
    if any(entry.vector not in library.vectors for entry in entries):
        library.reload()
    else:
        library.refresh()
    settings = tuple(setting for _, setting in named_settings(entries, library, model.n_layers))
    for setting in settings:
        try:
            model.check_keys(setting)
        except VectorError as error:
            raise RequestError(str(error), FIELD) from None
    return settings
