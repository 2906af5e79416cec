"""French, Spanish, Portuguese, Italian, Romanian."""

from ..form import world_language

LANGUAGES = (
    world_language(
        "fra_Latn",
        "French",
        "indo_european",
        "fr",
        4,
        "fr",
        {
            "currency": (
                "La monnaie du pays appelé {territory} porte le nom suivant : {currency}.",
                "Dans le pays appelé {territory}, on paie avec une monnaie nommée {currency}.",
                "{currency} : c’est le nom de la monnaie du pays appelé {territory}.",
            ),
            "language": (
                "Une langue officielle du pays appelé {territory} est la suivante : {language}.",
                "La langue nommée {language} est officielle dans le pays appelé {territory}.",
                "Dans le pays appelé {territory}, une langue officielle se nomme {language}.",
            ),
            "continent": (
                "Le pays appelé {territory} se trouve sur le continent nommé {continent}.",
                "{continent} est le nom du continent où se trouve le pays appelé {territory}.",
                "Sur le continent nommé {continent}, il y a un pays appelé {territory}.",
            ),
            "month": (
                "Le mois qui suit {before} est {after}.",
                "Après le mois de {before} vient le mois de {after}.",
                "Le mois de {after} commence quand le mois de {before} se termine.",
            ),
            "weekday": (
                "Le jour qui suit {before} est {after}.",
                "Après {before} vient {after}.",
                "Si nous sommes {before} aujourd’hui, demain nous serons {after}.",
            ),
            "sum": (
                "{a} plus {b} égale {total}.",
                "{a} et {b} font {total}.",
                "La somme de {a} et {b} est {total}.",
            ),
            "currency_code": (
                "Le code international de la monnaie nommée {currency} est {code}.",
                "{code} est le code de la monnaie nommée {currency}.",
            ),
            "language_code": (
                "Le code international de la langue nommée {language} est {code}.",
                "{code} est le code de la langue nommée {language}.",
            ),
            "number": (
                "Le nombre {digits} s’écrit {written}.",
                "{written} est une façon plus claire d’écrire le nombre {digits}.",
            ),
            "date": (
                "La date {digits} s’écrit {written}.",
                "Le {written} est le jour que les ordinateurs notent {digits}.",
            ),
            "list": (
                "Voici des pays du continent nommé {continent} : {written}.",
                "{written} : ces pays se trouvent sur le continent nommé {continent}.",
            ),
        },
    ),
    world_language(
        "spa_Latn",
        "Spanish",
        "indo_european",
        "es",
        5,
        "es",
        {
            "currency": (
                "La moneda del país llamado {territory} se llama {currency}.",
                "En el país llamado {territory} se paga con una moneda llamada {currency}.",
                "{territory} es un país cuya moneda se llama {currency}.",
            ),
            "language": (
                "Una lengua oficial del país llamado {territory} es el {language}.",
                "El {language} es una lengua oficial del país llamado {territory}.",
                "En el país llamado {territory}, el {language} es lengua oficial.",
            ),
            "continent": (
                "El país llamado {territory} está en el continente llamado {continent}.",
                "{continent} es el continente donde está el país llamado {territory}.",
                "{territory} es un país del continente llamado {continent}.",
            ),
            "month": (
                "El mes que sigue a {before} es {after}.",
                "Después de {before} viene {after}.",
                "El mes de {after} empieza cuando termina el mes de {before}.",
            ),
            "weekday": (
                "El día que sigue al {before} es el {after}.",
                "Después del {before} viene el {after}.",
                "Si hoy es {before}, mañana es {after}.",
            ),
            "sum": (
                "{a} más {b} es igual a {total}.",
                "{a} y {b} suman {total}.",
                "La suma de {a} y {b} es {total}.",
            ),
            "currency_code": (
                "El código internacional de la moneda llamada {currency} es {code}.",
                "{code} es el código de la moneda llamada {currency}.",
            ),
            "language_code": (
                "El código internacional de la lengua llamada {language} es {code}.",
                "{code} es el código de la lengua llamada {language}.",
            ),
            "number": (
                "El número {digits} se escribe así: {written}.",
                "{written} es una forma más clara de escribir el número {digits}.",
            ),
            "date": (
                "La fecha {digits} se escribe así: {written}.",
                "El {written} es el día que los ordenadores escriben como {digits}.",
            ),
            "list": (
                "Algunos países del continente llamado {continent} son {written}.",
                "{written} son países del continente llamado {continent}.",
            ),
        },
    ),
    world_language(
        "por_Latn",
        "Portuguese",
        "indo_european",
        "pt",
        4,
        "pt_BR",
        {
            "currency": (
                "A moeda do país chamado {territory} se chama {currency}.",
                "No país chamado {territory}, paga-se com uma moeda chamada {currency}.",
                "{territory} é um país cuja moeda se chama {currency}.",
            ),
            "language": (
                "Uma língua oficial do país chamado {territory} é a seguinte: {language}.",
                "A língua chamada {language} é oficial no país chamado {territory}.",
                "{territory} é um país que tem como língua oficial a língua chamada {language}.",
            ),
            "continent": (
                "O país chamado {territory} fica no continente chamado {continent}.",
                "{continent} é o continente onde fica o país chamado {territory}.",
                "{territory} é um país do continente chamado {continent}.",
            ),
            "month": (
                "O mês que vem depois de {before} é {after}.",
                "Depois de {before} vem {after}.",
                "O mês de {after} começa quando termina o mês de {before}.",
            ),
            "weekday": (
                "O dia que vem depois de {before} é {after}.",
                "Depois de {before} vem {after}.",
                "Se hoje é {before}, amanhã é {after}.",
            ),
            "sum": (
                "{a} mais {b} é igual a {total}.",
                "{a} e {b} somam {total}.",
                "A soma de {a} e {b} é {total}.",
            ),
            "currency_code": (
                "O código internacional da moeda chamada {currency} é {code}.",
                "{code} é o código da moeda chamada {currency}.",
            ),
            "language_code": (
                "O código internacional da língua chamada {language} é {code}.",
                "{code} é o código da língua chamada {language}.",
            ),
            "number": (
                "O número {digits} se escreve assim: {written}.",
                "{written} é uma forma mais clara de escrever o número {digits}.",
            ),
            "date": (
                "A data {digits} se escreve assim: {written}.",
                "O dia {written} é aquele que os computadores escrevem como {digits}.",
            ),
            "list": (
                "Alguns países do continente chamado {continent} são {written}.",
                "{written} são países do continente chamado {continent}.",
            ),
        },
    ),
    world_language(
        "ita_Latn",
        "Italian",
        "indo_european",
        "it",
        4,
        "it",
        {
            "currency": (
                "La valuta del paese chiamato {territory} si chiama {currency}.",
                "Nel paese chiamato {territory} si paga con una valuta chiamata {currency}.",
                "{territory} è un paese la cui valuta si chiama {currency}.",
            ),
            "language": (
                "Una lingua ufficiale del paese chiamato {territory} è la seguente: {language}.",
                "La lingua chiamata {language} è ufficiale nel paese chiamato {territory}.",
                "Nel paese chiamato {territory} una lingua ufficiale si chiama {language}.",
            ),
            "continent": (
                "Il paese chiamato {territory} si trova nel continente chiamato {continent}.",
                "{continent} è il continente in cui si trova il paese chiamato {territory}.",
                "{territory} è un paese del continente chiamato {continent}.",
            ),
            "month": (
                "Il mese che segue {before} è {after}.",
                "Dopo {before} viene {after}.",
                "Il mese di {after} comincia quando finisce il mese di {before}.",
            ),
            "weekday": (
                "Il giorno dopo {before} è {after}.",
                "Dopo {before} viene {after}.",
                "Se oggi è {before}, domani è {after}.",
            ),
            "sum": (
                "{a} più {b} fa {total}.",
                "{a} più {b} è uguale a {total}.",
                "La somma di {a} e {b} è {total}.",
            ),
            "currency_code": (
                "Il codice internazionale della valuta chiamata {currency} è {code}.",
                "{code} è il codice della valuta chiamata {currency}.",
            ),
            "language_code": (
                "Il codice internazionale della lingua chiamata {language} è {code}.",
                "{code} è il codice della lingua chiamata {language}.",
            ),
            "number": (
                "Il numero {digits} si scrive così: {written}.",
                "{written} è un modo più chiaro di scrivere il numero {digits}.",
            ),
            "date": (
                "La data {digits} si scrive così: {written}.",
                "Il giorno {written} è quello che i computer scrivono come {digits}.",
            ),
            "list": (
                "Alcuni paesi del continente chiamato {continent} sono {written}.",
                "{written} sono paesi del continente chiamato {continent}.",
            ),
        },
    ),
    world_language(
        "ron_Latn",
        "Romanian",
        "indo_european",
        "ro",
        2,
        "ro",
        {
            "currency": (
                "Moneda țării numite {territory} se numește {currency}.",
                "În țara numită {territory} se plătește cu o monedă numită {currency}.",
                "{territory} este o țară a cărei monedă se numește {currency}.",
            ),
            "language": (
                "O limbă oficială a țării numite {territory} este limba {language}.",
                "Limba {language} este o limbă oficială a țării numite {territory}.",
                "În țara numită {territory}, limba {language} este oficială.",
            ),
            "continent": (
                "Țara numită {territory} se află pe continentul {continent}.",
                "{continent} este continentul pe care se află țara numită {territory}.",
                "{territory} este o țară de pe continentul {continent}.",
            ),
            "month": (
                "Luna care urmează după {before} este {after}.",
                "După {before} vine {after}.",
                "Luna {after} începe când se termină luna {before}.",
            ),
            "weekday": (
                "Ziua care urmează după {before} este {after}.",
                "După {before} vine {after}.",
                "Dacă azi este {before}, mâine este {after}.",
            ),
            "sum": (
                "{a} plus {b} fac {total}.",
                "{a} plus {b} este egal cu {total}.",
                "{a} și cu {b} fac {total}.",
            ),
            "currency_code": (
                "Codul internațional al monedei numite {currency} este {code}.",
                "{code} este codul monedei numite {currency}.",
            ),
            "language_code": (
                "Codul internațional al limbii numite {language} este {code}.",
                "{code} este codul limbii numite {language}.",
            ),
            "number": (
                "Numărul {digits} se scrie așa: {written}.",
                "{written} este un mod mai clar de a scrie numărul {digits}.",
            ),
            "date": (
                "Data {digits} se scrie așa: {written}.",
                "Ziua de {written} este cea pe care calculatoarele o scriu {digits}.",
            ),
            "list": (
                "Câteva țări de pe continentul {continent} sunt {written}.",
                "{written} sunt țări de pe continentul {continent}.",
            ),
        },
    ),
)
