"""Optional dependencies: which extra brings a module that is not installed.

``pip install .`` gives a machine that can submit runs and ask the teacher. Everything that touches
the target model needs ``[target]``.
"""

from __future__ import annotations

from importlib.util import find_spec

from factory.errors import MissingExtra

EXTRAS = {
    "target": ("torch", "transformers", "safetensors", "accelerate", "gguf", "numpy", "matplotlib"),
    "benchmark": ("reasoning_gym",),
    "serve": ("fastapi", "uvicorn"),
    "gpu": ("bitsandbytes",),
    "s3": ("s3fs",),
    "flower": ("flower",),
}

DISTRIBUTION = "steering-vector-factory"


def missing_extra(module: str | None) -> MissingExtra | None:
    """The error that names the extra which brings ``module``; None if no extra does."""
    for extra, modules in EXTRAS.items():
        if module and module.partition(".")[0] in modules:
            return MissingExtra(
                f"this needs {module.partition('.')[0]}, which is not installed here: "
                f"pip install 'steering-vector-factory[{extra}]', or '.[{extra}]' in a checkout"
            )
    return None


def require_target() -> None:
    """Fail early where the target model cannot be run.

    Raises:
        MissingExtra: torch or transformers is not installed.
    """
    require_modules("torch", "transformers")


def require_modules(*names: str) -> None:
    """Fail early, and name the extra, where one of these modules is not installed.

    Raises:
        MissingExtra: it is not.
    """
    for name in names:
        error = missing_extra(name)
        if error and find_spec(name) is None:
            raise error
