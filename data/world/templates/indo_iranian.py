"""Persian, Hindi, Bengali."""

from ..form import world_language

LANGUAGES = (
    world_language(
        "pes_Arab",
        "Persian",
        "indo_european",
        "fa",
        3,
        "fa",
        {
            "currency": (
                "نام واحد پول کشور {territory} این است: {currency}.",
                "واحد پول کشور {territory} {currency} نام دارد.",
                "{territory} کشوری است که واحد پول آن {currency} است.",
            ),
            "language": (
                "یکی از زبان‌های رسمی کشور {territory} این است: {language}.",
                "{language} یکی از زبان‌های رسمی کشور {territory} است.",
                "در کشور {territory} زبان {language} رسمی است.",
            ),
            "continent": (
                "کشور {territory} در این قاره قرار دارد: {continent}.",
                "کشور {territory} در قارهٔ {continent} قرار دارد.",
                "{territory} کشوری در قارهٔ {continent} است.",
            ),
            "month": (
                "ماه پس از {before} این است: {after}.",
                "پس از ماه {before} ماه {after} می‌آید.",
                "ماه {after} پس از ماه {before} آغاز می‌شود.",
            ),
            "weekday": (
                "روز پس از {before} این است: {after}.",
                "پس از {before} {after} می‌آید.",
                "اگر امروز {before} باشد، فردا {after} است.",
            ),
            "sum": (
                "{a} به اضافهٔ {b} برابر است با {total}.",
                "{a} به علاوهٔ {b} می‌شود {total}.",
                "مجموع {a} و {b} برابر {total} است.",
            ),
            "currency_code": (
                "کد بین‌المللی واحد پول {currency} این است: {code}.",
                "{code} کد واحد پول {currency} است.",
            ),
            "language_code": (
                "کد بین‌المللی زبان {language} این است: {code}.",
                "{code} کد زبان {language} است.",
            ),
            "number": (
                "عدد {digits} را چنین می‌نویسند: {written}.",
                "{written} شکل خواناتر عدد {digits} است.",
            ),
            "date": (
                "تاریخ {digits} را چنین می‌نویسند: {written}.",
                "{written} روزی است که رایانه‌ها آن را {digits} می‌نویسند.",
            ),
            "list": (
                "چند کشور قارهٔ {continent}: {written}.",
                "{written} کشورهایی در قارهٔ {continent} هستند.",
            ),
        },
    ),
    world_language(
        "hin_Deva",
        "Hindi",
        "indo_european",
        "hi",
        2,
        "एक|दो|तीन|चार|पाँच|छह|सात|आठ|नौ|दस|ग्यारह|बारह|तेरह|चौदह|पंद्रह|सोलह|सत्रह|अठारह|उन्नीस|बीस",
        {
            "currency": (
                "{territory} देश की मुद्रा का नाम है {currency}।",
                "{territory} देश की मुद्रा {currency} कहलाती है।",
                "{territory} वह देश है जिसकी मुद्रा का नाम {currency} है।",
            ),
            "language": (
                "{territory} देश की एक राजभाषा है {language}।",
                "{language} {territory} देश की एक राजभाषा है।",
                "{territory} देश में {language} एक आधिकारिक भाषा है।",
            ),
            "continent": (
                "{territory} देश जिस महाद्वीप में है, उसका नाम है {continent}।",
                "{territory} देश {continent} महाद्वीप में है।",
                "{continent} महाद्वीप में {territory} नाम का देश है।",
            ),
            "month": (
                "{before} के बाद आने वाला महीना है {after}।",
                "{before} के बाद {after} आता है।",
                "{after} से पहले {before} आता है।",
            ),
            "weekday": (
                "{before} के बाद आने वाला दिन है {after}।",
                "{before} के बाद {after} आता है।",
                "अगर आज {before} है, तो कल {after} होगा।",
            ),
            "sum": (
                "{a} और {b} का योग है {total}।",
                "{a} और {b} मिलकर {total} होते हैं।",
                "{a} में {b} जोड़ने पर {total} मिलता है।",
            ),
            "currency_code": (
                "{currency} मुद्रा का अंतरराष्ट्रीय कोड है {code}।",
                "{code} मुद्रा {currency} का कोड है।",
            ),
            "language_code": (
                "{language} भाषा का अंतरराष्ट्रीय कोड है {code}।",
                "{code} भाषा {language} का कोड है।",
            ),
            "number": (
                "संख्या {digits} को ऐसे लिखते हैं: {written}।",
                "{written} संख्या {digits} लिखने का अधिक साफ़ तरीका है।",
            ),
            "date": (
                "तारीख {digits} को ऐसे लिखते हैं: {written}।",
                "{written} वह दिन है जिसे कंप्यूटर {digits} लिखते हैं।",
            ),
            "list": (
                "{continent} महाद्वीप के कुछ देश हैं {written}।",
                "{written} {continent} महाद्वीप के देश हैं।",
            ),
        },
    ),
    world_language(
        "ben_Beng",
        "Bengali",
        "indo_european",
        "bn",
        2,
        "এক|দুই|তিন|চার|পাঁচ|ছয়|সাত|আট|নয়|দশ|এগারো|বারো|তেরো|চৌদ্দ|পনেরো|ষোলো|সতেরো|আঠারো|উনিশ|বিশ",
        {
            "currency": (
                "{territory} দেশের মুদ্রার নাম {currency}।",
                "{territory} দেশে যে মুদ্রা চলে তার নাম {currency}।",
                "{currency} হলো {territory} দেশের মুদ্রা।",
            ),
            "language": (
                "{territory} দেশের একটি সরকারি ভাষা হলো {language}।",
                "{language} {territory} দেশের একটি সরকারি ভাষা।",
                "{territory} দেশে {language} একটি দাপ্তরিক ভাষা।",
            ),
            "continent": (
                "{territory} দেশটি যে মহাদেশে অবস্থিত তার নাম {continent}।",
                "{territory} দেশটি {continent} মহাদেশে অবস্থিত।",
                "{continent} মহাদেশে {territory} নামে একটি দেশ আছে।",
            ),
            "month": (
                "{before} মাসের পরের মাস হলো {after}।",
                "{before} মাসের পরে {after} মাস আসে।",
                "{after} মাসের আগে {before} মাস আসে।",
            ),
            "weekday": (
                "{before} এর পরের দিন হলো {after}।",
                "আজ {before} হলে আগামীকাল {after}।",
                "আজ {after} হলে গতকাল ছিল {before}।",
            ),
            "sum": (
                "{a} আর {b} যোগ করলে হয় {total}।",
                "{a} যোগ {b} সমান {total}।",
                "{a} ও {b} এর যোগফল {total}।",
            ),
            "currency_code": (
                "{currency} মুদ্রার আন্তর্জাতিক কোড হলো {code}।",
                "{code} হলো {currency} মুদ্রার কোড।",
            ),
            "language_code": (
                "{language} ভাষার আন্তর্জাতিক কোড হলো {code}।",
                "{code} হলো {language} ভাষার কোড।",
            ),
            "number": (
                "{digits} সংখ্যাটি এভাবে লেখা হয়: {written}।",
                "{written} হলো {digits} সংখ্যাটি লেখার আরও স্পষ্ট উপায়।",
            ),
            "date": (
                "{digits} তারিখটি এভাবে লেখা হয়: {written}।",
                "{written} দিনটিকে কম্পিউটার {digits} লেখে।",
            ),
            "list": (
                "{continent} মহাদেশের কয়েকটি দেশ হলো {written}।",
                "{written} {continent} মহাদেশের দেশ।",
            ),
        },
    ),
)
