"""The commands of `med-assets` and their arguments."""

import argparse
from collections.abc import Callable
from pathlib import Path

from med_assets import __version__, program
from med_assets.cli import commands
from med_assets.cli import weights as commands_weights
from med_assets.errors import ConfigurationError
from med_assets.launch.configuration import LAUNCHERS
from med_assets.storage import names


def _source(text: str) -> Path | str:
    return text if "://" in text else Path(text)


def _name(kind: names.Kind) -> Callable[[str], str]:
    """The check of an argument that is a name."""

    def check(text: str) -> str:
        try:
            return kind.check(text)
        except ConfigurationError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return check


def _experiment(text: str) -> tuple[str, str]:
    name, slash, experiment = text.partition("/")
    if not (name and slash and experiment):
        raise argparse.ArgumentTypeError(
            f"expected PROGRAM/EXPERIMENT such as rt_dose/baseline, got {names.escaped(text)}"
        )
    return _name(names.PROGRAM)(name), _name(names.EXPERIMENT)(experiment)


def _program_or_experiment(text: str) -> tuple[str, str | None]:
    return _experiment(text) if "/" in text else (_name(names.PROGRAM)(text), None)


def _label_name(text: str) -> tuple[int, str]:
    value, equals, name = text.partition("=")
    if not (value.isdecimal() and equals and name.strip()):
        raise argparse.ArgumentTypeError(f"expected VALUE=NAME such as 1=lung_tumor, got {text!r}")
    return int(value), name.strip()


