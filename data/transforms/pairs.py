"""Document-level translation pairs: a document and its translation, one after the other.

Both stand in one derived document, so that attention reaches from one to the other. Which language
comes first alternates by document id. A pair longer than a sequence is cut by the sequence's end
like any document: for long texts see `interleave.py`.
"""

from collections.abc import Iterator
from string import Formatter

from ..errors import DataError
from ..sources import Document
from .draws import draw
from .related import Read, related_documents

FIELDS = ("first", "second", "first_code", "second_code")


def check_template(name: str, template: str) -> None:
    """Checks that a template holds both texts once and nothing unknown; raises DataError."""
    where = f"data.derived.{name}.template={template!r}"
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise DataError(f"{where}: {error}: write a brace that is text as {{{{ or }}}}") from None
    names = [field for _, field, _, _ in parts if field is not None]
    if any(spec or conversion for _, _, spec, conversion in parts):
        raise DataError(f"{where}: a field takes no format: write {{first}}, not {{first:...}}")
    unknown = [field for field in names if field not in FIELDS]
    if unknown:
        raise DataError(
            f"{where}: unknown field {{{unknown[0]}}}: use {', '.join(f'{{{f}}}' for f in FIELDS)}"
        )
    if names.count("first") != 1 or names.count("second") != 1:
        raise DataError(f"{where} must hold {{first}} and {{second}}, each once")


def derive_pairs(
    name: str,
    read: Read,
    *,
    language: str,
    other: str,
    template: str,
    links: dict[str, str] | None,
    seed: int,
) -> Iterator[Document]:
    """One document a pair of related ones, written by the template."""
    for one, two in related_documents(read, language, other, links):
        sides = [(language, one.text), (other, two.text)]
        if draw(seed, name, "direction", one.id) & 1:
            sides.reverse()
        (first_code, first), (second_code, second) = sides
        text = template.format(
            first=first, second=second, first_code=first_code, second_code=second_code
        )
        yield Document(id=f"{one.id}#{name}", text=text)
