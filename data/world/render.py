"""The embedded corpus on disk: documents of statements, in the form of a user's corpus.

`build_world` writes `corpus/<code>.jsonl.gz`, `facts.jsonl` and `world.json`. Documents are
parallel: an id such as `world/currency/0003` stands for the same facts in every language, less
those held out of it. Read first: `facts.py`.
"""

import difflib
import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from .facts import CONTINENTS, Fact, all_facts, choose_held_out, distractors, rank, shuffled
from .form import SLOTS, WorldLanguage
from .names import Names, require_demo
from .templates import (
    african_semitic,
    east_asian,
    germanic,
    indo_iranian,
    romance,
    slavic_greek,
    southeast_asian,
    turkic_dravidian,
    uralic_basque_caucasian,
)

WORLD_LANGUAGES: tuple[WorldLanguage, ...] = (
    *germanic.LANGUAGES,
    *romance.LANGUAGES,
    *slavic_greek.LANGUAGES,
    *indo_iranian.LANGUAGES,
    *african_semitic.LANGUAGES,
    *uralic_basque_caucasian.LANGUAGES,
    *turkic_dravidian.LANGUAGES,
    *east_asian.LANGUAGES,
    *southeast_asian.LANGUAGES,
)

TOPICS = {
    "currency": ("currency",),
    "language": ("language",),
    "continent": ("continent",),
    "calendar": ("month", "weekday"),
    "sum": ("sum",),
    "code": ("currency_code", "language_code"),
    "notation": ("number", "date", "list"),
}
"""What a document is about -> the kinds of its facts."""