def parser() -> argparse.ArgumentParser:
    """The whole command line; `docs/cli.md` is written from it."""
    top = argparse.ArgumentParser(
        prog="med-assets",
        description="From raw DICOM to evaluated, promoted models. "
        "Settings come from MED_ASSETS_* variables, see docs/settings.md.",
    )
    top.add_argument("--version", action="version", version=__version__)
    top.add_argument("--debug", action="store_true", help="log every step, and show where in the code an error arose")
    sub = top.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: commands.Command, help: str, *, program_first: bool = False) -> argparse.ArgumentParser:
        added = sub.add_parser(name, help=help, description=help)
        added.set_defaults(run=run)
        if program_first:
            added.add_argument(
                "program",
                type=_name(names.PROGRAM),
                metavar="PROGRAM",
                choices=program.registered(),
                help="program, such as rt_dose",
            )
        return added

    add = command(
        "import", commands.import_cases, "Turn a public data set, or image and label volumes, into DICOM case folders."
    )
    add.add_argument(
        "source",
        choices=(
            "openkbp",
            "msd",
            "datalist",
            "pair",
            "lumbar-t2",
            "rsna-lumbar",
            "ai-readi",
            "busi",
            "busbra",
            "bus-uclm",
        ),
        help="what to read: OpenKBP, a task of the Medical Segmentation Decathlon, a MONAI datalist, one image and its label, "
        "lumbar T2 volumes with labelled bodies, RSNA 2024 lumbar spine, retinal OCT of AI-READI, or breast ultrasound of "
        "BUSI, BUSBRA or BUS-UCLM",
    )
    add.add_argument(
        "src",
        type=_source,
        nargs="+",
        metavar="SRC",
        help="the data set's folder as its authors publish it, the datalist's JSON file, or for a pair IMAGE LABEL "
        "(NIfTI, NRRD; the image may be a folder of DICOM slices); ai-readi: or s3://bucket/prefix",
    )
    add.add_argument("dest", type=Path, metavar="DEST", help="folder for the case folders, such as the landing folder")
    add.add_argument(
        "--patients",
        nargs="+",
        metavar="NAME",
        help="openkbp: only these patients, such as pt_1 pt_2; lumbar-t2: these cases; rsna-lumbar: these studies; ai-readi: these participants",
    )
    add.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="lumbar-t2, rsna-lumbar, ai-readi, breast ultrasound: only the first N, for a trial run",
    )
    add.add_argument(
        "--external", action="store_true", help="breast ultrasound: an external test set, which is never trained on"
    )
    add.add_argument(
        "--val-fold", type=int, default=0, metavar="K", help="msd, datalist: fold that is validation (default 0)"
    )
    add.add_argument(
        "--names",
        nargs="+",
        type=_label_name,
        metavar="VALUE=NAME",
        help="names of label values, such as 1=lung_tumor; they win over those of the data set",
    )
    add.add_argument(
        "--name", metavar="NAME", help="pair: name of the case and patient (default: folder and file name of the image)"
    )

    add = command(
        "phantoms",
        commands.phantoms,
        "Write synthetic cases as real DICOM files, marked synthetic.",
        program_first=True,
    )
    add.add_argument("dest", type=Path, metavar="DEST", help="folder for the case folders")
    add.add_argument("-n", "--number", type=int, default=1, metavar="N", help="how many cases (default 1)")
    add.add_argument("--seed", type=int, default=0, metavar="SEED", help="seed of the first case (default 0)")

    add = command(
        "ingest",
        commands.ingest,
        "Take in, prepare, audit and split what lies in the landing folder.",
        program_first=True,
    )
    add.add_argument("--now", action="store_true", help="do not wait for files to settle")
    add.add_argument(
        "--batch", type=_name(names.BATCH), metavar="BATCH", help="do one known batch again instead of taking a new one"
    )

    command(
        "batches",
        commands.list_batches,
        "List the batches taken, and what waits in the landing folder.",
        program_first=True,
    )

    add = command(
        "experiments",
        commands.experiments,
        "List experiments, write the index of a program's, or print one as it would be trained.",
    )
    add.add_argument(
        "experiment",
        nargs="?",
        type=_program_or_experiment,
        metavar="PROGRAM[/EXPERIMENT]",
        help="write and print the index of this program: every run and where it stands; or print this one in full",
    )
    add.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="change fields of the experiment")

    add = command(
        "train", commands.train, "Train one experiment on the present dataset and splits; resumes what was interrupted."
    )
    add.add_argument("experiment", type=_experiment, metavar="PROGRAM/EXPERIMENT", help="such as rt_dose/baseline")
    add.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="change fields, such as schedule.epochs=2")
    add.add_argument(
        "--launcher",
        choices=tuple(LAUNCHERS),
        help="what runs the training; without it launch.launcher of the experiment, else MED_ASSETS_LAUNCHER",
    )
    add.add_argument(
        "--resume",
        choices=("auto", "must", "never"),
        default="auto",
        help="a training that was begun: go on with it if there is one (auto), refuse if there is none (must), begin anew (never)",
    )

    add = command(
        "crossval",
        commands.crossval,
        "Cross-validate an experiment over the folds of the splits: a model per fold, scored on the patients it never saw.",
    )
    add.add_argument("experiment", type=_experiment, metavar="PROGRAM/EXPERIMENT", help="such as lumbar_mr/point_net")
    add.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="change fields, such as schedule.epochs=20")

    add = command(
        "learning-curve",
        commands.learning_curve,
        "Train an experiment on ever more patients: its score against their number, and what twice as many may give.",
    )
    add.add_argument("experiment", type=_experiment, metavar="PROGRAM/EXPERIMENT", help="such as rt_dose/baseline")
    add.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="change fields, such as schedule.epochs=20")
    add.add_argument(
        "--sizes", type=int, nargs="+", metavar="N", help="training patients; those of _program.yaml by default"
    )
    add.add_argument("--repeats", type=int, metavar="K", help="orders of the patients, each a training per size")

    add = command("evaluate", commands.evaluate, "Formally evaluate an experiment's checkpoint on the fixed splits.")
    add.add_argument("experiment", type=_experiment, metavar="PROGRAM/EXPERIMENT", help="such as rt_dose/baseline")

    add = command(
        "record",
        commands.record,
        "Draw the figures of an evaluated experiment for print, and write its notebook, executed.",
    )
    add.add_argument("experiment", type=_experiment, metavar="PROGRAM/EXPERIMENT", help="such as rt_dose/baseline")

    add = command(
        "thresholds",
        commands.thresholds,
        "Fit what calls a case unusual on the normal validation cases of an evaluation, and count false alarms on the test cases.",
    )
    add.add_argument("experiment", type=_experiment, metavar="PROGRAM/EXPERIMENT", help="such as lumbar_mr/point_net")
    add = command("score", commands.score_folders, "Score a folder of masks against another, from anywhere.")
    add.add_argument(
        "predicted",
        type=Path,
        metavar="PRED_DIR",
        help="predicted masks or probabilities: pictures, NIfTI, NRRD, DICOM SEG",
    )
    add.add_argument(
        "truth", type=Path, metavar="GT_DIR", help="true masks of the same names; NAME_mask, NAME_mask_1 are united"
    )
    add.add_argument("--pixel-mm", type=float, metavar="MM", help="size of a pixel, for distances in mm")
    add.add_argument(
        "--values",
        choices=("labels", "probabilities"),
        help="what predicted files hold (default: probabilities in floating-point files, labels in others)",
    )
    add.add_argument("--against", type=Path, metavar="PRED_DIR", help="other predictions, to compare image by image")
    add.add_argument("--out", type=Path, metavar="CSV", help="write the scores of every image here")

    add = command("export", commands.export, "Write the network of an experiment for other runtimes, as ONNX.")
    add.add_argument("experiment", type=_experiment, metavar="PROGRAM/EXPERIMENT", help="such as breast_us/tinyusfm")
    add.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to write to")

    command(
        "leaderboard",
        commands.leaderboard,
        "Compare all evaluated experiments, with n and intervals.",
        program_first=True,
    )
    add = command(
        "promote",
        commands.promote,
        "Promote the best experiment if it passes the gate, and say why or why not.",
        program_first=True,
    )
    add.add_argument(
        "--experiment",
        type=_name(names.EXPERIMENT),
        metavar="NAME",
        help="only this one stands, also after its checkpoint was rolled back",
    )

    add = command("rollback", commands.rollback, "Make an earlier champion the champion again.", program_first=True)
    add.add_argument(
        "--to",
        type=_name(names.ARTIFACT),
        metavar="CHECKPOINT",
        help="this earlier champion (default: the one before the present)",
    )
    add.add_argument(
        "--reason",
        required=True,
        metavar="TEXT",
        help="why, for the record; write nothing here that identifies a person",
    )

    command(
        "monitor",
        commands.monitor,
        "Score the champion on every batch that it was not scored on yet; show trend and drift.",
        program_first=True,
    )
    add = command(
        "analyse",
        commands.analyse,
        "Run the analyses of a program, or one of them, and write tables and plots.",
        program_first=True,
    )
    add.add_argument(
        "name",
        nargs="?",
        type=_name(names.ANALYSIS),
        metavar="NAME",
        help="only this one; all that are not expensive by default",
    )
    command("report", commands.report, "Write the HTML report and print where it is.", program_first=True)

    add = command(
        "cases", commands.cases, "List cases with their state, split and reason for quarantine.", program_first=True
    )
    add.add_argument("--quarantined", action="store_true", help="only cases that can't be used")

    add = command(
        "weights",
        commands_weights.weights,
        "Say what a file of released weights is, which experiment takes it, and what a network computes with it.",
    )
    add.add_argument(
        "file", nargs="?", type=Path, metavar="FILE", help="file of weights, or tokenizer.json with --prompt"
    )
    add.add_argument(
        "--experiment",
        type=_experiment,
        metavar="PROGRAM/EXPERIMENT",
        help="try it in this experiment instead of the one that takes such files",
    )
    add.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override of the experiment, such as profiles=demo",
    )
    add.add_argument("--prompt", metavar="TEXT", help="print the tokens of a text, for network.prompt of SAM3")
    add.add_argument("--table", type=Path, metavar="PAGE", help="write the table of released weights into this page")

    add = command("explain", commands.explain, "Tell what happened to one case, from file to model.")
    add.add_argument("case", type=_name(names.CASE), metavar="CASE", help="case id, or its first characters")

    add = command(
        "predict",
        commands.predict,
        "Predict all cases without a label, one case, or every case in a folder, and write DICOM and NIfTI for viewers and planning systems.",
        program_first=True,
    )
    add.add_argument(
        "case",
        nargs="?",
        metavar="CASE|FOLDER",
        help="case id, or its first characters; or a folder, of which nothing is taken in; all that wait for the champion by default",
    )
    add.add_argument(
        "--relink",
        action="store_true",
        help="of a folder: give the written DICOM the patient and UIDs of the files instead of pseudonyms",
    )
    add.add_argument(
        "--model",
        type=_name(names.EXPERIMENT),
        metavar="EXPERIMENT",
        help="model of this experiment; the champion by default",
    )
    add.add_argument("--out", type=Path, metavar="FOLDER", help="folder to write to, of one case or folder")

    add = command(
        "debug",
        commands.debug_case,
        "Draw every step of one case, from arrays to scores.",
        program_first=True,
    )
    add.add_argument("case", type=_name(names.CASE), metavar="CASE", help="case id, or its first characters")
    add.add_argument(
        "--model",
        type=_name(names.EXPERIMENT),
        metavar="EXPERIMENT",
        help="model of this experiment; the champion by default",
    )
    add.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to write to")

    add = command(
        "audit-queue",
        commands.audit_queue,
        "Write all cases by risk, and the queue of those to be read first, as CSV; or take over what was decided about them.",
        program_first=True,
    )
    add.add_argument("--read", type=Path, metavar="FILE", help="take over the column decision of this CSV")
    add.add_argument(
        "--model",
        type=_name(names.EXPERIMENT),
        metavar="EXPERIMENT",
        help="model of this experiment; the one of the report by default",
    )
    add.add_argument("--top", type=int, default=60, metavar="N", help="cases in the queue (default 60)")
    add.add_argument("--limit", type=int, metavar="N", help="only the first N cases by id, for a trial run")

    add = command("withdraw", commands.withdraw, "Take a case out of the dataset from now on.", program_first=True)
    add.add_argument("case", type=_name(names.CASE), metavar="CASE", help="case id, in full")
    add.add_argument(
        "--reason",
        required=True,
        metavar="TEXT",
        help="why, for the record; write nothing here that identifies a person",
    )

    add = command("query", commands.query, "Run SQL over the tables of the lake.")
    add.add_argument("sql", metavar="SQL", help="such as: select * from raw_cases")
    add.add_argument(
        "--format", choices=("table", "csv", "json"), default="table", help="how to print rows (default table)"
    )

    add = command(
        "verify", commands.verify, "Read every stored artifact back: what is damaged or lost, and how to get it again."
    )
    add.add_argument(
        "--repair", action="store_true", help="take out what can be made again, and say which command does"
    )

    add = command(
        "doctor", commands.run_doctor, "Check installation, configuration, disk and accelerator, and say what to do."
    )
    add.add_argument(
        "part",
        nargs="?",
        choices=("s3",),
        help="s3: only the buckets of landing zone and store, from settings to a write",
    )
    return top
