"""Transitional vertebrae by uncertainty: thresholds and risks, the table of all studies, and what readers decide."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from med_assets.catalog import frame
from med_assets.program import ReportTable
from med_assets.programs.lumbar_mr.levels import LEVELS, UNKNOWN
from med_assets.programs.lumbar_mr.measures import MEASURES, TRANSITIONAL
from med_assets.programs.lumbar_mr.thresholds import (
    FORMER,
    RiskSettings,
    Thresholds,
    fit,
    normal_cases,
    risk_settings,
    tables_of,
)
from med_assets.records import CaseScore
from med_assets.screening.contract import (
    RANK,
    RISK,
    Decision,
    Fitted,
    FittedThreshold,
    Origin,
    Screened,
    Screening,
)

if TYPE_CHECKING:
    import pandas as pd

    from med_assets.settings import Settings

S = TypeVar("S", bound=CaseScore)

READ = "; as a reader decided"
SHOWN = 20
"""Candidates in the report."""


class LumbarScreening(Screening):
    """The risk of a study is read from one measure at one level, as `_risk.yaml` says."""

    decisions = {  # noqa: RUF012 - read only
        "normal": Decision("five lumbar vertebrae, none of them transitional"),
        "sacralised": Decision("the last lumbar vertebra has grown to the sacrum"),
        "lumbarised": Decision("the first sacral vertebra is free of the sacrum"),
        "indeterminate": Decision("these images do not tell"),
        "unusable": Decision("not a lumbar spine, or not readable", withdraws=True),
    }

    def settings(self, ws: "Settings") -> dict[str, object]:
        return risk(ws).model_dump(mode="json", by_alias=True)

    def with_reader_decisions(self, scores: Sequence[S], decisions: Mapping[str, str]) -> list[S]:
        values = {"normal": 0.0, "sacralised": 1.0, "lumbarised": 1.0}
        return [
            replace(score, value=values.get(decisions[score.case_id]), convention=score.convention + READ)
            if score.metric == TRANSITIONAL and score.case_id in decisions
            else score
            for score in scores
        ]

    def fit(
        self, ws: "Settings", fitted_on: Sequence[CaseScore], tested_on: Sequence[CaseScore], origin: Origin
    ) -> Fitted | None:
        settings = risk(ws)
        fit_scores, test_scores = frame(CaseScore, fitted_on), frame(CaseScore, tested_on)
        normals, presumed = normal_cases(fit_scores, settings)
        if not normals:
            return None
        measured, tested = tables_of(fit_scores), tables_of(test_scores)
        record = fit(
            {case: measured[case] for case in normals},
            {score.case_id: score.patient_id for score in fitted_on},
            settings,
            checkpoint=origin.checkpoint,
            dataset_version=origin.dataset_version,
            trained_on=origin.trained_on,
            synthetic=origin.synthetic,
            presumed=presumed,
        )
        others = [tested[case] for case in normal_cases(test_scores, settings)[0]]
        thresholds = []
        for one in record.thresholds:
            flags = [one.flags(table[one.level][one.measure]) for table in others]
            thresholds.append(
                FittedThreshold(
                    measure=one.measure,
                    subject=one.level,
                    unit=MEASURES[one.measure].unit,
                    rate=one.rate,
                    value=one.value,
                    promised_rate=one.promised_rate,
                    n=one.n,
                    undefined=one.undefined,
                    tested=len(others),
                    flagged=None if one.value is None else sum(map(bool, flags)),
                )
            )
        return Fitted(record.model_dump(mode="json", by_alias=True), thresholds)

    def table(self, ws: "Settings", screened: Screened) -> "pd.DataFrame":
        import pandas as pd

        from med_assets.programs.lumbar_mr import studies
        from med_assets.programs.lumbar_mr.uncertainty import shifted_levels

        record = None if screened.record is None else Thresholds.model_validate(screened.record)
        wide = studies.wide(screened.rows).set_index("case_id")
        facts = screened.rows.drop_duplicates("case_id").set_index("case_id")
        known = studies.anatomies(screened.rows)
        rows = []
        for rank, (case, table, _) in enumerate(studies.ordered(screened.rows, risk(ws)), 1):
            study, series = uids(screened.raw[case])
            missing = [level for level in LEVELS if table[level]["entropy"] is None]
            rows.append(
                {
                    "study_id": study,
                    "series_id": series,
                    **wide.loc[case].to_dict(),
                    RANK: rank,
                    RISK: record.risk(table) if record else "Unknown",
                    "not_found": " ".join(missing),
                    "count_may_be_shifted": " ".join(shifted_levels(table)),
                    "anatomy": known.get(case, UNKNOWN),
                    "synthetic": bool(facts.at[case, "synthetic"]),
                    "seen_in_training": bool(facts.at[case, "seen_in_training"]),
                    "split": facts.at[case, "split"],
                    "case_id": case,
                    "thresholds": record.version if record else None,
                }
            )
        return pd.DataFrame(rows)

    def sections(self, ws: "Settings", screened: Screened, out: Path) -> list[ReportTable]:
        from med_assets.programs.lumbar_mr import studies
        from med_assets.programs.lumbar_mr.pictures import plot, plot_distributions, plot_levels, plot_overview
        from med_assets.programs.lumbar_mr.tables import separation

        record = None if screened.record is None else Thresholds.model_validate(screened.record)
        settings = risk(ws)
        unseen = screened.rows[~screened.rows["seen_in_training"].astype(bool)]
        apart = separation(unseen)
        listed = studies.candidates(screened.rows, settings, record, SHOWN)
        pictures = [plot(screened.prepared[case], screened.predicted[case], out)[0] for case in listed.rows["case"]]
        captions = [
            f"{row['rank']}. risk {row['risk'].lower()}, anatomy {row['anatomy']}"
            for row in listed.rows.to_dict("records")
        ]
        distributions = plot_distributions(screened.rows, record, settings, out / "distributions.png")
        statistics = studies.statistics(screened.rows)
        return [
            studies.dashboard(screened.rows, settings, record),
            replace(statistics, images=(plot_overview(screened.rows, settings, out / "overview.png"),)),
            ReportTable(
                f"Distributions at {settings.level}",
                f"Each dot is a study; dashed lines are the thresholds of Medium and High. {studies.promise(record)}",
                studies.thresholds_table(screened.thresholds, settings),
                (distributions,),
            ),
            ReportTable(listed.title, listed.text, listed.rows, tuple(pictures), tuple(captions)),
            ReportTable(
                "Level comparison",
                "The same measure at all five levels: a model that is unsure everywhere sees a bad image rather than a transition.",
                studies.by_level(screened.rows, settings),
                (plot_levels(screened.rows, settings, out / "levels.png"),),
            ),
            replace(
                apart, text=f"Of the {unseen['case_id'].nunique()} studies that had no part in training. {apart.text}"
            ),
        ]


def risk(ws: "Settings") -> RiskSettings:
    """The settings of this workspace. MED_ASSETS_LUMBAR_MR_UNJUDGED, the former name of the option, is read with a warning."""
    former = ws.option("lumbar_mr", FORMER, "")
    if former:
        warnings.warn(
            "MED_ASSETS_LUMBAR_MR_UNJUDGED is now MED_ASSETS_LUMBAR_MR_UNLABELLED: rename it",
            FutureWarning,
            stacklevel=2,
        )
    return risk_settings(ws.option("lumbar_mr", "unlabelled", former))


def uids(raw: Path) -> tuple[str, str]:
    """Return the (pseudonymous) StudyInstanceUID and SeriesInstanceUID of a stored case's MR series."""
    from pydicom import dcmread

    tags = ["Modality", "StudyInstanceUID", "SeriesInstanceUID"]
    found = (dcmread(path, specific_tags=list(tags)) for path in sorted(raw.glob("*.dcm")))
    first = next(ds for ds in found if ds.Modality == "MR")
    return str(first.StudyInstanceUID), str(first.SeriesInstanceUID)
