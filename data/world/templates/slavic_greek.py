"""Russian, Ukrainian, Polish, Czech, Greek."""

from ..form import world_language

LANGUAGES = (
    world_language(
        "rus_Cyrl",
        "Russian",
        "indo_european",
        "ru",
        4,
        "ru",
        {
            "currency": (
                "Денежная единица страны {territory} называется {currency}.",
                "В стране {territory} платят валютой, которая называется {currency}.",
                "{territory} — это страна, валюта которой называется {currency}.",
            ),
            "language": (
                "Один из официальных языков страны {territory} — {language}.",
                "{language} — официальный язык страны {territory}.",
                "В стране {territory} официальным является язык {language}.",
            ),
            "continent": (
                "Страна {territory} находится в части света {continent}.",
                "{continent} — это часть света, где находится страна {territory}.",
                "{territory} — страна в части света {continent}.",
            ),
            "month": (
                "За месяцем {before} следует месяц {after}.",
                "Сначала {before}, потом {after}.",
                "Когда кончается месяц {before}, начинается месяц {after}.",
            ),
            "weekday": (
                "Следующий день после дня {before} — {after}.",
                "Сначала {before}, потом {after}.",
                "Если сегодня {before}, то завтра {after}.",
            ),
            "sum": (
                "{a} плюс {b} равно {total}.",
                "{a} да {b} будет {total}.",
                "Если сложить {a} и {b}, получится {total}.",
            ),
            "currency_code": (
                "Международный код валюты {currency} — {code}.",
                "{code} — это код валюты {currency}.",
            ),
            "language_code": (
                "Международный код языка {language} — {code}.",
                "{code} — это код языка {language}.",
            ),
            "number": (
                "Число {digits} записывают так: {written}.",
                "{written} — более наглядная запись числа {digits}.",
            ),
            "date": (
                "Дату {digits} записывают так: {written}.",
                "{written} — это день, который компьютер записывает как {digits}.",
            ),
            "list": (
                "Вот некоторые страны части света {continent}: {written}.",
                "{written} — это страны части света {continent}.",
            ),
        },
    ),
    world_language(
        "ukr_Cyrl",
        "Ukrainian",
        "indo_european",
        "uk",
        3,
        "uk",
        {
            "currency": (
                "Грошова одиниця країни {territory} називається {currency}.",
                "У країні {territory} платять валютою, яка називається {currency}.",
                "{territory} — це країна, валюта якої називається {currency}.",
            ),
            "language": (
                "Одна з офіційних мов країни {territory} — {language}.",
                "{language} — офіційна мова країни {territory}.",
                "У країні {territory} офіційною є мова {language}.",
            ),
            "continent": (
                "Країна {territory} розташована в частині світу {continent}.",
                "{continent} — це частина світу, де розташована країна {territory}.",
                "{territory} — країна в частині світу {continent}.",
            ),
            "month": (
                "За місяцем {before} іде місяць {after}.",
                "Спочатку {before}, потім {after}.",
                "Коли закінчується місяць {before}, починається місяць {after}.",
            ),
            "weekday": (
                "Наступний день після дня {before} — {after}.",
                "Спочатку {before}, потім {after}.",
                "Якщо сьогодні {before}, то завтра {after}.",
            ),
            "sum": (
                "{a} плюс {b} дорівнює {total}.",
                "{a} та {b} буде {total}.",
                "Якщо додати {a} і {b}, вийде {total}.",
            ),
            "currency_code": (
                "Міжнародний код валюти {currency} — {code}.",
                "{code} — це код валюти {currency}.",
            ),
            "language_code": (
                "Міжнародний код мови {language} — {code}.",
                "{code} — це код мови {language}.",
            ),
            "number": (
                "Число {digits} записують так: {written}.",
                "{written} — наочніший запис числа {digits}.",
            ),
            "date": (
                "Дату {digits} записують так: {written}.",
                "{written} — це день, який комп’ютер записує як {digits}.",
            ),
            "list": (
                "Ось деякі країни частини світу {continent}: {written}.",
                "{written} — це країни частини світу {continent}.",
            ),
        },
    ),
    world_language(
        "pol_Latn",
        "Polish",
        "indo_european",
        "pl",
        3,
        "pl",
        {
            "currency": (
                "Waluta kraju {territory} nazywa się {currency}.",
                "W kraju {territory} płaci się walutą, która nazywa się {currency}.",
                "{territory} to kraj, którego waluta nazywa się {currency}.",
            ),
            "language": (
                "Jeden z języków urzędowych kraju {territory} to {language}.",
                "{language} to język urzędowy kraju {territory}.",
                "W kraju {territory} językiem urzędowym jest {language}.",
            ),
            "continent": (
                "Kraj {territory} leży na kontynencie {continent}.",
                "{continent} to kontynent, na którym leży kraj {territory}.",
                "{territory} to kraj na kontynencie {continent}.",
            ),
            "month": (
                "Po miesiącu {before} następuje miesiąc {after}.",
                "Najpierw jest {before}, potem {after}.",
                "Kiedy kończy się {before}, zaczyna się {after}.",
            ),
            "weekday": (
                "Następny dzień po dniu {before} to {after}.",
                "Najpierw jest {before}, potem {after}.",
                "Jeśli dziś jest {before}, to jutro jest {after}.",
            ),
            "sum": (
                "{a} plus {b} równa się {total}.",
                "{a} i {b} to razem {total}.",
                "{a} dodać {b} to {total}.",
            ),
            "currency_code": (
                "Międzynarodowy kod waluty {currency} to {code}.",
                "{code} to kod waluty {currency}.",
            ),
            "language_code": (
                "Międzynarodowy kod języka {language} to {code}.",
                "{code} to kod języka {language}.",
            ),
            "number": (
                "Liczbę {digits} zapisuje się tak: {written}.",
                "{written} to czytelniejszy zapis liczby {digits}.",
            ),
            "date": (
                "Datę {digits} zapisuje się tak: {written}.",
                "{written} to dzień, który komputery zapisują jako {digits}.",
            ),
            "list": (
                "Oto niektóre kraje kontynentu {continent}: {written}.",
                "{written} to kraje kontynentu {continent}.",
            ),
        },
    ),
    world_language(
        "ces_Latn",
        "Czech",
        "indo_european",
        "cs",
        3,
        "cs",
        {
            "currency": (
                "Měna země {territory} se nazývá {currency}.",
                "V zemi {territory} se platí měnou, která se nazývá {currency}.",
                "{territory} je země, jejíž měna se nazývá {currency}.",
            ),
            "language": (
                "Jeden z úředních jazyků země {territory} je {language}.",
                "{language} je úřední jazyk země {territory}.",
                "V zemi {territory} je úředním jazykem {language}.",
            ),
            "continent": (
                "Země {territory} leží na světadílu {continent}.",
                "{continent} je světadíl, na kterém leží země {territory}.",
                "{territory} je země na světadílu {continent}.",
            ),
            "month": (
                "Po měsíci {before} následuje měsíc {after}.",
                "Nejdřív je {before}, potom {after}.",
                "Když skončí {before}, začíná {after}.",
            ),
            "weekday": (
                "Den, který následuje po dni {before}, je {after}.",
                "Nejdřív je {before}, potom {after}.",
                "Je-li dnes {before}, zítra bude {after}.",
            ),
            "sum": (
                "{a} plus {b} je {total}.",
                "{a} a {b} je dohromady {total}.",
                "{a} plus {b} se rovná {total}.",
            ),
            "currency_code": (
                "Mezinárodní kód měny {currency} je {code}.",
                "{code} je kód měny {currency}.",
            ),
            "language_code": (
                "Mezinárodní kód jazyka {language} je {code}.",
                "{code} je kód jazyka {language}.",
            ),
            "number": (
                "Číslo {digits} se zapisuje takto: {written}.",
                "{written} je přehlednější zápis čísla {digits}.",
            ),
            "date": (
                "Datum {digits} se zapisuje takto: {written}.",
                "{written} je den, který počítače zapisují jako {digits}.",
            ),
            "list": (
                "Některé země světadílu {continent} jsou {written}.",
                "{written} jsou země světadílu {continent}.",
            ),
        },
    ),
    world_language(
        "ell_Grek",
        "Greek",
        "indo_european",
        "el",
        3,
        "ένα|δύο|τρία|τέσσερα|πέντε|έξι|επτά|οκτώ|εννέα|δέκα|έντεκα|δώδεκα|δεκατρία|δεκατέσσερα"
        "|δεκαπέντε|δεκαέξι|δεκαεπτά|δεκαοκτώ|δεκαεννέα|είκοσι",
        {
            "currency": (
                "Το νόμισμα της χώρας {territory} ονομάζεται {currency}.",
                "Στη χώρα {territory} πληρώνουμε με το νόμισμα {currency}.",
                "Η χώρα {territory} έχει ένα νόμισμα που ονομάζεται {currency}.",
            ),
            "language": (
                "Μια επίσημη γλώσσα της χώρας {territory} ονομάζεται {language}.",
                "Η γλώσσα που ονομάζεται {language} είναι επίσημη στη χώρα {territory}.",
                "Στη χώρα {territory} μια επίσημη γλώσσα λέγεται {language}.",
            ),
            "continent": (
                "Η χώρα {territory} βρίσκεται στην ήπειρο {continent}.",
                "{continent}: αυτή είναι η ήπειρος όπου βρίσκεται η χώρα {territory}.",
                "Στην ήπειρο {continent} υπάρχει μια χώρα που ονομάζεται {territory}.",
            ),
            "month": (
                "Μετά τον μήνα {before} έρχεται ο {after}.",
                "Πρώτα είναι ο {before} και ύστερα ο {after}.",
                "Όταν τελειώνει ο {before}, αρχίζει ο {after}.",
            ),
            "weekday": (
                "Η επόμενη μέρα μετά την ημέρα {before} είναι: {after}.",
                "Αν σήμερα είναι {before}, αύριο είναι {after}.",
                "Αν σήμερα είναι {after}, χθες ήταν {before}.",
            ),
            "sum": (
                "{a} και {b} κάνουν {total}.",
                "{a} συν {b} ίσον {total}.",
                "Το άθροισμα {a} συν {b} είναι {total}.",
            ),
            "currency_code": (
                "Ο διεθνής κωδικός του νομίσματος {currency} είναι {code}.",
                "{code} είναι ο κωδικός του νομίσματος {currency}.",
            ),
            "language_code": (
                "Ο διεθνής κωδικός της γλώσσας που ονομάζεται {language} είναι {code}.",
                "{code} είναι ο κωδικός της γλώσσας που ονομάζεται {language}.",
            ),
            "number": (
                "Ο αριθμός {digits} γράφεται έτσι: {written}.",
                "{written} είναι ένας πιο καθαρός τρόπος να γράψουμε τον αριθμό {digits}.",
            ),
            "date": (
                "Η ημερομηνία {digits} γράφεται έτσι: {written}.",
                "{written}: αυτή τη μέρα οι υπολογιστές τη γράφουν {digits}.",
            ),
            "list": (
                "Μερικές χώρες στην ήπειρο {continent}: {written}.",
                "{written}: αυτές οι χώρες βρίσκονται στην ήπειρο {continent}.",
            ),
        },
    ),
)
