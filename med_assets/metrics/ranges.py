"""What values a metric can have, so that no interval claims a Dice above 1 or a distance below 0."""

import re
from dataclasses import dataclass

from med_assets.errors import ConfigurationError


@dataclass(frozen=True)
class Range:
    """Least and greatest value of a metric, in its unit; None where it has no bound on that side."""

    low: float | None
    high: float | None

    def cut(self, value: float | None) -> float | None:
        """Return a value, or the bound that it is beyond; None stays None."""
        if value is None:
            return None
        above = value if self.low is None else max(value, self.low)
        return above if self.high is None else min(above, self.high)

    def of_differences(self) -> "Range":
        """Return the range of the difference of two values, whichever is first."""
        if self.low is None or self.high is None:
            return ANY
        return Range(self.low - self.high, self.high - self.low)

    def __str__(self) -> str:
        low, high = ("unbounded" if end is None else f"{end:g}" for end in (self.low, self.high))
        return "unbounded" if (self.low, self.high) == (None, None) else f"{low} to {high}"


ANY = Range(None, None)
AGREEMENT = Range(-1.0, 1.0)
POSITIVE = Range(0.0, None)
SHARE = Range(0.0, 1.0)
PERCENT = Range(0.0, 100.0)
DIFFERENCE_OF_PERCENT = PERCENT.of_differences()

RANGES = {
    "accuracy|auroc|balanced_accuracy|boundary_f|calibration_error|confidence|correct_negative|dice|dice_training_grid": SHARE,
    "class_(dice|probability)": SHARE,
    "(dice|sensitivity)_by_size(_pooled)?|dice_with_normals|f1|found|image_correct|image_sensitivity|image_specificity|iou|lesion_sensitivity": SHARE,
    "lesion_touched|macro_f1|normal_recognised|pixel_accuracy|probability|second_peak_share|sensitivity": SHARE,
    "specificity|surface_dice|transitional|weighted_f1|within_.*mm": SHARE,
    "gamma_.*|limits_agreement": PERCENT,
    "weighted_kappa": AGREEMENT,
    "brier": Range(0.0, 2.0),
    "augmented_divergence|augmented_spread|class_confusion|entropy|false_positives_(per_scan|by_size)|hd95(_mm|_px)?|lesions|level_entropy": POSITIVE,
    "gradient_mae|limit_.*|localisation_error(_3d)?|log_loss|mae|openkbp_.*|prediction_error|region_entropy": POSITIVE,
    "second_peak_distance|slice_spread|spatial_entropy|volume": POSITIVE,
    "steep_gradients": DIFFERENCE_OF_PERCENT,
    "R50|dvh_.*|excess_entropy|gradient_me(asure|an_error)|logit|mean_error|volume_error": ANY,
}
"""The range of each metric, by a regular expression of its whole name."""


def range_of(metric: str) -> Range:
    """Return the range of a metric by its name. Raises ConfigurationError for one that states none."""
    for names, found in RANGES.items():
        if re.fullmatch(names, metric):
            return found
    raise ConfigurationError(
        f"expected the range of the metric {metric} in RANGES, got none; say there what values it can have"
    )
