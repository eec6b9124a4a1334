"""One word for one thing: retired names and phrases occur nowhere, in code, configuration, documents or names of tests."""

import re

import pytest

from tests.test_house import REPOSITORY, source_files, text_of

FORMER_NAMES = {
    "med_assets/experiments/composition.py": (r'"ladder"', r'"rung"'),
    "med_assets/training/accelerator.py": (r'"rung\.json"', r'former\["rung"\]'),
    "tests/med_assets/training/test_accelerator.py": (r'former\["rung"\]', r'"rung\.json"', r"runtime\.rung", r'"(ladder|rung)"', r"rename ladder"),
    "med_assets/programs/lumbar_mr/thresholds.py": (r'"unjudged"',),
    "med_assets/programs/lumbar_mr/screening.py": (r"MED_ASSETS_LUMBAR_MR_UNJUDGED",),
    "tests/med_assets/programs/lumbar_mr/test_screening.py": (r"MED_ASSETS_LUMBAR_MR_UNJUDGED",),
    "docs/settings.md": (r"MED_ASSETS_LUMBAR_MR_UNJUDGED",),
}  # fmt: skip
"""Contexts in which a retired word stays, since files and settings of earlier versions have it: file, and patterns that are taken out."""

RETIRED = {
    "run status": r"\bstandings?\b",
    "scored, reader label or interpretation": r"judg",
    "message, reason or output": r"\b(told|said)\b",
    "rolled back": r"\b(take|takes|taken|took|taking) back\b",
    "events": r"\bbefell\b|\b(became|become|becomes) of\b",
    "entries, fetch and exists of a landing zone": r"\bbrought\b|\.(bring|look|there)\(|def (bring|look|there)\b",
    "hash_fraction, or plot": r"def draw\b(?!\((roi|self, mask))|\.draw\((path|tmp_path)|\"\"\"Draw (the|one case|a line|means|every step)",
    "segmentation_2d": r"flat_(seg|scores)|FlatSegment|metrics[./]flat\b",
    "references, elements or object policy": r"dicom[./]frames\b|\badmission\b|dicom[./]links\b|dicom[./]admission\b",
    "memory plan, or fallbacks": r"(?<![a-z])rungs?(?![a-z])|(?<![a-z])ladders?(?![a-z])",
    "disk_full_guard, or space": r"\brooms?\b",
    "initial weights, or start": r"(?<![a-z])(begin|begins|began|begun|beginning)[ _]with(?![a-z])|\bbeginnings?\b",
    "location; rank and size": r"(?<!the )\bworld\(|(store|landing)_place\b|(?-i:\bPlace\b)(?! a)",
    "package, or project": r"\bhouse\b",
}
"""Retired words by what is written in their stead, without regard to case; words that also have an ordinary sense are matched with their context."""

UNCHANGED = {"CHANGELOG.md", "uv.lock", "constraints.txt", "tests/test_words.py"}
"""Files about earlier versions, or of other projects' names."""


@pytest.mark.parametrize("instead", RETIRED)
def test_a_retired_word_occurs_nowhere(instead: str) -> None:
    retired = re.compile(RETIRED[instead], re.IGNORECASE)
    found = []
    for path in source_files():
        name = path.relative_to(REPOSITORY).as_posix()
        if name in UNCHANGED:
            continue
        text = text_of(path)
        for former in FORMER_NAMES.get(name, ()):
            text = re.sub(former, "", text)
        found += [f"{name}: {match.group()!r}" for match in retired.finditer(text)]
        found += [f"{name}: the name of the file" for _ in [retired.search(name)] if _]
    assert found == [], f"write {instead}"


def test_every_context_of_a_former_name_is_there() -> None:
    for name, patterns in FORMER_NAMES.items():
        text = (REPOSITORY / name).read_text()
        assert [pattern for pattern in patterns if not re.search(pattern, text)] == [], name
