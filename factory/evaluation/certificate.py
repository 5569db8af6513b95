"""The certificate of a vector: all that it takes to measure its figures again, and to say whether they hold.

It lies in the vector's metadata (docs/certificate.md). It says nothing of hosts, folders and times, so
that two evaluations of one vector on the same kind of machine give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from pydantic import JsonValue

from factory.errors import ConfigError
from factory.evaluation.bootstrap import SEED
from factory.evaluation.evaluation import Evaluation
from factory.evaluation.figures import Environment
from factory.evaluation.parts import PartsDone
from factory.evaluation.spec import MEAN, EvaluationSpec
from factory.files import hash_of, sha256_of
from factory.frozen import Record
from factory.pairs.styles import Style

if TYPE_CHECKING:
    from factory.vector.vector import SteeringVector

CERTIFICATE = "certificate"  # in the metadata
HASH_DIGITS = 16  # hexadecimal ones, of a question
ASKED = ("questions", "choice_questions", "probe_questions")
CERTIFIED = ("setting", "layers", "effect", "interval", "marker_gain", "marker_interval", "verdict", "capability")


class CertifiedTask(Record):
    """A task of the evaluation: hashes of its ``items`` in order, and right answers by condition.

    ``limit``: how many items were drawn or made, those that pairs ask included. Conditions are those
    that can be measured again from the vector's file: not its examples in context, not its mean.
    """

    name: str
    limit: int
    items: tuple[str, ...]
    right: dict[str, int]


class Certificate(Record):
    """What decided an evaluation, and what it found.

    ``vector_sha256``: of the tensors and their layers; ``questions``: hashes, by what they were asked
    for; ``settings``: the evaluation's, without its questions; ``answers_sha256``: by state of the model;
    ``figures``: name -> value; ``tasks``: with checkable answers, where the evaluation had some.
    """

    version: int
    vector_sha256: str
    dataset_sha256: str | None
    pair_questions_sha256: str | None
    style_sha256: str
    questions: dict[str, tuple[str, ...]]
    settings: dict[str, JsonValue]
    seeds: dict[str, int]
    environments: tuple[Environment, ...]
    answers_sha256: dict[str, str]
    figures: dict[str, JsonValue]
    tasks: tuple[CertifiedTask, ...] = ()

    @classmethod
    def read(cls, metadata: Mapping[str, object]) -> Self | None:
        """The certificate in a vector's ``metadata``; None where there is none.

        Raises:
            VectorError: it is damaged.
        """
        return cls.within(metadata, CERTIFICATE, "'svf evaluate' writes a new one")

    def spec(self, known: Mapping[str, str]) -> EvaluationSpec:
        """The evaluation to be done again; ``known``: questions by :func:`question_hash`.

        Raises:
            ConfigError: a question is not among ``known``.
        """
        wanted = {name: self.questions[name] for name in ASKED}
        missing = sum(digest not in known for digests in wanted.values() for digest in digests)
        if missing:
            raise ConfigError(
                f"{missing} of the certificate's questions are not in the question file: "
                "give the file that the vector was evaluated on with --questions"
            )
        asked = {name: tuple(known[digest] for digest in digests) for name, digests in wanted.items()}
        return EvaluationSpec.model_validate({**self.settings, **asked})


def certify_evaluation(
    vector: SteeringVector,
    style: Style,
    spec: EvaluationSpec,
    done: PartsDone,
    evaluation: Evaluation,
    *,
    tasks: Sequence[CertifiedTask] = (),
) -> Certificate:
    """The certificate of an evaluation that is done."""
    known = vector.metadata
    hashes = known.get("question_hashes")
    environments = [part.environment for part in done.states.values() if part.environment]
    unique = {hash_of(place.to_json()): place for place in environments}
    settings = spec.model_dump(mode="json", exclude={*ASKED, "judge_model", MEAN})
    return Certificate(
        version=1,
        vector_sha256=vector_hash(vector),
        dataset_sha256=known.get("dataset_sha256"),
        pair_questions_sha256=hash_of(hashes) if hashes is not None else None,
        style_sha256=hash_of(style.model_dump(mode="json")),
        questions={name: tuple(map(question_hash, getattr(spec, name))) for name in ASKED},
        settings=settings,
        seeds={"bootstrap": SEED, "random_vector": control_seed(vector.style_name)},
        environments=tuple(unique[digest] for digest in sorted(unique)),
        answers_sha256={name: part.answers_sha256 for name, part in sorted(done.states.items()) if part.answers_sha256},
        figures=figures_of(evaluation),
        **({"tasks": tuple(tasks)} if tasks else {}),  # without any the bytes are those of older versions
    )


def figures_of(evaluation: Evaluation) -> dict[str, JsonValue]:
    """Every certified figure of an evaluation by its name, such as ``measured.steered.share``.

    A judge's scores are not among them: nobody can make a hosted model say the same twice. Nor are those of
    the mean from which a vector was learned: its file does not hold that mean.
    """
    content = evaluation.to_json()
    found = {name: content[name] for name in CERTIFIED}
    found["measured"] = {name: part.to_json() for name, part in evaluation.measured.items() if name != MEAN}
    cells = [cell.figures.to_json() | {"setting": cell.setting.describe()} for cell in evaluation.cells]
    found["cells"] = {str(rank): cell for rank, cell in enumerate(cells)}
    found["right_answers"] = {one.task: {"won": one.won, "lost": one.lost} for one in evaluation.right_answers}
    return dict(_flat(found))


def _flat(content: Mapping[str, JsonValue], prefix: str = "") -> Iterator[tuple[str, JsonValue]]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def vector_hash(vector: SteeringVector) -> str:
    """SHA-256 of a vector's tensors and layers, whatever its file says besides."""
    tensors = b"".join(tensor.contiguous().numpy().tobytes() for tensor in (vector.key_vector, vector.value_vector))
    return hash_of([sha256_of(tensors), vector.layer_indices])


def question_hash(question: str) -> str:
    """The hash of a question, word for word."""
    return sha256_of(question)[:HASH_DIGITS]


def control_seed(style: str) -> int:
    """The seed of the random vector that a style's vector is held against."""
    return int(sha256_of(style)[:8], 16)


@dataclass(frozen=True)
class Held:
    """One figure of a certificate, as it was certified and as it was found again."""

    name: str
    certified: JsonValue
    found: JsonValue

    @property
    def holds(self) -> bool:
        """Whether they are the same."""
        return self.certified == self.found


def compare_certificates(certified: Certificate, found: Certificate) -> list[Held]:
    """Everything that a certificate says, held against one that was made anew, in the certificate's order."""
    before, after = (dict(_flat(_comparable(one))) for one in (certified, found))
    return [Held(name, before.get(name), after.get(name)) for name in dict.fromkeys([*before, *after])]


def _comparable(certificate: Certificate) -> dict[str, JsonValue]:
    places = enumerate(certificate.environments)
    content = certificate.to_json() | {"environments": {str(at): place.to_json() for at, place in places}}
    content.pop("tasks", None)
    return content | {"tasks": {task.name: task.to_json() for task in certificate.tasks}}
