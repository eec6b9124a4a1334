"""A synthetic prostate case with a simultaneous integrated boost (70 / 56 Gy), written as real DICOM-RT files.

The anatomy is ellipsoids in millimetres around the isocentre; the dose falls off from the targets as arcs deliver it
and spares the organs at risk. It is for demos and tests: no number measured on it says anything about patients.
"""

import hashlib
from pathlib import Path

import numpy as np

from med_assets.dicom.geometry import Geometry, Volume
from med_assets.dicom.write import write_ct, write_rtdose, write_rtplan, write_rtstruct
from med_assets.programs.phantoms import axes, centred_geometry, identity_of_phantom, new_case

PRESCRIPTION_GY = 70.0
ELECTIVE_GY = 56.0
FRACTIONS = 28

ROI_NAMES: dict[str, tuple[str, ...]] = {
    "PTV70": ("PTV70", "PTV_70", "PTV 70Gy", "ptv-70", "PTV_7000"),
    "PTV56": ("PTV56", "PTV_56", "PTV 56Gy", "ptv-56", "PTV_5600"),
    "Prostate": ("Prostate", "PROSTATE", "CTV_Prostate"),
    "Rectum": ("Rectum", "RECTUM", "Rectum_O"),
    "Bladder": ("Bladder", "BLADDER", "Urinary Bladder"),
    "Femur_L": ("Femur_L", "Femur Left", "FemoralHead_L", "Femoral_Head_L"),
    "Femur_R": ("Femur_R", "Femur Right", "FemoralHead_R", "Femoral_Head_R"),
    "Bowel": ("Bowel", "Bowel_Bag", "BowelBag"),
    "Body": ("BODY", "External"),
}
"""The names that centres give each structure; a case takes one of them by its seed."""

TISSUE_HU = {"air": -1000, "fat": -100, "muscle": 45, "soft": 35, "urine": 8, "bone": 420, "gas": -820, "couch": -650}


def write_case(
    folder: Path,
    seed: int,
    *,
    shape: tuple[int, int, int] = (48, 64, 64),
    spacing_mm: tuple[float, float, float] = (4.0, 5.0, 5.0),
    patient_id: str | None = None,
) -> None:
    """Write CT/, structure set, plan and dose of one synthetic patient into a new `folder`, which appears complete.

    The same arguments give the same bytes. `patient_id` is PHANTOM-<seed> unless given, which makes a second case of
    one patient. The anatomy needs a field of view of about 190 x 300 x 320 mm (z, y, x). Raises FileExistsError.
    """
    rng = np.random.default_rng([seed, *shape])
    geometry = centred_geometry(shape, spacing_mm)
    masks = anatomy(geometry, rng)
    identity = identity_of_phantom("prostate", seed, f"{shape} {spacing_mm}", patient_id)
    names = {structure: str(rng.choice(choices)) for structure, choices in ROI_NAMES.items()}
    stem = hashlib.sha256(identity.study_uid.encode()).hexdigest()
    with new_case(folder) as part:
        series_uid = identity.uid("CT series")
        ct_uids = write_ct(part / "CT", Volume(ct_hu(geometry, masks, rng), geometry), identity, series_uid)
        rois = {names[structure]: mask for structure, mask in masks.items() if structure in names}
        structures_uid = write_rtstruct(part / stem[:8], rois, geometry, identity, series_uid, ct_uids)
        numbers = {name: number for number, name in enumerate(rois, start=1)}
        targets = {numbers[names["PTV70"]]: PRESCRIPTION_GY, numbers[names["PTV56"]]: ELECTIVE_GY}
        plan_uid = write_rtplan(part / stem[8:16], PRESCRIPTION_GY, FRACTIONS, targets, identity, structures_uid)
        write_rtdose(part / stem[16:24], Volume(dose_gy(geometry, masks, rng), geometry), identity, plan_uid)


