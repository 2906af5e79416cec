"""Chinese, Japanese, Korean."""

from ..form import world_language

LANGUAGES = (
    world_language(
        "zho_Hans",
        "Chinese",
        "sino_tibetan",
        "zh_Hans",
        5,
        "一|二|三|四|五|六|七|八|九|十|十一|十二|十三|十四|十五|十六|十七|十八|十九|二十",
        {
            "currency": (
                "{territory}的货币是{currency}。",
                "在{territory}，人们使用的货币叫{currency}。",
                "{currency}是{territory}这个国家的货币。",
                "到{territory}去旅行，要用{currency}付钱。",
            ),
            "language": (
                "{territory}的一种官方语言是{language}。",
                "{language}是{territory}的官方语言之一。",
                "在{territory}，{language}是官方语言。",
            ),
            "continent": (
                "{territory}所在的大洲是{continent}。",
                "{territory}是{continent}的一个国家。",
                "{continent}有一个国家叫{territory}。",
            ),
            "month": (
                "{before}的下一个月是{after}。",
                "{before}过后就是{after}。",
                "{after}的前一个月是{before}。",
            ),
            "weekday": (
                "{before}的第二天是{after}。",
                "如果今天是{before}，明天就是{after}。",
                "如果今天是{after}，昨天就是{before}。",
            ),
            "sum": (
                "{a}加{b}等于{total}。",
                "{a}加上{b}是{total}。",
                "{a}与{b}的和是{total}。",
            ),
            "currency_code": (
                "{currency}的国际代码是{code}。",
                "{code}是{currency}的货币代码。",
            ),
            "language_code": (
                "{language}的国际代码是{code}。",
                "{code}是{language}的语言代码。",
            ),
            "number": (
                "数字{digits}写作{written}。",
                "把数字{digits}写成{written}，看起来更清楚。",
            ),
            "date": (
                "日期{digits}写作{written}。",
                "{written}就是电脑写成{digits}的那一天。",
            ),
            "list": (
                "{continent}的一些国家是{written}。",
                "{written}是{continent}的国家。",
            ),
        },
    ),
    world_language(
        "jpn_Jpan",
        "Japanese",
        "japonic",
        "ja",
        4,
        "ja",
        {
            "currency": (
                "{territory}の通貨は、{currency}。",
                "{territory}の通貨は{currency}です。",
                "{territory}では{currency}という通貨が使われています。",
                "{currency}は{territory}の通貨です。",
            ),
            "language": (
                "{territory}の公用語の一つは、{language}。",
                "{territory}の公用語の一つは{language}です。",
                "{language}は{territory}の公用語です。",
                "{territory}では{language}が公用語になっています。",
            ),
            "continent": (
                "{territory}がある大陸は、{continent}。",
                "{territory}は{continent}にある国です。",
                "{continent}には{territory}という国があります。",
            ),
            "month": (
                "{before}の次の月は、{after}。",
                "{before}の次の月は{after}です。",
                "{before}が終わると{after}になります。",
                "{after}の前の月は{before}です。",
            ),
            "weekday": (
                "{before}の次の日は、{after}。",
                "{before}の次の日は{after}です。",
                "今日が{before}なら、明日は{after}です。",
                "今日が{after}なら、昨日は{before}でした。",
            ),
            "sum": (
                "{a}たす{b}は、{total}。",
                "{a}たす{b}は{total}です。",
                "{a}と{b}を足すと{total}になります。",
                "{a}と{b}の和は{total}です。",
            ),
            "currency_code": (
                "{currency}の国際コードは、{code}。",
                "{code}は{currency}の通貨コードです。",
            ),
            "language_code": (
                "{language}の国際コードは、{code}。",
                "{code}は{language}の言語コードです。",
            ),
            "number": (
                "数{digits}の書き方は、{written}。",
                "{digits}という数は{written}と書きます。",
            ),
            "date": (
                "日付{digits}の書き方は、{written}。",
                "{digits}という日付は{written}と書きます。",
            ),
            "list": (
                "{continent}の国の例は、{written}。",
                "{written}は{continent}の国です。",
            ),
        },
    ),
    world_language(
        "kor_Hang",
        "Korean",
        "koreanic",
        "ko",
        3,
        "일|이|삼|사|오|육|칠|팔|구|십|십일|십이|십삼|십사|십오|십육|십칠|십팔|십구|이십",
        {
            "currency": (
                "{territory}의 통화 이름: {currency}.",
                "{territory}에서 쓰는 통화의 이름은 {currency}입니다.",
                "{territory} 사람들이 쓰는 돈: {currency}.",
            ),
            "language": (
                "{territory}의 공용어 중 하나: {language}.",
                "{territory}의 공용어 중 하나는 {language}입니다.",
                "{territory}에서는 공용어로 {language}를 씁니다.",
            ),
            "continent": (
                "{territory}의 대륙: {continent}.",
                "{territory}의 위치는 {continent} 대륙입니다.",
                "{continent} 대륙에 있는 나라: {territory}.",
            ),
            "month": (
                "{before}의 다음 달: {after}.",
                "{before}의 다음 달은 {after}입니다.",
                "{after}의 전 달은 {before}입니다.",
            ),
            "weekday": (
                "{before}의 다음 날: {after}.",
                "{before}의 다음 날은 {after}입니다.",
                "오늘이 {before}이면 내일은 {after}입니다.",
            ),
            "sum": (
                "{a} 더하기 {b}의 값: {total}.",
                "{a} 더하기 {b} 하면 {total}입니다.",
                "{a} 더하기 {b}, 답은 {total}입니다.",
            ),
            "currency_code": (
                "{currency}의 국제 코드: {code}.",
                "{currency}의 통화 코드는 {code}입니다.",
            ),
            "language_code": (
                "{language}의 국제 코드: {code}.",
                "{language}의 언어 코드는 {code}입니다.",
            ),
            "number": (
                "숫자 {digits} 쓰는 법: {written}.",
                "숫자 {digits}의 보기 쉬운 표기는 {written}입니다.",
            ),
            "date": (
                "날짜 {digits} 쓰는 법: {written}.",
                "컴퓨터가 {digits}로 쓰는 날은 {written}입니다.",
            ),
            "list": (
                "{continent} 대륙의 나라들: {written}.",
                "{continent} 대륙에 있는 나라로는 {written} 등이 있습니다.",
            ),
        },
    ),
)
