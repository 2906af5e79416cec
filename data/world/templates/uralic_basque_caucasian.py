"""Finnish, Estonian, Hungarian, Basque, Georgian."""

from ..form import world_language

LANGUAGES = (
    world_language(
        "fin_Latn",
        "Finnish",
        "uralic",
        "fi",
        3,
        "fi",
        {
            "currency": (
                "Maan, jonka nimi on {territory}, valuutta on {currency}.",
                "{territory} on maa, jonka valuutan nimi on {currency}.",
                "{currency} on sen maan valuutta, jonka nimi on {territory}.",
            ),
            "language": (
                "Maan, jonka nimi on {territory}, virallinen kieli on {language}.",
                "{territory} on maa, jonka virallinen kieli on {language}.",
                "{language} on virallinen kieli maassa, jonka nimi on {territory}.",
            ),
            "continent": (
                "Maanosa, jossa {territory} sijaitsee, on {continent}.",
                "{continent} on maanosa, jossa {territory} sijaitsee.",
                "{territory} on maa, jonka maanosa on {continent}.",
            ),
            "month": (
                "Kuukausi, joka alkaa, kun {before} päättyy, on {after}.",
                "Kun {before} päättyy, alkaa {after}.",
                "Ensin tulee {before} ja sitten {after}.",
            ),
            "weekday": (
                "Jos tänään on {before}, huomenna on {after}.",
                "Jos tänään on {after}, eilen oli {before}.",
                "Ensin tulee {before} ja sitten {after}.",
            ),
            "sum": (
                "{a} plus {b} on {total}.",
                "{a} ja {b} on yhteensä {total}.",
                "Summa {a} plus {b} on {total}.",
            ),
            "currency_code": (
                "Valuutan, jonka nimi on {currency}, kansainvälinen tunnus on {code}.",
                "{code} on sen valuutan tunnus, jonka nimi on {currency}.",
            ),
            "language_code": (
                "Kielen, jonka nimi on {language}, kansainvälinen tunnus on {code}.",
                "{code} on sen kielen tunnus, jonka nimi on {language}.",
            ),
            "number": (
                "Luku {digits} kirjoitetaan näin: {written}.",
                "{written} on selvempi tapa kirjoittaa luku {digits}.",
            ),
            "date": (
                "Päivämäärä {digits} kirjoitetaan näin: {written}.",
                "{written} on päivä, jonka tietokoneet kirjoittavat {digits}.",
            ),
            "list": (
                "Maanosassa, jonka nimi on {continent}, ovat {written}.",
                "{written} ovat maita maanosassa, jonka nimi on {continent}.",
            ),
        },
    ),
    world_language(
        "est_Latn",
        "Estonian",
        "uralic",
        "et",
        2,
        "üks|kaks|kolm|neli|viis|kuus|seitse|kaheksa|üheksa|kümme|üksteist|kaksteist|kolmteist"
        "|neliteist|viisteist|kuusteist|seitseteist|kaheksateist|üheksateist|kakskümmend",
        {
            "currency": (
                "Riigi, mille nimi on {territory}, rahaühik on {currency}.",
                "{territory} on riik, mille rahaühik on {currency}.",
                "{currency} on selle riigi raha, mille nimi on {territory}.",
            ),
            "language": (
                "Riigi, mille nimi on {territory}, ametlik keel on {language} keel.",
                "{territory} on riik, mille ametlik keel on {language} keel.",
                "{language} keel on ametlik keel riigis, mille nimi on {territory}.",
            ),
            "continent": (
                "Maailmajagu, kus asub {territory}, on {continent}.",
                "{continent} on maailmajagu, kus asub {territory}.",
                "{territory} on riik, mille maailmajagu on {continent}.",
            ),
            "month": (
                "Kuu, mis algab, kui {before} lõpeb, on {after}.",
                "Kui {before} lõpeb, algab {after}.",
                "Enne tuleb {before} ja siis {after}.",
            ),
            "weekday": (
                "Kui täna on {before}, siis homme on {after}.",
                "Kui täna on {after}, siis eile oli {before}.",
                "Enne tuleb {before} ja siis {after}.",
            ),
            "sum": (
                "{a} pluss {b} on {total}.",
                "{a} ja {b} on kokku {total}.",
                "Summa {a} pluss {b} on {total}.",
            ),
            "currency_code": (
                "Rahaühiku, mille nimi on {currency}, rahvusvaheline kood on {code}.",
                "{code} on selle rahaühiku kood, mille nimi on {currency}.",
            ),
            "language_code": (
                "Keele, mille nimi on {language} keel, rahvusvaheline kood on {code}.",
                "{code} on selle keele kood, mille nimi on {language} keel.",
            ),
            "number": (
                "Arv {digits} kirjutatakse nii: {written}.",
                "{written} on selgem viis kirjutada arvu {digits}.",
            ),
            "date": (
                "Kuupäev {digits} kirjutatakse nii: {written}.",
                "{written} on päev, mille arvutid kirjutavad {digits}.",
            ),
            "list": (
                "Maailmajaos, mille nimi on {continent}, asuvad {written}.",
                "{written} on riigid maailmajaos, mille nimi on {continent}.",
            ),
        },
    ),
    world_language(
        "hun_Latn",
        "Hungarian",
        "uralic",
        "hu",
        3,
        "hu",
        {
            "currency": (
                "Ország: {territory}. Ennek az országnak a pénzneme: {currency}.",
                "{territory} olyan ország, amelynek pénzneme a következő: {currency}.",
                "Pénznem: {currency}. Ezt a pénznemet használja ez az ország: {territory}.",
            ),
            "language": (
                "Ország: {territory}. Ennek az országnak az egyik hivatalos nyelve: {language}.",
                "{territory} olyan ország, ahol ez hivatalos nyelv: {language}.",
                "Hivatalos nyelv ebben az országban ({territory}): {language}.",
            ),
            "continent": (
                "Ország: {territory}. Ennek az országnak a földrésze: {continent}.",
                "{territory} olyan ország, amelynek földrésze {continent}.",
                "{continent} az a földrész, ahol {territory} található.",
            ),
            "month": (
                "{before} után ez a hónap jön: {after}.",
                "{before} után {after} következik.",
                "{after} előtt {before} van.",
            ),
            "weekday": (
                "Ha ma {before} van, akkor holnap {after}.",
                "{before} után {after} következik.",
                "{after} előtt {before} van.",
            ),
            "sum": (
                "{a} meg {b} az {total}.",
                "{a} plusz {b} egyenlő {total}.",
                "{a} és {b} összege {total}.",
            ),
            "currency_code": (
                "Pénznem: {currency}. Nemzetközi kódja: {code}.",
                "{code} ennek a pénznemnek a kódja: {currency}.",
            ),
            "language_code": (
                "Nyelv: {language}. Nemzetközi kódja: {code}.",
                "{code} ennek a nyelvnek a kódja: {language}.",
            ),
            "number": (
                "Ezt a számot ({digits}) így írjuk: {written}.",
                "{written}: így áttekinthetőbb ez a szám: {digits}.",
            ),
            "date": (
                "Ezt a dátumot ({digits}) így írjuk: {written}.",
                "{written}: ezt a napot a számítógépek így írják: {digits}.",
            ),
            "list": (
                "{continent} néhány országa: {written}.",
                "{written}: ezek {continent} országai.",
            ),
        },
    ),
    world_language(
        "eus_Latn",
        "Basque",
        "basque",
        "eu",
        2,
        "bat|bi|hiru|lau|bost|sei|zazpi|zortzi|bederatzi|hamar|hamaika|hamabi|hamahiru|hamalau"
        "|hamabost|hamasei|hamazazpi|hemezortzi|hemeretzi|hogei",
        {
            "currency": (
                "{territory} izeneko herrialdeko moneta hau da: {currency}.",
                "{territory} izeneko herrialdean {currency} izeneko moneta erabiltzen da.",
                "{currency} da {territory} izeneko herrialdeko moneta.",
            ),
            "language": (
                "{territory} izeneko herrialdeko hizkuntza ofizial bat hau da: {language}.",
                "{territory} izeneko herrialdean {language} hizkuntza ofiziala da.",
                "{language} da {territory} izeneko herrialdeko hizkuntza ofizial bat.",
            ),
            "continent": (
                "{territory} izeneko herrialdea kontinente honetan dago: {continent}.",
                "{territory} izeneko herrialdea {continent} izeneko kontinentean dago.",
                "{continent} izeneko kontinentean {territory} izeneko herrialdea dago.",
            ),
            "month": (
                "{before} amaitzen denean hasten den hilabetea hau da: {after}.",
                "Lehenengo {before} dator, eta gero {after}.",
                "{after} hasten da {before} amaitzen denean.",
            ),
            "weekday": (
                "Gaur {before} bada, bihar {after}.",
                "Lehenengo {before} dator, eta gero {after}.",
                "Gaur {after} bada, atzo {before} zen.",
            ),
            "sum": (
                "{a} gehi {b} berdin {total}.",
                "{a} gehi {b} {total} dira.",
                "Batuketa: {a} gehi {b} berdin {total}.",
            ),
            "currency_code": (
                "{currency} izeneko monetaren nazioarteko kodea hau da: {code}.",
                "{code} da {currency} izeneko monetaren kodea.",
            ),
            "language_code": (
                "{language} izeneko hizkuntzaren nazioarteko kodea hau da: {code}.",
                "{code} da {language} izeneko hizkuntzaren kodea.",
            ),
            "number": (
                "{digits} zenbakia honela idazten da: {written}.",
                "{written} da {digits} zenbakia idazteko modu argiagoa.",
            ),
            "date": (
                "{digits} data honela idazten da: {written}.",
                "{written}: egun hori ordenagailuek {digits} idazten dute.",
            ),
            "list": (
                "{continent} izeneko kontinenteko herrialde batzuk: {written}.",
                "{written}: horiek {continent} izeneko kontinenteko herrialdeak dira.",
            ),
        },
    ),
    world_language(
        "kat_Geor",
        "Georgian",
        "kartvelian",
        "ka",
        2,
        "ერთი|ორი|სამი|ოთხი|ხუთი|ექვსი|შვიდი|რვა|ცხრა|ათი|თერთმეტი|თორმეტი|ცამეტი|თოთხმეტი"
        "|თხუთმეტი|თექვსმეტი|ჩვიდმეტი|თვრამეტი|ცხრამეტი|ოცი",
        {
            "currency": (
                "ქვეყანა: {territory}. ამ ქვეყნის ვალუტა არის {currency}.",
                "{territory} არის ქვეყანა, რომლის ვალუტა არის {currency}.",
                "{currency} არის იმ ქვეყნის ვალუტა, რომლის სახელია {territory}.",
            ),
            "language": (
                "ქვეყანა: {territory}. ამ ქვეყნის ერთ-ერთი ოფიციალური ენა არის {language}.",
                "{territory} არის ქვეყანა, რომლის ოფიციალური ენა არის {language}.",
                "{language} არის ოფიციალური ენა ქვეყანაში, რომლის სახელია {territory}.",
            ),
            "continent": (
                "ქვეყანა: {territory}. კონტინენტი, სადაც ეს ქვეყანა მდებარეობს, არის {continent}.",
                "{continent} არის კონტინენტი, სადაც მდებარეობს {territory}.",
                "{territory} არის ქვეყანა, რომლის კონტინენტია {continent}.",
            ),
            "month": (
                "როცა მთავრდება {before}, იწყება {after}.",
                "ჯერ მოდის {before}, შემდეგ კი {after}.",
                "{after} იწყება მაშინ, როცა მთავრდება {before}.",
            ),
            "weekday": (
                "თუ დღეს არის {before}, ხვალ იქნება {after}.",
                "ჯერ მოდის {before}, შემდეგ კი {after}.",
                "თუ დღეს არის {after}, გუშინ იყო {before}.",
            ),
            "sum": (
                "{a} პლუს {b} არის {total}.",
                "{a} და {b} ერთად არის {total}.",
                "ჯამი: {a} პლუს {b} არის {total}.",
            ),
            "currency_code": (
                "ვალუტა: {currency}. მისი საერთაშორისო კოდი არის {code}.",
                "{code} არის იმ ვალუტის კოდი, რომლის სახელია {currency}.",
            ),
            "language_code": (
                "ენა: {language}. მისი საერთაშორისო კოდი არის {code}.",
                "{code} არის იმ ენის კოდი, რომლის სახელია {language}.",
            ),
            "number": (
                "რიცხვი {digits} ასე იწერება: {written}.",
                "{written} არის უფრო ნათელი ჩანაწერი რიცხვისა {digits}.",
            ),
            "date": (
                "თარიღი {digits} ასე იწერება: {written}.",
                "{written} არის დღე, რომელსაც კომპიუტერი ასე წერს: {digits}.",
            ),
            "list": (
                "კონტინენტი: {continent}. ზოგიერთი მისი ქვეყანა: {written}.",
                "{written} — ეს ქვეყნები ერთ კონტინენტზეა, და ეს არის {continent}.",
            ),
        },
        capitals=False,
    ),
)
