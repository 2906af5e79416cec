"""Turkish, Azerbaijani, Tamil, Telugu, Kannada."""

from ..form import world_language

LANGUAGES = (
    world_language(
        "tur_Latn",
        "Turkish",
        "turkic",
        "tr",
        3,
        "bir|iki|üç|dört|beş|altı|yedi|sekiz|dokuz|on|on bir|on iki|on üç|on dört|on beş|on altı"
        "|on yedi|on sekiz|on dokuz|yirmi",
        {
            "currency": (
                "{territory} adlı ülkenin para biriminin adı şudur: {currency}.",
                "{territory} adlı ülkenin para birimine {currency} denir.",
                "{territory} adlı ülkede {currency} adlı para birimi kullanılır.",
            ),
            "language": (
                "{territory} adlı ülkenin resmî dillerinden biri şudur: {language}.",
                "{language}, {territory} adlı ülkenin resmî dillerinden biridir.",
                "{territory} adlı ülkede {language} resmî bir dildir.",
            ),
            "continent": (
                "{territory} adlı ülkenin bulunduğu kıta şudur: {continent}.",
                "{territory} adlı ülke {continent} kıtasındadır.",
                "{continent} kıtasında {territory} adlı bir ülke vardır.",
            ),
            "month": (
                "{before} ayından sonra gelen ay: {after}.",
                "{before} ayından sonra {after} ayı gelir.",
                "{after} ayından önce {before} ayı gelir.",
            ),
            "weekday": (
                "Bugün {before} ise yarın {after}.",
                "{before} gününden sonra {after} günü gelir.",
                "{after} gününden önce {before} günü gelir.",
            ),
            "sum": (
                "{a} artı {b} eşittir {total}.",
                "{a} artı {b}, {total} eder.",
                "{a} ile {b} toplanırsa {total} olur.",
            ),
            "currency_code": (
                "{currency} para biriminin uluslararası kodu: {code}.",
                "{code}, {currency} para biriminin kodudur.",
            ),
            "language_code": (
                "{language} adlı dilin uluslararası kodu: {code}.",
                "{code}, {language} adlı dilin kodudur.",
            ),
            "number": (
                "{digits} sayısı şöyle yazılır: {written}.",
                "{written}, {digits} sayısının daha açık yazılışıdır.",
            ),
            "date": (
                "{digits} tarihi şöyle yazılır: {written}.",
                "{written}, bilgisayarların {digits} diye yazdığı gündür.",
            ),
            "list": (
                "{continent} kıtasındaki ülkelerden bazıları: {written}.",
                "{written} {continent} kıtasındaki ülkelerdir.",
            ),
        },
    ),
    world_language(
        "azj_Latn",
        "Azerbaijani",
        "turkic",
        "az",
        1,
        "az",
        {
            "currency": (
                "{territory} adlı ölkənin pul vahidinin adı belədir: {currency}.",
                "{territory} adlı ölkənin pul vahidi {currency} adlanır.",
                "{territory} adlı ölkədə {currency} adlı pul vahidi işlənir.",
            ),
            "language": (
                "{territory} adlı ölkənin rəsmi dillərindən biri: {language}.",
                "{territory} adlı ölkədə {language} dili rəsmi dildir.",
                "{language} dili {territory} adlı ölkənin rəsmi dillərindən biridir.",
            ),
            "continent": (
                "{territory} adlı ölkənin yerləşdiyi qitə: {continent}.",
                "{territory} adlı ölkə {continent} qitəsində yerləşir.",
                "{continent} qitəsində {territory} adlı ölkə var.",
            ),
            "month": (
                "{before} ayından sonra gələn ay: {after}.",
                "{before} ayından sonra {after} ayı gəlir.",
                "{after} ayından əvvəl {before} ayı gəlir.",
            ),
            "weekday": (
                "Bu gün {before} günüdürsə, sabahkı gün belədir: {after}.",
                "{before} günündən sonra {after} günü gəlir.",
                "{after} günündən əvvəl {before} günü gəlir.",
            ),
            "sum": (
                "{a} üstəgəl {b} bərabərdir {total}.",
                "{a} üstəgəl {b} {total} edir.",
                "Toplama: {a} üstəgəl {b} bərabərdir {total}.",
            ),
            "currency_code": (
                "{currency} pul vahidinin beynəlxalq kodu: {code}.",
                "{code} {currency} pul vahidinin kodudur.",
            ),
            "language_code": (
                "{language} dilinin beynəlxalq kodu: {code}.",
                "{code} {language} dilinin kodudur.",
            ),
            "number": (
                "{digits} ədədi belə yazılır: {written}.",
                "{written} {digits} ədədinin daha aydın yazılışıdır.",
            ),
            "date": (
                "{digits} tarixi belə yazılır: {written}.",
                "{written} kompüterlərin {digits} kimi yazdığı gündür.",
            ),
            "list": (
                "{continent} qitəsinin bəzi ölkələri: {written}.",
                "{written} {continent} qitəsinin ölkələridir.",
            ),
        },
    ),
    world_language(
        "tam_Taml",
        "Tamil",
        "dravidian",
        "ta",
        2,
        "ஒன்று|இரண்டு|மூன்று|நான்கு|ஐந்து|ஆறு|ஏழு|எட்டு|ஒன்பது|பத்து|பதினொன்று|பன்னிரண்டு"
        "|பதின்மூன்று|பதினான்கு|பதினைந்து|பதினாறு|பதினேழு|பதினெட்டு|பத்தொன்பது|இருபது",
        {
            "currency": (
                "{territory} நாட்டின் நாணயத்தின் பெயர் {currency}.",
                "{territory} நாட்டில் {currency} என்ற நாணயம் பயன்படுகிறது.",
                "{currency} என்பது {territory} நாட்டின் நாணயம்.",
            ),
            "language": (
                "{territory} நாட்டின் ஆட்சி மொழிகளில் ஒன்று {language}.",
                "{language} என்பது {territory} நாட்டின் ஆட்சி மொழி.",
                "{territory} நாட்டில் {language} மொழி ஆட்சி மொழியாக உள்ளது.",
            ),
            "continent": (
                "{territory} நாடு உள்ள கண்டத்தின் பெயர் {continent}.",
                "{territory} நாடு {continent} கண்டத்தில் உள்ளது.",
                "{continent} கண்டத்தில் {territory} என்ற நாடு உள்ளது.",
            ),
            "month": (
                "{before} மாதத்திற்கு அடுத்த மாதம் {after}.",
                "{before} மாதத்திற்குப் பிறகு {after} மாதம் வரும்.",
                "{after} மாதத்திற்கு முன் {before} மாதம் வரும்.",
            ),
            "weekday": (
                "{before} கிழமைக்கு அடுத்த கிழமை {after}.",
                "இன்று {before} என்றால் நாளை {after}.",
                "இன்று {after} என்றால் நேற்று {before}.",
            ),
            "sum": (
                "{a} கூட்டல் {b} சமம் {total}.",
                "{a} கூட்டல் {b} என்பது {total} ஆகும்.",
                "{a}, {b} இரண்டின் கூட்டுத்தொகை {total}.",
            ),
            "currency_code": (
                "{currency} நாணயத்தின் பன்னாட்டுக் குறியீடு {code}.",
                "{code} என்பது {currency} நாணயத்தின் குறியீடு.",
            ),
            "language_code": (
                "{language} மொழியின் பன்னாட்டுக் குறியீடு {code}.",
                "{code} என்பது {language} மொழியின் குறியீடு.",
            ),
            "number": (
                "{digits} என்ற எண்ணை இப்படி எழுதுவர்: {written}.",
                "{written} என்பது {digits} என்ற எண்ணின் தெளிவான வடிவம்.",
            ),
            "date": (
                "{digits} என்ற தேதியை இப்படி எழுதுவர்: {written}.",
                "{written} என்பது கணினி {digits} என்று எழுதும் நாள்.",
            ),
            "list": (
                "{continent} கண்டத்தின் சில நாடுகள்: {written}.",
                "{written} ஆகியவை {continent} கண்டத்தின் நாடுகள்.",
            ),
        },
    ),
    world_language(
        "tel_Telu",
        "Telugu",
        "dravidian",
        "te",
        2,
        "ఒకటి|రెండు|మూడు|నాలుగు|ఐదు|ఆరు|ఏడు|ఎనిమిది|తొమ్మిది|పది|పదకొండు|పన్నెండు|పదమూడు"
        "|పద్నాలుగు|పదిహేను|పదహారు|పదిహేడు|పద్దెనిమిది|పంతొమ్మిది|ఇరవై",
        {
            "currency": (
                "{territory} దేశపు కరెన్సీ పేరు {currency}.",
                "{territory} దేశంలో {currency} అనే కరెన్సీ వాడతారు.",
                "{currency} అనేది {territory} దేశపు కరెన్సీ.",
            ),
            "language": (
                "{territory} దేశపు అధికార భాషలలో ఒకటి {language}.",
                "{language} అనేది {territory} దేశపు అధికార భాష.",
                "{territory} దేశంలో {language} అధికార భాష.",
            ),
            "continent": (
                "{territory} దేశం ఉన్న ఖండం పేరు {continent}.",
                "{territory} దేశం {continent} ఖండంలో ఉంది.",
                "{continent} ఖండంలో {territory} అనే దేశం ఉంది.",
            ),
            "month": (
                "{before} తర్వాత వచ్చే నెల {after}.",
                "{before} తర్వాత {after} వస్తుంది.",
                "{after} ముందు {before} వస్తుంది.",
            ),
            "weekday": (
                "{before} తర్వాత వచ్చే రోజు {after}.",
                "ఈ రోజు {before} అయితే రేపు {after}.",
                "ఈ రోజు {after} అయితే నిన్న {before}.",
            ),
            "sum": (
                "{a} కూడిక {b} సమానం {total}.",
                "{a}, {b} కలిపితే {total}.",
                "{a}, {b} మొత్తం {total}.",
            ),
            "currency_code": (
                "{currency} కరెన్సీ అంతర్జాతీయ కోడ్ {code}.",
                "{code} అనేది {currency} కరెన్సీ కోడ్.",
            ),
            "language_code": (
                "{language} భాష అంతర్జాతీయ కోడ్ {code}.",
                "{code} అనేది {language} భాష కోడ్.",
            ),
            "number": (
                "{digits} అనే సంఖ్యను ఇలా రాస్తారు: {written}.",
                "{written} అనేది {digits} అనే సంఖ్యకు స్పష్టమైన రూపం.",
            ),
            "date": (
                "{digits} అనే తేదీని ఇలా రాస్తారు: {written}.",
                "{written} అనేది కంప్యూటర్ {digits} అని రాసే రోజు.",
            ),
            "list": (
                "{continent} ఖండంలోని కొన్ని దేశాలు: {written}.",
                "{written} {continent} ఖండంలోని దేశాలు.",
            ),
        },
    ),
    world_language(
        "kan_Knda",
        "Kannada",
        "dravidian",
        "kn",
        1,
        "kn",
        {
            "currency": (
                "{territory} ದೇಶದ ಕರೆನ್ಸಿಯ ಹೆಸರು {currency}.",
                "{territory} ದೇಶದಲ್ಲಿ {currency} ಎಂಬ ಕರೆನ್ಸಿ ಬಳಸುತ್ತಾರೆ.",
                "{currency} ಎಂಬುದು {territory} ದೇಶದ ಕರೆನ್ಸಿ.",
            ),
            "language": (
                "{territory} ದೇಶದ ಅಧಿಕೃತ ಭಾಷೆಗಳಲ್ಲಿ ಒಂದು {language}.",
                "{language} ಎಂಬುದು {territory} ದೇಶದ ಅಧಿಕೃತ ಭಾಷೆ.",
                "{territory} ದೇಶದಲ್ಲಿ {language} ಅಧಿಕೃತ ಭಾಷೆ.",
            ),
            "continent": (
                "{territory} ದೇಶ ಇರುವ ಖಂಡದ ಹೆಸರು {continent}.",
                "{territory} ದೇಶ {continent} ಖಂಡದಲ್ಲಿದೆ.",
                "{continent} ಖಂಡದಲ್ಲಿ {territory} ಎಂಬ ದೇಶ ಇದೆ.",
            ),
            "month": (
                "{before} ನಂತರ ಬರುವ ತಿಂಗಳು {after}.",
                "{before} ನಂತರ {after} ಬರುತ್ತದೆ.",
                "{after} ಮೊದಲು {before} ಬರುತ್ತದೆ.",
            ),
            "weekday": (
                "{before} ನಂತರ ಬರುವ ದಿನ {after}.",
                "ಇಂದು {before} ಆದರೆ ನಾಳೆ {after}.",
                "ಇಂದು {after} ಆದರೆ ನಿನ್ನೆ {before}.",
            ),
            "sum": (
                "{a} ಕೂಡಿಸು {b} ಸಮ {total}.",
                "{a} ಮತ್ತು {b} ಸೇರಿದರೆ {total}.",
                "{a} ಮತ್ತು {b} ಇವುಗಳ ಮೊತ್ತ {total}.",
            ),
            "currency_code": (
                "{currency} ಕರೆನ್ಸಿಯ ಅಂತರರಾಷ್ಟ್ರೀಯ ಕೋಡ್ {code}.",
                "{code} ಎಂಬುದು {currency} ಕರೆನ್ಸಿಯ ಕೋಡ್.",
            ),
            "language_code": (
                "{language} ಭಾಷೆಯ ಅಂತರರಾಷ್ಟ್ರೀಯ ಕೋಡ್ {code}.",
                "{code} ಎಂಬುದು {language} ಭಾಷೆಯ ಕೋಡ್.",
            ),
            "number": (
                "{digits} ಎಂಬ ಸಂಖ್ಯೆಯನ್ನು ಹೀಗೆ ಬರೆಯುತ್ತಾರೆ: {written}.",
                "{written} ಎಂಬುದು {digits} ಎಂಬ ಸಂಖ್ಯೆಯ ಸ್ಪಷ್ಟ ರೂಪ.",
            ),
            "date": (
                "{digits} ಎಂಬ ದಿನಾಂಕವನ್ನು ಹೀಗೆ ಬರೆಯುತ್ತಾರೆ: {written}.",
                "{written} ಎಂಬುದು ಕಂಪ್ಯೂಟರ್ {digits} ಎಂದು ಬರೆಯುವ ದಿನ.",
            ),
            "list": (
                "{continent} ಖಂಡದ ಕೆಲವು ದೇಶಗಳು: {written}.",
                "{written} {continent} ಖಂಡದ ದೇಶಗಳು.",
            ),
        },
    ),
)
