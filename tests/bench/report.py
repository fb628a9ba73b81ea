"""The benchmark's record as text: the table, the stages, the machine, and a sentence for each row."""

import math

import pandas as pd

from cpsd_lib.workbench.defaults import RECIPES

EPOCHS = RECIPES["default"]["train"]["epochs"]
COLUMNS = ("part", "reference s", "ours s", "ratio", "spread", "goal", "same result?")


def table_text(record):
    """Return the table of a record, aligned, a line a part."""
    lines = [COLUMNS, *(_cells(row) for row in record["rows"])]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in (0, 6) else cell.rjust(width) for i, (cell, width) in enumerate(columns)
        ).rstrip()
        for columns in (zip(line, widths, strict=True) for line in lines)
    )


def frame(record):
    """Return the table of a record as a DataFrame of text, a row a part."""
    return pd.DataFrame([_cells(row) for row in record["rows"]], columns=COLUMNS).set_index("part")


def _cells(row):
    goal = "" if row["goal"] is None else f">= {row['goal']:g} {'yes' if row['reached'] else 'no'}"
    low, high = row["spread"]
    spread = "" if low is None else f"{_short(low)}-{_short(high)}"
    found = "NaN" if row["difference"] is None else f"{row['difference']:.1g}"
    same = f"{'same' if row['same'] else 'DIFFERS'}: {found} (at most {row['tolerance']:g})"
    return (
        row["part"],
        _short(row["reference_seconds"]),
        _short(row["our_seconds"]),
        _short(row["ratio"]),
        spread,
        goal,
        same,
    )


def _short(value):
    return "" if value is None else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


def stages_text(record):
    """Return how the whole table's time is shared out, a line a stage, both sides."""
    sides = record["stages"]
    totals = {side: sum(found.values()) for side, found in sides.items()}
    lines = [f"{'the whole table, by stage':<26}" + "".join(f"{side:>22}" for side in sides)]
    for stage in next(iter(sides.values())):
        lines.append(
            f"{stage:<26}" + "".join(f"{_share(found[stage], totals[side]):>22}" for side, found in sides.items())
        )
    return "\n".join(lines)


def _share(seconds, total):
    return f"{_short(seconds)} s ({100 * seconds / total if total else math.nan:.0f} %)"


def machine_text(record):
    """Return the line that says where and how this was measured."""
    machine, settings = record["machine"], record["settings"]
    hardware = machine["hardware"]
    gpu = f", {hardware['gpu']}" if record["device"].startswith("cuda") else ""
    quick = " A SMOKE TEST: its ratios mean nothing." if settings["quick"] else ""
    return (
        f"{hardware['cpu']}{gpu}, {hardware['cores']} cores, {hardware['torch_threads']} threads, load "
        f"{machine['load_before']} before and {machine['load_after']} after; torch {machine['versions']['torch']}, commit "
        f"{machine['commit']}. {settings['model']}, {settings['size']} px, k = {settings['k']}, {settings['images']} images, "
        f"batch {settings['batch']}, medians of {settings['repeats']} runs of each way in turn (the whole table: "
        f"{settings['whole_repeats']}).{quick}"
    )


def sentences(record, about=""):
    """Return two lines for each row whose part holds the text `about`: what it saves, and what is in its time."""
    return [_sentence(row) for row in record["rows"] if about in row["part"]]


def remarks(record):
    """Return what there is to say beside the rows: what decoding and storing took, and the use of a GPU."""
    spent = _short(record["store_seconds"])
    found = [f"Storing what the teachers say of one view of every photo took {spent} s, once.", *_amortised(record)]
    if record["gpu"]:
        gpu = record["gpu"]
        found.append(
            f"On the GPU the student trains on {_short(gpu['images_per_second'])} images a second: "
            f"{_short(gpu['model_tflops'])} TFLOP/s, {100 * gpu['utilisation']:.1f} % of the {_short(gpu['peak_tflops'])} "
            "that a bfloat16 matrix product reaches here."
        )
    return found


def _amortised(record):
    """Return a sentence on the first decode shared out over a training, where both rows of the default views are there."""
    rows = [row for row in record["rows"] if row["part"].startswith("views of") and "default" in row["part"]]
    if len(rows) < 2 or not all(row["same"] for row in rows):
        return []
    every, first = rows
    decoding = max(0.0, first["our_seconds"] - every["our_seconds"])
    ratio = EPOCHS * every["reference_seconds"] / (EPOCHS * every["our_seconds"] + decoding)
    return [
        f"The first decode took {_short(decoding)} s; shared out over the {EPOCHS} epochs of the default recipe,\n"
        f"    views of photos come {_short(ratio)} times faster (arithmetic from the two rows)."
    ]


def forwards(k):
    """Return (reference's, our) forward passes an image and epoch of the component table: a training step counts as 3.

    The baseline and 2k teachers train alike; of the four students, + SD hears 1 teacher, + CGPD and + DGPD k each, + CPSD 2k:
    asked in every step, or all 2k + 1 once. It bounds the ratio where nothing but the models takes time.
    """
    trained = 3 * (2 * k + 1) + 3 * 4
    return trained + 1 + 4 * k, trained + 2 * k + 1


def _sentence(row):
    if not row["same"]:
        return f"{row['part']}: the two results DIFFER ({row['compared']}), so there is no ratio to speak of."
    change = f"{_short(row['ratio'])} times faster" if row["ratio"] >= 1 else f"{_short(1 / row['ratio'])} times slower"
    rates = ""
    if row["items"]:
        slow, fast = (_short(row["items"] / row[side]) for side in ("reference_seconds", "our_seconds"))
        rates = f"; {slow} -> {fast} {row['unit']} a second"
    goal = (
        ""
        if row["goal"] is None
        else f" The goal of {row['goal']:g} is {'reached' if row['reached'] else 'not reached'}."
    )
    return f"{row['part']}: {change}.{goal}\n    {row['counted']}{rates}"


def exit_status(record):
    """Return 1 when a pair's results differ, else 0: a goal that is not reached is a figure, another result is a fault."""
    return 0 if all(row["same"] for row in record["rows"]) else 1