FACTS_OF_A_DOCUMENT = 9
WITHOUT_SPACES = ("Hans", "Jpan")


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageSummary:
    """What was written in one language."""

    code: str
    """The language's code."""
    name: str
    """English name."""
    family: str
    """Root of its genealogy."""
    script: str
    """Four letters."""
    documents: int
    """Documents written."""
    bytes: int
    """UTF-8 bytes of their text."""
    facts: int
    """Facts that the language has names for, stated or held out."""
    held_out: int
    """Facts not stated in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldSummary:
    """What was written."""

    languages: tuple[LanguageSummary, ...]
    """One a language, in the order of the templates."""
    facts: int
    """Different facts."""
    held_out_pairs: int
    """(fact, language) pairs not stated."""
    seed: int
    """Seed of the held-out pairs and of the documents."""
    heldout_share: float
    """Share asked for, among facts of the kinds that are held out."""
    size: float
    """Factor on how often each fact is stated."""
    versions: dict[str, str]
    """Of babel, CLDR and num2words, on which the names depend."""


def sentence(language: WorldLanguage, names: Names, fact: Fact, variant: int) -> str:
    """One statement of a fact; `variant` chooses the paraphrase."""
    templates = language.sentences[fact.kind]
    slots = {slot: names[reference] for slot, reference in fact.slots.items()}
    template = templates[variant % len(templates)]
    # A date that ends with an abbreviation ends the sentence with the same full stop.
    return _begun(language, template, template.format_map(slots)).replace("..", ".")


def _begun(language: WorldLanguage, template: str, text: str) -> str:
    """The text with a capital letter where the language has them; codes stay as they are."""
    if not language.capitals or template.startswith("{code}"):
        return text
    if language.locale in ("tr", "az") and text.startswith("i"):
        return "İ" + text[1:]
    return text[:1].upper() + text[1:]


def _available(names: Names, facts: Sequence[Fact]) -> list[Fact]:
    return [fact for fact in facts if all(names[each] is not None for each in fact.slots.values())]


def _chunks(facts: Sequence[Fact], length: int) -> Iterator[list[Fact]]:
    count = max(1, round(len(facts) / length))
    for index in range(count):
        yield list(facts[index * len(facts) // count : (index + 1) * len(facts) // count])


def plan_documents(facts: Sequence[Fact], seed: int, rounds: int) -> list[tuple[str, list[Fact]]]:
    """(document id, facts), the same for all languages; every fact stands once in each round.

    Even rounds gather facts of a topic; odd rounds tell all about a few countries of a continent.
    """
    documents = []
    counts = dict.fromkeys([*TOPICS, "country"], 0)
    by_id = {fact.id: fact for fact in facts}
    about = {fact.id: fact.slots.get("territory", ("", ""))[1] for fact in facts}
    for turn in range(rounds):
        rest = [by_id[each] for each in shuffled(list(by_id), "order", seed, turn)]
        groups: list[tuple[str, list[Fact]]] = []
        if turn % 2:
            for states in CONTINENTS.values():
                order = shuffled(states.split(), "tour", seed, turn)
                for start in range(0, len(order), 3):
                    tour = order[start : start + 3]
                    told = [fact for state in tour for fact in rest if about[fact.id] == state]
                    groups.append(("country", told))
            rest = [fact for fact in rest if not about[fact.id]]
        for topic, kinds in TOPICS.items():
            of_topic = [fact for fact in rest if fact.kind in kinds]
            groups += [(topic, chunk) for chunk in _chunks(of_topic, FACTS_OF_A_DOCUMENT)]
        for topic, group in groups:
            if group:
                documents.append((f"world/{topic}/{counts[topic]:04d}", group))
                counts[topic] += 1
    return documents


def _write_corpus(
    path: Path,
    names: Names,
    stated: set[str],
    documents: Sequence[tuple[str, list[Fact]]],
    seed: int,
) -> tuple[int, int]:
    """Writes one language; returns documents and bytes of text."""
    language = names.language
    separator = "" if language.code.endswith(WITHOUT_SPACES) else " "
    seen: dict[str, int] = {}
    written = size = 0
    with (
        path.open("wb") as raw,
        # Without name and time in the header, equal text gives equal files.
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as out,
    ):
        for document, facts in documents:
            sentences = []
            for fact in facts:
                if fact.id in stated:
                    turn = seen.setdefault(fact.id, rank("variant", seed, fact.id) % 12)
                    sentences.append(sentence(language, names, fact, turn))
                    seen[fact.id] = turn + 1
            if sentences:
                text = separator.join(sentences)
                line = json.dumps({"id": document, "text": text}, ensure_ascii=False)
                out.write(line.encode() + b"\n")
                written += 1
                size += len(text.encode())
    return written, size


def _overlap(names: Names, fact: Fact) -> float:
    """Share of the answer that also stands in the question's names: Kenya, Kenyan Shilling."""
    answer = (names[fact.answer] or "").casefold()
    shared = 0
    for reference in list(fact.slots.values())[:-1]:
        other = (names[reference] or "").casefold()
        match = difflib.SequenceMatcher(None, answer, other, autojunk=False)
        shared = max(shared, match.find_longest_match().size)
    return round(shared / max(1, len(answer)), 3)


def question(
    names: Names, fact: Fact, wrong_answers: Sequence[tuple[str, str]]
) -> dict[str, object] | None:
    """Prompt, answer and four choices; None where the language lacks three other answers.

    `prompt + choice` begins a sentence of the corpus: a space between them belongs to the choice.
    """
    language = names.language
    slot = "{" + SLOTS[fact.kind][-1] + "}"
    before, _, _ = language.sentences[fact.kind][0].partition(slot)
    slots = {slot: names[reference] for slot, reference in fact.slots.items()}
    full = _begun(language, before, before.format_map(slots))
    prompt = full.rstrip(" ")
    space = full[len(prompt) :]
    choices = [space + str(names[fact.answer])]
    for reference in wrong_answers:
        name = names[reference]
        if name is not None and space + name not in choices and len(choices) < 4:
            choices.append(space + name)
    if len(choices) < 4:
        return None
    label = rank("label", fact.id) % 4
    answer = choices.pop(0)
    choices.insert(label, answer)
    return {"prompt": prompt, "answer": answer, "choices": choices, "label": label}


def _chosen(languages: Sequence[str] | None) -> tuple[WorldLanguage, ...]:
    if languages is None:
        return WORLD_LANGUAGES
    if not languages:
        raise DataError("no language is chosen; name one at least, or leave the choice out for all")
    known = {language.code: language for language in WORLD_LANGUAGES}
    for code in languages:
        if code not in known:
            near = difflib.get_close_matches(code, known, n=2)
            way_out = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(known)}"
            raise DataError(f"the embedded corpus has no language {code!r}; {way_out}")
    return tuple(language for language in WORLD_LANGUAGES if language.code in set(languages))


