"""Classes by logistic regression on facts of a case, such as age and site, without its volume."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from med_assets.programs.retinal_oct.experiment import OfFacts
from med_assets.programs.retinal_oct.prepared import PreparedCase
from med_assets.programs.retinal_oct.vocabulary import CLASSES, SITES

EYES = ("L", "R")

SEXES = ("F", "M")

STEPS = 200
"""Most steps of L-BFGS; the problem is convex and has some ten coefficients for each class."""


def columns(settings: OfFacts) -> tuple[str, ...]:
    """Names of the features, in their order."""
    names = {
        "age": ("age", "age not stated"),
        "sex": tuple(f"sex {name}" for name in SEXES),
        "site": tuple(f"site {name}" for name in SITES),
        "laterality": tuple(f"eye {name}" for name in EYES),
    }
    return tuple(name for fact in settings.facts for name in names[fact])


def features_of(cases: Sequence[PreparedCase], settings: OfFacts, age_mean: Tensor, age_std: Tensor) -> Tensor:
    """Return the features (case, feature) of cases, in double precision.

    An age is less the mean over the standard deviation of the training cases, and 0 with a mark of its own where it is not stated; a sex, site or
    eye that is not stated, or another one, has no mark.
    """
    rows = []
    for case in cases:
        age = case.age_years
        values = {
            "age": (0.0 if age is None else (age - float(age_mean)) / float(age_std), float(age is None)),
            "sex": tuple(float(case.sex == name) for name in SEXES),
            "site": tuple(float(case.clinical_site == name) for name in SITES),
            "laterality": tuple(float(case.laterality == name) for name in EYES),
        }
        rows.append([value for fact in settings.facts for value in values[fact]])
    return torch.tensor(rows, dtype=torch.float64)


def fit_facts(cases: Sequence[PreparedCase], settings: OfFacts, class_weights: Tensor) -> dict[str, Tensor]:
    """Fit a multinomial logistic regression; returns `coefficients` (feature, class), `intercept` (class), `age_mean` and `age_std`.

    The loss is the mean over cases of the weighted cross entropy, and half the penalty times the squared coefficients; the intercept is not penalised. It
    starts at 0 and has one minimum, so it depends on no seed.
    """
    ages = torch.tensor([case.age_years for case in cases if case.age_years is not None], dtype=torch.float64)
    mean = ages.mean() if len(ages) else torch.zeros((), dtype=torch.float64)
    std = ages.std() if len(ages) > 1 and float(ages.std()) > 0 else torch.ones((), dtype=torch.float64)
    rows = features_of(cases, settings, mean, std)
    labels = torch.tensor([case.label for case in cases])
    coefficients = torch.zeros(rows.shape[1], len(CLASSES), dtype=torch.float64, requires_grad=True)
    intercept = torch.zeros(len(CLASSES), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [coefficients, intercept], max_iter=STEPS, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        each = torch.nn.functional.cross_entropy(rows @ coefficients + intercept, labels, reduction="none")
        loss = (class_weights.double()[labels] * each).mean() + settings.penalty / 2 * coefficients.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimiser.step(closure)
    return {
        "coefficients": coefficients.detach(), "intercept": intercept.detach(), "age_mean": mean, "age_std": std,
    }  # fmt: skip


def logits_of_facts(cases: Sequence[PreparedCase], settings: OfFacts, weights: Mapping[str, Tensor]) -> Tensor:
    """Return the logits (case, class) of cases."""
    rows = features_of(cases, settings, weights["age_mean"], weights["age_std"])
    return rows @ weights["coefficients"] + weights["intercept"]
