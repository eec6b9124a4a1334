"""The profile `research`: what it keeps beyond the strict allow-list. Data, as in `profile`.

It has the Retain Patient Characteristics Option of DICOM PS3.15 (E.3.8) in a coarser form, and cleans descriptions (E.3.6) by a
closed list of words. Ethnic group, pregnancy, occupation, serial numbers, times of day and all free text go as they do there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pydicom.datadict import tag_for_keyword

from med_assets.deidentification.ages import AGE_CAP, ages
from med_assets.deidentification.profile import Action, profile
from med_assets.storage.versions import part_of, versioned


@part_of("deidentification.research.research")
@dataclass(frozen=True)
class Rounding:
    """A number is rounded to multiples of `step`, and what is beyond `least` or `most` becomes that; `possible` values alone stay at all."""

    step: float
    least: float
    most: float
    possible: tuple[float, float]
    decimals: int

    def rounded(self, value: float) -> str:
        """The value that may stay; empty for one that no person has, such as a height in centimetres."""
        if not self.possible[0] <= value <= self.possible[1]:
            return ""
        return self._written(min(max(round(value / self.step) * self.step, self.least), self.most))

    def values(self) -> frozenset[str]:
        """Every value that may stay."""
        n = round((self.most - self.least) / self.step)
        return frozenset(self._written(self.least + number * self.step) for number in range(n + 1))

    def _written(self, value: float) -> str:
        return f"{value:.{self.decimals}f}"


ROUNDED: Mapping[str, Rounding] = MappingProxyType({
    "PatientSize": Rounding(0.05, 0.40, 2.00, (0.2, 2.6), 2),
    "PatientWeight": Rounding(5, 5, 150, (0.3, 400), 0),
})  # fmt: skip
"""Height (m) and weight (kg): a value that few people have is capped, since it would tell of one."""

DESCRIPTIONS = ("StudyDescription", "SeriesDescription", "ProtocolName")
"""Elements of which the clinical words stay."""

TEXTS: Mapping[str, frozenset[str]] = MappingProxyType({
    "PatientSex": frozenset({"M", "F", "O"}),
    "SmokingStatus": frozenset({"YES", "NO", "UNKNOWN"}),
    "ContrastBolusRoute": frozenset({"IV", "ORAL", "RECTAL", "INTRAVENOUS", "INTRA-ARTERIAL", "INTRATHECAL", "INTRA-ARTICULAR"}),
    "ContrastBolusIngredient": frozenset({"IODINE", "GADOLINIUM", "CARBON DIOXIDE", "BARIUM", "XENON"}),
    "ConvolutionKernel": frozenset({
        "STANDARD", "SOFT", "DETAIL", "LUNG", "BONE", "BONEPLUS", "EDGE", "CHEST", "ULTRA", "SMOOTH", "A", "B", "C", "D", "E", "L", "YA", "YB",
        "YC", "YD", *(f"B{n}{mode}" for n in (10, 19, 20, 22, 25, 26, 30, 31, 35, 36, 40, 41, 43, 45, 46, 50, 60, 70, 75, 80) for mode in "fs"),
        *(f"{kind}{n}{mode}" for kind in ("Br", "Bl", "Bv", "Hr", "Hc", "Qr", "I") for n in (26, 30, 31, 32, 36, 37, 40, 41, 44, 49, 50, 54, 56, 57, 59, 60, 64, 70) for mode in "dfs"),
        *(f"FC{n:02d}" for n in range(1, 90)),
    }),
    "ManufacturerModelName": frozenset({
        "SOMATOM Definition", "SOMATOM Definition AS", "SOMATOM Definition AS+", "SOMATOM Definition Edge", "SOMATOM Definition Flash", "SOMATOM Drive",
        "SOMATOM Edge Plus", "SOMATOM Force", "SOMATOM go.All", "SOMATOM go.Top", "SOMATOM go.Up", "SOMATOM X.cite", "Sensation 16", "Sensation 64",
        "Emotion 16", "Biograph 64", "Biograph mCT", "NAEOTOM Alpha", "Aera", "Avanto", "Avanto_fit", "Skyra", "Skyra_fit", "Prisma", "Prisma_fit",
        "MAGNETOM Vida", "MAGNETOM Sola", "MAGNETOM Lumina", "MAGNETOM Altea", "Espree", "Symphony", "Verio", "TrioTim", "Biograph_mMR",
        "LightSpeed VCT", "LightSpeed16", "LightSpeed Pro 16", "LightSpeed Plus", "LightSpeed Ultra", "LightSpeed RT16", "BrightSpeed", "Optima CT540",
        "Optima CT660", "Discovery CT750 HD", "Discovery STE", "Discovery 690", "Discovery MR750", "Discovery MR750w", "Revolution CT", "Revolution EVO",
        "Revolution HD", "Revolution Apex", "SIGNA Artist", "SIGNA Architect", "SIGNA Premier", "Signa HDxt", "SIGNA EXCITE", "Optima MR450w", "LOGIQ E9",
        "LOGIQ S8", "Voluson E10", "Brilliance 16", "Brilliance 40", "Brilliance 64", "Brilliance Big Bore", "iCT 128", "iCT 256", "IQon - Spectral CT",
        "Ingenuity CT", "Ingenia", "Ingenia Ambition X", "Ingenia Elition X", "Achieva", "Achieva dStream", "Intera", "EPIQ 5G", "EPIQ 7G", "iU22", "Affiniti 70G",
        "Aquilion", "Aquilion ONE", "Aquilion PRIME", "Aquilion/LB", "Aquilion Lightning", "Vantage Titan", "Vantage Orian", "Aplio 500", "Aplio i800",
        "Eclipse", "ARIA RadOnc", "TrueBeam", "Halcyon", "Monaco", "RayStation", "Pinnacle3", "Spectralis", "Maestro2", "Triton", "Cirrus",
    }),
})  # fmt: skip
"""Values of elements, beyond those of the strict profile, which may stay: of the standard (sex, smoking) or names of products and kernels."""

_OR_EMPTY = ("PatientSex", "ManufacturerModelName", "ConvolutionKernel")
"""Of these the elements that are emptied where the value is another; the others are removed."""


def closed() -> dict[str, frozenset[str]]:
    """Every value that may stay, by keyword, of elements beyond the strict profile whose values can be listed."""
    return {**TEXTS, "PatientAge": ages(0), **{keyword: rule.values() for keyword, rule in ROUNDED.items()}}


@part_of("deidentification.research.research")
def whole_years(age: str) -> str:
    """An age as DICOM writes it (PS3.5, AS), in whole years and of AGE_CAP for all from there on; empty for what is no age."""
    number, unit = age.strip()[:-1], age.strip()[-1:]
    per_year = {"Y": 1.0, "M": 12.0, "W": 52.18, "D": 365.25}.get(unit)
    if per_year is None or len(number) != 3 or not (number.isascii() and number.isdigit()):
        return ""
    return f"{min(int(int(number) / per_year), AGE_CAP):03d}Y"


@versioned("1")
def research() -> dict[int, Action]:
    """Return what happens to each allowed element, by tag: all as in the strict profile but these. Its version is part of what makes an intake's result."""
    more = {
        "PatientAge": Action.AGE,
        **dict.fromkeys(ROUNDED, Action.ROUNDED),
        **dict.fromkeys(DESCRIPTIONS, Action.WORDS),
    }
    more |= {keyword: Action.VOCABULARY if keyword in _OR_EMPTY else Action.OWN_VOCABULARY for keyword in TEXTS}
    table = profile()
    for keyword, action in more.items():
        tag = tag_for_keyword(keyword)
        if tag is None:
            raise ValueError(f"expected a keyword of the DICOM dictionary, got {keyword}")
        table[tag] = action
    return table
