"""A model hub: whether a repository is there, asked once and early, and a repository fetched or pushed.

Nothing here knows what a repository holds. The hub's address and key are those of its own client
(``HF_ENDPOINT``, ``HF_TOKEN``, ``HF_HUB_OFFLINE``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from factory.errors import HubError

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")  # owner/name, or owner/name@revision
PATIENCE = 10.0  # s in which a hub answers that is there
LOG_IN = "set HF_TOKEN to a key that may"


def is_repository(source: str) -> bool:
    """Whether ``source`` has the form of a hub's repository, ``owner/name`` or ``owner/name@revision``."""
    return bool(REPOSITORY.fullmatch(source)) and not source.startswith(".")


def split_revision(source: str) -> tuple[str, str | None]:
    """A repository and the revision behind ``@``, None without one."""
    name, _, revision = source.partition("@")
    return name, revision or None


def find_problem(source: str) -> str:
    """Why a repository cannot be fetched, in words; empty where nothing speaks against it.

    Asks the hub one question, for at most ``PATIENCE`` seconds. A hub that answers with anything but
    "there is no such repository" is not judged.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name, revision = split_revision(source)
    api = HfApi()
    try:
        api.model_info(name, revision=revision, timeout=PATIENCE)
    except RevisionNotFoundError:
        return f"{name} at the hub has no revision {revision!r}"
    except RepositoryNotFoundError:
        return f"the hub has no {name}, or it is private: then {LOG_IN} read it"
    except HFValidationError:
        return f"{name!r} is no name of a repository"
    except OfflineModeIsEnabled:
        return "HF_HUB_OFFLINE forbids to ask the hub"
    except HfHubHTTPError:
        return ""
    except Exception as error:  # of the client below the hub's: no name, no route, refused, too late
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        return f"the hub at {api.endpoint} cannot be reached ({reason})"
    return ""


def is_cached(name: str) -> bool:
    """Whether this machine has fetched the configuration of a hub's model before."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(name, "config.json"), str)
    except HFValidationError:
        return False


def fetch_repository(source: str, patterns: list[str]) -> Path:
    """Fetch the files of a repository that match ``patterns``, where they are not here yet; returns their folder.

    Without a connection, what was fetched before is taken.

    Raises:
        HubError: it cannot be fetched, and why.
    """
    from huggingface_hub import snapshot_download

    name, revision = split_revision(source)
    problem = find_problem(source)
    try:
        with _without_bars():
            return Path(
                snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=bool(problem))
            )
    except Exception as error:  # the client's errors share no base
        reason = problem or " ".join(str(error).split())[:160]
        raise HubError(f"{source!r} is no file or folder here, and cannot be fetched from the hub: {reason}") from None


def push_folder(folder: Path, repository: str, *, private: bool = False) -> str:
    """Put a folder's files into a repository, made where there is none, as one commit; returns the commit's URL.

    Raises:
        HubError: the hub does not take them, and why.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    name, revision = split_revision(repository)
    api = HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        if revision:
            api.create_branch(name, branch=revision, exist_ok=True)
        with _without_bars():
            done = api.upload_folder(
                repo_id=name, folder_path=folder, revision=revision, commit_message=f"Push {_what(folder)}"
            )
    except HFValidationError as error:
        raise HubError(f"{repository!r} is no name of a repository: expected owner/name ({error})") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        told = f"{LOG_IN} write to {name}" if status in (401, 403) else " ".join(str(error).split())[:160]
        raise HubError(f"the hub at {api.endpoint} does not take {repository!r} (status {status}): {told}") from None
    except Exception as error:  # of the client below the hub's
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise HubError(f"the hub at {api.endpoint} cannot be reached ({reason}): nothing was pushed") from None
    return str(done.commit_url)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep the client's bars off the terminal, as a vector's file is small."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()


def _what(folder: Path) -> str:
    return ", ".join(sorted(file.name for file in folder.iterdir() if file.is_file()))
