"""Arabic, Hebrew, Amharic, Swahili."""

from ..form import world_language

LANGUAGES = (
    world_language(
        "arb_Arab",
        "Arabic",
        "afro_asiatic",
        "ar",
        4,
        "واحد|اثنان|ثلاثة|أربعة|خمسة|ستة|سبعة|ثمانية|تسعة|عشرة|أحد عشر|اثنا عشر|ثلاثة عشر"
        "|أربعة عشر|خمسة عشر|ستة عشر|سبعة عشر|ثمانية عشر|تسعة عشر|عشرون",
        {
            "currency": (
                "اسم عملة دولة {territory} هو {currency}.",
                "العملة المستخدمة في دولة {territory} تسمى {currency}.",
                "في دولة {territory} يدفع الناس بعملة تسمى {currency}.",
            ),
            "language": (
                "من اللغات الرسمية في دولة {territory} اللغة التالية: {language}.",
                "{language} لغة رسمية في دولة {territory}.",
                "اللغة المسماة {language} لغة رسمية في دولة {territory}.",
            ),
            "continent": (
                "تقع دولة {territory} في قارة {continent}.",
                "{continent} هي القارة التي تقع فيها دولة {territory}.",
                "في قارة {continent} توجد دولة {territory}.",
            ),
            "month": (
                "الشهر الذي يأتي بعد شهر {before} هو شهر {after}.",
                "بعد شهر {before} يأتي شهر {after}.",
                "قبل شهر {after} يأتي شهر {before}.",
            ),
            "weekday": (
                "اليوم الذي يأتي بعد يوم {before} هو يوم {after}.",
                "بعد يوم {before} يأتي يوم {after}.",
                "إذا كان اليوم يوم {before} فغدًا يوم {after}.",
            ),
            "sum": (
                "{a} زائد {b} يساوي {total}.",
                "حاصل جمع {a} و {b} هو {total}.",
                "ناتج {a} زائد {b} هو {total}.",
            ),
            "currency_code": (
                "الرمز الدولي للعملة المسماة {currency} هو {code}.",
                "{code} هو رمز العملة المسماة {currency}.",
            ),
            "language_code": (
                "الرمز الدولي للغة المسماة {language} هو {code}.",
                "{code} هو رمز اللغة المسماة {language}.",
            ),
            "number": (
                "يكتب العدد {digits} هكذا: {written}.",
                "{written} كتابة أوضح للعدد {digits}.",
            ),
            "date": (
                "يكتب التاريخ {digits} هكذا: {written}.",
                "{written} هو اليوم الذي تكتبه الحواسيب {digits}.",
            ),
            "list": (
                "من دول قارة {continent} ما يلي: {written}.",
                "{written} من دول قارة {continent}.",
            ),
        },
    ),
    world_language(
        "heb_Hebr",
        "Hebrew",
        "afro_asiatic",
        "he",
        2,
        "אחת|שתיים|שלוש|ארבע|חמש|שש|שבע|שמונה|תשע|עשר|אחת עשרה|שתים עשרה|שלוש עשרה|ארבע עשרה"
        "|חמש עשרה|שש עשרה|שבע עשרה|שמונה עשרה|תשע עשרה|עשרים",
        {
            "currency": (
                "המטבע של המדינה {territory} נקרא {currency}.",
                "במדינה {territory} משלמים במטבע שנקרא {currency}.",
                "{territory} היא מדינה שהמטבע שלה נקרא {currency}.",
            ),
            "language": (
                "אחת השפות הרשמיות במדינה {territory} היא {language}.",
                "{language} היא שפה רשמית במדינה {territory}.",
                "במדינה {territory} השפה {language} היא שפה רשמית.",
            ),
            "continent": (
                "המדינה {territory} נמצאת ביבשת {continent}.",
                "{continent} היא היבשת שבה נמצאת המדינה {territory}.",
                "ביבשת {continent} יש מדינה בשם {territory}.",
            ),
            "month": (
                "החודש שבא אחרי {before} הוא {after}.",
                "אחרי חודש {before} בא חודש {after}.",
                "לפני חודש {after} בא חודש {before}.",
            ),
            "weekday": (
                "היום שבא אחרי {before} הוא {after}.",
                "אחרי {before} בא {after}.",
                "אם היום {before}, מחר {after}.",
            ),
            "sum": (
                "{a} ועוד {b} הן {total}.",
                "הסכום של {a} ועוד {b} הוא {total}.",
                "{a} פלוס {b} שווה {total}.",
            ),
            "currency_code": (
                "הקוד הבינלאומי של המטבע {currency} הוא {code}.",
                "{code} הוא הקוד של המטבע {currency}.",
            ),
            "language_code": (
                "הקוד הבינלאומי של השפה {language} הוא {code}.",
                "{code} הוא הקוד של השפה {language}.",
            ),
            "number": (
                "את המספר {digits} כותבים כך: {written}.",
                "{written} היא דרך ברורה יותר לכתוב את המספר {digits}.",
            ),
            "date": (
                "את התאריך {digits} כותבים כך: {written}.",
                "{written} הוא היום שמחשבים כותבים {digits}.",
            ),
            "list": (
                "כמה מהמדינות ביבשת {continent} הן {written}.",
                "{written} הן מדינות ביבשת {continent}.",
            ),
        },
    ),
    world_language(
        "amh_Ethi",
        "Amharic",
        "afro_asiatic",
        "am",
        1,
        "am",
        {
            "currency": (
                "የ{territory} ሀገር ገንዘብ ስም፦ {currency}።",
                "የ{territory} ገንዘብ {currency} ይባላል።",
                "{currency} የ{territory} ገንዘብ ነው።",
            ),
            "language": (
                "የ{territory} አንዱ የሥራ ቋንቋ፦ {language}።",
                "{language} የ{territory} የሥራ ቋንቋ ነው።",
                "በ{territory} ሀገር {language} የሥራ ቋንቋ ነው።",
            ),
            "continent": (
                "{territory} የሚገኝበት አህጉር፦ {continent}።",
                "{territory} በ{continent} አህጉር የሚገኝ ሀገር ነው።",
                "በ{continent} አህጉር {territory} የሚባል ሀገር አለ።",
            ),
            "month": (
                "ከ{before} ቀጥሎ የሚመጣው ወር፦ {after}።",
                "ከ{before} በኋላ {after} ይመጣል።",
                "ከ{after} በፊት {before} ይመጣል።",
            ),
            "weekday": (
                "ከ{before} ቀጥሎ የሚመጣው ቀን፦ {after}።",
                "ከ{before} በኋላ {after} ይመጣል።",
                "ዛሬ {before} ከሆነ ነገ {after} ነው።",
            ),
            "sum": (
                "{a} ሲደመር {b} እኩል ይሆናል {total}።",
                "{a} ሲደመር {b} {total} ይሆናል።",
                "የ{a} እና የ{b} ድምር {total} ነው።",
            ),
            "currency_code": (
                "{currency} የሚባለው ገንዘብ ኮድ፦ {code}።",
                "{currency} የሚባለው ገንዘብ ኮድ {code} ነው።",
            ),
            "language_code": (
                "የ{language} ቋንቋ ዓለም አቀፍ ኮድ፦ {code}።",
                "{code} የ{language} ቋንቋ ኮድ ነው።",
            ),
            "number": (
                "ቁጥሩ {digits} ሲጻፍ፦ {written}።",
                "{digits} የሚለው ቁጥር {written} ተብሎ ይጻፋል።",
            ),
            "date": (
                "ቀኑ {digits} ሲጻፍ፦ {written}።",
                "{digits} የሚለው ቀን {written} ተብሎ ይጻፋል።",
            ),
            "list": (
                "ከ{continent} አህጉር ሀገሮች መካከል፦ {written}።",
                "{written} የ{continent} አህጉር ሀገሮች ናቸው።",
            ),
        },
    ),
    world_language(
        "swh_Latn",
        "Swahili",
        "atlantic_congo",
        "sw",
        3,
        "moja|mbili|tatu|nne|tano|sita|saba|nane|tisa|kumi|kumi na moja|kumi na mbili|kumi na tatu"
        "|kumi na nne|kumi na tano|kumi na sita|kumi na saba|kumi na nane|kumi na tisa|ishirini",
        {
            "currency": (
                "Sarafu ya nchi ya {territory} inaitwa {currency}.",
                "Katika nchi ya {territory} watu hulipa kwa sarafu inayoitwa {currency}.",
                "{currency} ni sarafu ya nchi ya {territory}.",
            ),
            "language": (
                "Lugha rasmi mojawapo ya nchi ya {territory} ni {language}.",
                "{language} ni lugha rasmi katika nchi ya {territory}.",
                "Katika nchi ya {territory}, lugha ya {language} ni rasmi.",
            ),
            "continent": (
                "Nchi ya {territory} iko katika bara la {continent}.",
                "{continent} ni bara lenye nchi ya {territory}.",
                "Katika bara la {continent} kuna nchi inayoitwa {territory}.",
            ),
            "month": (
                "Mwezi unaofuata {before} ni {after}.",
                "Baada ya mwezi wa {before} huja mwezi wa {after}.",
                "Kabla ya mwezi wa {after} huja mwezi wa {before}.",
            ),
            "weekday": (
                "Siku inayofuata {before} ni {after}.",
                "Baada ya {before} huja {after}.",
                "Ikiwa leo ni {before}, kesho ni {after}.",
            ),
            "sum": (
                "{a} jumlisha {b} ni {total}.",
                "{a} na {b} ni {total}.",
                "Jumla ya {a} na {b} ni {total}.",
            ),
            "currency_code": (
                "Msimbo wa kimataifa wa sarafu ya {currency} ni {code}.",
                "{code} ni msimbo wa sarafu ya {currency}.",
            ),
            "language_code": (
                "Msimbo wa kimataifa wa lugha ya {language} ni {code}.",
                "{code} ni msimbo wa lugha ya {language}.",
            ),
            "number": (
                "Namba {digits} huandikwa hivi: {written}.",
                "{written} ni njia iliyo wazi zaidi ya kuandika namba {digits}.",
            ),
            "date": (
                "Tarehe {digits} huandikwa hivi: {written}.",
                "{written} ni siku ambayo kompyuta huandika {digits}.",
            ),
            "list": (
                "Baadhi ya nchi za bara la {continent} ni {written}.",
                "{written} ni nchi za bara la {continent}.",
            ),
        },
    ),
)
