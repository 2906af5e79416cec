"""A locale's names for what facts refer to: territories, currencies, months, numbers, dates.

Everything comes from Unicode CLDR through babel, and number words from num2words, at run time.
"""

import unicodedata
from datetime import date
from decimal import Decimal
from typing import Any

from ..errors import DataError
from .facts import Reference
from .form import WorldLanguage

BIDI_MARKS = dict.fromkeys([0x200E, 0x200F, 0x061C])


def require_demo() -> tuple[str, str, str]:
    """The versions of babel, of its CLDR data and of num2words. Raises DataError without them."""
    from importlib.metadata import version

    try:
        import babel  # noqa: F401
        import num2words  # noqa: F401
        from babel.core import get_cldr_version
    except ImportError as error:
        raise DataError(
            f"the embedded corpus needs {error.name}; install it: pip install 'xylem[demo]'"
        ) from None
    return version("babel"), str(get_cldr_version()), version("num2words")


def fresh_locale(identifier: str) -> Any:
    """A babel Locale whose data no other locale shares.

    Babel 2.18 resolves an alias inside a dictionary that locales share through its cache, so that
    the month names of Hebrew would become those of Swahili (stand-alone months are an alias in
    both): the cache is emptied before each locale is read.
    """
    from babel import Locale, localedata

    localedata._cache.clear()
    locale = Locale.parse(identifier)
    # Reading one entry makes the locale load its data now, from the emptied cache.
    _ = locale.display_name
    return locale


class Names:
    """The names in one language. `names[reference]` is None where the language has none."""

    def __init__(self, language: WorldLanguage) -> None:
        self.language = language
        self.locale = fresh_locale(language.locale)
        self._known: dict[Reference, str | None] = {}

    def __getitem__(self, reference: Reference) -> str | None:
        if reference not in self._known:
            name = self._look_up(*reference)
            if name is not None:
                name = unicodedata.normalize("NFC", name.translate(BIDI_MARKS)).strip()
            self._known[reference] = name or None
        return self._known[reference]

    def _look_up(self, kind: str, key: str) -> str | None:
        locale = self.locale
        found: str | None
        match kind:
            case "literal":
                found = key
            case "territory":
                found = locale.territories.get(key)
            case "currency":
                found = locale.currencies.get(key)
            case "language":
                found = locale.languages.get(key)
            case "month":
                found = locale.months["stand-alone"]["wide"].get(int(key))
            case "weekday":
                found = locale.days["stand-alone"]["wide"].get(int(key))
            case "word":
                found = self._word(int(key))
            case "number":
                found = self._number(key)
            case "date":
                found = self._date(key)
            case "list":
                found = self._list(key.split("+"))
            case _:
                raise KeyError(kind)
        return found

    def _word(self, number: int) -> str:
        words = self.language.words
        if isinstance(words, tuple):
            return words[number - 1]
        from num2words import num2words

        return str(num2words(number, lang=words))

    def _number(self, digits: str) -> str:
        from babel.numbers import format_decimal

        # Babel takes a numbering system's separators without its digits, so only Latin ones fit.
        return str(format_decimal(Decimal(digits), locale=self.locale, numbering_system="latn"))

    def _date(self, iso: str) -> str:
        from babel.dates import format_date

        return str(format_date(date.fromisoformat(iso), format="long", locale=self.locale))

    def _list(self, territories: list[str]) -> str | None:
        from babel.lists import format_list

        names = [name for each in territories if (name := self["territory", each]) is not None]
        if len(names) < len(territories):
            return None
        return str(format_list(names, locale=self.locale))
