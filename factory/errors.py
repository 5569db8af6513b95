"""Everything that can go wrong, by name.

Each message says what was found, what was expected and what to do. The command line prints the
message alone and exits with the class's ``exit_status``.
"""

from __future__ import annotations


class FactoryError(Exception):
    """Base of every error that the factory raises on purpose."""

    exit_status = 1


class ConfigError(FactoryError):
    """The configuration, a flag or an input file is wrong. Nothing was started."""

    exit_status = 2


class UnknownRun(ConfigError):
    """A run of that name is not in the store."""


class UnknownStyle(ConfigError):
    """A style of that name is neither built in nor in ``styles_dir``."""


class DatasetError(ConfigError):
    """A dataset or question file does not hold what it should; names file and line."""


class UnknownRecipe(ConfigError):
    """There is no extraction recipe of that name."""


class LayerError(ConfigError):
    """The layers asked for do not exist in the target model."""


class TargetError(ConfigError):
    """The target model cannot be found, loaded or used."""


class VectorError(ConfigError):
    """A file is not a steering vector, or the vector belongs to another model."""


class HubError(VectorError):
    """A model hub does not have, or does not take, a vector, or cannot be reached."""


class BenchmarkError(ConfigError):
    """A benchmark's task or file does not exist or does not hold questions with checkable answers."""


class ServingError(FactoryError):
    """The server cannot do what it was asked for now."""


class MissingExtra(ConfigError):
    """An optional dependency is needed and not installed; names the extra."""


class BrokerError(FactoryError):
    """No broker, or no worker behind it."""

    exit_status = 3


class FolderBusy(FactoryError):
    """Another run of this machine works in the output folder. Nothing was started."""

    exit_status = 3


class StoreError(FactoryError):
    """The store cannot be reached, or an artifact in it is damaged or missing."""


class TaskTooLong(FactoryError):
    """A task took longer than the broker waits for it."""

    def __init__(self, message: str = "a task took too long") -> None:
        super().__init__(message)


class StyleFailed(FactoryError):
    """A style's run ended without a vector; the message lists the reasons."""


class PairRejected(FactoryError):
    """One pair cannot be used. It is recorded and counted, and never stops a run.

    ``reason`` is a short code for counting, such as ``too_long`` or ``identical``; ``evidence``
    is what goes into the file of rejected pairs beside it.
    """

    def __init__(self, reason: str, message: str, evidence: dict[str, object] | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.evidence = evidence or {}


class RunPaused(FactoryError):
    """The whole run waits for a person. The message says for what; ``svf resume`` goes on.

    ``reason`` is a short code: ``key``, ``quota``, ``no_model``, ``address``, ``proxy``, ``refused``,
    ``long_wait``, ``failing``, ``deadline`` or ``budget_stopped``.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class StyleEnded(RunPaused):
    """Nothing more is asked for a style that was cancelled, or failed, meanwhile."""

    def __init__(self, message: str) -> None:
        super().__init__("ended", message)


class TeacherError(FactoryError):
    """Base of what the teacher API can do to us."""


class TeacherBusy(TeacherError):
    """Try again later: rate limit, overload, timeout, broken connection.

    ``retry_after`` is the server's own wish in seconds, if it said one. ``may_be_paid``: the request
    was sent and no answer came, so nobody knows whether it costs.
    """

    def __init__(self, message: str, retry_after: float | None = None, *, may_be_paid: bool = False) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.may_be_paid = may_be_paid


class TeacherPaced(TeacherBusy):
    """Our own limits ask to wait longer than a thread should: nothing was sent, nothing failed."""


class TeacherRefused(TeacherError):
    """No retry helps until a person acts: a missing or wrong key, no quota, no such model.

    ``reason`` is the short code under which the run is paused (:class:`RunPaused`).
    """

    def __init__(self, message: str, reason: str = "key") -> None:
        super().__init__(message)
        self.reason = reason


class BadReply(TeacherError):
    """The server answered, but with nothing usable: empty, cut off, filtered, not JSON.

    ``reason`` is a short code for counting, such as ``length`` or ``empty``.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
