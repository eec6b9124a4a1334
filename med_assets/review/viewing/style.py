"""Colours of labels, predictions and structures: light over a grey image, deep over white or over a map of differences."""

LABEL_COLOUR, PREDICTION_COLOUR = "#3DF59B", "#FFB000"

STRUCTURE_COLOURS = (
    ("#3DF59B", "#00875A"), ("#5CC8FF", "#0072B2"), ("#FF8AE2", "#B0398F"), ("#FFD84D", "#A67C00"),
    ("#FF9F6B", "#C2410C"), ("#D3C4FF", "#6D4BC3"), ("#B7E35F", "#5B7F12"), ("#FFFFFF", "#30343a"),
    ("#8FE9E6", "#0F8B8D"), ("#E6BE9C", "#8C564B"),
)  # fmt: skip
"""One hue for each structure, light and deep."""


def structure_colour(number: int, *, light: bool = True) -> str:
    """The colour of a structure by its place."""
    return STRUCTURE_COLOURS[number % len(STRUCTURE_COLOURS)][0 if light else 1]