def anatomy(geometry: Geometry, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Boolean masks of the structures in `ROI_NAMES`, and of Bone, Gas, Fat and Couch, which are not contoured."""
    z, y, x = axes(geometry)
    size = rng.uniform(0.88, 1.12, 6)
    tilt, shift = rng.uniform(-0.15, 0.15), rng.uniform(-5, 5, 3)

    def ellipsoid(cz: float, cy: float, cx: float, rz: float, ry: float, rx: float) -> np.ndarray:
        return np.asarray(((z - cz) / rz) ** 2 + ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1)

    def cylinder(cy: np.ndarray | float, cx: np.ndarray | float, ry: float, rx: float) -> np.ndarray:
        return np.broadcast_to(((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1, geometry.shape).copy()

    wide, tall = 138 * size[0], 98 * size[0]
    body = cylinder(0, 0, tall, wide)
    rz, ry, rx = 22 * size[1], 20 * size[1], 24 * size[1]
    pz, py, px = shift * (0.6, 0.8, 0.4)
    prostate = ellipsoid(pz, py, px, rz, ry, rx)
    vesicle_z, vesicle_y = pz + rz, py + 0.6 * ry
    ptv70 = ellipsoid(pz, py, px, rz + 6, ry + 6, rx + 6)
    vesicles = ellipsoid(vesicle_z, vesicle_y, px, 14, 14, rx + 10)
    ptv56 = ellipsoid(pz, py, px, rz + 9, ry + 8, rx + 9) | vesicles
    # Elective nodes beside the bladder: from none to long on each side, which is what makes one plan unlike the next.
    for side, reach_mm in zip((1, -1), rng.uniform(-20, 60, 2), strict=True):
        ptv56 |= cylinder(py - 8, px + side * 58, 15, 13) & (z > pz + 8) & (z < pz + 8 + reach_mm)
    fill = size[2]
    bladder = ellipsoid(pz + rz + 20 * fill, py - 22, px, 30 * fill, 28 * fill, 36 * fill) & ~prostate
    rectum_y = py + ry + 17 * size[3] + tilt * z + 8 * np.cos((z - pz) / 30.0)
    rectum = cylinder(rectum_y, px, 14 * size[3], 16 * size[3]) & (z > pz - 48) & (z < pz + 62) & ~prostate
    gas = ellipsoid(pz + 40, float(np.mean(rectum_y)), px, 12, 6, 6) & rectum
    bone, masks = np.zeros(geometry.shape, bool), {}
    for name, side in (("Femur_L", 1), ("Femur_R", -1)):
        head_z, head_x = pz + 18, side * 88 * size[0]
        head = ellipsoid(head_z, 4, head_x, 24 * size[4], 24 * size[4], 24 * size[4])
        shaft = cylinder(4, head_x + side * 12, 15 * size[4], 15 * size[4]) & (z < head_z - 8) & (z > head_z - 75)
        masks[name] = (head | shaft) & body
        bone |= ellipsoid(head_z + 8, 4, head_x, 40, 34, 36) & ~ellipsoid(head_z, 4, head_x, 28, 28, 28)
        bone |= ellipsoid(pz + 2, -48, side * 30, 14, 9, 26)
    bone |= ellipsoid(pz + 75, 72 * size[0], 0, 60, 16, 44)
    bowel = np.zeros(geometry.shape, bool)
    for cz, cy, cx in rng.uniform((66, -55, -50), (92, -5, 50), (6, 3)):
        bowel |= ellipsoid(pz + cz, cy, cx, 20 * size[5], 24, 26)
    bowel &= body & ~bladder & ~rectum & ~ptv56
    couch = np.broadcast_to((y > tall + 6) & (y < tall + 20) & (abs(x) < 0.93 * wide), geometry.shape).copy()
    fat = body & ~cylinder(0, 0, tall - 22, wide - 18)
    return masks | {
        "PTV70": ptv70, "PTV56": ptv56, "Prostate": prostate, "Rectum": rectum, "Bladder": bladder, "Bowel": bowel,
        "Body": body, "Bone": bone & body & ~fat, "Gas": gas, "Fat": fat, "Couch": couch,
    }  # fmt: skip


def ct_hu(geometry: Geometry, masks: dict[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """CT numbers, float32, of the anatomy: one value per tissue, blurred a little, with noise of 12 HU."""
    from scipy.ndimage import gaussian_filter

    hu = np.full(geometry.shape, float(TISSUE_HU["air"]))
    for mask, tissue in (
        ("Body", "muscle"), ("Fat", "fat"), ("Bone", "bone"), ("Femur_L", "bone"), ("Femur_R", "bone"),
        ("Bladder", "urine"), ("Rectum", "soft"), ("Bowel", "soft"), ("Prostate", "soft"), ("Gas", "gas"),
        ("Couch", "couch"),
    ):  # fmt: skip
        hu[masks[mask]] = TISSUE_HU[tissue]
    hu = gaussian_filter(hu, 0.4) + rng.normal(0, 12, geometry.shape)
    return np.clip(hu, -1024, 3000).astype(np.float32)


def dose_gy(geometry: Geometry, masks: dict[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Arc-like dose in Gy, float32: each target near its prescription (D95 of PTV70 is 97.5-99.5 % of it), 0 outside
    the body, falling off with the distance to the targets, faster within the rectum, bladder, bowel and femurs."""
    from scipy.ndimage import distance_transform_edt, gaussian_filter

    _, y, x = axes(geometry)
    ptv70, ptv56 = masks["PTV70"], masks["PTV56"]
    organs = masks["Rectum"] | masks["Bladder"] | masks["Bowel"] | masks["Femur_L"] | masks["Femur_R"]
    sparing = gaussian_filter(organs.astype(float), 1.0)
    arcs = 1 + 0.02 * np.cos(6 * np.arctan2(y, x) + rng.uniform(0, 2 * np.pi))
    reach_mm = 26 * rng.uniform(0.98, 1.02) * (1 - 0.3 * sparing) * arcs

    def fall_off(target: np.ndarray, full_mm: float) -> np.ndarray:
        distance_mm = distance_transform_edt(~target, sampling=geometry.spacing_mm)
        return np.asarray(1 / (1 + (np.clip(distance_mm - full_mm, 0, None) / reach_mm) ** 1.5))

    dose = np.maximum(PRESCRIPTION_GY * fall_off(ptv70, 0.0), 1.03 * ELECTIVE_GY * fall_off(ptv56, 2.0))
    texture = gaussian_filter(rng.normal(0, 1, geometry.shape), 2.0)
    dose = gaussian_filter(dose, 0.5) * (1 + 0.008 * texture / texture.std())
    dose[~masks["Body"]] = 0
    dose *= PRESCRIPTION_GY * rng.uniform(0.975, 0.995) / np.percentile(dose[ptv70], 5)
    return np.clip(dose, 0, 1.08 * PRESCRIPTION_GY).astype(np.float32)
