"""Indonesian, Vietnamese, Thai."""

from ..form import world_language

LANGUAGES = (
    world_language(
        "ind_Latn",
        "Indonesian",
        "austronesian",
        "id",
        4,
        "id",
        {
            "currency": (
                "Mata uang negara {territory} adalah {currency}.",
                "Di negara {territory}, orang membayar dengan mata uang {currency}.",
                "{currency} adalah mata uang negara {territory}.",
                "{territory} adalah negara yang mata uangnya bernama {currency}.",
            ),
            "language": (
                "Salah satu bahasa resmi negara {territory} adalah bahasa {language}.",
                "Bahasa {language} adalah bahasa resmi di negara {territory}.",
                "Di negara {territory}, bahasa {language} berstatus resmi.",
            ),
            "continent": (
                "Negara {territory} terletak di benua {continent}.",
                "{continent} adalah benua tempat negara {territory} berada.",
                "Di benua {continent} ada negara bernama {territory}.",
            ),
            "month": (
                "Bulan setelah {before} adalah {after}.",
                "Setelah bulan {before} datang bulan {after}.",
                "Sebelum bulan {after} ada bulan {before}.",
            ),
            "weekday": (
                "Hari setelah {before} adalah {after}.",
                "Jika hari ini {before}, besok {after}.",
                "Jika hari ini {after}, kemarin {before}.",
            ),
            "sum": (
                "{a} ditambah {b} sama dengan {total}.",
                "{a} tambah {b} adalah {total}.",
                "Jumlah dari {a} dan {b} adalah {total}.",
            ),
            "currency_code": (
                "Kode internasional mata uang {currency} adalah {code}.",
                "{code} adalah kode mata uang {currency}.",
            ),
            "language_code": (
                "Kode internasional bahasa {language} adalah {code}.",
                "{code} adalah kode bahasa {language}.",
            ),
            "number": (
                "Bilangan {digits} ditulis {written}.",
                "{written} adalah cara yang lebih jelas untuk menulis bilangan {digits}.",
            ),
            "date": (
                "Tanggal {digits} ditulis {written}.",
                "{written} adalah hari yang ditulis komputer sebagai {digits}.",
            ),
            "list": (
                "Beberapa negara di benua {continent} adalah {written}.",
                "{written} adalah negara-negara di benua {continent}.",
            ),
        },
    ),
    world_language(
        "vie_Latn",
        "Vietnamese",
        "austroasiatic",
        "vi",
        3,
        "vi",
        {
            "currency": (
                "Đơn vị tiền tệ của nước {territory} là {currency}.",
                "Ở nước {territory}, người ta trả tiền bằng {currency}.",
                "{currency} là đơn vị tiền tệ của nước {territory}.",
            ),
            "language": (
                "Một ngôn ngữ chính thức của nước {territory} là {language}.",
                "{language} là ngôn ngữ chính thức của nước {territory}.",
                "Ở nước {territory}, {language} là một ngôn ngữ chính thức.",
            ),
            "continent": (
                "Nước {territory} nằm ở {continent}.",
                "{continent} là châu lục nơi có nước {territory}.",
                "Ở {continent} có một nước tên là {territory}.",
            ),
            "month": (
                "Tháng tiếp theo sau {before} là {after}.",
                "Hết {before} thì đến {after}.",
                "Tháng liền trước {after} là {before}.",
            ),
            "weekday": (
                "Ngày tiếp theo sau {before} là {after}.",
                "Nếu hôm nay là {before} thì ngày mai là {after}.",
                "Nếu hôm nay là {after} thì hôm qua là {before}.",
            ),
            "sum": (
                "{a} cộng {b} bằng {total}.",
                "{a} cộng với {b} là {total}.",
                "Tổng của {a} và {b} là {total}.",
            ),
            "currency_code": (
                "Mã quốc tế của tiền tệ {currency} là {code}.",
                "{code} là mã của tiền tệ {currency}.",
            ),
            "language_code": (
                "Mã quốc tế của ngôn ngữ {language} là {code}.",
                "{code} là mã của ngôn ngữ {language}.",
            ),
            "number": (
                "Số {digits} được viết là {written}.",
                "{written} là cách viết rõ hơn của số {digits}.",
            ),
            "date": (
                "Ngày {digits} được viết là {written}.",
                "{written} là ngày mà máy tính viết là {digits}.",
            ),
            "list": (
                "Một số nước ở {continent} là {written}.",
                "{written} là các nước ở {continent}.",
            ),
        },
    ),
    world_language(
        "tha_Thai",
        "Thai",
        "tai_kadai",
        "th",
        2,
        "th",
        {
            "currency": (
                "สกุลเงินของประเทศ{territory}คือ{currency}",
                "ประเทศ{territory}ใช้สกุลเงินที่ชื่อว่า{currency}",
                "{currency}เป็นสกุลเงินของประเทศ{territory}",
            ),
            "language": (
                "ภาษาราชการภาษาหนึ่งของประเทศ{territory}คือภาษา{language}",
                "ภาษา{language}เป็นภาษาราชการของประเทศ{territory}",
                "ในประเทศ{territory} ภาษา{language}เป็นภาษาราชการ",
            ),
            "continent": (
                "ประเทศ{territory}อยู่ในทวีป{continent}",
                "ทวีป{continent}เป็นทวีปที่ประเทศ{territory}ตั้งอยู่",
                "ในทวีป{continent}มีประเทศชื่อ{territory}",
            ),
            "month": (
                "เดือนถัดจาก{before}คือ{after}",
                "หลังจาก{before}ก็ถึง{after}",
                "เดือนก่อน{after}คือ{before}",
            ),
            "weekday": (
                "วันถัดจาก{before}คือ{after}",
                "ถ้าวันนี้เป็น{before} พรุ่งนี้จะเป็น{after}",
                "ถ้าวันนี้เป็น{after} เมื่อวานเป็น{before}",
            ),
            "sum": (
                "{a}บวก{b}เท่ากับ{total}",
                "{a}กับ{b}รวมกันเป็น{total}",
                "ผลบวกของ{a}กับ{b}คือ{total}",
            ),
            "currency_code": (
                "รหัสสากลของสกุลเงิน{currency}คือ {code}",
                "{code} คือรหัสของสกุลเงิน{currency}",
            ),
            "language_code": (
                "รหัสสากลของภาษา{language}คือ {code}",
                "{code} คือรหัสของภาษา{language}",
            ),
            "number": (
                "จำนวน {digits} เขียนว่า {written}",
                "{written} เป็นวิธีเขียนจำนวน {digits} ที่อ่านง่ายกว่า",
            ),
            "date": (
                "วันที่ {digits} เขียนว่า {written}",
                "{written} คือวันที่คอมพิวเตอร์เขียนว่า {digits}",
            ),
            "list": (
                "ประเทศในทวีป{continent} เช่น {written}",
                "{written} เป็นประเทศในทวีป{continent}",
            ),
        },
    ),
)
