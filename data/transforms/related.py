"""Which document of one language belongs to which of another: equal ids, or a file of links.

Read next: `pairs.py` and `interleave.py`, which write two such documents into one.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

from ..errors import DataError
from ..sources import Document
from .tables import read_rows

Read = Callable[[str], Iterable[Document]]
"""The training documents of a language, by its code; may be called several times."""


def load_links(path: str) -> dict[str, str]:
    """Id in the first language -> id in the second; each at most once. Raises DataError."""
    columns = "an id of `language` and an id of `other`"
    links: dict[str, str] = {}
    seen: set[str] = set()
    for number, row in read_rows(path, columns):
        if len(row) != 2:
            raise DataError(f"{path}: line {number}: {len(row)} fields: write {columns}, no more")
        first, second = row
        if first in links or second in seen:
            twice = first if first in links else second
            raise DataError(
                f"{path}: line {number}: {twice!r} is linked in an earlier line: link a document "
                "once, as a text should not return in several derived documents"
            )
        links[first] = second
        seen.add(second)
    return links


def related_documents(
    read: Read, language: str, other: str, links: Mapping[str, str] | None = None
) -> Iterator[tuple[Document, Document]]:
    """Documents of `language`, in their order, each with the one of `other` that belongs to it.

    Documents without a counterpart are left out; of several with one id the first is taken. In
    memory: the ids of `language`, and the documents of `other` that have a counterpart.
    """
    wanted = {
        partner
        for document in read(language)
        if (partner := document.id if links is None else links.get(document.id)) is not None
    }
    partners: dict[str, Document] = {}
    for document in read(other):
        if document.id in wanted:
            partners.setdefault(document.id, document)
    del wanted
    for document in read(language):
        partner = document.id if links is None else links.get(document.id)
        if partner is not None and (found := partners.pop(partner, None)) is not None:
            yield document, found
