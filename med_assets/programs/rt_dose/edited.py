"""A prepared case with other planning constraints than those of its site, for a prediction of what they would change."""

import os
from collections.abc import Sequence
from pathlib import Path

from med_assets.capabilities import EDITED
from med_assets.errors import ConfigurationError
from med_assets.programs.rt_dose.site import VOLUME_SCALE_CC, Site
from med_assets.storage.files import read_json, write_json
from med_assets.storage.names import escaped


def edit_constraints(prepared: Path, out: Path, site: Site, edits: Sequence[str]) -> None:
    """Fill `out`, an empty folder, with the arrays of a prepared case and its constraints as `edits` say, such as "rectum V50=0.4".

    A name is a target of the site's constraint vector, whose value is in Gy, or the meaning of one of its limits, whose value is in the unit
    of its kind: a fraction, Gy or cc. Raises ConfigurationError for another name, for no number, and for a case of another site.
    """
    case = read_json(prepared / "case.json")
    if case["site"] != site.name:
        raise ConfigurationError(f"expected a case of the site {site.name}, got one of {escaped(case['site'])}")
    prescription = float(case["prescription_gy"])
    scales = {name: prescription for name, _ in site.constraint_targets}
    kinds = {"fraction": 1.0, "dose_gy": prescription, "volume_cc": VOLUME_SCALE_CC}
    scales |= {limit.meaning: kinds[limit.kind] for limit in site.constraint_limits}
    places = {name: place for place, name in enumerate(scales)}
    found = parse(edits, tuple(scales))
    values = list(case["constraints"])
    for name, value in found.items():
        values[places[name]] = value / scales[name]
    for path in prepared.iterdir():
        if path.name not in ("case.json", "manifest.json"):
            os.symlink(path.resolve(), out / path.name)
    write_json(out / "case.json", {**case, "constraints": values})
    write_json(out / EDITED, found)


def parse(edits: Sequence[str], known: Sequence[str]) -> dict[str, float]:
    """Return values by name of texts NAME=VALUE. Raises ConfigurationError."""
    found = {}
    for edit in edits:
        name, equals, text = edit.rpartition("=")
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not equals or not 0 <= value < float("inf"):
            raise ConfigurationError(
                f"expected a constraint as NAME=VALUE with a number from 0 up, such as {known[-1]}=0.5, got {escaped(edit)}"
            )
        match = [one for one in known if one.casefold() == name.strip().casefold()]
        if not match:
            raise ConfigurationError(
                f"expected one of the constraints {', '.join(known)}; got {escaped(name)}; see conf/rt_dose/sites"
            )
        found[match[0]] = value
    return found
