"""English, German, Dutch, Swedish."""

from ..form import world_language

LANGUAGES = (
    world_language(
        "eng_Latn",
        "English",
        "indo_european",
        "en",
        5,
        "en",
        {
            "currency": (
                "The currency of the country {territory} is called {currency}.",
                "In the country {territory}, people pay with a currency called {currency}.",
                "{currency} is the name of the money that is used in the country {territory}.",
                "{territory} is a country whose currency is called {currency}.",
            ),
            "language": (
                "An official language of the country {territory} is {language}.",
                "{language} is an official language of the country {territory}.",
                "In the country {territory}, the language {language} has official status.",
                "{territory} is a country in which {language} is an official language.",
            ),
            "continent": (
                "The country {territory} lies on the continent {continent}.",
                "{continent} is the continent on which the country {territory} lies.",
                "{territory} is a country on the continent {continent}.",
            ),
            "month": (
                "The month after {before} is {after}.",
                "{before} is followed by {after}.",
                "The month {after} comes right after the month {before}.",
                "When {before} ends, {after} begins.",
            ),
            "weekday": (
                "The day after {before} is {after}.",
                "{before} is followed by {after}.",
                "If today is {before}, tomorrow is {after}.",
                "If today is {after}, yesterday was {before}.",
            ),
            "sum": (
                "{a} plus {b} is {total}.",
                "{a} and {b} make {total}.",
                "The sum of {a} and {b} is {total}.",
                "{total} is {a} plus {b}.",
            ),
            "currency_code": (
                "The international code of the currency {currency} is {code}.",
                "{code} is the code of the currency {currency}.",
            ),
            "language_code": (
                "The international code of the language {language} is {code}.",
                "{code} is the code of the language {language}.",
            ),
            "number": (
                "The number {digits} is written as {written}.",
                "{written} is a clearer way to write the number {digits}.",
            ),
            "date": (
                "The date {digits} is written as {written}.",
                "{written} is the day that computers write as {digits}.",
            ),
            "list": (
                "Some countries of the continent {continent} are {written}.",
                "{written} are countries of the continent {continent}.",
            ),
        },
    ),
    world_language(
        "deu_Latn",
        "German",
        "indo_european",
        "de",
        4,
        "de",
        {
            "currency": (
                "Die Währung des Landes {territory} heißt {currency}.",
                "Im Land {territory} bezahlt man mit der Währung {currency}.",
                "{territory} ist ein Land, dessen Währung {currency} heißt.",
                "{currency} ist der Name der Währung des Landes {territory}.",
            ),
            "language": (
                "Eine Amtssprache des Landes {territory} ist {language}.",
                "{language} ist eine Amtssprache des Landes {territory}.",
                "Im Land {territory} ist die Sprache {language} Amtssprache.",
            ),
            "continent": (
                "Das Land {territory} liegt auf dem Kontinent {continent}.",
                "{continent} ist der Kontinent, auf dem das Land {territory} liegt.",
                "{territory} ist ein Land auf dem Kontinent {continent}.",
            ),
            "month": (
                "Auf den Monat {before} folgt der Monat {after}.",
                "Nach dem {before} kommt der {after}.",
                "Der Monat nach {before} heißt {after}.",
                "Vor dem {after} kommt der {before}.",
            ),
            "weekday": (
                "Der Tag nach {before} ist {after}.",
                "Auf {before} folgt {after}.",
                "Wenn heute {before} ist, ist morgen {after}.",
                "Wenn heute {after} ist, war gestern {before}.",
            ),
            "sum": (
                "{a} plus {b} ist {total}.",
                "{a} und {b} ergibt {total}.",
                "Die Summe von {a} und {b} ist {total}.",
                "{total} ist {a} plus {b}.",
            ),
            "currency_code": (
                "Der internationale Code der Währung {currency} ist {code}.",
                "{code} ist der Code der Währung {currency}.",
            ),
            "language_code": (
                "Der internationale Code der Sprache {language} ist {code}.",
                "{code} ist der Code der Sprache {language}.",
            ),
            "number": (
                "Die Zahl {digits} schreibt man so: {written}.",
                "{written} ist eine übersichtlichere Schreibweise der Zahl {digits}.",
            ),
            "date": (
                "Das Datum {digits} schreibt man so: {written}.",
                "{written} ist der Tag, den Computer als {digits} schreiben.",
            ),
            "list": (
                "Einige Länder des Kontinents {continent} sind {written}.",
                "{written} sind Länder des Kontinents {continent}.",
            ),
        },
    ),
    world_language(
        "nld_Latn",
        "Dutch",
        "indo_european",
        "nl",
        3,
        "nl",
        {
            "currency": (
                "De munteenheid van het land {territory} heet {currency}.",
                "In het land {territory} betaalt men met de munteenheid {currency}.",
                "{territory} is een land waarvan de munteenheid {currency} heet.",
            ),
            "language": (
                "Een officiële taal van het land {territory} is {language}.",
                "{language} is een officiële taal van het land {territory}.",
                "In het land {territory} is de taal {language} officieel.",
            ),
            "continent": (
                "Het land {territory} ligt op het continent {continent}.",
                "{continent} is het continent waarop het land {territory} ligt.",
                "{territory} is een land op het continent {continent}.",
            ),
            "month": (
                "De maand na {before} is {after}.",
                "Na {before} komt {after}.",
                "De maand {after} volgt op de maand {before}.",
                "Vóór {after} komt {before}.",
            ),
            "weekday": (
                "De dag na {before} is {after}.",
                "Na {before} komt {after}.",
                "Als het vandaag {before} is, is het morgen {after}.",
            ),
            "sum": (
                "{a} plus {b} is {total}.",
                "{a} en {b} is samen {total}.",
                "De som van {a} en {b} is {total}.",
            ),
            "currency_code": (
                "De internationale code van de munteenheid {currency} is {code}.",
                "{code} is de code van de munteenheid {currency}.",
            ),
            "language_code": (
                "De internationale code van de taal {language} is {code}.",
                "{code} is de code van de taal {language}.",
            ),
            "number": (
                "Het getal {digits} schrijf je zo: {written}.",
                "{written} is een duidelijkere manier om het getal {digits} te schrijven.",
            ),
            "date": (
                "De datum {digits} schrijf je zo: {written}.",
                "{written} is de dag die computers als {digits} schrijven.",
            ),
            "list": (
                "Enkele landen van het continent {continent} zijn {written}.",
                "{written} zijn landen van het continent {continent}.",
            ),
        },
    ),
    world_language(
        "swe_Latn",
        "Swedish",
        "indo_european",
        "sv",
        3,
        "sv",
        {
            "currency": (
                "Valutan i landet {territory} heter {currency}.",
                "I landet {territory} betalar man med valutan {currency}.",
                "{territory} är ett land vars valuta heter {currency}.",
            ),
            "language": (
                "Ett officiellt språk i landet {territory} är {language}.",
                "{language} är ett officiellt språk i landet {territory}.",
                "I landet {territory} är språket {language} officiellt.",
            ),
            "continent": (
                "Landet {territory} ligger i världsdelen {continent}.",
                "{continent} är den världsdel där landet {territory} ligger.",
                "{territory} är ett land i världsdelen {continent}.",
            ),
            "month": (
                "Månaden efter {before} är {after}.",
                "Efter {before} kommer {after}.",
                "Månaden {after} följer på månaden {before}.",
                "Före {after} kommer {before}.",
            ),
            "weekday": (
                "Dagen efter {before} är {after}.",
                "Efter {before} kommer {after}.",
                "Om det är {before} i dag är det {after} i morgon.",
            ),
            "sum": (
                "{a} plus {b} är {total}.",
                "{a} och {b} blir {total}.",
                "Summan av {a} och {b} är {total}.",
            ),
            "currency_code": (
                "Den internationella koden för valutan {currency} är {code}.",
                "{code} är koden för valutan {currency}.",
            ),
            "language_code": (
                "Den internationella koden för språket {language} är {code}.",
                "{code} är koden för språket {language}.",
            ),
            "number": (
                "Talet {digits} skrivs så här: {written}.",
                "{written} är ett tydligare sätt att skriva talet {digits}.",
            ),
            "date": (
                "Datumet {digits} skrivs så här: {written}.",
                "{written} är den dag som datorer skriver som {digits}.",
            ),
            "list": (
                "Några länder i världsdelen {continent} är {written}.",
                "{written} är länder i världsdelen {continent}.",
            ),
        },
    ),
)