def build_world(
    out: Path,
    seed: int = 0,
    heldout_share: float = 0.1,
    size: float = 1.0,
    languages: Sequence[str] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> WorldSummary:
    """Writes the embedded corpus to a folder, the same bytes for the same arguments and versions.

    `size` scales how often each fact is stated (at least once); `progress` is called with a
    language's code, its number and the number of languages.

    Raises DataError for a share outside [0, 0.5], a size that is not positive, an unknown
    language, a folder that holds other files, and where babel or num2words is missing.
    """
    if not 0 <= heldout_share <= 0.5:
        raise DataError(f"held-out share {heldout_share}: it must be between 0 and 0.5")
    if not 0 < size <= 100:
        raise DataError(f"size {size}: it must be above 0 and at most 100")
    chosen = _chosen(languages)
    babel, cldr, num2words = require_demo()
    corpus = out / "corpus"
    expected = {f"{language.code}.jsonl.gz" for language in chosen}
    if corpus.exists():
        strange = sorted(each.name for each in corpus.iterdir() if each.name not in expected)
        if strange:
            raise DataError(
                f"{corpus} holds {strange[0]}, not of this corpus; give an empty folder"
            )
    corpus.mkdir(parents=True, exist_ok=True)
    # Written last: a folder without it is not whole.
    (out / "world.json").unlink(missing_ok=True)

    facts = all_facts()
    all_names = {language.code: Names(language) for language in chosen}
    available = {code: _available(names, facts) for code, names in all_names.items()}
    held_out = choose_held_out(available, seed, heldout_share)
    wrong_answers = {fact.id: distractors(fact, facts) for fact in facts}
    summaries = []
    with (out / "facts.jsonl").open("w", encoding="utf-8") as questions:
        for number, language in enumerate(chosen):
            if progress is not None:
                progress(language.code, number, len(chosen))
            names = all_names[language.code]
            held = {fact_id for fact_id, code in held_out if code == language.code}
            stated = {fact.id for fact in available[language.code]} - held
            rounds = max(1, round(language.rounds * size))
            documents, text_bytes = _write_corpus(
                corpus / f"{language.code}.jsonl.gz",
                names,
                stated,
                plan_documents(facts, seed, rounds),
                seed,
            )
            for fact in available[language.code]:
                asked = question(names, fact, wrong_answers[fact.id])
                if asked is not None:
                    line = {
                        "fact": fact.id,
                        "kind": fact.kind,
                        "language": language.code,
                        "family": language.family,
                        "held_out": fact.id in held,
                        **asked,
                        "overlap": _overlap(names, fact),
                    }
                    questions.write(json.dumps(line, ensure_ascii=False) + "\n")
            summaries.append(
                LanguageSummary(
                    code=language.code,
                    name=language.name,
                    family=language.family,
                    script=language.code.split("_")[1],
                    documents=documents,
                    bytes=text_bytes,
                    facts=len(available[language.code]),
                    held_out=len(held),
                )
            )
    summary = WorldSummary(
        languages=tuple(summaries),
        facts=len({fact.id for each in available.values() for fact in each}),
        held_out_pairs=len(held_out),
        seed=seed,
        heldout_share=heldout_share,
        size=size,
        versions={"babel": babel, "cldr": cldr, "num2words": num2words},
    )
    _write_summary(out / "world.json", summary)
    return summary


def _write_summary(path: Path, summary: WorldSummary) -> None:
    content = {
        "languages": [each.code for each in summary.languages],
        "families": sorted({each.family for each in summary.languages}),
        "scripts": sorted({each.script for each in summary.languages}),
        "documents": {each.code: each.documents for each in summary.languages},
        "bytes": {each.code: each.bytes for each in summary.languages},
        "facts": summary.facts,
        "held_out_pairs": summary.held_out_pairs,
        "seed": summary.seed,
        "heldout_share": summary.heldout_share,
        "size": summary.size,
        "versions": summary.versions,
    }
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
